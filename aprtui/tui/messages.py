"""What workers tell the screens: immutable values in messages, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from textual.message import Message

from aprtui.engine.events import Event
from aprtui.formats.tracedir import StageKey, TraceDir
from aprtui.tui.trace_cells import Held

__all__ = [
    "Found", "Known", "Learnt", "LoadFailed", "Place", "ReadSoFar", "RunnerEnded",
    "RunnerEvents", "Surveyed", "Told", "TraceLoaded",
]  # fmt: skip


@dataclass
class TraceLoaded(Message):
    """A trace directory was read, for the first time or again."""

    trace: TraceDir
    pid: int | None = None  # of the process that is writing it


@dataclass
class ReadSoFar(Message):
    """How far the reading of a folder is, in clean words."""

    text: str

    def can_replace(self, message: Message) -> bool:
        return isinstance(message, ReadSoFar)


@dataclass
class LoadFailed(Message):
    """Something could not be read: what, where and what to do, already clean."""

    what: str
    hint: str = ""


@dataclass
class Surveyed(Message):
    """Some files were looked at: what each holds, the rms of those that were measured (NaN where a
    value is no number), and the damage that was found."""

    held: dict[StageKey, Held] = field(default_factory=dict)
    rms: dict[StageKey, float] = field(default_factory=dict)
    damage: dict[StageKey, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Known:
    """What a trace says of itself, clean, and its ``state``: "complete", "running", "stopped" (by
    a person or by a fault: it has no manifest), "foreign" or "damaged" (``note`` says how). Of a
    sweep's results: "done" or "unfinished", and their headline as ``verdict``."""

    state: str
    prompt: str = ""
    tokens: int = 0
    engine: str = ""
    device: str = ""
    dtype: str = ""
    model: str = ""
    architecture: str = ""
    created: str = ""
    files: int = 0
    expected: int | None = None
    size_bytes: int = 0
    note: str = ""
    verdict: str = ""  # of the last comparison
    right: bool = False  # nothing is wrong by that verdict


@dataclass(frozen=True)
class Place:
    """A model, a trace or a sweep's results on the disk; ``path`` is raw, ``remark`` is ours."""

    path: str
    kind: str  # "model", "trace" or "results"
    remark: str
    mtime: float


@dataclass
class Learnt(Message):
    """What some traces say of themselves, by path."""

    known: Mapping[str, Known]


@dataclass
class Found(Message):
    """Some models and traces below a folder.

    ``done`` when all of it was looked through; ``more`` when so many were found that the rest was
    not looked for.
    """

    places: tuple[Place, ...]
    done: bool
    more: bool = False


@dataclass
class RunnerEvents(Message):
    """What the engine's child process said since the last such message."""

    events: tuple[Event, ...]


@dataclass
class Told(Message):
    """What a command tells with ``--events``: JSON objects, as it printed them."""

    objects: tuple[Mapping[str, Any], ...]

    def hand_out(
        self,
        *,
        progress: Callable[[Mapping[str, Any]], None],
        error: Callable[[str, str], None],
        result: Callable[[Mapping[str, Any]], None],
    ) -> None:
        """Each object to what it is for; ``error`` takes message and hint, not yet clean."""
        for said in self.objects:
            kind = said.get("event")
            if kind == "progress":
                progress(said)
            elif kind == "error":
                error(str(said.get("message")), str(said.get("hint") or ""))
            elif kind == "result":
                result(said)


@dataclass
class RunnerEnded(Message):
    """The engine's child process ended; ``exit_code`` negative for a signal."""

    exit_code: int
    log_tail: str
