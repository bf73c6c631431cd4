"""What Browse's keys do with a stage: going to a value, copying, exporting, comparing, stopping."""

from __future__ import annotations

from pathlib import Path

from aprtui.formats.tracedir import StageRecord
from aprtui.tui.carry import copy
from aprtui.tui.running import running_pid, stop_running
from aprtui.tui.screens.paned import PanedScreen
from aprtui.tui.screens.sides import SidesScreen
from aprtui.tui.stage_table import describe_shape
from aprtui.tui.widgets.stage_list import StageList
from aprtui.tui.widgets.values_pane import ValuesPane

__all__ = ["StageKeysScreen"]


class StageKeysScreen(PanedScreen, SidesScreen):
    """A screen with a tree of stages at the left."""

    stages: StageList
    path: Path
    model: str

    @property
    def record(self) -> StageRecord | None:
        """The stage that is shown."""
        raise NotImplementedError

    def jump(self, text: str) -> None:
        """To ``pos,channel`` in the Values pane; what the palette does with numbers."""
        self.set_pane("values")
        values = self.panes["values"]
        assert isinstance(values, ValuesPane)
        values.grid.focus()
        why = values.jump(text)
        if why:
            self.say(why)

    def action_ask_model(self) -> None:
        self.ask("read tokens with the model…", "model", self.model)

    def action_copy_value(self) -> None:
        of_pane = self.shown_pane.copied()
        if of_pane:
            self.say(copy(self.app, of_pane))
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
