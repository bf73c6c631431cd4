"""Trace: what to capture and what it will cost, then the grid that fills as files land."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import ClassVar

from textual import events, on, work
from textual.binding import BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.widget import Widget
from textual.widgets import Input, Static

from aprtui.engine.events import (
    CardSeen,
    Event,
    Failed,
    Finished,
    Log,
    PassDone,
    Planned,
    StageWritten,
    Started,
    Stopped,
)
from aprtui.engine.job import TraceJob, default_directory
from aprtui.formats.tracedir import StageKey, holds_trace
from aprtui.graph.vocabulary import order_of
from aprtui.text import clean
from aprtui.tui.client import TraceClient, plan
from aprtui.tui.keys import Key, bindings, keys_at
from aprtui.tui.messages import RunnerEnded, RunnerEvents
from aprtui.tui.paths import meant
from aprtui.tui.screens.base import BaseScreen
from aprtui.tui.screens.trace_against import Against, Compared, Faced, StopWanted, face
from aprtui.tui.screens.trace_text import (
    hint_here,
    outcome_content,
    output_stage,
    pass_text,
    plan_content,
    planned_stages,
    progress_content,
    residual_content,
)
from aprtui.tui.session import remember_running
from aprtui.tui.widgets.filling import Filling
from aprtui.tui.widgets.lines import Part
from aprtui.tui.widgets.stage_grid import StageGrid
from aprtui.tui.widgets.trace_form import TraceForm

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
SETTLE_S = 0.3  # a plan is made when typing rests this long


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
        self.planned: Planned | None = None
        self.ended: Event | None = None
        self.running = self.paused = self.stopped = False
        self._planning = self._wanted = False  # ``_wanted``: it starts as soon as the plan is there
        self._last: StageWritten | None = None
        self._passed: PassDone | None = None
        self._rms: dict[int, tuple[float, str]] = {}
        self._shown_rms = -1
        self._log: list[str] = []
        self._cards: dict[str, CardSeen] = {}  # what each was seen doing last
        self._held: list[Event] = []
        self._to_come: list[StageKey] = []  # in order of computation
        self._output = ""  # the stage that is each layer's output
        self.against: Against | None = None  # what the trace is compared with as it lands
        self.form = TraceForm(default_directory(self.path))
        self.filling = Filling(id="filling")
        self.grid = self.filling.grid
        self.plan_text = Static("", id="plan", markup=False, classes="frame")
        self.progress = Static("", id="progress", markup=False)
        self.against_line = Static("", id="against", markup=False)
        self.log_text = Static("", id="log", markup=False, classes="frame")
        self.outcome = Static("", id="outcome", markup=False, classes="frame")

    def body(self) -> Iterable[Widget]:
        self.plan_text.border_title = "Plan"
        self.plan_text.update(Content.styled("planning …", "dim"))
        self.log_text.border_title = "Log"
        self.log_text.display = self.outcome.display = False
        with Vertical():
            with Horizontal(id="form"):
                yield self.form
                yield self.plan_text
            yield self.progress
            yield self.against_line
            yield self.filling
            yield self.outcome
            yield self.log_text

    def started(self) -> None:
        self.set_title(clean(self.path.name, 60))
        self.set_state("full")
        self.progress.display = self.against_line.display = False
        self.grid.can_focus = False
        self.form.focus()
        self._replan()

    def show_keys(self) -> None:
        if isinstance(self.focused, Input):
            asked = self.focused.id == "prompt"  # ^r would only ask again
            self.key_line.show_keys("", self._mine(TYPING[::2] if asked else TYPING))
            return
        known = {key.id: key for key in keys_at("trace")}
        if self.running:
            shown = [known[name] for name in RUNS] + [OPEN]
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

    def job(self, *, replace: bool = False) -> TraceJob:
        """What the form says; ``replace`` a trace that is there already."""
        said = self.form.said()
        untouched = said["into"] in ("", str(default_directory(self.path)))
        tokens = None
        if said["tokens"].strip():
            tokens = tuple(int(part) for part in said["tokens"].replace(" ", "").split(","))
        return TraceJob(
            model=str(self.path.absolute()),
            # Untouched, the folder is the engine's own: two engines' traces lie side by side.
            directory="" if untouched else str(meant(said["into"])),
            prompt=None if tokens is not None else said["prompt"],
            tokens=tokens,
            stages=said["stages"] or "all",
            layers=said["layers"] or "all",
            device=said["device"] or "auto",
            dtype=said["dtype"] or "float32",
            engine=said["engine"].strip() or "aprtui",
            adapter=said["adapter"].strip() and str(meant(said["adapter"])),
            overwrite=replace,
            steps=_number(said["steps"]),
            chunk=_number(said["chunk"]),
            kv=said["cache"].strip().lower(),
        )

    @on(Input.Changed)
    def _edited(self, event: Input.Changed) -> None:
        if (event.input.id or "").startswith("field-") and not self.running:
            self._replan()

    @on(Input.Submitted)
    def _submitted(self, event: Input.Submitted) -> None:
        if (event.input.id or "").startswith("field-"):
            self.form.focus()

    def _replan(self) -> None:
        self._planning, self._wanted = True, False
        self._plan()

    @work(exclusive=True, group="plan")
    async def _plan(self) -> None:
        self.plan_text.border_title = "Plan …"
        await asyncio.sleep(SETTLE_S)
        try:
            job = self.job()
        except ValueError:
            said = "token ids, steps and chunk are whole numbers"
            answer: Planned | Failed = Failed(said, "ids with commas between", 2)
        else:
            answer = await plan(job, self.client.command)
        self.post_message(RunnerEvents((answer,)))

    def _show_plan(self, event: Planned | Failed) -> None:
        self._planning, wanted, self._wanted = False, self._wanted, False
        self.plan_text.border_title = "Plan"
        if isinstance(event, Failed):
            self.planned = None
            self.plan_text.update(
                Content.assemble(
                    (f"! {clean(event.message, 500)}", "bold $text-error"),
                    "\n\n",
                    (hint_here(event.hint), "dim"),
                )
            )
            return
        self.planned = event
        taken = not self.running and holds_trace(Path(event.directory))
        width = max(self.plan_text.content_size.width, 20)
        self.plan_text.update(plan_content(event, width, taken))
        if not self.running and self.ended is None:
            self.grid.set_stages(planned_stages(event))
            if wanted:
                self.say("")
                self.action_run()

    # Running.

    def action_run(self) -> None:
        if self.running:
            return
        if self._planning:
            self._wanted = True
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
        self._face(self.job())

    def answering(self, purpose: str, text: str) -> None:
        """The first letter is the answer."""
        if purpose == "replace" and text:
            self.close_question()
            if text.lower() == "y":
                self._face(self.job(replace=True))

    def _face(self, job: TraceJob) -> None:
        """Start, once the trace to compare with was read, where one is named."""
        said, planned = self.form.said(), self.planned
        if not said["against"].strip() or planned is None:
            self._start(job)
            return
        path = Path(said["against"].strip()).expanduser()

        def read() -> None:
            self.post_message(face(job, planned, path, said["until"], self.post_message))

        self.run_worker(read, thread=True, exclusive=True, group="face")

    @on(Faced)
    def _faced(self, event: Faced) -> None:
        if event.against is None:
            self.say(f"! not started: {event.why}")
        elif not self.running:
            self._start(event.job, event.against)

    def _start(self, job: TraceJob, against: Against | None = None) -> None:
        assert self.planned is not None
        self.against = against
        self.against_line.update("")
        self.running, self.stopped, self.ended = True, False, None
        self._last, self._passed = None, None
        self._rms, self._log, self._shown_rms = {}, [], -1
        self._cards = {}
        stages = planned_stages(self.planned)
        self.filling.begin(stages, self.planned.token_texts)
        self._to_come = sorted(stages, key=order_of, reverse=True)
        self._output = output_stage(self.planned)
        self._arrange()
        self._engine(job)

    @work(exclusive=True, group="engine")
    async def _engine(self, job: TraceJob) -> None:
        ended = await self.client.run(job, lambda batch: self._tell(batch))
        self.post_message(RunnerEnded(ended.exit_code, ended.log_tail()))

    def fail(self, what: str, hint: str) -> None:
        """A trace whose engine could not even be started has failed."""
        if self.running and not self.client.child.running:
            self.ended = Failed(what, hint, 4)
            self.post_message(RunnerEnded(4, ""))
        else:
            super().fail(what, hint)

    def _tell(self, batch: tuple[Event, ...]) -> None:
        self.post_message(RunnerEvents(batch))

    def action_stop(self) -> None:
        if self.running:
            self.stopped = True
            self.progress.update(
                Content.styled(" stopping … what is written stays", "$text-warning")
            )
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
        self.log_text.display = not self.log_text.display
        self._show_progress()

    def action_colours(self) -> None:
        """The grid's colours mean something else; what was compared keeps its sign."""
        self.filling.recolour()
        if self.against is not None:
            self.grid.put(self.against.cells(tuple(self.grid.cells)))

    def action_browse(self) -> None:
        if self.planned is not None:
            self.app.open_browse(Path(self.planned.directory))  # type: ignore[attr-defined]

    @on(StageGrid.Opened)
    def _open_stage(self, event: StageGrid.Opened) -> None:
        if self.planned is not None and self.filling.has(event.key):
            self.app.open_browse(  # type: ignore[attr-defined]
                Path(self.planned.directory), event.key
            )

    @on(RunnerEvents)
    def _events(self, event: RunnerEvents) -> None:
        if self.paused:
            self._held += event.events
        else:
            self._apply(event.events)

    def _apply(self, batch: Iterable[Event]) -> None:
        cells: dict[StageKey, tuple[str, str]] = {}
        for event in batch:
            if isinstance(event, StageWritten) and self.planned is not None:
                bad, folder = event.nan or event.inf, Path(self.planned.directory)
                key = StageKey(event.layer, event.stage)
                cells[key] = self.filling.landed(event, folder)
                self._last = event
                if event.layer is not None and event.stage == self._output:
                    self._rms[event.layer] = float(event.rms), f"NaN {event.nan}" if bad else ""
            elif isinstance(event, Planned) or (isinstance(event, Failed) and not self.running):
                self._show_plan(event)
            elif isinstance(event, Finished | Stopped | Failed):
                self.ended = event
            elif isinstance(event, CardSeen):
                self._cards[event.device] = event
            elif isinstance(event, Log):
                self._log.append(f"{event.level}: {clean(event.message, 300)}")
            elif isinstance(event, PassDone):
                self._passed = event
                self._log.append(pass_text(event))
            elif isinstance(event, Started):
                self._log.append(f"engine started, process {event.pid}")
                if self.against is not None:
                    self.against.begin()
        if unplanned := cells.keys() - self.grid.cells.keys():  # names of an engine's own
            before = dict(self.grid.cells)
            self.grid.set_stages([*before, *unplanned])
            self.grid.put(before)
        if cells:
            compared = self.against.cells(cells) if self.against is not None else {}
            self.grid.put(cells | compared | self._computing(cells))
            if self.grid.current in cells:
                self.filling.show_cell()
        self._show_progress()

    @on(Compared)
    def _compared(self, event: Compared) -> None:
        """Stages were compared: their cells say how, and a line how all of it stands."""
        if event.against is self.against:
            self.grid.put(self.against.cells(key for key in event.keys if key in self.grid.cells))
            self.against_line.update(self.against.line())

    @on(StopWanted)
    def _stop_wanted(self, event: StopWanted) -> None:
        if event.against is self.against:
            self.action_stop()

    def action_diff(self) -> None:
        """Both traces in Diff."""
        if self.against is not None and self.planned is not None:
            live = self.against.live
            self.app.open_diff(live.against.root, live.directory)  # type: ignore[attr-defined]

    def idle_keys(self) -> frozenset[str]:
        return super().idle_keys() | (set() if self.against is not None else {"trace-diff"})

    def _computing(self, written: Mapping[StageKey, Part]) -> dict[StageKey, Part]:
        """The stage that is being computed: the first in order that has not been written."""
        while self._to_come and (
            self._to_come[-1] in written or self.filling.has(self._to_come[-1])
        ):
            self._to_come.pop()
        return {self._to_come[-1]: ("▒", "accent")} if self._to_come and self.running else {}

    @on(RunnerEnded)
    def _over(self, event: RunnerEnded) -> None:
        if self._held:
            self.paused = False
            held, self._held = self._held, []
            self._apply(held)
        self.running = False
        if event.log_tail:
            self._log.append(event.log_tail)
        if self.ended is None and self.stopped:  # before the engine could say so
            files = self._last.done if self._last is not None else 0
            self.ended = Stopped(files, self.planned.directory if self.planned else "")
        elif self.ended is None:
            last = event.log_tail.splitlines()[-1] if event.log_tail else ""
            self.ended = Failed(f"the engine ended by itself ({event.exit_code}) {last}".rstrip(),
                                "o shows its log; what is written stays", 4)  # fmt: skip
        if self._to_come:
            self.grid.put({self._to_come[-1]: ("·", "dim")})
        if self.against is not None:
            self.against.end(whole=isinstance(self.ended, Finished), stopped=self.stopped)
        self._arrange()

    def _arrange(self) -> None:
        """The form makes room for progress while a trace runs and after it."""
        runs = self.running or self.ended is not None
        self.query_one("#form").display = not runs
        self.grid.can_focus = runs
        (self.grid if runs else self.form).focus()
        self.progress.display = runs
        self.against_line.display = runs and self.against is not None
        self.outcome.display = self.ended is not None
        if self.ended is not None and self.planned is not None:
            self.outcome.border_title = {Finished: "Next tokens", Stopped: "Stopped"}.get(
                type(self.ended), "What went wrong"
            )
            self.outcome.update(outcome_content(self.planned, self.ended, self._log))
        self.show_keys()
        self.filling.set_running(runs)
        self._show_progress()

    def step_back(self) -> bool:
        if isinstance(self.focused, Input):
            self.form.focus()
            return True
        if self.running or self.ended is None:
            return False
        self.ended = None
        self._arrange()
        self._replan()
        return True

    def running_into(self) -> str:
        if not self.running or self.planned is None or self.ended is not None:
            return ""  # with its last event told, the engine is on its way out
        return clean(self.planned.directory, 80)

    def on_unmount(self) -> None:
        if self.against is not None:
            self.against.leave()

    async def release(self, answer: str) -> None:
        if answer == "leave":
            await self.client.leave()
            if self.planned is not None:
                remember_running(Path(self.planned.directory))
        else:
            await self.client.stop()
        self.running = False

    # Progress.

    def _show_progress(self) -> None:
        if self.log_text.display:
            self.log_text.update("\n".join(self._log[-12:]) or "nothing yet")
        if self.planned is None or not self.progress.display:
            return
        self.progress.update(
            progress_content(
                self.planned,
                self._last,
                self.ended,
                max(self.size.width - 2, 10),
                tuple(self._cards.values()),
                self._passed,
            ),
            layout=bool(self._cards),  # their line comes and goes
        )
        if len(self._rms) != self._shown_rms:  # it grows by a line a layer
            self._shown_rms = len(self._rms)
            self.filling.side.update(residual_content(self._rms))
        where = clean(Path(self.planned.directory).name, 60)
        words = {Finished: "complete", Stopped: "stopped: what is written stays", Failed: "failed"}
        state = words[type(self.ended)] if self.ended else f"running on {self.planned.device}"
        self.set_title(f"{where} · {state}", loud=isinstance(self.ended, Failed))


def _number(text: str) -> int:
    """A field that may be empty. Raises ValueError for what is no number from 0 on."""
    number = int(text) if text.strip() else 0
    if number < 0:
        raise ValueError(text)
    return number
