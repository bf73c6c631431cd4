"""`aprtui trace --against DIR`: what has landed is compared while the pass goes on."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from aprtui import api
from aprtui.compare.beside import Beside, Hears, Runs
from aprtui.compare.diff import Comparison
from aprtui.compare.live import STOPS, Live, Replayed, check_prompt
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
from aprtui.errors import UsageError
from aprtui.formats.summary import finite_json
from aprtui.formats.tracedir import StageKey
from aprtui.text import clean, quoted

__all__ = ["Comparing", "comparing", "configure"]


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


def comparing(
    args: argparse.Namespace,
    plans: Sequence[Plan],
    emit: Emit | None,
    say: Callable[[str], None],
) -> Comparing | None:
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
    return Comparing(Live(against, plan.directory), plan, args.stop_at or "", emit, say)


class Comparing:
    """Tells on the terminal, or as events, what a thread beside the pass finds."""

    def __init__(
        self, live: Live, plan: Plan, stop_at: str, emit: Emit | None, say: Callable[[str], None]
    ) -> None:
        self.live, self.stop_at = live, stop_at
        hears = Hears(self._compared, self._replayed, stop_from_inside)
        self.beside = Beside(live, stop_at, Runs(str(plan.model.path), plan.job.overrides), hears)
        self._emit, self._say = emit, say
        self._first: StageKey | None = None

    def hears(self, event: Event) -> None:
        """Told of each event before anybody else is: begins with the trace and ends with it."""
        if isinstance(event, Planned):
            self.beside.start()
        elif isinstance(event, Finished):
            self.beside.was_whole()
            self.beside.finish(last_look=True)
        elif isinstance(event, Stopped):
            self.beside.finish(last_look=self.beside.stopped)

    def _compared(self, found: tuple[PairResult, ...], first: PairResult | None) -> None:
        for result in found if self._emit is not None else ():
            apart = None if result.metrics is None else finite_json(result.metrics.rel_l2)
            is_first = first is not None and first.key == result.key
            key = result.key
            assert self._emit is not None
            self._emit(
                StageCompared(key.layer, key.stage, result.kind, apart, result.message, is_first)
            )
        if first is not None and first.key != self._first:
            self._first = first.key
            self._say(f"first divergence: {clean(str(first.key))} ({first.kind}) {first.message}")

    def _replayed(self, found: Replayed) -> None:
        key = found.culprit
        self._say(f"culprit: {clean(str(key))}: {found.text}" if key else f"replayed: {found.text}")
        if self._emit is not None:
            layer, stage = (None, None) if key is None else (key.layer, key.stage)
            self._emit(Replay(layer, stage, found.text))

    # What it comes to.

    @property
    def stopped(self) -> bool:
        """Whether the trace was ended here."""
        return self.beside.stopped

    def comparison(self) -> Comparison:
        """All that was compared. Raises what kept it from being so."""
        if self.beside.failure is not None:
            raise self.beside.failure
        return self.live.comparison()

    @property
    def exit_code(self) -> int:
        """As ``aprtui diff`` says it of what was compared."""
        return self.comparison().exit_code()

    def show(self) -> None:
        """The verdict in lines for people."""
        found, culprit = self.comparison(), self.beside.culprit
        print(f"against {clean(str(self.live.against.root))}: {clean(found.headline, 500)}")
        if self.stopped:
            where = f"the culprit {culprit}" if culprit else "the first divergence"
            print(f"stopped at {clean(where)} (--stop-at {self.stop_at})")
        if found.first_divergence is not None and culprit is None:
            sides = f"{quoted(self.live.against.root)} {quoted(self.live.directory)}"
            print(f"which stage computes wrongly: aprtui bisect {sides}")

    def summary(self) -> Mapping[str, Any]:
        """For ``--json``: how the trace compares, beside what it wrote."""
        found, first = self.comparison(), self.live.first
        said = {
            "directory": str(self.live.against.root),
            "verdict": found.verdict,
            "exit_code": self.exit_code,
            "counts": found.counts,
            "first_divergence": None if first is None else _place(first.key),
            "stopped": self.stopped,
            "culprit": None if self.beside.culprit is None else _place(self.beside.culprit),
        }
        return {"against": said}


def _place(key: StageKey) -> dict[str, Any]:
    return {"layer": key.layer, "stage": key.stage}
