"""What Browse's keys do with a stage: going to a value, copying, exporting, comparing, stopping."""

from __future__ import annotations

from pathlib import Path

from textual import on

from aprtui.formats.tracedir import StageRecord
from aprtui.tui.carry import copy
from aprtui.tui.running import running_pid, stop_running
from aprtui.tui.screens.paned import PanedScreen
from aprtui.tui.screens.sides import SidesScreen
from aprtui.tui.stage_table import describe_shape
from aprtui.tui.value_search import EXAMPLES
from aprtui.tui.widgets.stage_list import StageList
from aprtui.tui.widgets.stage_pane import StagePane
from aprtui.tui.widgets.value_grid import ValueGrid
from aprtui.tui.widgets.values_pane import ValuesPane

__all__ = ["StageKeysScreen"]


class StageKeysScreen(PanedScreen, SidesScreen):
    """A screen with a tree of stages at the left."""

    _pictured = "heatmap"  # the pane that enter leads to from a value
    stages: StageList
    path: Path
    model: str

    @property
    def record(self) -> StageRecord | None:
        """The stage that is shown."""
        raise NotImplementedError

    def set_pane(self, pane: str) -> None:
        """Another pane, with its cursor on the same value of the stage."""
        before = self.shown_pane
        place = before.place if isinstance(before, StagePane) else None
        super().set_pane(pane)
        after = self.shown_pane
        if place is not None and after is not before and isinstance(after, StagePane):
            after.go(place)

    def _show_stage(self) -> None:
        """Give the panes the stage under the cursor."""
        raise NotImplementedError

    def jump(self, text: str) -> None:
        """To ``pos,channel`` in the Values pane; what the palette does with numbers."""
        self.set_pane("values")
        values = self._values
        values.grid.focus()
        why = values.jump(text)
        if why:
            self.say(why)

    @on(StagePane.ValueWanted)
    def _show_value(self, event: StagePane.ValueWanted) -> None:
        """The value behind a cell of a picture, in Values."""
        event.stop()
        self._pictured = self.pane
        if event.key != self.stages.current:
            self.stages.select(event.key)
            self._show_stage()
        self.set_pane("values")
        values = self._values
        values.go(event.index)
        values.grid.focus()

    @on(StagePane.StageWanted)
    def _follow_pane(self, event: StagePane.StageWanted) -> None:
        """The pane's cursor went to another stage: the tree's goes along, where it is shown."""
        event.stop()
        if event.key in self.stages.matching:
            self.stages.select(event.key)

    @on(ValueGrid.Opened)
    def _show_picture(self, event: ValueGrid.Opened) -> None:
        """From a value to the picture that one came from, or to the heatmap."""
        event.stop()
        values = self._values
        index = values.index
        self.set_pane(self._pictured)
        pane = self.shown_pane
        if isinstance(pane, StagePane):
            pane.go(index)
            pane.target().focus()

    @property
    def _values(self) -> ValuesPane:
        found = self.panes["values"]
        assert isinstance(found, ValuesPane)
        return found

    def action_find_value(self) -> None:
        wanted = self._values.wanted
        self.ask(f"find values: {EXAMPLES} …", "find", wanted.text if wanted is not None else "")

    def answered(self, purpose: str, text: str) -> None:
        super().answered(purpose, text)
        if purpose == "find":
            self._values.grid.focus()
            self.say(self._values.find(text))
            self.show_keys()

    @property
    def among_hits(self) -> bool:
        """The cursor is among values of which some are looked for: n and N mean those."""
        values = self._values
        return self.pane == "values" and values.wanted is not None and values.grid.has_focus

    def action_ask_model(self) -> None:
        self.ask_path("read tokens with the model…", "model", self.model)

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
            self.ask_path(
                "write to (.npy or .csv)", "export", f"{layer}{record.key.stage}.npy", again=False
            )

    def action_diff_with(self) -> None:
        self.ask_path("compare with the trace in…", "diff", str(self.path.parent) + "/")

    def action_stop_running(self) -> None:
        """Stop the trace that is being written here, whoever started it."""
        pid = running_pid(self.path)
        if pid is None:
            self.say("no trace is running here")
        elif stop_running(pid):
            self.say(f"asked process {pid} to stop; what is written stays")
        else:
            self.say(f"process {pid} cannot be stopped from here")
