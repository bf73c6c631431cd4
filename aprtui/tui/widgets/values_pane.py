"""The Values pane: the grid, and one line that names the cell under the cursor."""

from __future__ import annotations

import numpy as np
from textual.app import ComposeResult
from textual.containers import Vertical

from aprtui.errors import UsageError
from aprtui.text import count
from aprtui.tui.stage_table import StageTable
from aprtui.tui.widgets.lines import PartLine
from aprtui.tui.widgets.value_grid import ValueGrid

__all__ = ["ValuesPane"]


class ValuesPane(Vertical):
    """Rows = positions, columns = channels, any size, nothing copied but what is drawn."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.grid = ValueGrid()
        self._cell = PartLine(id="cell")
        self.table: StageTable | None = None

    def compose(self) -> ComposeResult:
        yield self.grid
        yield self._cell

    def show(self, table: StageTable | None) -> None:
        """Show another tensor; the cursor stays where it is when the table has the same shape."""
        old = self.table
        same = (
            table is not None
            and old is not None
            and (old.rows, old.columns) == (table.rows, table.columns)
        )
        self.table = table
        self.grid.show(table, keep_cursor=same)
        self._tell()

    def on_value_grid_moved(self) -> None:
        self._tell()

    @property
    def index(self) -> int:
        table = self.table
        return 0 if table is None else self.grid.row * table.columns + self.grid.column

    @property
    def value(self) -> float | None:
        if self.table is None or not self.table.rows:
            return None
        return self.table.cell(self.grid.row, self.grid.column)

    def _tell(self) -> None:
        table = self.table
        if table is None or not table.values.size:
            self._cell.show([(" no values", "dim")])
            return
        value = self.value
        place = table.name_of(min(self.index, table.values.size - 1))
        axes = "" if table.folded else f"({', '.join(table.axes)})  "
        said = str(np.float32(value)) if value is not None else "—"
        self._cell.show([
            (f" {place}  ", "head"), (f"{said}  ", "accent"), (axes, "dim"),
            (f"value {count(self.index + 1)} of {count(table.values.size)}", "dim"),
        ])  # fmt: skip

    def jump(self, text: str) -> str:
        """Go to the place that ``text`` names; why not, when it cannot."""
        if self.table is None:
            return "no values to go to"
        try:
            self.go(self.table.index_of(text))
        except UsageError as error:
            return error.message
        return ""

    def go(self, index: int) -> None:
        if self.table is not None:
            self.grid.move_to(*divmod(index, self.table.columns))
