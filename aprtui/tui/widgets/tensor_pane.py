"""One tensor of a model: what the index says, its values in numbers, and their distribution."""

from __future__ import annotations

from textual.message import Message
from textual.strip import Strip

from aprtui.text import count
from aprtui.tui.model_facts import value_facts
from aprtui.tui.weight_sample import WeightLook
from aprtui.tui.widgets.bars import axis_parts, histogram_rows
from aprtui.tui.widgets.facts import Fact, fact_lines
from aprtui.tui.widgets.lines import Lines, Part
from aprtui.tui.widgets.stats_pane import beside

__all__ = ["TensorPane"]

HEAD = 4  # facts that stand before the values, where there is no room for all
BESIDE = 70  # cells from which on the histogram stands beside the facts


class TensorPane(Lines):
    """Facts, and a histogram between the 0.1st and 99.9th percentiles below or beside them."""

    class Wanted(Message):
        """The width changed: the values are to be counted anew."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._facts: list[Fact] = []
        self.look: WeightLook | None = None
        self._note: Part = ("", "dim")
        self._made: list[list[Part]] | None = None

    def show(self, facts: list[Fact], note: str = "") -> None:
        """Another tensor, or a layer; its values come later, ``note`` says so."""
        self._facts, self.look, self._note = facts, None, (note, "dim")
        self._changed()

    def give(self, look: WeightLook) -> None:
        self.look, self._note = look, ("", "dim")
        self._changed()

    def say(self, note: str, tone: str = "dim") -> None:
        """A line below the numbers: why there are none, or how far they are counted."""
        self._note = (note, tone)
        self._changed()

    def _changed(self) -> None:
        before, self._made = self._made, self._make()
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

    def render_line(self, y: int) -> Strip:
        if self._made is None:
            self._made = self._make()
        width = self.size.width
        lines = self._made
        return (
            self.strip(lines[y], width) if y < len(lines) else Strip.blank(width, self.rich_style)
        )

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
