"""What an engine has told of the trace that it makes, event by event; no screen's business."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

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
from aprtui.formats.tracedir import StageKey
from aprtui.graph.vocabulary import order_of
from aprtui.text import clean
from aprtui.tui.screens.trace_text import output_stage, pass_text

__all__ = ["RunSoFar"]


@dataclass
class RunSoFar:
    """One run of a trace: the last of each thing that was told, and how it ended."""

    last: StageWritten | None = None
    passed: PassDone | None = None
    ended: Event | None = None  # Finished, Stopped or Failed
    residual: dict[int, tuple[float, str]] = field(default_factory=dict)  # by layer, with its NaN
    cards: dict[str, CardSeen] = field(default_factory=dict)  # what each was seen doing last
    log: list[str] = field(default_factory=list)
    _output: str = ""  # the stage that is each layer's output
    _to_come: list[StageKey] = field(default_factory=list)  # in order of computation, backwards
    _written: set[StageKey] = field(default_factory=set)

    @classmethod
    def of(cls, planned: Planned, stages: Iterable[StageKey]) -> RunSoFar:
        """Nothing has been told yet of a run of that plan, which writes these stages."""
        to_come = sorted(stages, key=order_of, reverse=True)
        return cls(_output=output_stage(planned), _to_come=to_come)

    def take(self, event: Event) -> None:
        if isinstance(event, StageWritten):
            self.last = event
            self._written.add(StageKey(event.layer, event.stage))
            if event.layer is not None and event.stage == self._output:
                wrong = f"NaN {event.nan}" if event.nan or event.inf else ""
                self.residual[event.layer] = float(event.rms), wrong
        elif isinstance(event, Finished | Stopped | Failed):
            self.ended = event
        elif isinstance(event, CardSeen):
            self.cards[event.device] = event
        elif isinstance(event, Log):
            self.log.append(f"{event.level}: {clean(event.message, 300)}")
        elif isinstance(event, PassDone):
            self.passed = event
            self.log.append(pass_text(event))
        elif isinstance(event, Started):
            self.log.append(f"engine started, process {event.pid}")

    @property
    def computing(self) -> StageKey | None:
        """The stage that is being computed: the first in order that has not been written."""
        while self._to_come and self._to_come[-1] in self._written:
            self._to_come.pop()
        return self._to_come[-1] if self._to_come else None

    def over(self, exit_code: int, log_tail: str, folder: str, *, stopped: bool) -> None:
        """The process has ended, whether or not it could say how."""
        if log_tail:
            self.log.append(log_tail)
        if self.ended is None and stopped:  # before the engine could say so
            self.ended = Stopped(self.last.done if self.last is not None else 0, folder)
        elif self.ended is None:
            last = log_tail.splitlines()[-1] if log_tail else ""
            self.ended = Failed(f"the engine ended by itself ({exit_code}) {last}".rstrip(),
                                "o shows its log; what is written stays", 4)  # fmt: skip
