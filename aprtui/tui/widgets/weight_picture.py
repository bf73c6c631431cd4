"""The distribution of one weight's values, small enough to stand under its facts."""

from __future__ import annotations

from aprtui.text import count
from aprtui.tui.weight_sample import WeightLook
from aprtui.tui.widgets.bars import axis_parts, histogram_rows
from aprtui.tui.widgets.lines import Part, Picture

__all__ = ["WeightPicture"]


class WeightPicture(Picture):
    """Bars between the 0.1st and 99.9th percentiles; what lies outside is counted."""

    look: WeightLook | None = None

    def show(self, look: WeightLook | None) -> None:
        self.look = look
        self.refresh()

    def picture(self) -> list[list[Part]]:
        if self.look is None or not self.look.looked:
            return []
        counts = self.look.histogram
        rows = histogram_rows(counts.counts, max(self.size.height - 2, 1), False)
        outside = counts.below + counts.above
        lead = len(rows[0][0][0])
        note: list[Part] = [(f" {count(outside)} outside" if outside else "", "dim")]
        return [*rows, axis_parts(counts, lead), note]
