"""What the keys of Browse's panes do: ranges, slices, values, copying, exporting, stopping."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from textual import on
from textual.message import Message
from textual.worker import get_current_worker

from aprtui.compare.metrics import Cancelled
from aprtui.errors import BadFileError
from aprtui.formats.maps import check_maps
from aprtui.formats.tracedir import StageRecord
from aprtui.tui.carry import copy
from aprtui.tui.measure import Float32, Hook, largest_at, nonfinite_after
from aprtui.tui.running import running_pid, stop_running
from aprtui.tui.screens.sides import SidesScreen
from aprtui.tui.stage_table import StageTable, describe_shape
from aprtui.tui.widgets.heatmap_pane import HeatmapPane
from aprtui.tui.widgets.histogram_pane import RANGES, HistogramPane
from aprtui.tui.widgets.stage_list import StageList
from aprtui.tui.widgets.values_pane import ValuesPane

__all__ = ["PaneKeysScreen"]


@dataclass
class Sought(Message):
    """The value that was looked for in a table, or that there is none."""

    table: StageTable
    index: int | None
    nothing: str


class PaneKeysScreen(SidesScreen):
    """A screen with Values, Histogram and Heatmap panes that can be measured again."""

    values: ValuesPane
    histogram: HistogramPane
    heatmap: HeatmapPane
    stages: StageList
    path: Path
    pane: str
    model: str

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
        self._seek("no number here", largest_at)

    def action_next_nonfinite(self) -> None:
        after = self.values.index
        self._seek(
            "no NaN and no infinity here",
            lambda values, cancelled: nonfinite_after(values, after, cancelled),
        )

    def _seek(self, nothing: str, find: Callable[[Float32, Hook], int | None]) -> None:
        """Go to the value that ``find`` finds; a large tensor takes a while, so in a thread."""
        table = self.values.table
        if table is None:
            return

        def look() -> None:
            worker = get_current_worker()
            try:
                found = find(table.values, lambda: bool(worker.is_cancelled))
                check_maps(table.values)
            except Cancelled:
                return
            except BadFileError as error:
                self.post_message(Sought(table, None, error.message))
                return
            self.post_message(Sought(table, found, nothing))

        self.run_worker(look, thread=True, exclusive=True, group="seek")

    @on(Sought)
    def _sought(self, event: Sought) -> None:
        event.stop()
        if event.table is not self.values.table:
            return
        if event.index is None:
            self.say(event.nothing)
        else:
            self.values.go(event.index)

    def action_ask_model(self) -> None:
        self.ask("read tokens with the model…", "model", self.model)

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
                "reduce": "heatmap", "ask_model": "tokens"}  # fmt: skip
        return only.get(action, self.pane) == self.pane
