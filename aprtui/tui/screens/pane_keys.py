"""What the keys of Browse's panes do: ranges, slices, values, copying, exporting, stopping."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from aprtui.formats.tracedir import StageRecord
from aprtui.tui.carry import copy
from aprtui.tui.running import running_pid, stop_running
from aprtui.tui.screens.base import BaseScreen
from aprtui.tui.stage_table import describe_shape
from aprtui.tui.widgets.heatmap_pane import HeatmapPane
from aprtui.tui.widgets.histogram_pane import RANGES, HistogramPane
from aprtui.tui.widgets.stage_list import StageList
from aprtui.tui.widgets.values_pane import ValuesPane

__all__ = ["PaneKeysScreen"]


class PaneKeysScreen(BaseScreen):
    """A screen with Values, Histogram and Heatmap panes that can be measured again."""

    values: ValuesPane
    histogram: HistogramPane
    heatmap: HeatmapPane
    stages: StageList
    path: Path
    pane: str

    @property
    def record(self) -> StageRecord | None:
        """The stage that is shown."""
        raise NotImplementedError

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

    def action_copy_value(self) -> None:
        value = self.values.value
        if self.pane == "values" and value is not None:
            self.say(copy(self.app, repr(value)))
        elif self.record is not None:
            rms = self.stages.rms.get(self.record.key)
            self.say(copy(self.app, f"{self.record.key} {describe_shape(self.record)} rms {rms}"))

    def action_copy_path(self) -> None:
        if self.record is not None:
            self.say(copy(self.app, str(self.record.path)))

    def action_export(self) -> None:
        record = self.record
        if record is not None:
            layer = "" if record.key.layer is None else f"layer-{record.key.layer}-"
            self.ask("write to (.npy or .csv)", "export", f"{layer}{record.key.stage}.npy")

    def action_diff_with(self) -> None:
        self.ask("compare with the trace in…", "diff", str(self.path.parent) + "/")

    def action_stop_running(self) -> None:
        """Stop the trace that is being written here, whoever started it."""
        pid = running_pid(self.path)
        if pid is None:
            self.say("no trace is running here")
        elif stop_running(pid):
            self.say(f"asked process {pid} to stop; what is written stays")
        else:
            self.say(f"process {pid} cannot be stopped from here")

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        only = {"maximum": "values", "next_nonfinite": "values", "range": "histogram",
                "counts": "histogram", "slice_axis": "histogram", "slice": "histogram",
                "reduce": "heatmap"}  # fmt: skip
        return only.get(action, self.pane) == self.pane
