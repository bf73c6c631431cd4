"""A table of any size as a few cells: the value of largest magnitude of each, or the mean of |x|.

NaN wins over everything and infinity over every number, so that neither is ever hidden.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from aprtui.compare.metrics import Cancelled
from aprtui.formats.maps import mapping

__all__ = ["Reduced", "Window", "coarser", "reduce_blocks", "reduce_values", "row_blocks"]

BLOCK_VALUES, RELEASE_VALUES = 1 << 18, 1 << 24  # at once; before a map's pages are given back

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
Hook = Callable[[], bool]
Block = tuple[int, npt.NDArray[np.float32]]  # the first row's number, and rows [n, columns]


@dataclass(frozen=True)
class Window:
    """The rows and columns of a table that are looked at, the ends not included."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def rows(self) -> int:
        return max(self.bottom - self.top, 0)

    @property
    def columns(self) -> int:
        return max(self.right - self.left, 0)

    def nearer(self, row: int, column: int, rows: int, columns: int) -> Window:
        """A window of so many rows and columns (no more than here) around a place in this one."""
        rows, columns = max(min(rows, self.rows), 1), max(min(columns, self.columns), 1)
        top = max(self.top, min(row - rows // 2, self.bottom - rows))
        left = max(self.left, min(column - columns // 2, self.right - columns))
        return Window(top, top + rows, left, left + columns)


@dataclass(frozen=True, eq=False)
class Reduced:
    """Cells [r, c] float64; cell (i, j) stands for the rows ``row_edges[i]`` .. (i + 1), and for
    the columns likewise. ``how`` is "largest" (with its sign) or "mean" (of magnitudes)."""

    cells: Float64
    row_edges: Int64
    column_edges: Int64
    how: str

    def place(self, row: int, column: int) -> tuple[int, int]:
        """The cell of a value that is in the window."""
        there = np.searchsorted(self.row_edges, row, "right") - 1
        across = np.searchsorted(self.column_edges, column, "right") - 1
        last_row, last_column = self.cells.shape[0] - 1, self.cells.shape[1] - 1
        return int(np.clip(there, 0, last_row)), int(np.clip(across, 0, last_column))

    def block(self, row: int, column: int) -> Window:
        """What a cell stands for."""
        top, bottom = self.row_edges[row : row + 2]
        left, right = self.column_edges[column : column + 2]
        return Window(int(top), int(bottom), int(left), int(right))


def reduce_values(
    values: Float32, columns: int, window: Window, rows: int, across: int, how: str,
    cancelled: Hook = lambda: False,
) -> Reduced:  # fmt: skip
    """A row-major table [n] of ``columns`` columns in at most ``rows`` x ``across`` cells.

    A last row that is short counts as ending in zeros. Raises metrics.Cancelled.
    """
    return reduce_blocks(row_blocks(values, columns, window), window, rows, across, how, cancelled)


def row_blocks(values: Float32, columns: int, window: Window) -> Iterator[Block]:
    """The window's rows of a flat table, some at a time; pages of a large map are given back."""
    step = max(1, BLOCK_VALUES // max(columns, 1))
    mapped = mapping(values) if values.size > RELEASE_VALUES else None
    for number, first in enumerate(range(window.top, window.bottom, step)):
        part = values[first * columns : min(first + step, window.bottom) * columns]
        if part.size % columns:
            part = np.pad(part, (0, -part.size % columns))
        yield first, part.reshape(-1, columns)
        if mapped is not None and number % (RELEASE_VALUES // BLOCK_VALUES) == 0:
            mapped.madvise(mmap.MADV_DONTNEED)


def reduce_blocks(
    blocks: Iterable[Block], window: Window, rows: int, across: int, how: str,
    cancelled: Hook = lambda: False,
) -> Reduced:  # fmt: skip
    """The same of rows as they come, in order: a weight is decoded block by block."""
    row_edges = _edges(window.top, window.bottom, rows)
    column_edges = _edges(window.left, window.right, across)
    shape = (len(row_edges) - 1, len(column_edges) - 1)
    if not all(shape):
        return Reduced(np.zeros((0, 0)), row_edges[:1], column_edges[:1], how)
    high, low, total = np.full(shape, -np.inf), np.full(shape, np.inf), np.zeros(shape)
    with np.errstate(invalid="ignore"):
        for first, block in blocks:
            if cancelled():
                raise Cancelled
            places = np.searchsorted(row_edges, np.arange(first, first + len(block)), "right") - 1
            starts = np.flatnonzero(np.diff(places, prepend=-1))
            into = places[starts]
            part = block[:, window.left : window.right]
            if how == "mean":
                total[into] += _sums(np.abs(part), starts, column_edges - window.left)
                continue
            up, down = _extremes(part, starts, column_edges - window.left)
            high[into] = np.maximum(high[into], up)
            low[into] = np.minimum(low[into], down)
    if how == "mean":
        counts = np.outer(np.diff(row_edges), np.diff(column_edges))
        return Reduced(total / counts, row_edges, column_edges, how)
    return Reduced(_farther(high, low), row_edges, column_edges, how)


def _edges(first: int, last: int, most: int) -> Int64:
    """``first``..``last`` in at most ``most`` stretches of whole numbers, as even as can be."""
    count = max(min(most, last - first), 0)
    return np.linspace(first, last, count + 1).astype(np.int64)


def _sums(part: Float32, starts: Int64, edges: Int64) -> Float64:
    across = np.add.reduceat(part, edges[:-1], axis=1, dtype=np.float64)
    return np.asarray(np.add.reduceat(across, starts, axis=0), dtype=np.float64)


def _extremes(part: Float32, starts: Int64, edges: Int64) -> tuple[Float32, Float32]:
    """The largest and the smallest of each cell; NaN where one value is."""
    up = np.maximum.reduceat(np.maximum.reduceat(part, edges[:-1], axis=1), starts, axis=0)
    down = np.minimum.reduceat(np.minimum.reduceat(part, edges[:-1], axis=1), starts, axis=0)
    return up, down


def _farther(high: Float64, low: Float64) -> Float64:
    """Whichever lies farther from zero; NaN stays."""
    return np.where(high >= -low, high, low)


def coarser(fine: Reduced, rows: int, across: int) -> Reduced:
    """The same in fewer cells, each made of whole ones."""
    rows, across = min(rows, fine.cells.shape[0]), min(across, fine.cells.shape[1])
    down = _edges(0, fine.cells.shape[0], rows)
    right = _edges(0, fine.cells.shape[1], across)
    row_edges, column_edges = fine.row_edges[down], fine.column_edges[right]
    if fine.how == "mean":
        weights = np.outer(np.diff(fine.row_edges), np.diff(fine.column_edges))
        summed = np.add.reduceat(
            np.add.reduceat(fine.cells * weights, right[:-1], axis=1), down[:-1], axis=0
        )
        counts = np.outer(np.diff(row_edges), np.diff(column_edges))
        return Reduced(summed / counts, row_edges, column_edges, fine.how)
    high = np.maximum.reduceat(
        np.maximum.reduceat(fine.cells, right[:-1], axis=1), down[:-1], axis=0
    )
    low = np.minimum.reduceat(
        np.minimum.reduceat(fine.cells, right[:-1], axis=1), down[:-1], axis=0
    )
    return Reduced(_farther(high, low), row_edges, column_edges, fine.how)
