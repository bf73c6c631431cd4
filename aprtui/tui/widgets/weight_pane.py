"""One tensor's values as a grid, and a line that says the block and scale of the one chosen."""

from __future__ import annotations

from textual import on
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.message import Message
from textual.widgets import Static

from aprtui.errors import AprtuiError
from aprtui.tui.weight_values import WeightTable, told_of_cell
from aprtui.tui.widgets.value_grid import ValueGrid

__all__ = ["WeightPane"]


class WeightPane(Vertical):
    """The grid over a window of rows; ``Wanted`` asks for the window around another row."""

    class Wanted(Message):
        """The cursor stands on a row whose values are not here."""

        def __init__(self, row: int) -> None:
            super().__init__()
            self.row = row

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.grid = ValueGrid(id="weightgrid")
        self.told = ""  # of the value under the cursor
        self.said = Static("", id="weightsaid", markup=False)

    def compose(self) -> ComposeResult:
        yield self.said
        yield self.grid

    @property
    def table(self) -> WeightTable | None:
        table = self.grid.table
        return table if isinstance(table, WeightTable) else None

    def say(self, text: str) -> None:
        """Why there are no values, or that they are read."""
        self.grid.show(None)
        self.said.update(text)

    def give(self, table: WeightTable) -> None:
        """A window; of the same tensor the cursor stays."""
        same = self.table is not None and self.table.entry is table.entry
        self.grid.show(table, keep_cursor=same)
        self._tell()

    @on(ValueGrid.Moved)
    def _moved(self, event: ValueGrid.Moved) -> None:
        event.stop()
        if self.table is not None and not self._whole_page(self.table):
            self.post_message(self.Wanted(event.row))
        self._tell()

    def _whole_page(self, table: WeightTable) -> bool:
        last = min(self.grid.first_row + self.grid.page_rows, table.rows) - 1
        return table.holds(self.grid.first_row) and table.holds(last)

    def _tell(self) -> None:
        if self.table is None:
            return
        try:
            self.told = told_of_cell(self.table, self.grid.row, self.grid.column)
        except AprtuiError as error:
            self.told = f"! {error.message}"
        self.said.update(self.told)
