"""Trace: what to capture and what it will cost, then the grid that fills as files land."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from textual import events, on, work
from textual.binding import BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.widget import Widget
from textual.widgets import Input

from aprtui.engine.events import Event, Failed, Planned
from aprtui.engine.job import TraceJob
from aprtui.formats.tracedir import holds_trace
from aprtui.text import clean
from aprtui.tui.client import TraceClient
from aprtui.tui.keys import Key, bindings, keys_at
from aprtui.tui.messages import RunnerEnded, RunnerEvents
from aprtui.tui.screens.base import BaseScreen
from aprtui.tui.screens.trace_against import Against, Compared, Faced, StopWanted, face
from aprtui.tui.screens.trace_run import RunSoFar
from aprtui.tui.screens.trace_text import planned_stages
from aprtui.tui.screens.trace_view import RunView
from aprtui.tui.session import remember_running
from aprtui.tui.widgets.planning import Planning
from aprtui.tui.widgets.stage_grid import StageGrid

__all__ = ["TraceScreen"]

TYPING = (  # the letters are text there
    Key("", ("enter",), "", "trace", "done", ""),
    Key("", ("ctrl+r",), "", "trace", "run", ""),
    Key("", ("escape",), "", "trace", "leave", ""),
)
EDIT = Key("", ("enter",), "", "trace", "edit", "")
OPEN = Key("", ("enter",), "", "trace", "open a cell", "")
# What the foot offers: before a run, while it goes on, after it.
FORM = ("run",)
RUNS = ("stop", "trace-pause", "trace-log", "trace-browse", "trace-diff", "trace-colours")
OVER = ("trace-browse", "trace-diff", "run", "trace-log", "trace-colours")


class TraceScreen(BaseScreen):
    """A form and its plan; while it runs, progress and the grid. The grid stands in both."""

    mode = "trace"
    places = ("trace",)
    lead = "move"
    BINDINGS: ClassVar[list[BindingType]] = bindings("trace")  # type: ignore[assignment]

    def __init__(self, model: Path, *, client: TraceClient | None = None) -> None:
        super().__init__()
        self.path = model
        self.client = client or TraceClient()
        self.running = self.paused = self.stopped = False
        self._again = False  # it runs once more when this run is over
        self._held: list[Event] = []
        self.planning = Planning(self.path, self.client.command)
        self.form = self.planning.form
        self.view = RunView()

    def body(self) -> Iterable[Widget]:
        with Vertical():
            yield self.planning
            yield self.view

    def started(self) -> None:
        self.set_title(clean(self.path.name, 60))
        self.set_state("full")
        self.form.focus()
        self.planning.begin()

    def show_keys(self) -> None:
        if isinstance(self.focused, Input):
            asked = self.focused.id == "prompt"  # ^r would only ask again
            self.key_line.show_keys("", self._mine(TYPING[::2] if asked else TYPING))
            return
        known = {key.id: key for key in keys_at("trace")}
        known["run"] = replace(known["run"], label=self._run_again or known["run"].label)
        if self.running:
            shown = [known[name] for name in RUNS] + [OPEN, known["run"]]
        elif self.ended is not None:
            shown = [known[name] for name in OVER] + [OPEN]
        else:
            shown = [EDIT] + [known[name] for name in FORM]
        self.key_line.show_keys(self.lead, self._mine([*shown, *keys_at("anywhere")]))

    @on(events.DescendantFocus)
    @on(events.DescendantBlur)
    def _focus_moved(self) -> None:
        self.show_keys()

    def action_edit(self) -> None:
        self.focus_next()

    # The plan.

    @property
    def planned(self) -> Planned | None:
        """What the trace is going to be, or is."""
        return self.planning.planned

    @on(Planning.Made)
    def _plan_made(self, event: Planning.Made) -> None:
        """The grid of what is planned; the trace starts, where that was asked for already."""
        wanted, self.planning.wanted = self.planning.wanted, False
        if event.planned is None or self.running or self.ended is not None:
            return
        self.view.filling.plan(planned_stages(event.planned))
        if wanted:
            self.say("")
            self.action_run()

    # Running.

    @property
    def ended(self) -> Event | None:
        """How the run ended, where one did."""
        return self.view.so_far.ended

    @property
    def _run_again(self) -> str:
        """What the key that runs does while there is a run, or was one; empty before."""
        if self.running:
            return "not again" if self._again else "again"
        return "again" if self.ended is not None else ""

    def action_run(self) -> None:
        if self.running:
            self._queue()
            return
        if self.planning.busy:
            self.planning.wanted = True
            self.say("the trace starts as soon as the plan is there; a change of the form stops it")
            return
        if self.planned is None:
            self.say("nothing to run yet: the plan says why")
            return
        folder = Path(self.planned.directory)
        if holds_trace(folder):
            name = clean(folder.name, 40)
            self.ask(f"y replaces the trace in {name}, esc keeps it", "replace", how="")
            return
        self._face(self.form.job())

    def _queue(self) -> None:
        """Once more, when the run that goes on is over; asked for again: not."""
        if self._again:
            self._again = False
            self.say("it does not run again")
            self.show_keys()
        else:
            self.ask("y runs it again when this run is over, and replaces it; esc does not",
                     "again", how="")  # fmt: skip

    def answering(self, purpose: str, text: str) -> None:
        """The first letter is the answer."""
        if purpose not in ("replace", "again") or not text:
            return
        self.close_question()
        if text.lower() != "y":
            return
        if purpose == "replace" or not self.running:  # it is over by now
            self._face(self.form.job(replace=True))
        else:
            self._again = True
            self.say("it runs again when this run is over; r takes that back")
            self.show_keys()

    def _face(self, job: TraceJob) -> None:
        """Start, once the trace to compare with was read, where one is named."""
        against, until = self.form.said()["against"].strip(), self.form.until()
        planned = self.planned
        if not against or planned is None:
            self._start(job)
            return
        path = Path(against).expanduser()

        def read() -> None:
            self.post_message(face(job, planned, path, until, self.post_message))

        self.run_worker(read, thread=True, exclusive=True, group="face")

    @on(Faced)
    def _faced(self, event: Faced) -> None:
        if event.against is None:
            self.say(f"! not started: {event.why}")
        elif not self.running:
            self._start(event.job, event.against)

    def _start(self, job: TraceJob, against: Against | None = None) -> None:
        assert self.planned is not None
        self.running, self.stopped, self._again = True, False, False
        self.view.begin(self.planned, against)
        self._arrange()
        self._engine(job)

    @work(exclusive=True, group="engine")
    async def _engine(self, job: TraceJob) -> None:
        ended = await self.client.run(job, lambda batch: self._tell(batch))
        self.post_message(RunnerEnded(ended.exit_code, ended.log_tail()))

    def fail(self, what: str, hint: str) -> None:
        """A trace whose engine could not even be started has failed."""
        if self.running and not self.client.child.running:
            self.view.so_far.ended = Failed(what, hint, 4)
            self.post_message(RunnerEnded(4, ""))
        else:
            super().fail(what, hint)

    def _tell(self, batch: tuple[Event, ...]) -> None:
        self.post_message(RunnerEvents(batch))

    def action_stop(self) -> None:
        if self.running:
            self.stopped = True
            self.view.say(Content.styled(" stopping … what is written stays", "$text-warning"))
            self._stop()

    @work(group="stop")
    async def _stop(self) -> None:
        await self.client.stop()

    def action_pause(self) -> None:
        self.paused = not self.paused
        self.say("display paused; the trace goes on" if self.paused else "")
        if not self.paused:
            held, self._held = self._held, []
            self._apply(held)

    def action_log(self) -> None:
        self.view.toggle_log()

    def action_colours(self) -> None:
        """The grid's colours mean something else; what was compared keeps its sign."""
        self.view.filling.recolour()

    def action_browse(self) -> None:
        if self.planned is not None:
            self.app.open_browse(Path(self.planned.directory))

    @on(StageGrid.Opened)
    def _open_stage(self, event: StageGrid.Opened) -> None:
        if self.planned is not None and self.view.filling.has(event.key):
            self.app.open_browse(Path(self.planned.directory), event.key)

    @on(RunnerEvents)
    def _events(self, event: RunnerEvents) -> None:
        if self.paused:
            self._held += event.events
        else:
            self._apply(event.events)

    def _apply(self, batch: Sequence[Event]) -> None:
        for event in batch:
            if isinstance(event, Planned):
                self.planning.show(event)
        self.view.take(batch, running=self.running)
        self._retitle()

    def _retitle(self) -> None:
        if title := self.view.title:
            self.set_title(title, loud=isinstance(self.ended, Failed))

    @on(Compared)
    def _compared(self, event: Compared) -> None:
        self.view.compared(event)

    @on(StopWanted)
    def _stop_wanted(self, event: StopWanted) -> None:
        if event.against is self.view.against:
            self.action_stop()

    def action_diff(self) -> None:
        """Both traces in Diff."""
        if self.view.against is not None:
            live = self.view.against.live
            self.app.open_diff(live.against.root, live.directory)

    def idle_keys(self) -> frozenset[str]:
        return super().idle_keys() | (set() if self.view.against is not None else {"trace-diff"})

    @on(RunnerEnded)
    def _over(self, event: RunnerEnded) -> None:
        if self._held:
            self.paused = False
            held, self._held = self._held, []
            self._apply(held)
        self.running = False
        self.view.over(event, stopped=self.stopped)
        again, self._again = self._again, False
        self._arrange()
        if again and isinstance(self.ended, Failed):
            self.say("it failed, and does not run again: r does")
        elif again:
            self._face(self.form.job(replace=True))

    def _arrange(self) -> None:
        """The form makes room for progress while a trace runs and after it."""
        runs = self.running or self.ended is not None
        self.planning.display = not runs
        self.view.show_run(running=self.running)
        (self.view.grid if runs else self.form).focus()
        self.show_keys()
        self._retitle()

    def step_back(self) -> bool:
        if isinstance(self.focused, Input):
            self.form.focus()
            return True
        if self.running or self.ended is None:
            return False
        self.view.so_far = RunSoFar()
        self._arrange()
        self.planning.begin()
        return True

    def running_into(self) -> str:
        if not self.running or self.planned is None or self.ended is not None:
            return ""  # with its last event told, the engine is on its way out
        return clean(self.planned.directory, 80)

    def on_unmount(self) -> None:
        if self.view.against is not None:
            self.view.against.leave()

    async def release(self, answer: str) -> None:
        if answer == "leave":
            await self.client.leave()
            if self.planned is not None:
                remember_running(Path(self.planned.directory))
        else:
            await self.client.stop()
        self.running = False
