"""Many captures compared in a thread: what a worker of the Matrix screen does, in messages."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from textual.message import Message
from textual.worker import get_current_worker

from aprtui.compare.facing import faced_paths
from aprtui.compare.matrix import Column, Faced, line_up, measure
from aprtui.compare.pairs import PairResult, check_tokens
from aprtui.errors import UsageError
from aprtui.formats.tracedir import StageKey, TraceDir
from aprtui.text import clean
from aprtui.tui.comparing import EVERY_S, OtherPrompts
from aprtui.tui.following import counted
from aprtui.tui.source import load_trace

__all__ = ["CellsMeasured", "Lined", "Many", "compare_many"]


@dataclass(frozen=True)
class Many:
    """What is compared: traces, or folders of prompts."""

    paths: tuple[Path, ...]
    model: str = ""
    any_prompt: bool = False


@dataclass
class Lined(Message):
    """All sides were read, for the first time or again; cells of ``kept`` still hold."""

    columns: tuple[Column, ...]
    faced: tuple[Faced, ...]
    kept: frozenset[tuple[int, StageKey]]
    other_prompts: bool


@dataclass
class CellsMeasured(Message):
    """Some cells, each with the number of its column."""

    found: tuple[tuple[int, PairResult], ...]
    done: bool


def compare_many(
    job: Many,
    post: Callable[[Message], object],
    before: Lined | None = None,
    known: frozenset[tuple[int, StageKey]] = frozenset(),
) -> None:
    """Read all sides, then measure cell by cell; ``post`` is told all of it.

    With ``before`` sides may have grown: what was ``known`` then and is as it was is not measured
    again, and nothing is told where nothing is new. Raises BadFileError, UsageError, Cancelled.
    """
    worker = get_current_worker()
    faced = _read(job, post, before)
    other = _other_prompts(faced)
    if other is not None and not job.any_prompt:
        post(OtherPrompts(other.message, "i compares them all the same; or trace all with the "
                          "same --tokens"))  # fmt: skip
        return
    columns = line_up(faced, ignore_tokens=job.any_prompt)
    kept = frozenset[tuple[int, StageKey]]() if before is None else _kept(columns, before, known)
    if before is not None and len(kept) == sum(len(column.pairs) for column in columns):
        return
    post(Lined(columns, faced, kept, other is not None))
    batch: list[tuple[int, PairResult]] = []
    last = time.monotonic()
    for cell in measure(columns, known=kept, cancelled=lambda: worker.is_cancelled):
        batch.append(cell)
        if time.monotonic() - last >= EVERY_S:
            post(CellsMeasured(tuple(batch), False))
            batch, last = [], time.monotonic()
    post(CellsMeasured(tuple(batch), True))


def _read(job: Many, post: Callable[[Message], object], before: Lined | None) -> tuple[Faced, ...]:
    """Every trace once; one that was whole before is not read again."""
    had: Mapping[Path, TraceDir] = {}
    if before is not None:
        traces = [each for side in before.faced for each in (side.a, side.b)]
        had = {trace.root.absolute(): trace for trace in traces if not trace.may_grow}
    held: dict[Path, TraceDir] = {}

    def once(path: Path) -> TraceDir:
        if path not in held:
            whole = had.get(path.absolute())
            held[path] = whole or load_trace(path, job.model, counted(path, post))
        return held[path]

    return tuple(Faced(label, once(a), once(b)) for label, a, b in faced_paths(job.paths))


def _other_prompts(faced: tuple[Faced, ...]) -> UsageError | None:
    """The first column whose two captures are of different prompts."""
    for side in faced:
        try:
            check_tokens(side.a, side.b)
        except UsageError as error:
            return UsageError(f"{clean(side.label)}: {error.message}")
    return None


def _kept(
    columns: tuple[Column, ...], before: Lined, known: frozenset[tuple[int, StageKey]]
) -> frozenset[tuple[int, StageKey]]:
    """The known cells whose files, shapes and bars are those of before."""
    kept = set()
    if [column.label for column in columns] != [column.label for column in before.columns]:
        return frozenset()
    for number, (column, old) in enumerate(zip(columns, before.columns, strict=True)):
        pairs = {pair.key: pair for pair in old.pairs}
        if column.head.bars == old.head.bars:
            kept |= {(number, p.key) for p in column.pairs if pairs.get(p.key) == p}
    return frozenset(kept & known)
