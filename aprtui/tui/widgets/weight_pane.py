"""One tensor's values as a grid, and a line that says the block and scale of the one chosen."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from textual import on, work
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.message import Message
from textual.widgets import Static

from aprtui.errors import AprtuiError
from aprtui.tui.model_facts import TensorRow
from aprtui.tui.reduce import Window
from aprtui.tui.weight_values import WeightTable, read_window, told_of_cell
from aprtui.tui.widgets.model_pane import ModelPane, ModelSeen
from aprtui.tui.widgets.pane import Nothing
from aprtui.tui.widgets.value_grid import ValueGrid

__all__ = ["WeightPane"]


@dataclass
class WindowRead(Message):
    """A window of a weight's rows, or ``wrong``: why there is none."""

    row: TensorRow
    table: WeightTable | None
    wrong: str = ""


class WeightPane(Vertical, ModelPane):
    """The grid over a window of rows, which are read around the cursor."""

    seen: ModelSeen | None = None

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.grid = ValueGrid(id="weightgrid")
        self.told = ""  # of the value under the cursor
        self._wanted: Window | None = None  # the largest of it, once its rows are read
        self.said = Static("", id="weightsaid", markup=False)

    def compose(self) -> ComposeResult:
        yield self.said
        yield self.grid

    @property
    def table(self) -> WeightTable | None:
        table = self.grid.table
        return table if isinstance(table, WeightTable) else None

    def nothing(self, seen: ModelSeen) -> Nothing | None:
        if seen.row is None:
            return Nothing("choose a tensor")
        return None if math.prod(seen.row.entry.shape) else Nothing("no values")

    def show(self, seen: ModelSeen) -> None:
        self.seen = seen
        if seen.row is None:
            return
        if self.table is None or self.table.entry is not seen.row.entry:
            self._wanted = None
            self._say("reading values …")
            self._read_window(seen.path, seen.row, 0)

    def go(self, block: Window) -> None:
        """To the value of largest magnitude there; its rows are read first."""
        if self.seen is not None and self.seen.row is not None:
            self._wanted = block
            self._read_window(self.seen.path, self.seen.row, block.top)

    def target(self) -> ValueGrid:
        return self.grid

    def copied(self) -> str:
        return self.told if self.grid.has_focus else ""

    def _say(self, text: str) -> None:
        """Why there are no values, or that they are read."""
        self.grid.show(None)
        self.said.update(text)

    @work(thread=True, exclusive=True, group="window")
    def _read_window(self, path: Path, row: TensorRow, at: int) -> None:
        try:
            self.post_message(WindowRead(row, read_window(path, row.entry, at)))
        except AprtuiError as error:
            self.post_message(WindowRead(row, None, error.message))

    @on(WindowRead)
    def _window(self, event: WindowRead) -> None:
        """A window; of the same tensor the cursor stays."""
        event.stop()
        if self.seen is None or self.seen.row is not event.row:
            return
        if event.table is None:
            self._say(f"! {event.wrong}")
            return
        same = self.table is not None and self.table.entry is event.table.entry
        self.grid.show(event.table, keep_cursor=same)
        if self._wanted is not None and event.table.holds(self._wanted.top):
            self.grid.move_to(*event.table.largest(self._wanted))
            self._wanted = None
        self._tell()

    @on(ValueGrid.Moved)
    def _moved(self, event: ValueGrid.Moved) -> None:
        event.stop()
        seen = self.seen
        if seen and seen.row and self.table is not None and not self._whole_page(self.table):
            self._read_window(seen.path, seen.row, event.row)
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
