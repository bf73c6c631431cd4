"""A list of stages, one a line, in an order that the screen chooses: Diff's other view."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

from textual.message import Message

from aprtui.formats.tracedir import StageKey
from aprtui.tui.widgets.lines import Part, RowList

__all__ = ["StageRows"]

Draw = Callable[[StageKey, int], list[Part]]


class StageRows(RowList):
    """Rows are stages or, as plain text, a line between two groups that the cursor passes over."""

    DEFAULT_CLASSES: ClassVar[str] = "frame"

    class Chosen(Message):
        """Enter was pressed on a stage."""

        def __init__(self, key: StageKey) -> None:
            super().__init__()
            self.key = key

    def __init__(self, head: Callable[[int], list[Part]], draw: Draw, *, id: str) -> None:
        super().__init__(id=id)
        self._head, self._draw = head, draw
        self.rows: Sequence[StageKey | str] = ()

    def set_rows(self, rows: Sequence[StageKey | str]) -> None:
        """Show other rows, the cursor on its stage; where they are scrolled, on its line too."""
        here, line = self.current, self.cursor - self.first
        self.rows = rows
        self.cursor = rows.index(here) if here in rows else 0
        self.first = self.cursor - line if self.first else 0
        self.rows_changed()
        self.move_to(self.cursor, tell=False)

    @property
    def current(self) -> StageKey | None:
        row = self.rows[self.cursor] if self.cursor < len(self.rows) else None
        return row if isinstance(row, StageKey) else None

    def select(self, key: StageKey) -> bool:
        """Put the cursor on ``key``; whether it is in the list."""
        if key not in self.rows:
            return False
        self.move_to(self.rows.index(key), tell=False)
        return True

    def move_to(self, row: int, *, tell: bool = True) -> None:
        row = max(0, min(row, len(self.rows) - 1))
        step = 1 if row >= self.cursor else -1
        while 0 <= row < len(self.rows) and isinstance(self.rows[row], str):
            row += step
        super().move_to(row if 0 <= row < len(self.rows) else self.cursor, tell=tell)

    def row_count(self) -> int:
        return len(self.rows)

    def head_parts(self, width: int) -> list[Part]:
        return self._head(width)

    def row_parts(self, row: int, width: int) -> list[Part]:
        entry = self.rows[row]
        return [(f" {entry}", "head")] if isinstance(entry, str) else self._draw(entry, width)

    def action_open(self) -> None:
        if self.current is not None:
            self.post_message(self.Chosen(self.current))
