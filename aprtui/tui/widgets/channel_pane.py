"""The Channel pane: one channel along the positions, and along the layers at one of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from textual.strip import Strip

from aprtui.compare.metrics import Cancelled
from aprtui.errors import BadFileError
from aprtui.formats.tracedir import StageRecord
from aprtui.text import number
from aprtui.tui.measure import Hook, Measured, identity
from aprtui.tui.stage_table import StageTable
from aprtui.tui.widgets.bars import signed_columns
from aprtui.tui.widgets.cell_cursor import CellCursor
from aprtui.tui.widgets.lines import Part, fit, right, spaced, whole_fields
from aprtui.tui.widgets.stage_pane import StagePane, StageSeen, Work

__all__ = ["Along", "ChannelPane"]

LABEL = 10


@dataclass(frozen=True)
class Along:
    """A channel's values: at each position of the stage, and at one position of each layer that
    has the stage in the same shape (``layers`` are their numbers)."""

    row: int
    column: int
    positions: tuple[float, ...]
    layers: tuple[int, ...]
    by_layer: tuple[float, ...]


def _along(
    table: StageTable, records: Sequence[StageRecord], row: int, column: int, cancelled: Hook
) -> Along:
    whole = table.values[: table.rows * table.columns]
    positions = tuple(float(value) for value in whole[column :: table.columns])
    layers, values = [], []
    for record in records:
        if cancelled():
            raise Cancelled
        try:
            read = record.values()
        except BadFileError:
            continue  # the tree says so
        if record.key.layer is not None and read.size == table.values.size:
            layers.append(record.key.layer)
            values.append(float(read[row * table.columns + column]))
    return Along(row, column, positions, tuple(layers), tuple(values))


class ChannelPane(CellCursor, StagePane):
    """h and l step through the channels, j and k through the positions."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.along: Along | None = None
        self._before: list[list[Part]] = []

    def show(self, seen: StageSeen) -> None:
        super().show(seen)
        self._clamp()

    def _clamp(self) -> None:
        table = self.table
        if table is not None:
            self.row = max(0, min(self.row, table.rows - 1))
            self.column = max(0, min(self.column, table.columns - 1))

    def work(self) -> Work | None:
        seen, row, column = self.seen, self.row, self.column
        if seen is None:
            return None
        stage = seen.record.key.stage
        records = [
            record
            for key, record in sorted(seen.trace.records.items(), key=lambda kv: kv[0].layer or 0)
            if key.stage == stage and key.layer is not None and record.shape == seen.record.shape
        ]
        about = tuple(identity(record.path) for record in records)

        def make(table: StageTable, hook: Hook) -> object:
            return _along(table, records, row, column, hook)

        return Work((row, column, about), make)

    def give(self, measured: Measured | None, made: object) -> None:
        if isinstance(made, Along):
            self.along, self.drawn = made, self.seen
            self._redraw()

    def forget(self) -> None:
        self.along = None
        self._redraw()

    def _redraw(self) -> None:
        before, self._before = self._before, self._lines()
        self.refresh_changed(before, self._before)

    @property
    def place(self) -> int | None:
        return self.row * self.table.columns + self.column if self.table is not None else None

    def go(self, index: int) -> None:
        if self.table is not None:
            self.move_to(*divmod(index, self.table.columns))

    def copied(self) -> str:
        found = self.along
        return repr(found.positions[found.row]) if found is not None and self.has_focus else ""

    def move_to(self, row: int, column: int) -> None:
        before = (self.row, self.column)
        self.row, self.column = row, column
        self._clamp()
        if before != (self.row, self.column):
            self.post_message(self.Wanted())

    def action_page_down(self) -> None:
        self.move_to(self.row, self.column + 16)

    def action_page_up(self) -> None:
        self.move_to(self.row, self.column - 16)

    def action_open(self) -> None:
        if self.seen is not None and self.place is not None:
            self.post_message(self.ValueWanted(self.seen.record.key, self.place))

    def on_resize(self) -> None:
        self._before = self._lines()
        self.refresh()

    # Drawing.

    def render_line(self, y: int) -> Strip:
        lines, width = self._before, self.size.width
        return self.strip(lines[y] if y < len(lines) else [], width)

    def _lines(self) -> list[list[Part]]:
        found = self.along
        table = self.drawn.table if self.drawn is not None else None
        if found is None or table is None:
            return [[], [("  reading …", "dim")]]
        height = self.size.height
        by_layer = len(found.by_layer) > 1
        tall = max((height - 3 * (1 + by_layer)) // (1 + by_layer), 3)
        lines = [self._title(found, table)]
        marks = [table.row_label(row) for row in range(len(found.positions))]
        lines += self._plot(found.positions, marks, found.row, tall)
        if by_layer:
            here = self.drawn.record.key.layer if self.drawn is not None else None
            stage = self.drawn.record.key.stage if self.drawn is not None else ""
            at = found.layers.index(here) if here in found.layers else -1
            lines += [[], [(f" {stage} by layer, at {table.row_label(found.row)}  ", "head"),
                           (f"{len(found.layers)} layers", "dim")]]  # fmt: skip
            lines += self._plot(found.by_layer, [*map(str, found.layers)], at, tall)
        return lines[: max(height, 1)]

    def _title(self, found: Along, table: StageTable) -> list[Part]:
        value = found.positions[found.row] if found.row < len(found.positions) else math.nan
        tone = "accent" if math.isfinite(value) else "bad"
        return whole_fields([
            (f" channel {table.column_label(found.column)} by position  ", "head"),
            (f"{table.row_label(found.row)}: ", "dim"), (f"{number(value, 6)}  ", tone),
            (f"{found.column + 1:,} of {table.columns:,}  ", "dim"),
            ("h l channel, j k position", "dim"),
        ], self.size.width)  # fmt: skip

    def _plot(
        self, values: Sequence[float], marks: Sequence[str], at: int, tall: int
    ) -> list[list[Part]]:
        """``tall`` lines of columns about zero, and the names below them."""
        room = max(self.size.width - LABEL - 1, 1)
        shown, first = values, 0
        if len(values) > room:  # the part around the cursor
            first = max(0, min(at - room // 2, len(values) - room))
            shown = values[first : first + room]
        wide = max(1, min(room // max(len(shown), 1), 6))
        finite = [value for value in shown if math.isfinite(value)]
        high, low = max([0.0, *finite]), min([0.0, *finite])
        rows, zero = signed_columns(shown, tall, wide)
        lines: list[list[Part]] = []
        for y, row in enumerate(rows):
            mark = number(high, 3) if y == 0 and high else ""
            mark = number(low, 3) if y == tall - 1 and low else mark
            mark = "0" if y == zero and not mark else mark
            lines.append([(right(mark, LABEL - 1) + " ", "dim"),
                          *_marked(row, (at - first) * wide, wide)])  # fmt: skip
        return [*lines, self._names(marks[first : first + len(shown)], at - first, wide)]

    def _names(self, marks: Sequence[str], at: int, wide: int) -> list[Part]:
        step = max(1, -(-7 // wide))
        room = max(self.size.width - LABEL - 1, 1)
        order = (
            [at, *range(0, len(marks), step)]
            if 0 <= at < len(marks)
            else [*range(0, len(marks), step)]
        )
        named = ((place * wide, fit(marks[place], min(len(marks[place]), 9)).rstrip(),
                  "good" if place == at else "dim") for place in order)  # fmt: skip
        return [(" " * LABEL, ""), *spaced(named, room)]


def _marked(row: list[Part], start: int, wide: int) -> list[Part]:
    """The row with the columns of the cursor standing out."""
    parts: list[Part] = []
    x = 0
    for text, style in row:
        before = max(0, min(start - x, len(text)))
        behind = max(0, min(start + wide - x, len(text)))
        tone = "good" if style in ("a", "b") else style
        parts += [(text[:before], style), (text[before:behind], tone), (text[behind:], style)]
        x += len(text)
    return [part for part in parts if part[0]]
