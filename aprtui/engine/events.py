"""What a running trace tells: frozen dataclasses that travel as one JSON object per line.

Schema: contracts/events.schema.json. The same lines go to stdout (``--events``), to the trace's
``events.jsonl`` and to the terminal UI.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

__all__ = [
    "CardSeen",
    "Emit",
    "Event",
    "Failed",
    "Finished",
    "Log",
    "PassDone",
    "Planned",
    "Replay",
    "StageCompared",
    "StageWritten",
    "Started",
    "Stopped",
    "TopToken",
    "parse_event",
]


@dataclass(frozen=True)
class Event:
    """One line. ``event`` is the kind's name on the wire."""

    event: ClassVar[str] = ""

    def to_json(self) -> dict[str, Any]:
        return {"event": self.event, **vars(self)}

    def line(self) -> str:
        return json.dumps(self.to_json(), ensure_ascii=True, allow_nan=False, separators=(",", ":"))


Emit = Callable[[Event], None]


@dataclass(frozen=True)
class Planned(Event):
    """Sent once, before any weight is touched."""

    event: ClassVar[str] = "plan"
    directory: str
    model: str
    architecture: str
    num_layers: int
    tokens: tuple[int, ...]
    token_texts: tuple[str, ...]
    stages: tuple[str, ...]
    layers: tuple[int, ...]
    files: int
    write_bytes: int
    free_bytes: int
    read_bytes: int  # weights that the pass will read at most
    memory_bytes: int  # an estimate of what it needs beside the mapped file
    device: str
    device_name: str
    dtype: str
    notes: tuple[str, ...] = ()
    only_in: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Of each stage that not all of the layers have: those that have it."""
    manifest: Mapping[str, Any] = field(default_factory=dict)  # its parts that are known by now
    job: Mapping[str, Any] = field(default_factory=dict)  # the TraceJob, to go on with it
    rows: int = 0  # of the stages: the prompt's, and one a decode step
    passes: str = ""  # in words, where there are several or a cache


@dataclass(frozen=True)
class Started(Event):
    """The pass begins to compute."""

    event: ClassVar[str] = "started"
    pid: int


@dataclass(frozen=True)
class StageWritten(Event):
    """A stage's file landed, whole. ``layer`` is None for a whole-model stage."""

    event: ClassVar[str] = "stage"
    layer: int | None
    stage: str
    path: str
    bytes: int
    done: int  # files written so far, this one included
    files: int
    written_bytes: int
    elapsed_s: float
    rms: float | str  # "NaN" and "Infinity" as strings
    nan: int
    inf: int
    device_bytes: int = 0
    memory_bytes: int = 0
    shape: tuple[int, ...] = ()
    axes: tuple[str, ...] = ()
    positions: str | tuple[int, ...] = "all"  # or "last", or those that it holds


@dataclass(frozen=True)
class StageCompared(Event):
    """A stage was compared with the trace that this one is held ``--against``.

    ``kind`` is the pair's class, ``first`` whether it is the first of all, so far, that fails.
    """

    event: ClassVar[str] = "compared"
    layer: int | None
    stage: str
    kind: str
    rel_l2: float | str | None  # None where nothing was measured
    message: str
    first: bool


@dataclass(frozen=True)
class Replay(Event):
    """What a replay of the stages that have landed says of a divergence: which stage computes
    wrongly, or what explains it. ``stage`` is None where none does."""

    event: ClassVar[str] = "replay"
    layer: int | None
    stage: str | None
    text: str


@dataclass(frozen=True)
class PassDone(Event):
    """One of several passes is computed: rows from ``first`` on. ``token`` is the likeliest next,
    which the next decode step is fed with."""

    event: ClassVar[str] = "pass"
    number: int  # from 0
    of: int
    kind: str  # "prefill", "chunk" or "decode"
    first: int
    rows: int
    token: int
    text: str
    elapsed_s: float


@dataclass(frozen=True)
class CardSeen(Event):
    """What a device of the trace does now, by NVML: all its processes, not this one alone."""

    event: ClassVar[str] = "card"
    device: str
    used_bytes: int
    total_bytes: int
    busy_percent: int | None  # None: the card does not tell
    watts: float | None
    most_watts: float | None


@dataclass(frozen=True)
class Log(Event):
    """A line for people: a note, a warning."""

    event: ClassVar[str] = "log"
    level: str  # "note" or "warning"
    message: str


@dataclass(frozen=True)
class TopToken(Event):
    """One of the likeliest next tokens; part of ``Finished``."""

    event: ClassVar[str] = "token"
    id: int
    text: str
    logit: float
    probability: float

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Finished(Event):
    """The trace is complete: its manifest is written."""

    event: ClassVar[str] = "done"
    directory: str
    files: int
    written_bytes: int
    elapsed_s: float
    peak_memory_bytes: int
    peak_device_bytes: int
    top_tokens: tuple[dict[str, Any], ...] = field(default=())
    nonfinite: tuple[str, ...] = ()  # stages that hold NaN or Inf, in order of computation
    generated: str = ""  # the text of the tokens that were decoded


@dataclass(frozen=True)
class Stopped(Event):
    """Ended on request; what was written stays, without a manifest."""

    event: ClassVar[str] = "stopped"
    files: int
    directory: str


@dataclass(frozen=True)
class Failed(Event):
    """Ended by an error."""

    event: ClassVar[str] = "error"
    message: str
    hint: str
    exit_code: int


_KINDS: dict[str, type[Event]] = {
    kind.event: kind
    for kind in (
        Planned,
        Started,
        StageWritten,
        StageCompared,
        Replay,
        PassDone,
        CardSeen,
        Log,
        Finished,
        Stopped,
        Failed,
    )
}


def parse_event(line: str | bytes) -> Event | None:
    """The event that a line holds; None when it is not one. Unknown keys are passed over."""
    try:
        fields = json.loads(line)
        kind = _KINDS[fields.pop("event")]
        known = {f.name for f in dataclasses.fields(kind)}
        values = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in fields.items()
            if name in known
        }
        return kind(**values)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
