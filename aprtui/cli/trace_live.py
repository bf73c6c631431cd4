"""`aprtui trace --against DIR`: what has landed is compared while the pass goes on."""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from aprtui import api
from aprtui.child import command_of
from aprtui.compare.diff import Comparison
from aprtui.compare.live import STOPS, Live, Replayed, check_prompt
from aprtui.compare.metrics import Cancelled
from aprtui.compare.pairs import PairResult
from aprtui.engine.events import (
    Emit,
    Event,
    Finished,
    Planned,
    Replay,
    StageCompared,
    Stopped,
)
from aprtui.engine.plan import Plan
from aprtui.engine.stopping import stop_from_inside
from aprtui.errors import AprtuiError, UsageError
from aprtui.formats.summary import finite_json
from aprtui.formats.tracedir import StageKey, TraceDir
from aprtui.text import clean, quoted

__all__ = ["Beside", "beside", "configure"]

EVERY_S, REST = 0.1, 4.0  # between two looks, and in times of one: a fifth of a processor at most


def configure(parser: argparse.ArgumentParser) -> None:
    """``--against`` and ``--stop-at``."""
    live = parser.add_argument_group("compared as it lands")
    live.add_argument(
        "--against", type=Path, metavar="DIR",
        help="compare each stage with that trace's as soon as it is written; exit 1 where one "
        "differs",
    )  # fmt: skip
    live.add_argument(
        "--stop-at", choices=STOPS,
        help="with --against: end the trace at the first divergence, or when a replay of what has "
        "landed finds a stage that computes wrongly; --resume goes on with it",
    )  # fmt: skip


def beside(
    args: argparse.Namespace,
    plans: tuple[Plan, ...],
    emit: Emit | None,
    say: Callable[[str], None],
) -> Beside | None:
    """What compares beside the trace; None where nothing is asked for. Raises UsageError, and
    BadFileError for a trace that cannot be read."""
    if args.against is None:
        if args.stop_at is not None:
            raise UsageError("--stop-at needs a trace to compare with", hint="--against DIR")
        return None
    if len(plans) > 1:
        raise UsageError(
            f"--against compares one trace, and {len(plans)} are asked for",
            hint="aprtui diff compares them afterwards, folder with folder",
        )
    plan = plans[0]
    against = api.open_trace(args.against)
    if against.root.absolute() == plan.directory.absolute():
        raise UsageError("--against names the folder that is written", hint="-o DIR elsewhere")
    check_prompt(against, plan.tokens, decodes=plan.job.steps > 0)
    return Beside(against, plan, args.stop_at or "", emit, say)


class Beside:
    """Compares in a thread from ``start`` to ``finish``, says what it finds, and stops the pass."""

    def __init__(
        self,
        against: TraceDir,
        plan: Plan,
        stop_at: str,
        emit: Emit | None,
        say: Callable[[str], None],
    ) -> None:
        self.against, self.stop_at = against, stop_at
        self.live = Live(against, plan.directory)
        self.say = say
        self.stopped = False  # the pass was asked to end
        self.culprit: StageKey | None = None
        self._plan, self._emit = plan, emit
        self._first: StageKey | None = None
        self._replay: subprocess.Popen[bytes] | None = None
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - what a replay prints, for as long
        self._ending = threading.Event()
        self._giving_up = False
        self._failure: AprtuiError | None = None
        self._thread = threading.Thread(target=self._run, name="compare", daemon=True)

    def hears(self, event: Event) -> None:
        """Told of each event before anybody else is: begins with the trace and ends with it."""
        if isinstance(event, Planned):  # the folder is the new trace's now
            self._thread.start()
        elif isinstance(event, Finished):
            self._ending.set()
            self.stopped = False  # it was whole before the pass could end
            self.finish(last_look=True)
        elif isinstance(event, Stopped):
            self.finish(last_look=self.stopped)

    def finish(self, *, last_look: bool) -> None:
        """Compare the rest; or, without a ``last_look``, leave at once."""
        self._giving_up = not last_look
        self._ending.set()
        if self._giving_up and (replay := self._replay) is not None:
            replay.kill()
        if self._thread.ident is not None:
            self._thread.join()
        if self._replay is not None:
            self._replay.kill()
            self._replay.wait()
            self._replay = None

    def _run(self) -> None:
        took, last = 0.0, False
        while not last:
            last = self._ending.wait(max(EVERY_S, REST * took))
            begin = time.monotonic()
            try:
                if not self._giving_up:
                    self._look()
            except Cancelled:
                return
            except AprtuiError as error:  # said once the trace has ended: it goes on by itself
                self._failure = error
                return
            took = time.monotonic() - begin
        self._hear_out()

    def _look(self) -> None:
        found = self.live.look(cancelled=lambda: self._giving_up)
        first = self.live.first
        for result in found:
            self._tell(result, first)
        if first is not None and first.key != self._first:
            self._first = first.key
            self.say(f"first divergence: {clean(str(first.key))} ({first.kind}) {first.message}")
        if self.stop_at == "first" and first is not None:
            self._stop()
        elif self.stop_at == "culprit":
            self._ask()

    def _tell(self, result: PairResult, first: PairResult | None) -> None:
        if self._emit is not None:
            apart = None if result.metrics is None else finite_json(result.metrics.rel_l2)
            is_first = first is not None and first.key == result.key
            self._emit(
                StageCompared(
                    result.key.layer, result.key.stage, result.kind, apart, result.message, is_first
                )
            )

    def _stop(self) -> None:
        """End the pass, unless there is nothing left of it."""
        if not self.stopped and not self.live.whole and not self._ending.is_set():
            self.stopped = True
            stop_from_inside()

    # A replay of what has landed, in a child.

    def _hear_out(self) -> None:
        """Of a trace that is whole: what the replay says in the end."""
        while self.stop_at == "culprit" and self.culprit is None and not self._giving_up:
            self._ask()
            if self._replay is None:
                return
            self._replay.wait()

    def _ask(self) -> None:
        if self._replay is not None and self._replay.poll() is not None:
            self._answered()
            self._replay = None
            self._said.seek(0)
            self._said.truncate()
        if self._replay is None and not self.stopped and self.culprit is None:
            layers = self.live.to_replay()
            if layers is not None:
                job = self._plan.job
                words = self.live.replay_words(layers, str(self._plan.model.path), job.overrides)
                self._replay = subprocess.Popen(
                    [*command_of("aprtui"), *words],
                    stdin=subprocess.DEVNULL, stdout=self._said, stderr=subprocess.DEVNULL,
                )  # fmt: skip

    def _answered(self) -> None:
        self._said.seek(0)
        try:
            found = Replayed.read(self._said.read())
        except ValueError as error:
            self.say(f"the replay failed: {error}")
            return
        key = found.culprit
        self.say(f"culprit: {clean(str(key))}: {found.text}" if key else f"replayed: {found.text}")
        if self._emit is not None:
            layer, stage = (None, None) if key is None else (key.layer, key.stage)
            self._emit(Replay(layer, stage, found.text))
        if key is not None:
            self.culprit = key
            self._stop()

    # What it comes to.

    def comparison(self) -> Comparison:
        """All that was compared. Raises what kept it from being so."""
        if self._failure is not None:
            raise self._failure
        return self.live.comparison()

    @property
    def exit_code(self) -> int:
        """As ``aprtui diff`` says it of what was compared."""
        return self.comparison().exit_code()

    def show(self) -> None:
        """The verdict in lines for people."""
        found = self.comparison()
        print(f"against {clean(str(self.against.root))}: {clean(found.headline, 500)}")
        if self.stopped:
            where = f"the culprit {self.culprit}" if self.culprit else "the first divergence"
            print(f"stopped at {clean(where)} (--stop-at {self.stop_at})")
        if found.first_divergence is not None and self.culprit is None:
            sides = f"{quoted(self.against.root)} {quoted(self.live.directory)}"
            print(f"which stage computes wrongly: aprtui bisect {sides}")

    def summary(self) -> Mapping[str, Any]:
        """For ``--json``: how the trace compares, beside what it wrote."""
        found, first = self.comparison(), self.live.first
        place = None if first is None else {"layer": first.key.layer, "stage": first.key.stage}
        culprit = self.culprit
        said = {
            "directory": str(self.against.root),
            "verdict": found.verdict,
            "exit_code": self.exit_code,
            "counts": found.counts,
            "first_divergence": place,
            "stopped": self.stopped,
            "culprit": None
            if culprit is None
            else {"layer": culprit.layer, "stage": culprit.stage},
        }
        return {"against": said}
