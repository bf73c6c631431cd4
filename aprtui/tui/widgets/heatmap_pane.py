"""The Heatmap pane: rows by columns as shades, two rows a line, each cell max or mean of |x|."""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from rich.color import Color as RichColor
from rich.segment import Segment
from rich.style import Style
from textual.color import Color
from textual.message import Message
from textual.strip import Strip

from aprtui.compare.metrics import Cancelled
from aprtui.formats.maps import mapping
from aprtui.text import number
from aprtui.tui.stage_table import StageTable
from aprtui.tui.widgets.lines import Lines, fit, right

__all__ = ["HeatmapPane", "downsample"]

SHADES = 16
LABEL = 8
PATIENCE_S = 0.25  # the old picture stands so long: redrawing twice costs bytes over SSH
BLOCK_VALUES, RELEASE_VALUES = 1 << 18, 1 << 24  # at once; before a map's pages are given back
_SIGNS = " ·░▒▓█"


Hook = Callable[[], bool]


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


class HeatmapPane(Lines):
    """Shades on a logarithmic scale from the median to the largest; NaN cells stand out."""

    class Wanted(Message):
        """The pane is to be made again: its size or its way of reducing changed."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.table: StageTable | None = None
        self.cells: npt.NDArray[np.float64] | None = None
        self.next_table: StageTable | None = None
        self.how = "max"

    def show(self, table: StageTable | None) -> None:
        self.next_table = table
        if table is None:
            self._still_stale()
        else:
            self.set_timer(PATIENCE_S, self._still_stale)

    def _still_stale(self) -> None:
        if self.next_table is not self.table:
            self.table, self.cells = self.next_table, None
            self.refresh()

    def give(self, cells: npt.NDArray[np.float64] | None) -> None:
        self.table, self.cells = self.next_table, cells
        self.refresh()

    @property
    def extent(self) -> tuple[int, int]:
        """How many rows and columns can be shown."""
        return max((self.size.height - 2) * 2, 2), max(self.size.width - LABEL - 2, 8)

    def on_resize(self) -> None:
        self.post_message(self.Wanted())

    def render_line(self, y: int) -> Strip:
        width, table, cells = self.size.width, self.table, self.cells
        if table is None or cells is None or not cells.size:
            text = "  shading …" if y == 1 and table is not None else ""
            return self.strip([(text, "dim")], width)
        low, high = self._scale(cells)
        if y == 0:
            return self._head(table, cells, low, high, width)
        rows, lines = cells.shape[0], self.extent[0] // 2
        if rows <= lines:  # few rows: one line or more for each
            first = (y - 1) // min(lines // rows, 3)
            second = first
        else:
            first = (y - 1) * 2
            second = first + 1
        if first >= rows:
            return Strip.blank(width, self.rich_style)
        top = cells[first]
        bottom = cells[second] if second < rows else None
        source = first * table.rows // cells.shape[0]
        named = rows > lines or (y - 1) % min(lines // rows, 3) == 0
        label = table.row_label(source) if named else ""
        segments = [Segment(" " + fit(label, LABEL - 2) + " ", self.line_style("dim"))]
        stretch = max((width - LABEL) // cells.shape[1], 1)
        colours = self._colours()
        for column in range(cells.shape[1]):
            upper = _shade(top[column], low, high)
            lower = _shade(bottom[column], low, high) if bottom is not None else 0
            segments.append(self._cell(upper, lower, stretch, colours))
        return Strip(segments).simplify().adjust_cell_length(width, self.rich_style)

    def _cell(self, upper: int, lower: int, stretch: int, colours: list[Style | None]) -> Segment:
        if self.app.no_color or self.app.native_ansi_color:
            level = max(upper, lower)
            sign = "!" if level < 0 else _SIGNS[level * (len(_SIGNS) - 1) // (SHADES - 1)]
            if min(upper, lower) < 0:
                return Segment("!" * stretch, self.line_style("bad"))
            return Segment(sign * stretch, self.line_style("accent"))
        above, below = colours[upper], colours[lower]
        assert above is not None and below is not None
        return Segment("▀" * stretch, Style(color=above.color, bgcolor=below.color))

    def _colours(self) -> list[Style | None]:
        """SHADES styles from the background to the accent; the last is the colour of NaN."""
        variables = self.app.theme_variables
        if self.app.native_ansi_color:
            return [None] * (SHADES + 1)
        start = Color.parse(variables["background"])
        end, error = Color.parse(variables["accent"]), Color.parse(variables["error"])
        steps = [start.blend(end, n / (SHADES - 1)) for n in range(SHADES)] + [error]
        return [Style(color=RichColor.from_rgb(c.r, c.g, c.b)) for c in steps]

    def _scale(self, cells: npt.NDArray[np.float64]) -> tuple[float, float]:
        finite = cells[np.isfinite(cells) & (cells > 0)]
        if not finite.size:
            return 0.0, 1.0
        high = math.log10(float(finite.max()))
        low = max(math.log10(float(np.percentile(finite, 5))) - 0.3, high - 4)
        return low, max(high, low + 0.3)

    def _head(
        self, table: StageTable, cells: npt.NDArray[np.float64], low: float, high: float, width: int
    ) -> Strip:
        nan = int(np.count_nonzero(~np.isfinite(cells)))
        each = f"{-(-table.rows // cells.shape[0])} x {-(-table.columns // cells.shape[1])}"
        text = (
            f" {self.how} of |x| over {each} · {number(10**low, 2)} to {number(10**high, 3)}, log"
        )
        tail = f"{table.columns} {table.axes[-1] if table.axes else ''} → "
        parts = [(text, "head"), (f" · {nan} cells hold NaN or Inf" if nan else "", "bad")]
        used = sum(len(part[0]) for part in parts)
        return self.strip([*parts, (right(tail, max(width - used, 0)), "dim")], width)


def _shade(value: float, low: float, high: float) -> int:
    """0 to SHADES - 1; -1 for what is not finite."""
    if not math.isfinite(value):
        return -1
    if value <= 0:
        return 0
    share = (math.log10(value) - low) / (high - low)
    return max(0, min(SHADES - 1, round(share * (SHADES - 1))))
