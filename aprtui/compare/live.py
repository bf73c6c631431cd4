"""A trace that is being written, compared with another one stage by stage as its files land.

Each look reads what has landed since; nothing is told to the pass, and no value depends on it. What
a first divergence means is asked of a child process: replaying beside a pass would share its cores'
settings.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aprtui.compare.diff import Comparison, faced
from aprtui.compare.opening import open_capture
from aprtui.compare.pairs import FAILED, PairResult, check_tokens, compare_pair, pair_up
from aprtui.compare.reference import find_model
from aprtui.errors import EngineError, UsageError
from aprtui.formats.tracedir import StageKey, TraceDir
from aprtui.graph.vocabulary import order_of
from aprtui.text import clean

__all__ = ["STOPS", "Live", "Replayed", "check_prompt"]

STOPS = ("first", "culprit")
"""Where a live comparison may end a trace: at the first stage beyond its bar, or at the first that
a replay finds to compute wrongly."""

_OTHER = "trace the same prompt, or the same --tokens, as that trace"


def check_prompt(against: TraceDir, tokens: Sequence[int], *, decodes: bool) -> None:
    """Raises UsageError before a trace begins whose prompt is not ``against``'s.

    One that ``decodes`` makes its further tokens itself: its prompt has to begin the other.
    """
    ids = against.token_ids
    if decodes and ids is not None and tuple(ids[: len(tokens)]) == tuple(tokens):
        return
    said = {"tokens": {"ids": list(tokens)}}
    planned = TraceDir(against.root, "incomplete", {}, None, None, planned=said)
    check_tokens(against, planned, _OTHER)


class Live:
    """``look`` compares what has landed since the last look."""

    def __init__(self, against: TraceDir, directory: Path) -> None:
        self.against, self.directory = against, directory
        self.results: dict[StageKey, PairResult] = {}
        self.whole = False  # whether every file that was planned is there
        self._trace: TraceDir | None = None
        self._replayed = -1  # the last layer that was handed to a replay

    def look(self, cancelled: Callable[[], bool] | None = None) -> tuple[PairResult, ...]:
        """The pairs that are new, in order of computation.

        Raises BadFileError where no trace is there any more, metrics.Cancelled.
        """
        trace = self._trace = open_capture(self.directory)
        self.whole = len(trace.records) == trace.expected
        new = trace.records.keys() - self.results.keys()
        if not new:
            return ()
        head = faced(self.against, trace, ignore_tokens=True)
        found = []
        for pair in pair_up(self.against, trace):
            if pair.key in new:
                found.append(compare_pair(pair, head.bars, cancelled=cancelled))
                self.results[pair.key] = found[-1]
        return tuple(found)

    @property
    def first(self) -> PairResult | None:
        """The first of all, in order of computation, that fails."""
        failed = [result for result in self.results.values() if result.kind in FAILED]
        return min(failed, key=lambda result: order_of(result.key), default=None)

    def comparison(self) -> Comparison:
        """All that was compared, as ``aprtui diff`` would have it. Raises UsageError before any
        look."""
        if self._trace is None:
            raise UsageError("nothing was compared yet")
        head = faced(self.against, self._trace, ignore_tokens=True)
        ordered = sorted(self.results.values(), key=lambda result: order_of(result.key))
        return dataclasses.replace(head, results=tuple(ordered))

    # What a divergence means.

    def to_replay(self) -> tuple[int, int] | None:
        """The layers, end not included, that a replay should look at now: up to the last that has
        landed, where a stage fails there that none has looked at. None where there is nothing."""
        layers = [key.layer for key in self.results if key.layer is not None]
        failed = [
            key.layer if key.layer is not None else max(layers, default=0)
            for key, result in self.results.items()
            if result.kind in FAILED
        ]
        last = max(layers, default=0)
        if not failed or max(failed) <= self._replayed:
            return None
        begin = max(self._replayed, 0)
        self._replayed = last - (not self.whole)  # the last layer may still be growing
        return begin, last + 1

    def replay_words(
        self, layers: tuple[int, int], model: str, overrides: Mapping[str, str]
    ) -> tuple[str, ...]:
        """The arguments of the ``aprtui`` that replays these layers of what has landed, as JSON.

        By ``model``, that the trace runs, unless the other trace names one of the same header: its
        weights are then the right ones.
        """
        if self._trace is not None:
            with suppress(UsageError):
                model = str(find_model(self.against, self._trace)[0])
        words = ["bisect", str(self.directory), "--model", model, "--json"]
        words += ["--layers", f"{layers[0]}..{layers[1]}"]
        return (*words, *(word for set_ in overrides.items() for word in ("--set", "=".join(set_))))


@dataclass(frozen=True)
class Replayed:
    """What a replay of what has landed says: a culprit, or that rounding explains it."""

    culprit: StageKey | None
    text: str

    @classmethod
    def read(cls, printed: bytes | str) -> Replayed:
        """From what that ``aprtui`` printed. Raises EngineError where that is no result."""
        try:
            found: Mapping[str, Any] = json.loads(printed)
            culprits, explained = found["culprits"], found["explained"]
            if not culprits:
                by = sorted({clean(str(each["by"]), 60) for each in explained})
                return cls(None, f"explained by {', '.join(by) or 'float32'}")
            first = culprits[0]
            mistake = first.get("mistake") or {}
            text = mistake.get("text") or first.get("looks_like") or first["kind"]
            return cls(StageKey(first["layer"], str(first["stage"])), clean(str(text), 300))
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise EngineError(
                f"the replay said nothing: {clean(repr(error), 120)}", hint="aprtui bisect A B"
            ) from error
