"""The Attention pane: one head as a map, queries down and keys across, tokens on both axes."""

from __future__ import annotations

from dataclasses import dataclass

from rich.cells import cell_len
from textual.strip import Strip

from aprtui.errors import BadFileError
from aprtui.formats.tracedir import StageKey, StageRecord
from aprtui.graph.vocabulary import STAGES, facts_of
from aprtui.text import clean
from aprtui.tui.heat import Heat, heat_of
from aprtui.tui.measure import Hook, Measured, identity
from aprtui.tui.reduce import Window
from aprtui.tui.stage_table import StageTable, table_of
from aprtui.tui.widgets.bars import profile
from aprtui.tui.widgets.heatmap import HeatMap
from aprtui.tui.widgets.heatmap_pane import largest_in
from aprtui.tui.widgets.lines import Part
from aprtui.tui.widgets.pane import Nothing
from aprtui.tui.widgets.stage_pane import StagePane, StageSeen, Work

__all__ = ["AttentionPane", "Head", "scores_for"]

TEXT_LINES = 5  # of keys' tokens that are written downwards
TEXT_CELLS = 16


@dataclass(frozen=True, eq=False)
class Head:
    """One head of a stage [head, query, key], and its picture."""

    record: StageRecord
    table: StageTable
    number: int
    heat: Heat

    @property
    def heads(self) -> int:
        return self.table.shape[0]

    @property
    def queries(self) -> int:
        return self.table.shape[1]

    @property
    def keys(self) -> int:
        return self.table.shape[2]

    def index(self, query: int, key: int, head: int | None = None) -> int:
        """Where a value stands in the stage's file."""
        number = self.number if head is None else head
        return (number * self.queries + query) * self.keys + key


def scores_for(seen: StageSeen) -> StageRecord | None:
    """What the layer's heads look at: the stage itself, else the layer's softmax, or scores."""
    record = seen.record
    if facts_of(record.key.stage).scores:
        return record if record.shape is not None and len(record.shape) == 3 else None
    weights_first = sorted((stage for stage in STAGES if stage.scores), key=lambda s: not s.shares)
    for stage in weights_first:
        found = seen.trace.records.get(StageKey(record.key.layer, stage.name))
        if found is not None and found.shape is not None and len(found.shape) == 3:
            return found
    return None


class AttentionPane(HeatMap, StagePane):
    """p and P step through the heads; enter shows the value in Values, and leads back."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.logarithmic = False
        self.head = 0
        self.shown: Head | None = None

    def nothing(self, seen: StageSeen) -> Nothing | None:
        if scores_for(seen) is not None:
            return None
        return Nothing("No attention of this layer is in the trace.",
                       "attn_softmax or attn_scores [head, query, key] show it")  # fmt: skip

    def show(self, seen: StageSeen) -> None:
        record, old = scores_for(seen), self._record
        if record is None or old is None or record.shape != old.shape:
            self.window, self._at, self.head = None, None, 0
        super().show(seen)

    @property
    def _record(self) -> StageRecord | None:
        return scores_for(self.seen) if self.seen is not None else None

    def work(self) -> Work | None:
        record, ask, number = self._record, self.ask, self.head
        texts = self.seen.trace.token_texts or () if self.seen is not None else ()
        if record is None:
            return None

        def make(_: StageTable, hook: Hook) -> object:
            table = table_of(record, texts)
            if len(table.shape) != 3:
                raise BadFileError(record.path, "its values are not [head, query, key]")
            size = table.shape[1] * table.shape[2]
            values = table.values[number * size : (number + 1) * size]
            return Head(record, table, number, heat_of(values, table.shape[2], ask, hook))

        return Work((identity(record.path), number, ask), make)

    def give(self, measured: Measured | None, made: object) -> None:
        if isinstance(made, Head):
            self.drawn, self.shown = self.seen, made
            self.draw_heat(made.heat)

    def forget(self) -> None:
        self.heat = self.shown = None
        self.refresh()

    def copied(self) -> str:
        return repr(self.value) if self.value is not None and self.has_focus else ""

    # Keys.

    def action_head(self, step: int) -> None:
        shape = self._record.shape if self._record is not None else None
        if shape:
            self.head = (self.head + step) % shape[0]
            self.post_message(self.Wanted())

    def action_open(self) -> None:
        shown, block = self.shown, self.block
        if shown is None or block is None:
            return
        first = (shown.number * shown.queries) * shown.keys
        one = StageTable(
            shown.table.values[first : first + shown.queries * shown.keys], shown.queries,
            shown.keys, (), (shown.queries, shown.keys), False,
        )  # fmt: skip
        self.post_message(self.ValueWanted(shown.record.key, first + largest_in(one, block)))

    def go(self, index: int) -> None:
        shape = self._record.shape if self._record is not None else None
        if shape is None:
            return
        head, place = divmod(index, shape[1] * shape[2])
        self.go_to(*divmod(place, shape[2]))
        if head != self.head:
            self.head = head
            self.post_message(self.Wanted())

    # What queries and keys are called.

    @property
    def whole(self) -> Window:
        shown = self.shown
        return super().whole if shown is None else Window(0, shown.queries, 0, shown.keys)

    def _text(self, position: int) -> str:
        texts = self.seen.trace.token_texts or () if self.seen is not None else ()
        return clean(texts[position], TEXT_CELLS) if position < len(texts) else ""

    def row_name(self, row: int) -> str:
        return self._query_name(self.shown.record if self.shown is not None else None, row)

    def _query_name(self, record: StageRecord | None, row: int) -> str:
        numbers = record.row_numbers() if record is not None else None
        at = numbers[row] if numbers is not None and row < len(numbers) else row
        rows = record.rows if record is not None else None
        place = rows.label(at) if rows is not None and at < len(rows) else str(at)
        return f"{place} {self._text(at)}".rstrip()

    def column_name(self, column: int) -> str:
        return self._text(column) or str(column)

    def axis_name(self) -> str:
        return "query" if self.label_width > 7 else "q"

    def place_name(self, row: int, column: int) -> str:
        return f"query {row}, key {column}"

    def longest_label(self) -> int:
        record = self._record
        queries = min(record.shape[1], 64) if record is not None and record.shape else 0
        names = (self._query_name(record, row) for row in range(queries))
        return max(map(cell_len, names), default=6)

    @property
    def axis_lines(self) -> int:
        """Tokens are written downwards where columns are narrow and there is room."""
        shape = self._record.shape if self._record is not None else None
        room = self.size.width - 20
        if shape is None or not room >= shape[2] or room // shape[2] >= 4 or not self._text(0):
            return 1
        for lines in range(TEXT_LINES, 2, -1):  # as many as leave each query half a line
            if shape[1] <= 2 * (self.size.height - 2 - lines) and self.size.height >= 4 * lines:
                return lines
        return 1

    def _axis(self, heat: Heat, line: int) -> Strip:
        every = heat.levels.shape[1] == heat.window.columns
        if self.axis_lines == 1 or not every or heat.wide > 3:
            if line < self.axis_lines - 1:
                return self.strip([], self.size.width)
            return super()._axis(heat, line)
        parts: list[Part] = [(" " * self.label_width, "")]
        for column in range(heat.levels.shape[1]):
            name = self.column_name(int(heat.reduced.column_edges[column])).strip()
            name = name if cell_len(name) == len(name) else str(column)  # wide ones have no room
            letter = name[: self.axis_lines].rjust(self.axis_lines)[line]
            here = column == self.column and self.has_focus
            parts.append((letter.ljust(heat.wide), "accent" if here else "dim"))
        return self.strip(parts, self.size.width)

    def head_parts(self, heat: Heat) -> list[Part]:
        shown = self.shown
        if shown is None:
            return super().head_parts(heat)
        where = "" if shown.record.key.layer is None else f"layer {shown.record.key.layer} "
        of = "" if self.drawn is not None and self.drawn.record is shown.record else where
        name = f"{of}{shown.record.key.stage} "
        parts: list[Part] = [
            (f" {name}", "dim"), (f"head {shown.number} of {shown.heads}  ", "accent"),
        ]  # fmt: skip
        return [*parts, *super().head_parts(heat)]

    def told(self, heat: Heat) -> list[Part]:
        """Which query looks at which key, how much, and how much the other heads do."""
        parts, shown, block = super().told(heat), self.shown, self.block
        if shown is None or block is None or block.rows * block.columns != 1:
            return parts
        beside = [
            abs(float(shown.table.values[shown.index(block.top, block.left, head)]))
            for head in range(min(shown.heads, 64))
        ]
        return [*parts, ("by head ", "dim"), (profile(beside, 32) + "  ", "a")]
