"""A cursor over rows and columns of cells, moved by the keys of all such views."""

from __future__ import annotations

from typing import ClassVar

from textual.binding import BindingType

from aprtui.tui.keys import bindings
from aprtui.tui.widgets.lines import Lines

__all__ = ["CellCursor", "scrolled"]

_LAST = 1 << 30  # clamped to what is there


class CellCursor(Lines):
    """``move_to`` is the subclass's: it clamps, keeps the cell in sight and draws what changed."""

    BINDINGS: ClassVar[list[BindingType]] = bindings("move")  # type: ignore[assignment]

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.row = self.column = 0

    @property
    def page_rows(self) -> int:
        """How many rows a page is."""
        return max(self.size.height - 1, 1)

    def move_to(self, row: int, column: int) -> None:
        """Put the cursor on a cell, or on the one that is nearest to it."""
        raise NotImplementedError

    def action_down(self) -> None:
        self.move_to(self.row + 1, self.column)

    def action_up(self) -> None:
        self.move_to(self.row - 1, self.column)

    def action_left(self) -> None:
        self.move_to(self.row, self.column - 1)

    def action_right(self) -> None:
        self.move_to(self.row, self.column + 1)

    def action_page_down(self) -> None:
        self.move_to(self.row + self.page_rows, self.column)

    def action_page_up(self) -> None:
        self.move_to(self.row - self.page_rows, self.column)

    def action_top(self) -> None:
        self.move_to(0, self.column)

    def action_bottom(self) -> None:
        self.move_to(_LAST, self.column)

    def action_line_start(self) -> None:
        self.move_to(self.row, 0)

    def action_line_end(self) -> None:
        self.move_to(self.row, _LAST)

    def action_open(self) -> None: ...


def scrolled(first: int, cursor: int, page: int, count: int) -> int:
    """The first of ``count`` rows on a page that was at ``first`` and shall show ``cursor``."""
    first = max(min(first, cursor), cursor - page + 1)
    return max(0, min(first, count - page))
