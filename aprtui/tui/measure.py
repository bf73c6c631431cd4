"""What the panes draw of a tensor: measured in a thread, kept by the file's identity."""

from __future__ import annotations

import math
import mmap
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from aprtui.compare.metrics import Cancelled
from aprtui.compare.statistics import (
    Histogram,
    OutlierChannel,
    Statistics,
    histogram,
    outlier_channels,
    sample,
    statistics,
)
from aprtui.formats.maps import mapping
from aprtui.tui.stage_table import StageTable

__all__ = [
    "Drawn", "Float32", "Hook", "Measured", "RowShape", "Slice", "Store", "blocks", "draw",
    "first_look", "identity", "largest_at", "measure", "nonfinite_after", "part",
]  # fmt: skip

ROWS = 64  # at most so many rows get a line of their own
RIDGE_BINS = 36
CHANNELS = 24
MAX_COLUMNS = 1 << 22
BLOCK, RELEASE = 1 << 20, 1 << 24  # values looked at at once; before pages are given back
FEW = 1000  # values: a histogram shows all of them
SAMPLE = 1 << 18  # a larger tensor is shown from a sample first

Float32 = npt.NDArray[np.float32]
Hook = Callable[[], bool]


@dataclass(frozen=True)
class RowShape:
    """One row of the table: its rms, its largest magnitude and the column that has it."""

    rms: float
    max_abs: float
    column: int


@dataclass(frozen=True)
class Measured:
    """A tensor in numbers; ``exact`` is False while they come from a sample.

    ``channels`` are the columns of largest rms, with their ratio to the median column's.
    """

    statistics: Statistics
    rows: tuple[RowShape, ...] = ()
    channels: tuple[OutlierChannel, ...] = ()
    exact: bool = True


@dataclass(frozen=True)
class Slice:
    """Which part of a tensor: all of it (axis -1), or one place on one axis."""

    axis: int = -1
    index: int = 0


@dataclass(frozen=True)
class Drawn:
    """A histogram of the chosen part, and one of each row over the same axis."""

    whole: Histogram
    rows: tuple[Histogram, ...] = ()


def identity(path: Path) -> tuple[str, int, int]:
    """What changes when a file is another: path, size, time."""
    try:
        stat = path.stat()
    except OSError:
        return (str(path), -1, 0)
    return (str(path), stat.st_size, stat.st_mtime_ns)


class Store:
    """Values by key, the least recently used dropped first."""

    def __init__(self, limit: int = 400) -> None:
        self._kept: OrderedDict[object, object] = OrderedDict()
        self._limit = limit

    def get(self, key: object) -> object | None:
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def put(self, key: object, value: object) -> None:
        self._kept[key] = value
        while len(self._kept) > self._limit:
            self._kept.popitem(last=False)


def first_look(table: StageTable) -> Measured | None:
    """Statistics of a sample, for a tensor that takes a while; None for one that does not."""
    if table.values.size <= 8 * SAMPLE:
        return None
    return Measured(statistics(sample(table.values, SAMPLE)), exact=False)


def measure(table: StageTable, cancelled: Hook) -> Measured:
    """Every number of the Stats pane, exact. Raises metrics.Cancelled."""
    found = statistics(table.values, cancelled)
    channels: tuple[OutlierChannel, ...] = ()
    if not table.folded and table.rows and table.columns <= MAX_COLUMNS:
        channels = outlier_channels(
            table.values, table.columns, ratio=0.0, most=CHANNELS, cancelled=cancelled
        )
    return Measured(found, _rows(table, cancelled), channels)


def _rows(table: StageTable, cancelled: Hook) -> tuple[RowShape, ...]:
    """The first ROWS rows, each by itself; none where rows mean nothing."""
    if table.folded or not table.columns:
        return ()
    shapes = []
    for row in range(min(table.rows, ROWS)):
        if cancelled():
            raise Cancelled
        values = table.values[row * table.columns : (row + 1) * table.columns]
        wide = np.where(np.isfinite(values), values, np.float32(0)).astype(np.float64)
        at = int(np.abs(wide).argmax())
        shapes.append(RowShape(math.sqrt(float(wide @ wide) / wide.size), abs(float(wide[at])), at))
    return tuple(shapes)


def largest_at(values: Float32, cancelled: Hook) -> int | None:
    """Where the largest |x| is, infinities included; None where there is only NaN or nothing."""
    best, place = -1.0, None
    for start, block in blocks(values, 0, cancelled):
        found = np.where(np.isnan(block), np.float32(-1), np.abs(block))
        at = int(found.argmax())
        if float(found[at]) > best:
            best, place = float(found[at]), start + at
    return place


def nonfinite_after(values: Float32, after: int, cancelled: Hook) -> int | None:
    """The next NaN or infinity behind ``after``, from the start again at the end; None: there is
    none."""
    for first, last in ((after + 1, values.size), (0, min(after + 1, values.size))):
        for start, block in blocks(values[:last], first, cancelled):
            found = np.flatnonzero(~np.isfinite(block))
            if found.size:
                return start + int(found[0])
    return None


def blocks(values: Float32, first: int, cancelled: Hook) -> Iterator[tuple[int, Float32]]:
    """(place, block) from ``first`` on; the pages of a large map are given back on the way."""
    mapped = mapping(values) if values.size > RELEASE else None
    for start in range(first, values.size, BLOCK):
        if cancelled():
            raise Cancelled
        yield start, values[start : start + BLOCK]
        if mapped is not None and (start // BLOCK) % (RELEASE // BLOCK) == 0:
            mapped.madvise(mmap.MADV_DONTNEED)


def part(table: StageTable, chosen: Slice) -> Float32:
    """The values of the slice; a view where the axis is the first."""
    if chosen.axis < 0 or table.folded:
        return table.values
    whole = table.values.reshape(table.shape)
    return whole.take(chosen.index, axis=chosen.axis).reshape(-1)


def draw(table: StageTable, chosen: Slice, span: str, bins: int, cancelled: Hook) -> Drawn:
    """Count for the Histogram pane. ``span`` is "clipped", "symlog" or "full".

    Clipped leaves out what lies beyond the 0.5th and 99.5th percentiles; it is counted beside. Of
    FEW values nothing is left out. Raises metrics.Cancelled.
    """
    scale = "symlog" if span == "symlog" else "linear"
    values = part(table, chosen)
    clip = (0.5, 99.5) if span == "clipped" and values.size > FEW else None
    whole = histogram(values, bins, scale=scale, clip=clip, cancelled=cancelled)
    if table.folded or chosen.axis >= 0 or not table.columns:
        return Drawn(whole)
    edges = (whole.edges[0], whole.edges[-1])
    rows = tuple(
        histogram(
            table.values[row * table.columns : (row + 1) * table.columns],
            RIDGE_BINS, edges, scale=scale, cancelled=cancelled,
        )
        for row in range(min(table.rows, ROWS))
    )  # fmt: skip
    return Drawn(whole, rows)
