"""One tensor of a model: what the index says, its values in numbers, and their distribution."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from textual import on, work
from textual.message import Message
from textual.strip import Strip
from textual.worker import get_current_worker

from aprtui.compare.metrics import Cancelled
from aprtui.errors import AprtuiError
from aprtui.text import count
from aprtui.tui.measure import Store, identity
from aprtui.tui.model_facts import TensorRow, tensor_facts, value_facts
from aprtui.tui.weight_sample import WeightLook, look_at_all, look_at_weight
from aprtui.tui.widgets.bars import axis_parts, histogram_rows
from aprtui.tui.widgets.facts import Fact, fact_lines
from aprtui.tui.widgets.lines import Part
from aprtui.tui.widgets.model_pane import ModelPane, ModelSeen
from aprtui.tui.widgets.scrolled import Scrolled
from aprtui.tui.widgets.stats_pane import beside

__all__ = ["TensorPane"]

HEAD = 4  # facts that stand before the values, where there is no room for all
BESIDE = 70  # cells from which on the histogram stands beside the facts
TELL_S = 0.1  # how far a weight is counted is told ten times a second at most


@dataclass
class WeightReady(Message):
    """A weight was looked at, at a sample of it or at every value; or ``wrong``: why it was not.
    Neither: no decoder for it."""

    row: TensorRow
    look: WeightLook | None
    wrong: str = ""


@dataclass
class WeightCounted(Message):
    """So many values of a weight have been counted."""

    row: TensorRow
    done: int

    def can_replace(self, message: Message) -> bool:
        return isinstance(message, WeightCounted)


class TensorPane(Scrolled, ModelPane):
    """Facts, and a histogram between the 0.1st and 99.9th percentiles below or beside them."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.store = Store()
        self.row: TensorRow | None = None  # None: a layer
        self._facts: list[Fact] = []
        self.look: WeightLook | None = None
        self._note: Part = ("", "dim")
        self._made: list[list[Part]] | None = None

    def show(self, seen: ModelSeen) -> None:
        """Another tensor, or a layer; the values come later."""
        self.row = seen.row
        if seen.row is None:
            self.workers.cancel_group(self, "weight")
            self._begin([*seen.of_layer], "")
        elif 0 in seen.row.entry.shape:
            self._begin(tensor_facts(seen.row), "no values")
        else:
            self._begin(tensor_facts(seen.row), "reading values …")
            self._look_at(seen.row, self.bins)

    def _begin(self, facts: list[Fact], note: str) -> None:
        self._facts, self.look, self._note = facts, None, (note, "dim")
        self._changed()

    def title(self, seen: ModelSeen) -> str:
        """And how many of its values the numbers are of."""
        if self.look is None:
            return seen.title
        told = "every value" if self.look.exact else f"{count(self.look.looked)} sampled"
        return f"{seen.title} · {told}"

    @work(thread=True, exclusive=True, group="weight")
    def _look_at(self, row: TensorRow, bins: int) -> None:
        """A sample of the weight first, then all of it; kept while the file is the same."""
        worker = get_current_worker()
        key = (identity(row.entry.path), row.entry.name, bins)
        last = 0.0

        def counted(done: int) -> None:
            nonlocal last
            if time.monotonic() - last >= TELL_S:
                last = time.monotonic()
                self.post_message(WeightCounted(row, done))

        try:
            known = self.store.get(key)
            look = known if isinstance(known, WeightLook) else look_at_weight(row.entry, bins)
            if not worker.is_cancelled:
                self.post_message(WeightReady(row, look))
            if look is not None and not look.exact:
                look = look_at_all(look, lambda: worker.is_cancelled, counted)
                self.post_message(WeightReady(row, look))
            self.store.put(key, look)
        except Cancelled:
            return
        except AprtuiError as error:
            self.post_message(WeightReady(row, None, f"{error.message}. {error.hint}"))

    @on(WeightReady)
    def _weight(self, event: WeightReady) -> None:
        event.stop()
        if self.row is not event.row:
            return
        if event.wrong:
            self.say(f"! {event.wrong}", "bad")
        elif event.look is None:
            self.say(f"no decoder for {event.row.entry.type} without the engine")
        else:
            self.look, self._note = event.look, ("", "dim")
            self._changed()
            self.post_message(self.Renamed())

    @on(WeightCounted)
    def _counted(self, event: WeightCounted) -> None:
        event.stop()
        if self.row is event.row:
            values = max(math.prod(event.row.entry.shape), 1)
            self.say(f"a sample; counting every value, {100 * event.done // values} %")

    def say(self, note: str, tone: str = "dim") -> None:
        """A line below the numbers: why there are none, or how far they are counted."""
        self._note = (note, tone)
        self._changed()

    def _changed(self) -> None:
        before, self._made = self._made, self._make()
        if not self.has_focus:
            self.first = 0
        self.tell_more()
        self.refresh_changed(before or [], self._made)

    def on_resize(self) -> None:
        self._made = None
        self.post_message(self.Wanted())

    @property
    def bins(self) -> int:
        """Bars of the histogram: what its place is wide, less the counts at the left."""
        return max(self._picture_width - 14, 8)

    @property
    def _wide(self) -> bool:
        return self.size.width >= BESIDE

    @property
    def _picture_width(self) -> int:
        return self.size.width - self._facts_width if self._wide else self.size.width

    @property
    def _facts_width(self) -> int:
        return max(self.size.width * 12 // 20, 40) if self._wide else self.size.width

    def all_lines(self) -> list[list[Part]]:
        if self._made is None:
            self._made = self._make()
        return self._made

    def render_line(self, y: int) -> Strip:
        return self.scrolled_line(y)

    def _make(self) -> list[list[Part]]:
        values = value_facts(self.look) if self.look else []
        text, tone = self._note
        note = [Fact("", text, tone=tone)] if text else []
        middle = [*note, *values] if tone == "bad" else [*values, *note]
        facts = [*self._facts[:HEAD], *middle, *self._facts[HEAD:]]
        lines = fact_lines(facts, self._facts_width)
        if self._wide:
            return beside(lines, self._picture(self.size.height), self._facts_width)
        return [*lines, [("", "")], *self._picture(self.size.height - len(lines) - 1)]

    def _picture(self, room: int) -> list[list[Part]]:
        """Bars, their axis and what lies outside, in at most ``room`` lines."""
        look = self.look
        if look is None or not look.looked or room < 4:
            return []
        counts = look.histogram
        rows = histogram_rows(counts.counts, room - 2, False)
        outside = counts.below + counts.above
        note = f"{count(outside)} outside" if outside else ""
        missing = counts.nan + counts.inf
        return [
            *rows,
            axis_parts(counts, len(rows[0][0][0])),
            [(f" {note}", "dim"), (f"  {count(missing)} NaN or Inf not drawn", "bad")]
            if missing
            else [(f" {note}", "dim")],
        ]
