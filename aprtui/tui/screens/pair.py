"""One pair of a diff: both histograms over one axis, the worst elements, A, B and d."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from textual import on
from textual.binding import BindingType
from textual.containers import Horizontal, Vertical
from textual.message import Message
from textual.widget import Widget
from textual.worker import get_current_worker

from aprtui.compare.metrics import Cancelled
from aprtui.compare.pairs import FAILED, Pair, PairResult
from aprtui.errors import AprtuiError, UsageError
from aprtui.formats.tracedir import StageKey
from aprtui.text import clean, number
from aprtui.tui.bisected import Finding
from aprtui.tui.carry import copy, export_pair
from aprtui.tui.jumps import Goal, Jump, stage_goals
from aprtui.tui.keys import bindings
from aprtui.tui.messages import LoadFailed
from aprtui.tui.pair_view import SORTS, SPANS, Difference, PairView, view_of
from aprtui.tui.paths import meant
from aprtui.tui.screens.diff_text import near_one
from aprtui.tui.screens.sides import OneStageScreen, Sides
from aprtui.tui.source import names_of
from aprtui.tui.widgets.lines import Part, PartLine, RowList
from aprtui.tui.widgets.pair_pane import PairPicture, WorstList
from aprtui.tui.widgets.value_grid import ValueGrid

__all__ = ["PairScreen", "stage_title"]

WORST_CELLS = (52, 44)  # of the list of the worst, wide and narrow: as in theme.tcss


@dataclass
class PairReady(Message):
    """A pair was read and counted."""

    view: PairView


class PairScreen(OneStageScreen):
    """Opened from the grid; n and N step through the pairs without going back."""

    mode = "diff"
    places = ("pair", "sides")
    ways_out = ("pair-next",)
    passing = True
    BINDINGS: ClassVar[list[BindingType]] = bindings("pair", "sides")  # type: ignore[assignment]

    def __init__(
        self,
        pairs: Mapping[StageKey, Pair],
        results: Mapping[StageKey, PairResult],
        key: StageKey,
        sides: Sides,
        findings: Mapping[StageKey, Finding] | None = None,
    ) -> None:
        super().__init__(sides, key)
        self.findings = findings or {}  # of a bisection, where one was run
        self.pairs, self.results = pairs, results
        self.verdict = PartLine(id="verdict")
        self.head = PartLine(id="pairhead")
        self.picture = PairPicture(id="shared")
        self.worst = WorstList(id="worst")
        self.grids = {name: ValueGrid(id=f"grid-{name}") for name in "abd"}
        self.span = SPANS[0]

    def body(self) -> Iterable[Widget]:
        self.picture.add_class("frame")
        self.worst.add_class("frame")
        with Vertical():
            yield self.verdict
            yield self.head
            with Horizontal(id="above"):
                yield self.picture
                yield self.worst
            with Horizontal(id="below"):
                for name, grid in self.grids.items():
                    grid.add_class("frame")
                    grid.border_title = {"a": "A", "b": "B", "d": "d = B - A"}[name]
                    yield grid

    def started(self) -> None:
        self._load()

    def _load(self) -> None:
        sides = (self.results[self.key].path_a, self.results[self.key].path_b)
        a, b = names_of(*(_capture(Path(side), self.key) for side in sides))
        self.set_title(f"{stage_title(self.key)}   A {a}   B {b}")
        self.run_worker(self._read, thread=True, exclusive=True, group="pair")

    def _read(self) -> None:
        worker = get_current_worker()
        pair, result, bins = self.pairs[self.key], self.results[self.key], self._bins
        try:
            view = view_of(pair, result, bins, self.span, lambda: worker.is_cancelled)
        except Cancelled:
            return
        except AprtuiError as error:
            self.post_message(LoadFailed(error.message, error.hint))
            return
        if not worker.is_cancelled:
            self.post_message(PairReady(view))

    @on(LoadFailed)
    def _failed(self, event: LoadFailed) -> None:
        self.set_state("error", event.what, event.hint or "n goes to the next pair, q goes back")

    @on(PairReady)
    def _ready(self, event: PairReady) -> None:
        event.stop()
        view = event.view
        if not view.a.values.size:
            self.set_state("empty", "Neither side has a value here.", "n goes to the next pair")
            return
        first, other = self.state != "full", self.picture.view is None or view.key != self._shown
        self.set_state("full")
        result = self.results[view.key]
        self.verdict.show(verdict(result, self.findings.get(view.key)))
        self.head.show(metrics_line(result))
        self.picture.show(view)
        self._name_frames()
        if other:
            self.worst.show(view)
            self.grids["a"].show(view.a)
            self.grids["b"].show(view.b)
            self.grids["d"].show(Difference(view.a, view.b))
            self._follow()
        if first:
            self.worst.focus()
            # The frame's width is known only now: count once more with as many bins as fit.
            self.call_after_refresh(self._fit)

    @property
    def _shown(self) -> StageKey | None:
        return self.worst.view.key if self.worst.view is not None else None

    @property
    def _bins(self) -> int:
        """As many as the picture has columns, or will have: it is laid out when it is shown."""
        beside = WORST_CELLS[self.size.width < 100]
        return self.picture.bins if self.picture.size.width else self.size.width - beside - 14

    def _fit(self) -> None:
        view = self.picture.view
        if view is not None and len(view.histograms[0].counts) != self.picture.bins:
            self._load()

    def _name_frames(self) -> None:
        counts = "log" if self.picture.logarithmic else "linear"
        over = "A and B over one axis" if self.size.width >= 100 else "A and B"
        counts += " counts" if self.size.width >= 100 else ""
        self.picture.border_title = f"{over} · {counts} · {self.span}"
        self.picture.border_subtitle = self.picture.beside
        self.worst.border_title = f"Worst {self.worst.sort}"

    @on(RowList.Moved, "#worst")
    def _follow(self) -> None:
        rows = self.worst.rows
        if rows:
            entry = rows[self.worst.cursor]
            self._go(entry.row, entry.column)

    @on(ValueGrid.Moved)
    def _together(self, event: ValueGrid.Moved) -> None:
        self._go(event.row, event.column)

    def _go(self, row: int, column: int) -> None:
        """Put A, B and d on one cell."""
        for grid in self.grids.values():
            grid.move_to(row, column, tell=False)

    def jump(self, text: str) -> None:
        """To ``pos,channel`` in A, B and d; what the palette does with numbers."""
        view = self.worst.view if self.state == "full" else None
        if view is None:
            self.say("no values to go to")
            return
        try:
            place = divmod(view.a.index_of(text), view.a.columns)
        except UsageError as error:
            self.say(error.message)
            return
        if not self.query_one("#below").display:
            self.action_zoom()
        self._go(*place)
        if self.focused not in self.grids.values():
            self.grids["a"].focus()

    # Places.

    def here(self) -> Jump:
        return Jump("pair", self._sides.both, self.key)

    def goals(self) -> Iterable[Goal]:
        """Every pair that was measured."""
        measured = [key for key in self.pairs if key in self.results and self.results[key].metrics]
        return stage_goals(measured, "pair", self._sides.both, self.app.jump)

    def turn_to(self, to: Jump) -> None:
        if to.key is not None and to.key in self.pairs and to.key != self.key:
            self.key = to.key
            self._load()

    # Keys.

    def idle_keys(self) -> frozenset[str]:
        alone = sum(each.metrics is not None for each in self.results.values()) < 2
        return super().idle_keys() | ({"pair-next", "pair-previous"} if alone else set())

    def action_focus_pane(self) -> None:
        order = [self.worst, *self.grids.values()]
        order = [pane for pane in order if pane.parent is not None and pane.parent.display]
        here = order.index(self.focused) if self.focused in order else -1
        order[(here + 1) % len(order)].focus()

    def action_sort(self) -> None:
        self.worst.sort = SORTS[(SORTS.index(self.worst.sort) + 1) % len(SORTS)]
        self.worst.show(self.worst.view)
        self._name_frames()
        self._follow()

    def action_zoom(self) -> None:
        """The half of the screen that has the focus alone, and back."""
        above, below = self.query_one("#above"), self.query_one("#below")
        alone = not (above.display and below.display)
        other = below if self.focused is self.worst else above
        above.display = below.display = True
        if not alone:
            other.display = False
        self.call_after_refresh(self._fit)

    def action_range(self) -> None:
        self.span = SPANS[(SPANS.index(self.span) + 1) % len(SPANS)]
        self._load()

    def action_counts(self) -> None:
        self.picture.logarithmic = not self.picture.logarithmic
        self._name_frames()
        self.picture.refresh()

    def action_step(self, step: int) -> None:
        keys = [key for key in self.pairs if key in self.results and self.results[key].metrics]
        if self.key in keys:
            self.key = keys[(keys.index(self.key) + step) % len(keys)]
            self._load()

    def action_copy_value(self) -> None:
        """Both values under the cursor and their difference."""
        view, grid = self.worst.view, self.grids["a"]
        if view is None:
            return
        index = grid.row * view.a.columns + grid.column
        a, b = view.a.cell(grid.row, grid.column), view.b.cell(grid.row, grid.column)
        if a is not None and b is not None:
            text = f"{self.key} {view.a.name_of(index)} A {a!r} B {b!r} d {b - a!r}"
            self.say(copy(self.app, text))

    def action_copy_path(self) -> None:
        self.say(copy(self.app, self.results[self.key].path_b))

    def action_export(self) -> None:
        name = clean(str(self.key)).replace("/", "-")
        self.ask_path(
            "write A, B and d to (.npz)", "export", str(Path.cwd() / f"{name}.npz"), again=False
        )

    def answered(self, purpose: str, text: str) -> None:
        super().answered(purpose, text)
        view = self.worst.view
        if purpose == "export" and text and view is not None:
            self.say(export_pair(view.a, view.b, meant(text)))


def stage_title(key: StageKey) -> str:
    """``layer 3 · ffn_gate``, or the name alone for a stage of the whole model."""
    name = clean(key.stage, 60)
    return name if key.layer is None else f"layer {key.layer} · {name}"


def _capture(path: Path, key: StageKey) -> Path:
    """The folder that the stage's file is of."""
    return path.parent if key.layer is None else path.parent.parent


def verdict(result: PairResult, finding: Finding | None) -> list[Part]:
    """The class of the pair and why, and what the replay of its stage found."""
    parts: list[Part] = [(f" {result.kind}", "bad" if result.kind in FAILED else "good")]
    if result.message:
        parts.append((f" · {clean(result.message, 300)}", ""))
    if finding is not None:
        error = f" {number(finding.local_error, 3)}" if finding.local_error is not None else ""
        tone = "bad" if finding.kind == "culprit" else "good"
        why = finding.text or finding.by
        parts.append((f" · local error{error}, {finding.kind}", tone))
        parts.append((f" · {why}" if why else "", ""))
    return parts


def metrics_line(result: PairResult) -> list[Part]:
    """The metrics of the pair."""
    m = result.metrics
    parts: list[Part] = [(" ", "")]
    if m is not None:
        for name, text in (("rel_l2", number(m.rel_l2)), ("max_abs", number(m.max_abs)),
                           ("rms", number(m.rms)), ("cosine", near_one(m.cosine)),
                           ("scale", number(m.scale, 5)),
                           ("std", f"{number(m.std_a, 3)} → {number(m.std_b, 3)}")):  # fmt: skip
            parts += [(f"{name} ", "head"), (f"{text}  ", "")]
    return parts
