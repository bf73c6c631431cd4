"""Of keys with equal scores an indexer may choose any: which captured choices are wrong, and which
of the right ones B made where it captured none (docs/compare.md 4)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations
from math import comb
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from aprtui.compare.case import Case
from aprtui.compare.localerror import row_norms
from aprtui.compare.numerics import Numerics
from aprtui.engine.replay import EXACT, Arithmetic, representable
from aprtui.graph import Node
from aprtui.graph.indexer import ChooseKeys
from aprtui.graph.ops import Scores, Softmax

if TYPE_CHECKING:
    from aprtui.compare.explain import Explanation

__all__ = ["why_untold", "with_tied_keys", "wrong_keys"]

Float64 = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

_NEAR = {"": 1e-5, "F16": 2.0**-9, "BF16": 2.0**-6}  # of a row's largest score: what the rounding
# of scores that nothing shows may make of equal ones, four units
_MOST = 64  # choices of one query that are tried where the attention alone is shown


def wrong_keys(case: Case, chooser: Node, right: Float64, scores: Float64) -> Bools:
    """Which of B's captured choices [1,T,T] are none of the largest ``scores``, ties allowed."""
    taken, valid = case.y == 1, (case.y == 0) | (case.y == 1)
    many = taken.sum(-1, keepdims=True) != (right == 1).sum(-1, keepdims=True)
    tied = _tied(case, chooser, right, scores)
    return np.asarray(~valid | ((taken != (right == 1)) & (~tied | many)))


def _tied(case: Case, chooser: Node, right: Float64, scores: Float64) -> Bools:
    """Keys whose score is that of the least one that was chosen."""
    hidden = chooser.inputs[0] not in case.given
    kinds = {representable(v.astype(np.float32).ravel()) for v in case.given.values()}
    near = _NEAR[next(iter(kinds)) if hidden and len(kinds) == 1 else ""]
    shown = np.isfinite(scores)
    largest = np.abs(np.where(shown, scores, 0.0)).max(-1, keepdims=True)
    least = np.where(right == 1, scores, np.inf).min(-1, keepdims=True)
    return np.asarray(shown & (np.abs(scores - least) <= near * largest))


@dataclass(frozen=True)
class _Tied:
    """The choice of ``chooser`` that nothing shows: ``right`` [1,T,T], as ours makes it; ``keys``
    [T,T]: those with the score of the least chosen one, of the ``queries`` that are not reproduced;
    ``bad``: these, as rows of y."""

    chooser: Node
    right: Float64
    keys: Bools
    bad: Bools
    queries: tuple[int, ...]

    @property
    def needed(self) -> npt.NDArray[np.int64]:
        """How many of the tied keys each query looks at [T]."""
        return np.asarray(((self.right[0] == 1) & self.keys).sum(-1), dtype=np.int64)

    def choices(self, query: int) -> int:
        return comb(int(self.keys[query].sum()), int(self.needed[query]))

    def chosen(self, taken: dict[int, npt.NDArray[np.int64]]) -> Float64:
        """The choice with these of the tied keys of some queries."""
        made = self.right.copy()
        for query, some in taken.items():
            made[0, query, self.keys[query]] = 0.0
            made[0, query, some] = 1.0
        return made


def _unseen(case: Case, made: Float64, how: Arithmetic) -> _Tied | None:
    """What is tied of a choice of keys in the span; None where there is none."""
    chooser = next((node for node in case.between if isinstance(node.op, ChooseKeys)), None)
    if chooser is None or made.shape != case.y.shape:
        return None
    logits = case.inputs(chooser, how)[0]
    right = case.replay.run(chooser, (logits,), how)
    bad = row_norms(case.y - made, case.axis) > case.limits[0] * row_norms(case.y, case.axis)
    rows = np.arange(len(bad)) if case.rows is None else np.array(case.rows)
    queries = tuple(rows[bad].tolist())
    tied = _tied(case, chooser, right, case.replay.choice_scores(chooser, logits))[0]
    tied[np.isin(np.arange(len(tied)), queries, invert=True)] = False
    return _Tied(chooser, right, tied, bad, queries)


def with_tied_keys(case: Case, made: Float64, numerics: Numerics) -> tuple[Float64, Numerics]:
    """``made`` where the queries that it does not reproduce look at others of the keys with equal
    scores, as many; unchanged where B shows its choice, or a query has no such keys."""
    unseen = _unseen(case, made, numerics.how)
    if unseen is None or any(unseen.choices(query) < 2 for query in unseen.queries):
        return made, numerics  # a query with no other choice is not reproduced either
    left = row_norms(case.y - made, case.axis)
    best, other = made.copy(), np.zeros(len(left), dtype=bool)
    for choice in _choices(case, unseen):
        tried = case.run_from(unseen.chooser, choice, numerics.how)
        error = row_norms(case.y - tried, case.axis)
        nearer = unseen.bad & (error < left)
        np.moveaxis(best, case.axis, 0)[nearer] = np.moveaxis(tried, case.axis, 0)[nearer]
        left, other = np.where(nearer, error, left), other | nearer
    if not other.any():
        return made, numerics
    return best, replace(numerics, other_keys=int(other.sum()))


def why_untold(case: Case, found: Explanation) -> str:
    """Why a stage cannot be judged: every query that is not reproduced may have looked at any of
    too many keys with equal scores, and neither scores nor weights show which. Else empty."""
    if _shows_keys(case) or found.residual.born:
        return ""
    for made, how in ((found.replayed, EXACT), (found.best, found.how)):
        unseen = _unseen(case, made, how)
        if unseen is None:
            return ""
        free = [unseen.choices(query) for query in unseen.queries]
        if free and min(free) > _MOST:
            query = unseen.queries[0]
            return (
                f"{unseen.chooser.key} was not captured: at position {query} it is any "
                f"{unseen.needed[query]} of {unseen.keys[query].sum()} keys with equal scores"
            )
    return ""


def _shows_keys(case: Case) -> bool:
    return isinstance(case.op, Scores | Softmax)


def _choices(case: Case, unseen: _Tied) -> Iterator[Float64]:
    """Choices [1,T,T] of other tied keys, as many: the one that scores or weights show, else every
    one of the queries that have few."""
    needed = unseen.needed
    if _shows_keys(case):
        shown = np.where(unseen.keys, np.abs(case.y).sum(0), -1.0)
        order = np.argsort(-shown, axis=-1, kind="stable")
        yield unseen.chosen({query: order[query, :n] for query, n in enumerate(needed) if n})
        return
    each = {
        query: list(combinations(np.flatnonzero(unseen.keys[query]), needed[query]))
        for query in np.flatnonzero(needed).tolist()
        if 1 < unseen.choices(query) <= _MOST
    }
    for place in range(max(map(len, each.values()), default=0)):
        yield unseen.chosen(
            {query: np.array(all_[place % len(all_)]) for query, all_ in each.items()}
        )
