"""One engine's several ways to the same rows (prefill, chunks, decode steps, a batch): are they the
same numbers, and where do they first part? No reference is needed: the first trace is held
against the others, row by row, over the tokens that they have in common.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import numpy as np
import numpy.typing as npt

from aprtui.compare.bars import choose_bars
from aprtui.errors import UsageError
from aprtui.formats.rows import Rows
from aprtui.formats.summary import finite_json
from aprtui.formats.tracedir import StageKey, StageRecord, TraceDir
from aprtui.graph.vocabulary import facts_of, order_of
from aprtui.text import clean, count, number

__all__ = ["Parting", "WayFound", "compare_paths"]

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
SCHEMA = "aprtui-paths-v1"
_AT_ONCE = 1 << 22  # values of a block of rows


@dataclass(frozen=True)
class Parting:
    """A stage that is not the same on both ways: which rows, ``where`` in words with their passes.

    ``rel_l2``: the error relative to the first way.
    """

    key: StageKey
    rel_l2: float
    positions: tuple[int, ...]
    passes: tuple[int, ...]
    where: str

    def __str__(self) -> str:
        return f"{self.key}, {self.where}, error {number(self.rel_l2, 2)}"

    def to_json(self) -> dict[str, Any]:
        return {
            "layer": self.key.layer,
            "stage": self.key.stage,
            "rel_l2": finite_json(self.rel_l2),
            "positions": list(self.positions),
            "passes": list(self.passes),
        }


@dataclass(frozen=True)
class WayFound:
    """One way against the first: of ``stages`` that both hold ``equal`` have the same bits.

    ``first`` is the first stage with other bits, ``beyond`` the first beyond the bar, ``largest``
    that with the largest error. ``tokens`` are those in common; ``alone`` the stages of one side.
    """

    trace: str
    name: str
    tokens: int
    stages: int
    equal: int
    first: Parting | None
    beyond: Parting | None
    largest: Parting | None
    alone: tuple[StageKey, ...]
    bar: str

    @property
    def verdict(self) -> str:
        """ "same" bits, "within" the bar, "differs", or "unmeasured"."""
        if self.beyond is not None:
            return "differs"
        if self.alone or not self.stages:
            return "unmeasured"
        return "same" if self.first is None else "within"

    @property
    def sentence(self) -> str:
        """What was found, in one line."""
        if self.beyond is not None:
            return f"parts first at {self.beyond}"
        if self.first is None:
            said = f"the same bits in all {count(self.stages, 'stage')}"
        else:
            said = f"the same within the bar; other bits first at {self.first}"
            if self.largest is not None and self.largest != self.first:
                said += (
                    f"; the largest error {number(self.largest.rel_l2, 2)} at {self.largest.key}"
                )
        if self.alone:
            said += f"; {count(len(self.alone), 'stage')} of one side alone, as {self.alone[0]}"
        return said

    def to_json(self) -> dict[str, Any]:
        parts = {"first": self.first, "beyond": self.beyond, "largest": self.largest}
        return {
            "trace": self.trace,
            "name": self.name,
            "verdict": self.verdict,
            "sentence": self.sentence,
            "tokens": self.tokens,
            "stages": self.stages,
            "equal": self.equal,
            **{name: None if part is None else part.to_json() for name, part in parts.items()},
            "alone": [{"layer": key.layer, "stage": key.stage} for key in self.alone],
            "bar": self.bar,
        }


def compare_paths(traces: Sequence[TraceDir], names: Sequence[str] = ()) -> tuple[WayFound, ...]:
    """Every trace behind the first against the first.

    Raises UsageError for traces of other engines, models or prompts, and BadFileError.
    """
    if len(traces) < 2:
        raise UsageError(
            "--paths compares several traces, and one was given",
            hint="aprtui diff --paths PREFILL CHUNKED DECODED ...",
        )
    first = traces[0]
    called = names or [trace.root.name for trace in traces]
    for trace in traces[1:]:
        _check_same_run(first, trace)
    return tuple(
        _compared(first, trace, name) for trace, name in zip(traces[1:], called[1:], strict=True)
    )


def _check_same_run(a: TraceDir, b: TraceDir) -> None:
    """Raises UsageError where two traces are not one engine's of one model."""
    for part, field, what in (("engine", "name", "engine"), ("model", "digest", "model")):
        sides = [_said(trace.stated, part, field) for trace in (a, b)]
        if None not in sides and sides[0] != sides[1]:
            raise UsageError(
                f"{clean(str(b.root))}: another {what} than {clean(str(a.root))}: "
                "--paths asks one engine whether its own ways agree",
                hint="aprtui diff A B compares two engines",
            )


def _said(stated: Mapping[str, Any], part: str, field: str) -> object:
    found = stated.get(part)
    return found.get(field) if isinstance(found, dict) else None


def _compared(a: TraceDir, b: TraceDir, name: str) -> WayFound:
    common, bars = _common_tokens(a, b), choose_bars(a, b)
    first: Parting | None = None
    beyond: Parting | None = None
    largest: Parting | None = None
    shared = sorted(a.records.keys() & b.records.keys(), key=order_of)
    alone, equal = sorted(a.records.keys() ^ b.records.keys(), key=order_of), 0
    for key in shared:
        found = _rows_apart(_Side(a, key), _Side(b, key), common)
        if found is None:
            alone.append(key)
            continue
        errors, norms, places = found
        if not errors.any():
            equal += 1
            continue
        parting, is_beyond = _parting(key, errors, norms, places, b, bars.limits(key))
        first = first or parting
        beyond = beyond or (parting if is_beyond else None)
        if largest is None or not parting.rel_l2 <= largest.rel_l2:
            largest = parting
    return WayFound(
        str(b.root), clean(name), common, len(shared), equal, first, beyond, largest,
        tuple(alone), str(bars),
    )  # fmt: skip


def _common_tokens(a: TraceDir, b: TraceDir) -> int:
    """How many tokens both begin with. Raises UsageError where there are none to speak of."""
    left, right = a.token_ids, b.token_ids
    if left is None or right is None:
        raise UsageError(
            "a trace does not say its tokens: --paths needs them to know which rows are the same"
        )
    common = sum(
        1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(left, right, strict=False))
    )
    if not common:
        raise UsageError(
            f"{clean(str(b.root))}: another prompt than {clean(str(a.root))}",
            hint="trace the same --tokens on both ways",
        )
    return common


class _Side:
    """One stage of one trace by positions."""

    def __init__(self, trace: TraceDir, key: StageKey) -> None:
        self.record: StageRecord = trace.records[key]
        array = self.record.array()
        self.axes, self.values = array.axes, np.asarray(array)
        self.square = self.axes is not None and self.axes[-2:] == ("query", "key")
        timeless = self.axes is not None and not {"token", "query"} & {*self.axes}
        if timeless:  # logits of the last position, or a state behind it
            self.values = self.values[None]
        rows = trace.rows or Rows.plain(0)
        held = self.record.held()
        if timeless and (held is None or len(held) > 1):
            held = rows.positions[-1:]
        elif held is None:
            held = rows.positions[-1:] if self.record.positions == "last" else rows.positions
        self.held = held

    @property
    def placed(self) -> bool:
        """Whether every row's position is known."""
        return self.axes is not None and len(self.held) == self.values.shape[int(self.square)]


def _rows_apart(a: _Side, b: _Side, common: int) -> tuple[Float64, Float64, tuple[int, ...]] | None:
    """Of each position that both hold (the third): the squares of its error and of what the first
    side holds there. None where that cannot be said."""
    if not a.placed or not b.placed or a.square != b.square:
        return None
    places = tuple(p for p in a.held if p < common and p in set(b.held))
    if not places:
        return None
    left, right = ([side.held.index(p) for p in places] for side in (a, b))
    keys = min(a.values.shape[-1], b.values.shape[-1], common) if a.square else 0
    if not a.square and a.values.shape[1:] != b.values.shape[1:]:
        return None
    errors, norms = np.zeros(len(places)), np.zeros(len(places))
    step = max(1, _AT_ONCE // max(a.values.size // max(len(a.held), 1), 1))
    for at in range(0, len(places), step):
        x = _cut(a, left[at : at + step], keys)
        y = _cut(b, right[at : at + step], keys)
        wide = x.astype(np.float64)
        with np.errstate(invalid="ignore", over="ignore"):
            error = np.square(y.astype(np.float64) - wide).sum(1)
            norms[at : at + step] = np.square(wide).sum(1)
        same = (x.view(np.uint32) == y.view(np.uint32)).all(1)
        errors[at : at + step] = np.where(same, 0.0, np.maximum(error, np.finfo(float).tiny))
    return errors, norms, places


def _cut(side: _Side, rows: Sequence[int], keys: int) -> Float32:
    """Some rows [n, values] of a side, flat; of scores every head's."""
    taken = side.values[:, rows, :keys].swapaxes(0, 1) if side.square else side.values[rows]
    return np.ascontiguousarray(taken, dtype=np.float32).reshape(len(rows), -1)


def _parting(
    key: StageKey,
    errors: Float64,
    norms: Float64,
    places: tuple[int, ...],
    trace: TraceDir,
    limits: Mapping[str, float],
) -> tuple[Parting, bool]:
    """The stage as it parts, and whether that is beyond the bar."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.where(errors > 0, np.sqrt(errors / norms), 0.0)
        whole = float(np.sqrt(errors.sum() / norms.sum()))
    ids = facts_of(key.stage).integers
    limit = 0.0 if ids else limits.get("rel_l2", 0.0)
    worst = 0.0 if ids else limits.get("worst_row_rel_l2", limit)
    beyond = not (whole <= limit and float(np.max(ratios)) <= worst)
    wrong = ~(ratios <= limit) if beyond and bool((~(ratios <= limit)).any()) else ratios > 0
    rows = trace.rows or Rows.plain(max(places) + 1)
    made = rows.at(place for place, bad in zip(places, wrong, strict=True) if bad)
    positions = tuple(rows.positions[row] for row in made)
    passes = tuple(rows.passes[row] for row in made)
    return Parting(key, whole, positions, passes, rows.where(made)), beyond
