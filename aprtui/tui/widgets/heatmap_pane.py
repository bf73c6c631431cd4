"""The Heatmap pane: rows by columns as shades, each cell the max or mean of |x|."""

from __future__ import annotations

import math
import mmap

import numpy as np
import numpy.typing as npt
from textual.strip import Strip

from aprtui.compare.metrics import Cancelled
from aprtui.formats.maps import mapping
from aprtui.text import number
from aprtui.tui.measure import Hook, Measured
from aprtui.tui.stage_table import StageTable
from aprtui.tui.widgets.lines import Lines, Part, fit, right
from aprtui.tui.widgets.stage_pane import StagePane, Work

__all__ = ["HeatmapPane", "downsample"]

# A colour for every cell would be 44 KB a picture over SSH; a sign in one of two colours is 12.
SHADES = " ·░▒▓██"  # the last one in another colour
TOP = len(SHADES) - 1
LABEL = 8
BLOCK_VALUES, RELEASE_VALUES = 1 << 18, 1 << 24  # at once; before a map's pages are given back


def downsample(
    table: StageTable, rows: int, columns: int, how: str, cancelled: Hook = lambda: False
) -> npt.NDArray[np.float64]:
    """[rows, columns] of max or mean |x| over equal stretches; NaN where any value is not finite.

    At most ``rows`` x ``columns``; fewer when the table has fewer. Raises metrics.Cancelled.
    """
    rows, columns = min(rows, table.rows), min(columns, table.columns)
    if rows < 1 or columns < 1:
        return np.zeros((0, 0))
    row_edges = np.linspace(0, table.rows, rows + 1).astype(np.int64)
    starts = np.linspace(0, table.columns, columns + 1).astype(np.int64)[:-1]
    widths = np.diff(np.append(starts, table.columns))
    found = np.zeros((rows, columns))
    grid = table.values[: table.rows * table.columns]
    step = max(1, BLOCK_VALUES // table.columns)
    mapped = mapping(grid) if grid.size > RELEASE_VALUES else None
    for row in range(rows):
        total = np.zeros(columns)
        last = int(row_edges[row + 1])
        for source in range(int(row_edges[row]), last, step):
            if cancelled():
                raise Cancelled
            block = np.abs(grid[source * table.columns : min(source + step, last) * table.columns])
            if block.size % table.columns:
                block = np.pad(block, (0, -block.size % table.columns))
            wide = np.where(np.isfinite(block), block, np.float32(np.nan)).astype(np.float64)
            wide = wide.reshape(-1, table.columns)
            if how == "max":
                total = np.maximum(total, np.maximum.reduceat(wide, starts, axis=1).max(axis=0))
            else:
                total += (np.add.reduceat(wide, starts, axis=1) / widths).sum(axis=0)
        if mapped is not None:
            mapped.madvise(mmap.MADV_DONTNEED)
        found[row] = total if how == "max" else total / max(row_edges[row + 1] - row_edges[row], 1)
    return found


class HeatmapPane(Lines, StagePane):
    """Shades on a logarithmic scale up to the largest; the hottest and NaN cells stand out."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.cells: npt.NDArray[np.float64] | None = None
        self.how = "max"

    def work(self) -> Work:
        extent, how = self.extent, self.how
        return Work((extent, how), lambda table, hook: downsample(table, *extent, how, hook))

    def forget(self) -> None:
        self.cells = None
        self.refresh()

    def give(self, measured: Measured | None, made: object) -> None:
        if isinstance(made, np.ndarray):
            self.cells, self.drawn = made, self.seen
            self.refresh()

    def action_reduce(self) -> None:
        self.how = "mean" if self.how == "max" else "max"
        self.post_message(self.Wanted())

    @property
    def extent(self) -> tuple[int, int]:
        """How many rows and columns can be shown."""
        return max(self.size.height - 1, 2), max(self.size.width - LABEL - 2, 8)

    def on_resize(self) -> None:
        self.post_message(self.Wanted())

    def render_line(self, y: int) -> Strip:
        width, cells = self.size.width, self.cells
        table = self.drawn.table if self.drawn is not None else None
        if table is None or cells is None or not cells.size:
            return self.strip([("  shading …" if y == 1 else "", "dim")], width)
        low, high = self._scale(cells)
        if y == 0:
            return self._head(table, cells, low, high, width)
        rows, lines = cells.shape[0], self.extent[0]
        tall = max(1, min(lines // rows, 3))  # few rows: some lines for each
        row = (y - 1) // tall
        if row >= rows:
            return Strip.blank(width, self.rich_style)
        label = table.row_label(row * table.rows // rows) if (y - 1) % tall == 0 else ""
        stretch = max((width - LABEL) // cells.shape[1], 1)
        parts: list[Part] = [(" " + fit(label, LABEL - 2) + " ", "dim")]
        parts += _shaded(cells[row], low, high, stretch)
        return self.strip(parts, width)

    def _scale(self, cells: npt.NDArray[np.float64]) -> tuple[float, float]:
        finite = cells[np.isfinite(cells) & (cells > 0)]
        if not finite.size:
            return 0.0, 1.0
        high = math.log10(float(finite.max()))
        low = max(math.log10(float(np.percentile(finite, 5))), high - 4)
        return low, max(high, low + 0.3)

    def _head(
        self, table: StageTable, cells: npt.NDArray[np.float64], low: float, high: float, width: int
    ) -> Strip:
        nan = int(np.count_nonzero(~np.isfinite(cells)))
        each = f"{-(-table.rows // cells.shape[0])} x {-(-table.columns // cells.shape[1])}"
        parts: list[Part] = [
            (f" {self.how} of |x| over {each}  {number(10**low, 2)} ", "head"),
            (SHADES[1:-1], "a"), (SHADES[-1], "warn"), (f" {number(10**high, 3)}", "head"),
            (f"  {nan} cells hold NaN or Inf" if nan else "", "bad"),
        ]  # fmt: skip
        left = width - sum(len(text) for text, _ in parts)
        tail = f"{table.columns:,} {table.axes[-1] if table.axes else ''} → "
        if len(tail) + 1 < left:
            parts.append((right(tail, left), "dim"))
        return self.strip(parts, width)


def _shaded(values: npt.NDArray[np.float64], low: float, high: float, stretch: int) -> list[Part]:
    """A sign of ``stretch`` cells for each value, neighbours of one colour in one part."""
    with np.errstate(divide="ignore"):
        shares = (np.log10(values) - low) / (high - low)
    levels = np.where(np.isfinite(values), np.clip(np.ceil(shares * TOP), 0, TOP), -1)
    parts: list[Part] = []
    for level in levels.astype(int):
        sign = "!" if level < 0 else SHADES[level]
        tone = "bad" if level < 0 else "warn" if level == TOP else "a"
        if parts and (parts[-1][1] == tone or sign == " "):
            parts[-1] = (parts[-1][0] + sign * stretch, parts[-1][1])
        else:
            parts.append((sign * stretch, tone))
    return parts
