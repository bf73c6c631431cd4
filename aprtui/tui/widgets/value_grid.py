"""Numbers of any amount as a grid: rows are positions, columns channels, drawn on demand."""

from __future__ import annotations

from typing import Protocol

from rich.segment import Segment
from textual import events
from textual.geometry import Region
from textual.message import Message
from textual.strip import Strip

from aprtui.text import number
from aprtui.tui.widgets.cell_cursor import CellCursor, scrolled
from aprtui.tui.widgets.lines import fit, right

__all__ = ["CELL", "Table", "ValueGrid"]

CELL = 11  # "-1.234e-05" and a space


class Table(Protocol):
    """What a grid draws: ``StageTable``, or a difference of two."""

    @property
    def rows(self) -> int: ...

    @property
    def columns(self) -> int: ...

    def row_label(self, row: int) -> str: ...

    def column_label(self, column: int) -> str: ...

    def cell(self, row: int, column: int) -> float | None: ...


class ValueGrid(CellCursor):
    """A cursor over ``table``; several grids can be kept on one cell (the pair view does)."""

    class Moved(Message):
        """The cursor stands on another cell."""

        def __init__(self, grid: ValueGrid, row: int, column: int) -> None:
            super().__init__()
            self.grid, self.row, self.column = grid, row, column

        @property
        def control(self) -> ValueGrid:
            return self.grid

    class Opened(Message):
        """Enter was pressed on a cell."""

        def __init__(self, grid: ValueGrid) -> None:
            super().__init__()
            self.grid = grid

        @property
        def control(self) -> ValueGrid:
            return self.grid

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.table: Table | None = None
        self.first_row = self.first_column = 0
        self.loud = float("inf")  # magnitudes from here on stand out

    def show(self, table: Table | None, *, keep_cursor: bool = False) -> None:
        self.table = table
        self.loud = float("inf")
        if not keep_cursor:
            self.row = self.column = self.first_row = self.first_column = 0
        self.move_to(self.row, self.column, tell=False)
        self.refresh()

    # Geometry.

    @property
    def label_width(self) -> int:
        if self.table is None or not self.table.rows:
            return 4
        last = self.table.rows - 1
        sample = [*range(min(last, 40) + 1), last]
        longest = max(len(self.table.row_label(row)) for row in sample)
        return max(3, min(longest, 16, self.size.width // 4)) + 2

    @property
    def page_columns(self) -> int:
        return max((self.size.width - self.label_width) // CELL, 1)

    # Moving.

    def move_to(self, row: int, column: int, *, tell: bool = True) -> None:
        """Put the cursor on a cell (clamped) and scroll it into view."""
        if self.table is None:
            return
        before = (self.row, self.column, self.first_row, self.first_column)
        self.row = max(0, min(row, self.table.rows - 1))
        self.column = max(0, min(column, self.table.columns - 1))
        self.first_row = scrolled(self.first_row, self.row, self.page_rows, self.table.rows)
        self.first_column = scrolled(
            self.first_column, self.column, self.page_columns, self.table.columns
        )
        if before[2:] != (self.first_row, self.first_column) or before[1] != self.column:
            self.refresh()
        elif before[0] != self.row:
            for changed in (before[0], self.row):
                self.refresh(Region(0, changed - self.first_row + 1, self.size.width, 1))
        if tell and before[:2] != (self.row, self.column):
            self.post_message(self.Moved(self, self.row, self.column))

    def action_open(self) -> None:
        self.post_message(self.Opened(self))

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        event.stop()
        self.move_to(self.row + 3, self.column)

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        event.stop()
        self.move_to(self.row - 3, self.column)

    def on_resize(self) -> None:
        self.move_to(self.row, self.column, tell=False)
        self.refresh()

    def on_focus(self) -> None:
        self.refresh()

    def on_blur(self) -> None:
        self.refresh()

    # Drawing.

    def render_line(self, y: int) -> Strip:
        width, table = self.size.width, self.table
        if table is None or not table.rows:
            return Strip.blank(width, self.rich_style)
        row = self.first_row + y - 1
        if row >= table.rows:
            return Strip.blank(width, self.rich_style)
        label_width = self.label_width
        columns = range(
            self.first_column, min(self.first_column + self.page_columns, table.columns)
        )
        if y == 0:
            labels = "".join(right(table.column_label(column), CELL) for column in columns)
            return self.strip([(" " * label_width, ""), (labels, "head")], width)
        here = row == self.row
        cursor = self.over_style("cursor" if self.has_focus else "cursor-blur")
        segments = [
            Segment(" " + fit(table.row_label(row), label_width - 1), self.line_style("head"))
        ]
        for column in columns:
            value = table.cell(row, column)
            style = self.line_style(self._tone(value))
            if here and column == self.column:
                style = style + cursor
            text = "" if value is None else number(value)
            if here and column == self.column:
                segments.append(Segment(" ", self.rich_style))
                segments.append(Segment(right(text, CELL - 1), style))
            else:
                segments.append(Segment(right(text, CELL), style))
        return Strip(segments).simplify().adjust_cell_length(width, self.rich_style)

    def _tone(self, value: float | None) -> str:
        if value is None or value == 0.0:
            return "dim"
        if value != value or abs(value) == float("inf"):
            return "bad"
        return "warn" if abs(value) >= self.loud else ""
