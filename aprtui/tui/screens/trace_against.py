"""A running trace compared with another one as its files land: what the Trace screen adds to it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from textual.content import Content
from textual.message import Message

from aprtui.compare.beside import Beside, Hears, Runs
from aprtui.compare.live import Live, Replayed, check_prompt
from aprtui.compare.opening import open_capture
from aprtui.compare.pairs import FAILED, UNMEASURED, PairResult
from aprtui.engine.events import Planned
from aprtui.engine.job import TraceJob
from aprtui.errors import AprtuiError, UsageError
from aprtui.formats.tracedir import StageKey
from aprtui.text import clean, count
from aprtui.tui.screens.diff_text import sign_of
from aprtui.tui.widgets.lines import Part

__all__ = ["Against", "Compared", "Faced", "StopWanted", "face"]

Post = Callable[[Message], object]


@dataclass
class Faced(Message):
    """The other trace was read: ``job`` can begin; or why it shall not."""

    job: TraceJob
    against: Against | None
    why: str = ""


@dataclass
class Compared(Message):
    """Something new is known of these stages, or of the whole."""

    against: Against
    keys: tuple[StageKey, ...] = ()


@dataclass
class StopWanted(Message):
    """What was asked to end the trace has been found."""

    against: Against


class Against:
    """What is known of the comparison; the thread beside tells it to the screen."""

    def __init__(self, live: Live, until: str, job: TraceJob, post: Post) -> None:
        self._post = post
        self.live, self.until = live, until
        self.first: PairResult | None = None
        self.replayed: Replayed | None = None
        self.ended = False
        hears = Hears(self._compared, self._replayed, lambda: self._tell(StopWanted(self)),
                      self._over)  # fmt: skip
        self.beside = Beside(live, until, Runs(job.model, job.overrides), hears)
        self._begun = False

    def begin(self) -> None:
        """The engine has begun: the folder is its own now."""
        if not self._begun:
            self._begun = True
            self.beside.start()

    def end(self, *, whole: bool, stopped: bool) -> None:
        """The engine has ended; what landed last is compared still, unless a person stopped it."""
        if self._begun:
            if whole:
                self.beside.was_whole()
            by_us = self.beside.stopped
            self.beside.finish(last_look=whole or by_us or not stopped, wait=False)

    def leave(self) -> None:
        """The screen closes."""
        if self._begun:
            self.beside.finish(last_look=False, wait=False)

    # From the thread.

    def _tell(self, message: Message) -> None:
        self._post(message)

    def _compared(self, found: tuple[PairResult, ...], first: PairResult | None) -> None:
        before, self.first = self.first, first
        marked = [each.key for each in (before, first) if each is not None]
        keys = dict.fromkeys([*(result.key for result in found), *marked])
        self._tell(Compared(self, tuple(keys)))

    def _replayed(self, found: Replayed) -> None:
        self.replayed = found
        self._tell(Compared(self))

    def _over(self) -> None:
        self.ended = True
        self._tell(Compared(self))

    # What is shown.

    def cells(self, keys: Iterable[StageKey]) -> dict[StageKey, Part]:
        """The grid's cells of stages that were compared: a sign and a colour, as in Diff."""
        first = self.first.key if self.first is not None else None
        results = self.live.results
        return {key: sign_of(results[key], "rel_l2", key == first) for key in keys
                if key in results}  # fmt: skip

    def line(self) -> Content:
        """How it stands, in one line."""
        found = list(self.live.results.values())
        failed = sum(result.kind in FAILED for result in found)
        unmeasured = sum(result.kind in UNMEASURED for result in found)
        culprit = self.replayed.culprit if self.replayed is not None else None
        said = ""
        if self.replayed is not None and culprit is None:
            said = f" · replayed: {self.replayed.text}"
        failure = self.beside.failure
        return Content.assemble(
            (f" against {clean(self.live.against.root.name, 40)}", "dim"),
            f" · {count(len(found))} compared",
            (f" · {count(unmeasured)} unmeasured", "$text-warning") if unmeasured else "",
            (f" · {count(failed)} beyond bar", "bold $text-error") if failed else "",
            (f" · first {self.first.key}", "bold") if self.first is not None else "",
            (f" · culprit {culprit}: {self.replayed.text}", "bold $text-error")
            if self.replayed is not None and culprit is not None else "",
            (said, "$text-success"),
            (f" · ! {clean(failure.message, 200)}", "bold $text-error") if failure else "",
            (" · nothing beyond the bar", "$text-success")
            if self.ended and found and not (failed or unmeasured or failure) else "",
        )  # fmt: skip


def face(job: TraceJob, planned: Planned, path: Path, until: str, post: Post) -> Faced:
    """What compares ``job`` with the trace at ``path``; or why it cannot be."""
    try:
        against = open_capture(path)
        if against.root.absolute() == Path(planned.directory).absolute():
            raise UsageError("the trace to compare with lies where this one goes")
        check_prompt(against, planned.tokens, decodes=job.steps > 0)
    except AprtuiError as error:
        return Faced(job, None, clean(error.message, 300))
    return Faced(job, Against(Live(against, Path(planned.directory)), until, job, post))
