"""The Values pane: the grid, and one line that names the cell under the cursor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from textual import on
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.message import Message
from textual.worker import get_current_worker

from aprtui.compare.metrics import Cancelled
from aprtui.errors import BadFileError, UsageError
from aprtui.formats.maps import check_maps
from aprtui.text import count
from aprtui.tui.measure import Float32, Hook, Measured, largest_at, nonfinite_after
from aprtui.tui.stage_table import StageTable
from aprtui.tui.value_search import Hit, Sought, nearest_hit, sought
from aprtui.tui.widgets.lines import PartLine
from aprtui.tui.widgets.stage_pane import StagePane, StageSeen
from aprtui.tui.widgets.value_grid import ValueGrid

__all__ = ["ValuesPane"]

LOUD = 6.0  # times the rms: values beyond stand out


@dataclass
class Found(Message):
    """The value that was looked for in a table, or that there is none; ``hit`` of those that a
    person looks for."""

    table: StageTable
    index: int | None
    nothing: str
    hit: Hit | None = None


class ValuesPane(Vertical, StagePane):
    """Rows = positions, columns = channels, any size, nothing copied but what is drawn."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.grid = ValueGrid()
        self._cell = PartLine(id="cell")
        self.wanted: Sought | None = None  # what n and N look for
        self.hit: Hit | None = None

    def compose(self) -> ComposeResult:
        yield self.grid
        yield self._cell

    def show(self, seen: StageSeen) -> None:
        """Show another tensor; the cursor stays where it is when the table has the same shape."""
        old, table, self.seen = self.table, seen.table, seen
        same = (
            table is not None
            and old is not None
            and (old.rows, old.columns) == (table.rows, table.columns)
        )
        if table is not old:
            self.hit = None
            self.grid.show(table, keep_cursor=same)
        self._tell()

    def give(self, measured: Measured | None, made: object) -> None:
        if measured is not None and measured.statistics.count:
            self.grid.loud = LOUD * measured.statistics.rms

    def target(self) -> ValueGrid:
        return self.grid

    def copied(self) -> str:
        return repr(self.value) if self.value is not None else ""

    def on_value_grid_moved(self) -> None:
        self._tell()

    @property
    def index(self) -> int:
        table = self.table
        return 0 if table is None else self.grid.row * table.columns + self.grid.column

    @property
    def place(self) -> int | None:
        return self.index if self.table is not None else None

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
        hit, looked = self.hit, ""
        if self.wanted is not None and hit is not None and hit.index == self.index:
            looked = f"{self.wanted.text}: hit {count(hit.number)} of {count(hit.total)} (n N)  "
        self._cell.show([
            (f" {place}  ", "head"), (f"{said}  ", "accent"), (looked, "good"), (axes, "dim"),
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

    def action_pass(self, step: int) -> None:
        """To the first row of the next pass."""
        row = None if self.table is None else self.table.other_pass(self.grid.row, step)
        if row is None:
            self.post_message(self.Said("all rows are of one pass"))
        else:
            self.grid.move_to(row, self.grid.column)

    # Looking for a value.

    def action_maximum(self) -> None:
        self._seek("no number here", largest_at)

    def action_next_nonfinite(self) -> None:
        after = self.index
        self._seek(
            "no NaN and no infinity here",
            lambda values, cancelled: nonfinite_after(values, after, cancelled),
        )

    def find(self, text: str) -> str:
        """Look for the values that ``text`` means, from the cursor on; why not, if it means none.

        An empty text ends the search.
        """
        self.wanted = self.hit = None
        self._tell()
        if not text.strip():
            return ""
        try:
            self.wanted = sought(text)
        except UsageError as error:
            return f"{error.message}: {error.hint}"
        self.action_hit(0)
        return ""

    def action_hit(self, step: int) -> None:
        """The next hit, or the one before."""
        table, wanted, at = self.table, self.wanted, self.index
        if table is None or wanted is None:
            return

        def look(values: Float32, cancelled: Hook) -> Message:
            hit = nearest_hit(values, wanted, at, step, cancelled)
            nothing = f"no value here is {wanted.text}"
            return Found(table, None if hit is None else hit.index, nothing, hit)

        self._search(table, look)

    def _seek(self, nothing: str, find: Callable[[Float32, Hook], int | None]) -> None:
        """Go to the value that ``find`` finds."""
        table = self.table
        if table is not None:
            self._search(
                table, lambda values, cancelled: Found(table, find(values, cancelled), nothing)
            )

    def _search(self, table: StageTable, find: Callable[[Float32, Hook], Message]) -> None:
        """A large tensor takes a while, so in a thread."""

        def look() -> None:
            worker = get_current_worker()
            try:
                found = find(table.values, lambda: bool(worker.is_cancelled))
                check_maps(table.values)
            except Cancelled:
                return
            except BadFileError as error:
                found = Found(table, None, error.message)
            self.post_message(found)

        self.run_worker(look, thread=True, exclusive=True, group="seek")

    @on(Found)
    def _found(self, event: Found) -> None:
        event.stop()
        if event.table is not self.table:
            return
        if event.index is None:
            self.post_message(self.Said(event.nothing))
            return
        self.hit = event.hit
        self.go(event.index)
        self._tell()
