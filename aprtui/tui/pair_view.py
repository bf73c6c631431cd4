"""Everything that the view of one pair draws, counted block by block in a thread."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from aprtui.compare.metrics import Cancelled, Element
from aprtui.compare.pairs import Pair, PairResult
from aprtui.compare.statistics import Histogram, histogram, percentiles
from aprtui.formats.maps import check_maps
from aprtui.formats.tracedir import StageKey
from aprtui.tui.stage_table import StageTable, table_of

__all__ = ["SORTS", "SPANS", "Difference", "PairView", "Profile", "Worst", "view_of"]

SORTS = ("elements", "rows", "columns")
SPANS = ("clipped", "full")
WORST_ROWS = 512
DECADES = 8  # of |d| below the largest one that its histogram shows
_BLOCK = 1 << 16
_CLIP = (0.5, 99.5)  # percentiles of the middle of the values

Float64 = npt.NDArray[np.float64]
Hook = Callable[[], bool]


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
class Profile:
    """The rms of d for each token or channel (whatever ``axis`` names), and where it is largest."""

    axis: str
    rms: tuple[float, ...]
    worst: str  # the label of the largest


@dataclass(frozen=True)
class PairView:
    """One pair. ``histograms``: A, B, and log10 of |d| where d is not zero."""

    key: StageKey
    a: StageTable
    b: StageTable
    histograms: tuple[Histogram, Histogram, Histogram]
    worst: Mapping[str, tuple[Worst, ...]]
    profiles: tuple[Profile, ...]


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
        left, right = self.a.cell(row, column), self.b.cell(row, column)
        return None if left is None or right is None else right - left


def view_of(pair: Pair, result: PairResult, bins: int, span: str, cancelled: Hook) -> PairView:
    """Read both sides and count in ``bins`` steps; ``span`` is one of SPANS.

    Raises BadFileError and metrics.Cancelled.
    """
    assert pair.a is not None and pair.b is not None and result.metrics is not None
    a, b = table_of(pair.a), table_of(pair.b)
    if pair.reorder is not None:
        rows = np.asarray(b.values).reshape(b.rows, b.columns)
        b = StageTable(np.ascontiguousarray(pair.reorder(rows)).reshape(-1), b.rows, b.columns,
                       b.axes, b.shape, b.folded, b.texts, b.rows_of)  # fmt: skip
    if a.values.size == b.values.size and (a.rows, a.columns) != (b.rows, b.columns):
        known = b if a.folded else a  # the other states no shape
        a, b = (replace(known, values=side.values) for side in (a, b))
    edges = shared_span(a, b, span, cancelled)
    left, right = (histogram(side.values, bins, edges, cancelled=cancelled) for side in (a, b))
    distances = _Distances(a, b, bins, result.metrics.max_abs)
    distances.run(cancelled)
    m = result.metrics
    born = () if m.first_nonfinite is None else (m.first_nonfinite,)
    check_maps(a.values, b.values)
    apart = (*born, *(entry for entry in m.top if entry.abs_diff != 0 and entry not in born))
    elements = tuple(_worst(a, entry) for entry in apart or m.top)
    return PairView(
        pair.key, a, b, (left, right, distances.histogram),
        {"elements": elements, **distances.worst(elements)}, distances.profiles(),
    )  # fmt: skip


def _worst(table: StageTable, entry: Element) -> Worst:
    row, column = divmod(entry.index, table.columns)
    name = table.name_of(entry.index)
    return Worst(name, row, column, entry.a, entry.b, entry.b - entry.a)


def shared_span(a: StageTable, b: StageTable, span: str, cancelled: Hook) -> tuple[float, float]:
    """One axis for both sides: all of it, or three times the middle 99 % where that is less."""
    known = [percentiles(side.values, (0.0, *_CLIP, 100.0), cancelled) for side in (a, b)]
    known = [each for each in known if not math.isnan(each[0])]
    if not known:
        return 0.0, 0.0
    least, low, high, most = (
        choose(each[n] for each in known) for n, choose in enumerate((min, min, max, max))
    )
    if span == "full" or low == high:
        return least, most
    width = high - low
    return max(least, low - width), min(most, high + width)


class _Distances:
    """Sums over d = B - A, a block of rows at a time; what is not finite is no difference."""

    def __init__(self, a: StageTable, b: StageTable, bins: int, largest: float) -> None:
        self.a, self.b = a, b
        self.by_row = not a.folded and (a.rows, a.columns) == (b.rows, b.columns)
        top = math.log10(largest) if 0 < largest < math.inf else 0.0
        self.edges = np.linspace(top - DECADES, top, bins + 1)
        self.counts = np.zeros(bins, dtype=np.int64)
        self.below = self.zeros = 0
        rows, columns = (a.rows, a.columns) if self.by_row else (0, 0)
        self.rows: Float64 = np.zeros((3, rows))  # mean squares of A, B and d
        self.columns: Float64 = np.zeros((3, columns))
        self.widest = np.zeros(rows, dtype=np.int64)  # the column of each row's largest |d|

    def run(self, cancelled: Hook) -> None:
        for start, left, right in self._blocks(cancelled):
            finite = np.isfinite(left) & np.isfinite(right)
            left, right = np.where(finite, left, 0.0), np.where(finite, right, 0.0)
            d = right - left
            self._count(np.abs(d[d != 0.0]), int(np.count_nonzero(d == 0.0)))
            if self.by_row:
                span = slice(start, start + len(d))
                self.widest[span] = np.abs(d).argmax(axis=1)
                for n, values in enumerate((left, right, d)):
                    squares = values * values
                    self.rows[n, span] = squares.mean(axis=1)
                    self.columns[n] += squares.sum(axis=0)

    def _blocks(self, cancelled: Hook) -> Iterator[tuple[int, Float64, Float64]]:
        """(first row, A, B) [rows, columns] float64; folded values are rows of one block."""
        columns = self.a.columns if self.by_row else _BLOCK
        size = min(self.a.values.size, self.b.values.size)
        step = columns * max(1, _BLOCK // columns)
        for start in range(0, size, step):
            if cancelled():
                raise Cancelled
            end = min(start + step, size)
            sides = (side.values[start:end].astype(np.float64) for side in (self.a, self.b))
            left, right = (s.reshape(-1, columns) if self.by_row else s[None, :] for s in sides)
            yield start // columns, left, right

    def _count(self, magnitudes: Float64, zeros: int) -> None:
        powers = np.log10(magnitudes)
        self.zeros += zeros
        self.below += int(np.count_nonzero(powers < self.edges[0]))
        self.counts += np.histogram(np.minimum(powers, self.edges[-1]), self.edges)[0]

    @property
    def histogram(self) -> Histogram:
        """log10 of |d|; ``below`` counts smaller ones and ``nan`` those that are zero."""
        return Histogram(
            tuple(map(float, self.edges)), tuple(map(int, self.counts)), self.below, 0,
            self.zeros, 0,
        )  # fmt: skip

    def worst(self, elements: tuple[Worst, ...]) -> dict[str, tuple[Worst, ...]]:
        """Rows and columns by the rms of d; the elements where rows mean nothing."""
        if not self.by_row or not self.a.rows:
            return {"rows": elements, "columns": elements}
        rows, columns = np.sqrt(self.rows), np.sqrt(self.columns / self.a.rows)
        return {
            "rows": tuple(
                Worst(self.a.row_label(n), n, int(self.widest[n]), *map(float, rows[:, n]))
                for n in map(int, np.argsort(-rows[2], kind="stable")[:WORST_ROWS])
            ),
            "columns": tuple(
                Worst(self.a.column_label(n), 0, n, *map(float, columns[:, n]))
                for n in map(int, np.argsort(-columns[2], kind="stable")[:WORST_ROWS])
            ),
        }

    def profiles(self) -> tuple[Profile, ...]:
        if not self.by_row or not self.rows[2].any():
            return ()
        rows, columns = np.sqrt(self.rows[2]), np.sqrt(self.columns[2] / self.a.rows)
        axes = self.a.axes
        row = axes[0] if axes[0] in ("token", "query") else "row"
        column = {"key": "key"}.get(axes[-1], "channel")
        return (
            Profile(row, tuple(map(float, rows)), self.a.row_label(int(rows.argmax()))),
            Profile(column, tuple(map(float, columns)), self.a.column_label(int(columns.argmax()))),
        )
