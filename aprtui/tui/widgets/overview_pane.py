"""The Overview pane: the whole trace as a grid, coloured by what its files hold."""

from __future__ import annotations

from collections.abc import Iterable

from textual import on
from textual.app import ComposeResult
from textual.containers import Vertical

from aprtui.formats.tracedir import StageKey, TraceDir
from aprtui.graph.vocabulary import facts_of, order_of
from aprtui.tui.screens.trace_text import residual_content
from aprtui.tui.widgets.filling import Filling
from aprtui.tui.widgets.pane import Nothing
from aprtui.tui.widgets.stage_grid import StageGrid
from aprtui.tui.widgets.stage_pane import StagePane, StageSeen

__all__ = ["OverviewPane"]


class OverviewPane(Vertical, StagePane):
    """The picture that the Trace screen draws while it runs, of any trace. Its cursor and the
    tree's are one."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.filling = Filling(id="filling")
        self._trace: TraceDir | None = None

    def compose(self) -> ComposeResult:
        yield self.filling

    def on_mount(self) -> None:
        self.filling.set_running(True)

    def nothing(self, seen: StageSeen) -> Nothing | None:
        return None  # a stage that is damaged has its cell as well

    def show(self, seen: StageSeen) -> None:
        self.seen, before = seen, self._trace
        if before is not seen.trace:
            self._trace = seen.trace
            if before is None or before.records.keys() != seen.trace.records.keys():
                self.filling.begin(seen.trace.records, tuple(seen.trace.token_texts or ()))
            self.learn(seen.trace.records)
        if seen.record.key != self.filling.grid.current:
            self.filling.grid.select(seen.record.key)

    def learn(self, keys: Iterable[StageKey]) -> None:
        if self.seen is None or self._trace is not self.seen.trace:
            return  # it never was shown: there is time enough then
        held, records = self.seen.held, self._trace.records
        known = [key for key in keys if key in held and key in records]
        self.filling.hold({key: records[key] for key in known}, {key: held[key] for key in known})
        self.filling.side.update(residual_content(self._residual()))

    def _residual(self) -> dict[int, tuple[float, str]]:
        """The rms of each layer's output, by layer, and its NaN."""
        found: dict[int, tuple[float, str]] = {}
        for key, held in sorted(self.filling.holdings.held.items(), key=lambda kv: order_of(kv[0])):
            if key.layer is not None and facts_of(key.stage).residual:  # the last of a layer stays
                found[key.layer] = held.rms, f"NaN {held.nan}" if held.nan or held.inf else ""
        return found

    def target(self) -> StageGrid:
        return self.filling.grid

    def action_colours(self) -> None:
        self.filling.recolour()

    @on(StageGrid.Moved)
    def _moved(self, event: StageGrid.Moved) -> None:
        if self.seen is not None and event.key not in (None, self.seen.record.key):
            self.post_message(self.StageWanted(event.key))

    @on(StageGrid.Opened)
    def _opened(self, event: StageGrid.Opened) -> None:
        event.stop()
        self.post_message(self.ValueWanted(event.key, 0))
