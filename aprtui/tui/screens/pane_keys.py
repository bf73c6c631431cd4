"""What the keys of Browse's panes do: ranges, slices, shades, and going to a value."""

from __future__ import annotations

import numpy as np

from aprtui.tui.screens.base import BaseScreen
from aprtui.tui.widgets.heatmap_pane import HeatmapPane
from aprtui.tui.widgets.histogram_pane import RANGES, HistogramPane
from aprtui.tui.widgets.values_pane import ValuesPane

__all__ = ["PaneKeysScreen"]


class PaneKeysScreen(BaseScreen):
    """A screen with Values, Histogram and Heatmap panes that can be measured again."""

    values: ValuesPane
    histogram: HistogramPane
    heatmap: HeatmapPane

    def set_pane(self, pane: str) -> None:
        """Show the pane of that name."""
        raise NotImplementedError

    def _measure(self) -> None:
        """Measure what is shown again."""
        raise NotImplementedError

    def action_range(self) -> None:
        pane = self.histogram
        pane.range = RANGES[(RANGES.index(pane.range) + 1) % len(RANGES)]
        self._measure()

    def action_counts(self) -> None:
        self.histogram.logarithmic = not self.histogram.logarithmic
        self.histogram.refresh()

    def action_slice_axis(self) -> None:
        self.histogram.next_axis()

    def action_slice(self, step: int) -> None:
        self.histogram.step(step)

    def action_reduce(self) -> None:
        self.heatmap.how = "mean" if self.heatmap.how == "max" else "max"
        self._measure()

    def jump(self, text: str) -> None:
        """To ``pos,channel`` in the Values pane; what the palette does with numbers."""
        self.set_pane("values")
        self.values.grid.focus()
        why = self.values.jump(text)
        if why:
            self.say(why)

    def action_maximum(self) -> None:
        table = self.values.table
        if table is not None and table.values.size:
            self.values.go(int(np.nanargmax(np.abs(table.values))))

    def action_next_nonfinite(self) -> None:
        if not self.values.next_nonfinite():
            self.say("no NaN and no infinity here")
