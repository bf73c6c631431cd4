"""A matrix: rows by columns of cells with a verdict each, one cursor, any number of either."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from textual import events
from textual.geometry import Region
from textual.strip import Strip

from aprtui.formats.tracedir import StageKey
from aprtui.tui.jumps import Jump
from aprtui.tui.widgets.lines import Part, RowList, fit, right

__all__ = ["Cell", "MatrixGrid", "Place", "Row"]

Place = tuple[StageKey, int]  # a row's key, a column's number

_WIDTHS = (11, 22)  # least and most cells of a column with numbers
_SIGN = 4  # of one with signs alone
_LABEL = (16, 30)  # least and most cells of a row's label


@dataclass(frozen=True)
class Row:
    """``key`` is what a filter's names and layers are looked for in; no two rows have the same."""

    key: StageKey
    label: str


@dataclass(frozen=True)
class Cell:
    """``verdict`` is a word; ``sign`` at most two characters and ``tone`` the style that say it;
    ``text`` a number or a word beside it; ``words`` more that a filter finds. ``badness`` orders
    rows, the worst first; where it is 0 nothing is wrong. ``target``: where enter leads."""

    verdict: str
    sign: str
    tone: str
    text: str = ""
    words: str = ""
    badness: float = 0.0
    target: Jump | None = None


class MatrixGrid(RowList):
    """Draws what it is given; RowList.Moved tells of a move in either direction."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.columns: tuple[str, ...] = ()
        self.rows: Sequence[Row] = ()
        self.cells: dict[Place, Cell] = {}
        self.corner = ""
        self.column = self.first_column = 0

    # State.

    def set_columns(self, columns: Sequence[str]) -> None:
        """The names of the columns."""
        self.columns = tuple(columns)
        self.column = min(self.column, max(len(self.columns) - 1, 0))
        self._keep_column()
        self.refresh()

    def set_rows(self, rows: Sequence[Row]) -> None:
        """Show these rows, in this order; the cursor stays on its row where it is among them."""
        here = self.current
        self.rows = rows
        if here is not None:
            keys = [row.key for row in rows]
            self.cursor = keys.index(here[0]) if here[0] in keys else 0
        self.rows_changed()

    def put(self, cells: Mapping[Place, Cell]) -> None:
        """Change some cells; only lines that look different are drawn again."""
        changed = {key for (key, column), cell in cells.items()
                   if self.cells.get((key, column)) != cell}  # fmt: skip
        self.cells.update(cells)
        for y, row in enumerate(self.rows[self.first : self.first + self.page], self.head_height):
            if row.key in changed:
                self.refresh(Region(0, y, self.size.width, 1))

    @property
    def current(self) -> Place | None:
        """The cell under the cursor."""
        if not self.columns or self.cursor >= len(self.rows):
            return None
        return self.rows[self.cursor].key, self.column

    def select(self, key: StageKey, column: int | None = None) -> None:
        """Put the cursor on a row that is shown, and on a column."""
        at = next((n for n, row in enumerate(self.rows) if row.key == key), None)
        if at is not None:
            self.move_to(at)
        if column is not None:
            self._across(column)

    # Geometry.

    @property
    def label_width(self) -> int:
        """The cells of a row's label and the blanks behind it."""
        least, most = _LABEL
        longest = max((len(row.label) for row in self.rows), default=0)
        return max(min(longest, most, self.size.width // 3), least) + 2

    @property
    def column_width(self) -> int:
        """What each may have where all fit with their numbers; else room for the sign alone."""
        each = (self.size.width - self.label_width) // max(len(self.columns), 1)
        least, most = _WIDTHS
        return min(each, most) if each >= least else _SIGN

    @property
    def seen_columns(self) -> int:
        """How many columns fit."""
        return max((self.size.width - self.label_width) // self.column_width, 1)

    def _keep_column(self) -> None:
        seen = self.seen_columns if self.size.width else len(self.columns)
        self.first_column = max(min(self.first_column, self.column), self.column - seen + 1, 0)
        self.first_column = min(self.first_column, max(len(self.columns) - seen, 0))

    def on_resize(self) -> None:
        super().on_resize()
        self._keep_column()

    # Moving.

    def _across(self, column: int) -> None:
        before, first = self.column, self.first_column
        self.column = max(0, min(column, len(self.columns) - 1))
        self._keep_column()
        if self.first_column != first:
            self.refresh()
        elif self.column != before:
            for y in (0, self.cursor - self.first + self.head_height):
                self.refresh(Region(0, y, self.size.width, 1))
        if self.column != before:
            self.post_message(self.Moved(self, self.cursor))

    def action_left(self) -> None:
        self._across(self.column - 1)

    def action_right(self) -> None:
        self._across(self.column + 1)

    def action_line_start(self) -> None:
        self._across(0)

    def action_line_end(self) -> None:
        self._across(len(self.columns) - 1)

    def on_click(self, event: events.Click) -> None:
        super().on_click(event)
        place = event.get_content_offset(self)
        if place is not None and place.x >= self.label_width:
            self._across(self.first_column + (place.x - self.label_width) // self.column_width)

    # Drawing.

    def row_count(self) -> int:
        return len(self.rows)

    def _shown(self) -> range:
        end = self.first_column + self.seen_columns
        return range(self.first_column, min(end, len(self.columns)))

    def head_parts(self, width: int) -> list[Part]:
        shown, each = self._shown(), self.column_width
        more = " " if not shown.start else "«"
        parts: list[Part] = [(fit(f" {self.corner}", self.label_width - 1) + more, "head")]
        for number in shown:
            name = f"{number + 1} {self.columns[number]}" if each > _SIGN else f"{number + 1}"
            tone = "accent" if number == self.column and self.has_focus else "head"
            parts.append((fit(right(name, each - 1) if each == _SIGN else f" {name}",
                              each - 1) + " ", tone))  # fmt: skip
        if shown.stop < len(self.columns):
            parts.append(("»", "head"))
        return parts

    def render_line(self, y: int) -> Strip:
        """As RowList's, but the cursor is on one cell and not on the line."""
        width = self.size.width
        if y == 0:
            return self.strip(self.head_parts(width), width)
        row = self.first + y - 1
        if row >= len(self.rows):
            return Strip.blank(width, self.rich_style)
        return self.strip(self.row_parts(row, width), width)

    def row_parts(self, row: int, width: int) -> list[Part]:
        entry, each = self.rows[row], self.column_width
        here = row == self.cursor
        tone = "accent" if here and self.has_focus else ""
        parts: list[Part] = [(" " + fit(entry.label, self.label_width - 2) + " ", tone)]
        for number in self._shown():
            cell = self.cells.get((entry.key, number))
            sign, text, style = (cell.sign, cell.text, cell.tone) if cell else (" ", "", "")
            drawn = f"{sign:>2} " + (fit(text, each - 4) if each > _SIGN else "")
            if here and number == self.column:
                style = "cursor" if self.has_focus else "cursor-blur"
            parts += [(fit(drawn, each - 1), style), (" ", "")]
        return parts
