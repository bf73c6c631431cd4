"""The Map pane of Model: a weight as a grid, rows down and blocks of columns across."""

from __future__ import annotations

import math
from dataclasses import dataclass

from textual import on, work
from textual.message import Message
from textual.worker import get_current_worker

from aprtui.compare.metrics import Cancelled
from aprtui.errors import AprtuiError
from aprtui.formats.blocks import BLOCK_TYPES
from aprtui.formats.modelfile import TensorEntry
from aprtui.tui.heat import Ask, Heat, fitted
from aprtui.tui.measure import Store, identity
from aprtui.tui.model_facts import TensorRow
from aprtui.tui.reduce import Window, reduce_blocks
from aprtui.tui.weight_sample import row_blocks
from aprtui.tui.widgets.heatmap import HeatMap
from aprtui.tui.widgets.lines import Part
from aprtui.tui.widgets.model_pane import ModelPane, ModelSeen
from aprtui.tui.widgets.pane import Nothing

__all__ = ["WeightMapPane"]


@dataclass
class Mapped(Message):
    """A weight's picture, or ``wrong``: why there is none."""

    row: TensorRow
    ask: Ask
    heat: Heat | None
    wrong: str = ""


class WeightMapPane(HeatMap, ModelPane):
    """Every value is looked at, in a thread, block by block; nothing larger is kept than cells."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.seen: ModelSeen | None = None
        self.store = Store(60)
        self._note = ""

    def nothing(self, seen: ModelSeen) -> Nothing | None:
        if seen.row is None:
            return Nothing("choose a tensor")
        if not math.prod(seen.row.entry.shape):
            return Nothing("no values")
        if seen.row.entry.coding is not None or seen.row.entry.type not in BLOCK_TYPES:
            return Nothing(f"{seen.row.entry.type} is decoded by the engine alone",
                           "5 shows its values, a window at a time")  # fmt: skip
        return None

    def show(self, seen: ModelSeen) -> None:
        old = self.seen.row.entry if self.seen is not None and self.seen.row is not None else None
        self.seen = seen
        if seen.row is not None and seen.row.entry is not old:
            self.window, self._at = None, None
            self._note = ""
            self.draw_heat(None)
        self.remake()

    def remake(self) -> None:
        """The picture for the room there is, unless it is known."""
        seen = self.seen
        if seen is None or seen.row is None or not self.display or not self.size.width:
            return
        known = self.store.get(self._key(seen.row.entry, self.ask))
        if isinstance(known, Heat):
            self.draw_heat(known)
        else:
            self._make(seen.row, self.ask)

    def _key(self, entry: TensorEntry, ask: Ask) -> object:
        return (identity(entry.path), entry.name, ask)

    @work(thread=True, exclusive=True, group="weight-map")
    def _make(self, row: TensorRow, ask: Ask) -> None:
        worker = get_current_worker()
        window = ask.window or _whole(row.entry)
        halves = 2 if ask.palette.depth.blends else 1
        try:
            blocks = row_blocks(row.entry, window.top, window.bottom)
            if blocks is None:
                wrong = "its blocks run across rows: 5 shows its values"
                self.post_message(Mapped(row, ask, None, wrong))
                return
            fine = reduce_blocks(blocks, window, halves * ask.lines, ask.columns, ask.how,
                                 lambda: bool(worker.is_cancelled))  # fmt: skip
        except Cancelled:
            return
        except AprtuiError as error:
            self.post_message(Mapped(row, ask, None, error.message))
            return
        self.post_message(Mapped(row, ask, fitted(fine, window, ask)))

    @on(Mapped)
    def _mapped(self, event: Mapped) -> None:
        event.stop()
        if event.heat is not None:
            self.store.put(self._key(event.row.entry, event.ask), event.heat)
        if self.seen is None or self.seen.row is not event.row or event.ask != self.ask:
            return
        self._note = event.wrong
        self.draw_heat(event.heat)

    def action_open(self) -> None:
        if self.block is not None:
            self.post_message(self.ValueWanted(self.block))

    def copied(self) -> str:
        return repr(self.value) if self.value is not None and self.has_focus else ""

    # What rows and columns are called.

    @property
    def _entry(self) -> TensorEntry | None:
        return self.seen.row.entry if self.seen is not None and self.seen.row is not None else None

    @property
    def whole(self) -> Window:
        return _whole(self._entry) if self._entry is not None else super().whole

    def row_name(self, row: int) -> str:
        entry = self._entry
        if entry is None or len(entry.shape) < 3:
            return str(row)
        expert, place = divmod(row, entry.shape[-2])
        return f"e{expert} {place}"

    def axis_name(self) -> str:
        return "column"

    def longest_label(self) -> int:
        return max(6, len(self.row_name(max(self.whole.bottom - 1, 0))))

    def empty_parts(self) -> list[Part]:
        return [(f"  {self._note}", "warn")] if self._note else [("  shading …", "dim")]

    def told(self, heat: Heat) -> list[Part]:
        """The cell; and which of the row's blocks its columns lie in."""
        parts, block, entry = super().told(heat), self.block, self._entry
        kind = BLOCK_TYPES.get(entry.type) if entry is not None else None
        if block is None or kind is None or kind.values <= 1:
            return parts
        first, last = block.left // kind.values, (block.right - 1) // kind.values
        blocks = f"block {first}" if first == last else f"blocks {first}..{last}"
        return [*parts, (f"{blocks} of {kind.values}  ", "dim")]


def _whole(entry: TensorEntry) -> Window:
    columns = entry.shape[-1] if entry.shape else 1
    return Window(0, math.prod(entry.shape[:-1]), 0, columns)
