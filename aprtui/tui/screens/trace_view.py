"""A run of a trace as it is seen: progress, the grid that fills, how it ended, what was logged."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.widgets import Static

from aprtui.engine.events import (
    Event,
    Failed,
    Finished,
    Planned,
    StageWritten,
    Started,
    Stopped,
)
from aprtui.formats.tracedir import StageKey
from aprtui.text import clean
from aprtui.tui.messages import RunnerEnded
from aprtui.tui.screens.trace_against import Against, Compared
from aprtui.tui.screens.trace_run import RunSoFar
from aprtui.tui.screens.trace_text import (
    outcome_content,
    planned_stages,
    progress_content,
    residual_content,
)
from aprtui.tui.widgets.filling import Filling

__all__ = ["RunView"]

ENDED = {Finished: "complete", Stopped: "stopped: what is written stays", Failed: "failed"}
OUTCOMES = {Finished: "Next tokens", Stopped: "Stopped", Failed: "What went wrong"}


class RunView(Vertical):
    """Before a run its grid shows what is planned."""

    def __init__(self) -> None:
        super().__init__()
        self.planned: Planned | None = None  # what the run writes
        self.against: Against | None = None  # what the trace is compared with as it lands
        self.so_far = RunSoFar()
        self.filling = Filling(id="filling")
        self.grid = self.filling.grid
        self._shown_rms = -1
        self._progress = Static("", id="progress", markup=False)
        self._against = Static("", id="against", markup=False)
        self._outcome = Static("", id="outcome", markup=False, classes="frame")
        self._log = Static("", id="log", markup=False, classes="frame")

    def compose(self) -> ComposeResult:
        yield self._progress
        yield self._against
        yield self.filling
        yield self._outcome
        yield self._log

    def on_mount(self) -> None:
        self._log.border_title = "Log"
        for each in (self._progress, self._against, self._outcome, self._log):
            each.display = False
        self.grid.can_focus = False

    # A run.

    def begin(self, planned: Planned, against: Against | None) -> None:
        """Nothing has landed yet of a run."""
        stages = planned_stages(planned)
        self.planned, self.against, self.so_far = planned, against, RunSoFar.of(planned, stages)
        self._against.update("")
        self._shown_rms = -1
        self.filling.begin(stages, planned.token_texts)

    def take(self, batch: Iterable[Event], *, running: bool) -> None:
        """What the engine told."""
        cells: dict[StageKey, tuple[str, str]] = {}
        for event in batch:
            if isinstance(event, Planned):
                self.planned = event
            self.so_far.take(event)
            if isinstance(event, StageWritten) and self.planned is not None:
                key = StageKey(event.layer, event.stage)
                cells[key] = self.filling.landed(event, Path(self.planned.directory))
            elif isinstance(event, Started) and self.against is not None:
                self.against.begin()
        if unplanned := cells.keys() - self.grid.cells.keys():  # names of an engine's own
            before = dict(self.grid.cells)
            self.grid.set_stages([*before, *unplanned])
            self.grid.put(before)
        if cells:
            computing = self.so_far.computing if running else None
            self.grid.put(cells | ({computing: ("▒", "accent")} if computing else {}))
            if self.grid.current in cells:
                self.filling.show_cell()
        self.show_progress()

    def compared(self, event: Compared) -> None:
        """Stages were compared: their cells say how, and a line how all of it stands."""
        if event.against is self.against:
            self.filling.judge(self.against.cells(event.keys))
            self._against.update(self.against.line())

    def over(self, event: RunnerEnded, *, stopped: bool) -> None:
        """The engine has ended, whether or not it could say how."""
        folder = self.planned.directory if self.planned is not None else ""
        self.so_far.over(event.exit_code, event.log_tail, folder, stopped=stopped)
        if (computing := self.so_far.computing) is not None:
            self.grid.put({computing: ("·", "dim")})
        if self.against is not None:
            self.against.end(whole=isinstance(self.so_far.ended, Finished), stopped=stopped)

    # What is seen of it.

    def show_run(self, *, running: bool) -> None:
        """Progress while a run goes on and after it, then how it ended; before it the plan."""
        ended = self.so_far.ended
        runs = running or ended is not None
        self.grid.can_focus = self._progress.display = runs
        self._against.display = runs and self.against is not None
        self._outcome.display = ended is not None
        if ended is not None and self.planned is not None:
            self._outcome.border_title = OUTCOMES[type(ended)]
            self._outcome.update(outcome_content(self.planned, ended, self.so_far.log))
        self.filling.set_running(runs)
        self.show_progress()

    def show_progress(self) -> None:
        so_far = self.so_far
        if self._log.display:
            self._log.update("\n".join(so_far.log[-12:]) or "nothing yet")
        if self.planned is None or not self._progress.display:
            return
        self._progress.update(
            progress_content(
                self.planned,
                so_far.last,
                so_far.ended,
                max(self.screen.size.width - 2, 10),
                tuple(so_far.cards.values()),
                so_far.passed,
            ),
            layout=bool(so_far.cards),  # their line comes and goes
        )
        if len(so_far.residual) != self._shown_rms:  # it grows by a line a layer
            self._shown_rms = len(so_far.residual)
            self.filling.side.update(residual_content(so_far.residual))

    def say(self, what: Content) -> None:
        """In the place of progress, until there is more of that."""
        self._progress.update(what)

    def toggle_log(self) -> None:
        self._log.display = not self._log.display
        self.show_progress()

    @property
    def title(self) -> str:
        """Which trace it is, and how it stands; nothing before a run."""
        if self.planned is None or not self._progress.display:
            return ""
        ended = self.so_far.ended
        state = ENDED[type(ended)] if ended else f"running on {self.planned.device}"
        return f"{clean(Path(self.planned.directory).name, 60)} · {state}"
