"""One pair of a diff: both histograms over one axis, the worst elements, A, B and d."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from textual import on
from textual.binding import BindingType
from textual.containers import Horizontal, Vertical
from textual.message import Message
from textual.widget import Widget
from textual.worker import get_current_worker

from aprtui.compare.metrics import Cancelled
from aprtui.compare.pairs import FAILED, Pair, PairResult
from aprtui.compare.statistics import Histogram, histogram
from aprtui.errors import AprtuiError
from aprtui.formats.tracedir import StageKey
from aprtui.text import number
from aprtui.tui.keys import bindings
from aprtui.tui.messages import LoadFailed
from aprtui.tui.screens.base import BaseScreen
from aprtui.tui.stage_table import StageTable, table_of
from aprtui.tui.widgets.bars import axis_parts, histogram_rows
from aprtui.tui.widgets.lines import Part, PartLine, Picture, RowList, fit, right
from aprtui.tui.widgets.value_grid import ValueGrid

__all__ = ["PairScreen"]

Float32 = npt.NDArray[np.float32]
WORST_ROWS = 512
SORTS = ("elements", "rows", "columns")


@dataclass(frozen=True)
class Worst:
    """One line of the list of the worst: where, and how far apart."""

    label: str
    row: int
    column: int
    a: float
    b: float
    distance: float


@dataclass(frozen=True)
class PairView:
    """Everything the screen draws of one pair."""

    key: StageKey
    a: StageTable
    b: StageTable
    histograms: tuple[Histogram, Histogram]
    worst: Mapping[str, tuple[Worst, ...]]


@dataclass
class PairReady(Message):
    """A pair was read and counted."""

    view: PairView


@dataclass(frozen=True)
class Difference:
    """B - A as a grid draws it."""

    a: StageTable
    b: StageTable

    @property
    def rows(self) -> int:
        return self.a.rows

    @property
    def columns(self) -> int:
        return self.a.columns

    def row_label(self, row: int) -> str:
        return self.a.row_label(row)

    def column_label(self, column: int) -> str:
        return self.a.column_label(column)

    def cell(self, row: int, column: int) -> float | None:
        left, right_ = self.a.cell(row, column), self.b.cell(row, column)
        return None if left is None or right_ is None else right_ - left


class SharedHistograms(Picture):
    """A above, B below, over one axis."""

    view: PairView | None = None
    logarithmic = True

    def show(self, view: PairView | None) -> None:
        self.view = view
        self.refresh()

    def picture(self) -> list[list[Part]]:
        if self.view is None:
            return [[("  counting …", "dim")]]
        tall = max((self.size.height - 1) // 2, 1)
        lines: list[list[Part]] = []
        for name, counts in zip("ab", self.view.histograms, strict=True):
            rows = histogram_rows(counts.counts, tall, self.logarithmic, name)
            rows[-1] = [(f" {name.upper()}" + rows[-1][0][0][2:], name), *rows[-1][1:]]
            outside = counts.nan + counts.inf
            if outside:
                rows[0] = [*rows[0], (f" {outside} NaN or Inf", "bad")]
            lines += rows
        lead = len(lines[0][0][0])
        return [*lines, axis_parts(self.view.histograms[0], lead)]


class WorstList(RowList):
    """The worst elements, rows or columns; the grids follow its cursor."""

    view: PairView | None = None
    sort = SORTS[0]

    def show(self, view: PairView | None) -> None:
        self.view, self.cursor = view, 0
        self.rows_changed()

    @property
    def rows(self) -> tuple[Worst, ...]:
        return self.view.worst[self.sort] if self.view else ()

    def row_count(self) -> int:
        return len(self.rows)

    def head_parts(self, width: int) -> list[Part]:
        what = {"elements": "place", "rows": "row", "columns": "column"}[self.sort]
        lead = "" if self.sort == "elements" else "rms "
        place, cell, _, shown = self._columns(width)
        names = "".join(right(f"{lead}{name}", cell) for name in shown.upper())
        return [(" " + fit(what, place) + names.replace("D", "d"), "head")]

    def row_parts(self, row: int, width: int) -> list[Part]:
        entry = self.rows[row]
        place, cell, digits, shown = self._columns(width)
        values = {"a": entry.a, "b": entry.b, "d": entry.distance}
        return [
            (" " + fit(entry.label, place), ""),
            *((right(number(values[name], digits), cell), name) for name in shown),
        ]

    def _columns(self, width: int) -> tuple[int, int, int, str]:
        """Cells of the place, cells of a number, its digits, and which numbers fit beside it."""
        longest = max((len(entry.label) for entry in self.rows), default=4)
        for cell, digits, shown in ((11, 4, "abd"), (10, 3, "abd"), (10, 3, "bd"), (10, 3, "d")):
            place = width - 1 - cell * len(shown)
            if place >= longest:
                return place, cell, digits, shown
        return max(width - 1, 0), 0, 0, ""


class PairScreen(BaseScreen):
    """Opened from the grid; n and N step through the pairs without going back."""

    mode = "diff"
    places = ("pair",)
    BINDINGS: ClassVar[list[BindingType]] = bindings("pair")  # type: ignore[assignment]

    def __init__(
        self,
        pairs: Mapping[StageKey, Pair],
        results: Mapping[StageKey, PairResult],
        key: StageKey,
    ) -> None:
        super().__init__()
        self.pairs, self.results, self.key = pairs, results, key
        self.head = PartLine(id="pairhead")
        self.histograms = SharedHistograms(id="shared")
        self.worst = WorstList(id="worst")
        self.grids = {name: ValueGrid(id=f"grid-{name}") for name in "abd"}

    def body(self) -> Iterable[Widget]:
        self.histograms.add_class("frame")
        self.worst.add_class("frame")
        self.histograms.border_title = "A and B, log counts"
        with Vertical():
            yield self.head
            with Horizontal(id="above"):
                yield self.histograms
                yield self.worst
            with Horizontal(id="below"):
                for name, grid in self.grids.items():
                    grid.add_class("frame")
                    grid.border_title = {"a": "A", "b": "B", "d": "d = B - A"}[name]
                    yield grid

    def started(self) -> None:
        self._load()

    def _load(self) -> None:
        self.set_title(str(self.key))
        self.run_worker(self._read, thread=True, exclusive=True, group="pair")

    def _read(self) -> None:
        worker = get_current_worker()
        bins = self.histograms.bins if self.histograms.size.width else 50
        try:
            view = view_of(self.pairs[self.key], self.results[self.key], bins, worker)
        except Cancelled:
            return
        except AprtuiError as error:
            self.post_message(LoadFailed(error.message, error.hint))
            return
        if not worker.is_cancelled:
            self.post_message(PairReady(view))

    @on(LoadFailed)
    def _failed(self, event: LoadFailed) -> None:
        self.set_state("error", event.what, event.hint)

    @on(PairReady)
    def _ready(self, event: PairReady) -> None:
        event.stop()
        view = event.view
        first = self.state != "full"
        self.set_state("full")
        result = self.results[view.key]
        self.head.show(headline(result))
        self.histograms.show(view)
        self.worst.show(view)
        self._name_list()
        self.grids["a"].show(view.a)
        self.grids["b"].show(view.b)
        self.grids["d"].show(Difference(view.a, view.b))
        self._follow()
        if first:
            self.worst.focus()
            # The frame's width is known only now: count once more with as many bins as fit.
            self.call_after_refresh(self._fit)

    def _fit(self) -> None:
        view = self.histograms.view
        if view is not None and len(view.histograms[0].counts) != self.histograms.bins:
            self._load()

    def _name_list(self) -> None:
        self.worst.border_title = f"Worst {self.worst.sort}"

    @on(RowList.Moved, "#worst")
    def _follow(self) -> None:
        rows = self.worst.rows
        if rows:
            entry = rows[self.worst.cursor]
            for grid in self.grids.values():
                grid.move_to(entry.row, entry.column, tell=False)

    @on(ValueGrid.Moved)
    def _together(self, event: ValueGrid.Moved) -> None:
        for grid in self.grids.values():
            if grid is not event.grid:
                grid.move_to(event.row, event.column, tell=False)

    # Keys.

    def action_focus_pane(self) -> None:
        order = [self.worst, *self.grids.values()]
        here = order.index(self.focused) if self.focused in order else -1
        order[(here + 1) % len(order)].focus()

    def action_sort(self) -> None:
        self.worst.sort = SORTS[(SORTS.index(self.worst.sort) + 1) % len(SORTS)]
        self.worst.show(self.worst.view)
        self._name_list()
        self._follow()

    def action_step(self, step: int) -> None:
        keys = [key for key in self.pairs if key in self.results and self.results[key].metrics]
        if self.key in keys:
            self.key = keys[(keys.index(self.key) + step) % len(keys)]
            self._load()


def headline(result: PairResult) -> list[Part]:
    """The class and the four metrics of the pair."""
    m = result.metrics
    tone = "bad" if result.kind in FAILED else "good"
    parts: list[Part] = [(f" {result.kind}  ", tone)]
    if m is not None:
        for name, text in (("rel_l2", number(m.rel_l2)), ("max_abs", number(m.max_abs)),
                           ("rms", number(m.rms)), ("cosine", f"1 - {number(1 - m.cosine, 3)}"),
                           ("scale", number(m.scale, 5))):  # fmt: skip
            parts += [(f"{name} ", "head"), (f"{text}  ", "")]
    return [*parts, (result.message, "dim")]


def view_of(pair: Pair, result: PairResult, bins: int, worker: object) -> PairView:
    """Read both sides and count. Raises BadFileError, metrics.Cancelled."""

    def cancelled() -> bool:
        return bool(getattr(worker, "is_cancelled", False))

    assert pair.a is not None and pair.b is not None
    a, b = table_of(pair.a), table_of(pair.b)
    if pair.reorder is not None:
        rows = np.asarray(b.values).reshape(b.rows, b.columns)
        b = StageTable(np.ascontiguousarray(pair.reorder(rows)).reshape(-1), b.rows, b.columns,
                       b.axes, b.shape, b.folded, b.texts)  # fmt: skip
    spans = [histogram(side.values, 1, cancelled=cancelled).edges for side in (a, b)]
    span = (min(edges[0] for edges in spans), max(edges[-1] for edges in spans))
    both = tuple(histogram(side.values, bins, span, cancelled=cancelled) for side in (a, b))
    return PairView(pair.key, a, b, (both[0], both[1]), worst_of(a, b, result))


def worst_of(a: StageTable, b: StageTable, result: PairResult) -> dict[str, tuple[Worst, ...]]:
    """The worst elements as the comparison found them; rows and columns by the rms of d."""
    assert result.metrics is not None
    elements = tuple(
        Worst(a.name_of(entry.index), *divmod(entry.index, a.columns), entry.a, entry.b,
              entry.b - entry.a)
        for entry in result.metrics.top
    )  # fmt: skip
    if a.folded or a.rows != b.rows or a.columns != b.columns or not a.values.size:
        return {"elements": elements, "rows": elements, "columns": elements}
    columns = np.zeros((3, a.columns))
    rows = []
    for row in range(a.rows):
        part = slice(row * a.columns, (row + 1) * a.columns)
        left, right_ = (side.values[part].astype(np.float64) for side in (a, b))
        finite = np.isfinite(left) & np.isfinite(right_)
        left, right_ = np.where(finite, left, 0.0), np.where(finite, right_, 0.0)
        d = right_ - left
        squares = np.stack([left * left, right_ * right_, d * d])
        columns += squares
        rms = np.sqrt(squares.mean(axis=1))
        rows.append(Worst(a.row_label(row), row, int(np.abs(d).argmax()), *map(float, rms)))
    rms = np.sqrt(columns / a.rows)
    order = np.argsort(-rms[2], kind="stable")[:WORST_ROWS]
    rows.sort(key=lambda entry: -entry.distance)
    return {
        "elements": elements,
        "rows": tuple(rows[:WORST_ROWS]),
        "columns": tuple(
            Worst(a.column_label(int(c)), 0, int(c), *(float(rms[side, c]) for side in range(3)))
            for c in order
        ),
    }
