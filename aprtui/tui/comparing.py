"""Two captures compared in a thread: what a worker of the Diff screen does, in messages."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path

from textual.message import Message
from textual.worker import get_current_worker

from aprtui.compare.bars import Bars, choose_bars
from aprtui.compare.logits import TopLogits, top_logits
from aprtui.compare.opening import open_capture
from aprtui.compare.pairs import (
    DiffOptions,
    Pair,
    PairResult,
    check_tokens,
    compare_pair,
    pair_up,
    rope_note,
)
from aprtui.errors import BadFileError, UsageError
from aprtui.formats.maps import check_maps
from aprtui.formats.rows import Rows
from aprtui.formats.tracedir import StageKey, StageRecord, TraceDir
from aprtui.text import count
from aprtui.tui.following import counted
from aprtui.tui.messages import LoadFailed
from aprtui.tui.source import load_trace

__all__ = ["Compared", "Compares", "NothingThere", "OtherPrompts", "Paired", "compare", "top_of"]

EVERY_S = 0.1  # results are told at most ten times a second


@dataclass(frozen=True)
class Compares:
    """What is compared: two trace folders or two stage files, and how."""

    a: Path
    b: Path
    model: str = ""
    any_prompt: bool = False  # even captures of different prompts
    of_pass: int | None = None  # only the rows that this pass made


@dataclass(frozen=True)
class Paired:
    """Both sides as they were read: what is compared, by which bars, and what is known of both.

    ``traces`` is empty for two stage files. ``same`` says what is stated alike.
    ``kept`` are stages whose results of before still hold.
    """

    pairs: tuple[Pair, ...]
    bars: Bars
    notes: tuple[str, ...] = ()
    traces: tuple[TraceDir, ...] = ()
    same: tuple[str, ...] = ()
    other_prompts: bool = False
    kept: frozenset[StageKey] = frozenset()

    @property
    def rows(self) -> Rows | None:
        """The rows of the side that came in passes; None where both came in one."""
        for trace in reversed(self.traces):
            if trace.rows is not None and len({*trace.rows.passes}) > 1:
                return trace.rows
        return None


@dataclass
class Compared(Message):
    """Some pairs were measured; another ``paired`` than before where the sides were read again."""

    paired: Paired
    results: tuple[PairResult, ...]
    done: bool


@dataclass
class NothingThere(Message):
    """Neither side holds a stage."""


@dataclass
class OtherPrompts(LoadFailed):
    """The captures are of different prompts, and nobody asked to compare them all the same."""


def compare(
    job: Compares,
    post: Callable[[Message], object],
    before: Paired | None = None,
    known: Collection[StageKey] = (),
) -> None:
    """Read both sides, then measure pair by pair; ``post`` is told all of it.

    With ``before`` the sides may have grown: what was ``known`` then and is as it was is not
    measured again, and nothing is told where nothing is new. Raises BadFileError, UsageError for
    the model and metrics.Cancelled.
    """
    worker = get_current_worker()
    try:
        paired = _read(job, post, before)
    except _OtherPromptsError as error:
        post(OtherPrompts(error.message, error.hint))
        return
    if not paired.pairs:
        post(NothingThere())
        return
    last = 0.0
    if before is not None:
        paired = replace(paired, kept=_kept(paired, before, known))
        nothing_new = len(paired.kept) == len(paired.pairs) == len(before.pairs)
        if nothing_new and (paired.notes, paired.same) == (before.notes, before.same):
            return
        last = time.monotonic()  # a file more is told of when it is measured: it is drawn once
    batch: list[PairResult] = []
    options = DiffOptions(of_pass=job.of_pass)
    for pair in paired.pairs:
        if pair.key in paired.kept:
            continue
        if time.monotonic() - last >= EVERY_S:
            post(Compared(paired, tuple(batch), False))
            batch, last = [], time.monotonic()
        batch.append(
            compare_pair(pair, paired.bars, options, cancelled=lambda: worker.is_cancelled)
        )
    post(Compared(paired, tuple(batch), True))


def _kept(paired: Paired, before: Paired, known: Collection[StageKey]) -> frozenset[StageKey]:
    """The known pairs whose files, shapes and bars are those of before."""
    if before.bars != paired.bars:
        return frozenset()
    old = {pair.key: pair for pair in before.pairs if pair.key in known}
    return frozenset(pair.key for pair in paired.pairs if old.get(pair.key) == pair)


class _OtherPromptsError(UsageError):
    """Raised for captures of different prompts."""


def _read(job: Compares, post: Callable[[Message], object], before: Paired | None) -> Paired:
    """Both sides; one that was whole ``before`` is not read again."""
    if job.a.is_file() and job.b.is_file():
        alone = [open_capture(side) for side in (job.a, job.b)]
        left, right = (next(iter(side.records.values())) for side in alone)
        return Paired((Pair(left.key, left, right),), choose_bars(alone[0], alone[1]))
    had = before.traces if before and before.traces else (None, None)
    a, b = (
        load_trace(path, job.model, counted(path, post)) if side is None or side.may_grow else side
        for path, side in zip((job.a, job.b), had, strict=True)
    )
    notes = [note for note in (rope_note(a, b),) if note]
    for name, t in (("A", a), ("B", b)):
        if t.status == "incomplete":
            comes = "" if t.manifest else ": what is written appears by itself"
            notes.append(f"{name} is incomplete{comes}")
    other = False
    try:
        check_tokens(a, b)
    except UsageError as error:
        other = True
        if not job.any_prompt:
            raise _OtherPromptsError(
                error.message,
                hint="i compares them all the same, as aprtui diff --ignore-tokens does; "
                "or trace both with the same --tokens",
            ) from error
        notes.insert(0, error.message)
    if not (a.records or b.records or _named(a) or _named(b)):
        return Paired((), choose_bars(a, b))
    pairs = pair_up(a, b)
    return Paired(pairs, choose_bars(a, b), tuple(notes), (a, b), _alike(a, b), other)


def _named(trace: TraceDir) -> bool:
    return bool((trace.manifest or {}).get("stages"))


def _alike(a: TraceDir, b: TraceDir) -> tuple[str, ...]:
    """What both captures state and state alike."""
    same = []
    digests = [str((t.stated.get("model") or {}).get("digest") or "") for t in (a, b)]
    if digests[0] and digests[0] == digests[1]:
        same.append("same model")
    if a.token_ids is not None and a.token_ids == b.token_ids:
        same.append(f"same {count(len(a.token_ids), 'token')}")
    return tuple(same)


def top_of(record: StageRecord | None) -> tuple[TopLogits, ...]:
    """The likeliest next tokens of captured logits; none where they cannot be read."""
    if record is None:
        return ()
    try:
        values = record.values()
        row = record.shape[-1] if record.shape else values.size
        top = top_logits(values[-row:])
        check_maps(values)
    except BadFileError:
        return ()
    return top
