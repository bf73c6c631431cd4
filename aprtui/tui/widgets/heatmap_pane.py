"""The Heatmap pane: positions by channels, each cell the value of largest magnitude or the mean."""

from __future__ import annotations

import numpy as np

from aprtui.tui.heat import Heat, heat_of
from aprtui.tui.measure import Measured
from aprtui.tui.reduce import Window
from aprtui.tui.stage_table import StageTable
from aprtui.tui.widgets.heatmap import HeatMap
from aprtui.tui.widgets.lines import Part
from aprtui.tui.widgets.stage_pane import StagePane, StageSeen, Work

__all__ = ["HeatmapPane", "largest_in"]


class HeatmapPane(HeatMap, StagePane):
    """The cursor stays on its value from stage to stage; enter shows it in Values."""

    def show(self, seen: StageSeen) -> None:
        old, new = self.table, seen.table
        if old is None or new is None or (old.rows, old.columns) != (new.rows, new.columns):
            self.window, self._at = None, None
        super().show(seen)

    def work(self) -> Work:
        ask = self.ask
        return Work(ask, lambda table, hook: heat_of(table.values, table.columns, ask, hook))

    def forget(self) -> None:
        self.heat = None
        self.refresh()

    def give(self, measured: Measured | None, made: object) -> None:
        if isinstance(made, Heat):
            self.drawn = self.seen
            self.draw_heat(made)

    def copied(self) -> str:
        return repr(self.value) if self.value is not None and self.has_focus else ""

    @property
    def place(self) -> int | None:
        table = self.table
        if table is None or self._at is None:
            return None
        return min(self._at[0] * table.columns + self._at[1], table.values.size - 1)

    def go(self, index: int) -> None:
        if self.table is not None:
            self.go_to(*divmod(index, self.table.columns))

    def action_open(self) -> None:
        block, table, seen = self.block, self.table, self.seen
        if block is not None and table is not None and seen is not None:
            index = largest_in(table, block)
            self._at = divmod(index, table.columns)
            self.post_message(self.ValueWanted(seen.record.key, index))

    # What the table's rows and columns are called.

    @property
    def _named(self) -> StageTable | None:
        """The table that the picture is of: another may be on its way."""
        return self.drawn.table if self.drawn is not None else self.table

    @property
    def whole(self) -> Window:
        table = self._named
        return super().whole if table is None else Window(0, table.rows, 0, table.columns)

    def row_name(self, row: int) -> str:
        return self._named.row_label(row) if self._named is not None else ""

    def column_name(self, column: int) -> str:
        return self._named.column_label(column) if self._named is not None else ""

    def axis_name(self) -> str:
        table = self._named
        return table.axes[-1] if table is not None and table.axes and not table.folded else ""

    def place_name(self, row: int, column: int) -> str:
        table = self._named
        index = row * table.columns + column if table is not None else 0
        return table.name_of(index) if table and index < table.values.size else "past the end"

    def longest_label(self) -> int:
        table = self.table
        if table is None or not table.rows:
            return 6
        sample = [*range(min(table.rows, 40)), table.rows - 1]
        return max(len(table.row_label(row)) for row in sample)

    def told(self, heat: Heat) -> list[Part]:
        parts = super().told(heat)
        table, block = self._named, self.block
        if table is None or block is None or block.rows * block.columns <= 1:
            return parts
        if heat.reduced.how != "largest" or block.rows * block.columns > MOST_LOOKED_THROUGH:
            return parts
        return [*parts, ("at ", "dim"), (f"{table.name_of(largest_in(table, block))}  ", "")]


MOST_LOOKED_THROUGH = 1 << 16  # values: of larger cells it is not told where in them


def largest_in(table: StageTable, block: Window) -> int:
    """The index of the value that a cell shows: a NaN, else the largest magnitude."""
    best, place = -1.0, block.top * table.columns + block.left
    for row in range(block.top, block.bottom):
        start = row * table.columns
        values = np.abs(table.values[start + block.left : start + block.right])
        if not values.size:
            continue
        at = int(values.argmax())  # numpy gives the first NaN, where there is one
        found = float(values[at])
        if found != found:
            return start + block.left + at
        if found > best:
            best, place = found, start + block.left + at
    return place
