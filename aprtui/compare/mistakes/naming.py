"""Naming the mistake: every catalogue entry that applies is tried, and must prove itself."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from aprtui.compare.bisection import Mistake
from aprtui.compare.case import Case
from aprtui.compare.explain import Explanation
from aprtui.compare.localerror import LocalError, local_error, row_norms
from aprtui.compare.mistakes.altup import ALTUP
from aprtui.compare.mistakes.anywhere import ANYWHERE, shifted
from aprtui.compare.mistakes.attempt import (
    Attempt,
    Candidate,
    Entry,
    ProductAttempt,
)
from aprtui.compare.mistakes.attention import ATTENTION
from aprtui.compare.mistakes.branches import BRANCHES
from aprtui.compare.mistakes.experts import EXPERTS
from aprtui.compare.mistakes.indexer import INDEXER
from aprtui.compare.mistakes.inputs import OF_ANY
from aprtui.compare.mistakes.norms import NORMS
from aprtui.compare.mistakes.order import ORDER
from aprtui.compare.mistakes.products import PRODUCTS
from aprtui.compare.mistakes.proof import Proof
from aprtui.compare.mistakes.ranges import RANGES, born_nonfinite
from aprtui.compare.mistakes.recurrent import RECURRENT
from aprtui.compare.mistakes.rope import ROPE
from aprtui.compare.mistakes.stored import LAST
from aprtui.compare.mistakes.variants import VARIANTS
from aprtui.compare.numerics import Numerics, activated, likely_ways
from aprtui.engine.replay import EXACT, Arithmetic, Way, types_of
from aprtui.graph import Node
from aprtui.graph.ops import (
    Attend,
    Choose,
    Experts,
    Op,
    Part,
    Product,
    Rope,
    Route,
    Scores,
    SharedRope,
)

__all__ = ["CATALOGUE", "name_mistake"]

Float64 = npt.NDArray[np.float64]

CATALOGUE: tuple[Entry, ...] = (
    *VARIANTS, *BRANCHES, *ORDER, *NORMS, *ROPE, *INDEXER, *ATTENTION, *EXPERTS, *RECURRENT, *ALTUP,
    *RANGES, *ANYWHERE, *OF_ANY,
)  # fmt: skip
"""Entries in the order in which they are tried: what is special before what is general."""


def name_mistake(
    case: Case,
    found: Explanation,
    neighbours: Mapping[type[Op], Numerics],
    honest: float | None = None,
) -> Mistake | None:
    """What B did instead at a culprit, proven against its error; None if nothing fits.

    ``neighbours`` are the numerics that explained other stages, by operation; ``honest`` is the
    most that they left of one.
    """
    if found.residual.born:
        return born_nonfinite(case, found.residual)
    if isinstance(case.op, Product) and not case.between:
        return _in_product(case, found, case.op, neighbours, honest)
    proof = Proof(found.plain, case.limits, honest)
    trials = [trial for node in reversed(case.chain) for trial in _trials(case, node, neighbours)]
    for attempt in trials:
        mistake = _first_fit(attempt, _entries(attempt.op), proof)
        if mistake is not None:
            return mistake
    for attempt in trials:
        if attempt.node is case.node and len(attempt.wrong_rows) == 1:
            return _at_position(attempt, proof)
    return None


def _entries(op: Op) -> list[Entry]:
    return [e for e in CATALOGUE if not e.operations or isinstance(op, e.operations)]


def _trials(
    case: Case, node: Node, neighbours: Mapping[type[Op], Numerics]
) -> Iterator[Attempt[Op]]:
    """The node in every arithmetic that its neighbours are known to use, plain first."""
    hows = [EXACT]
    operations: tuple[type[Op], ...] = (type(node.op), Attend, Scores)
    for operation in dict.fromkeys(operations):
        if operation in neighbours:
            hows.append(neighbours[operation].how)
    if isinstance(node.op, Experts | Route | Choose) or case.between:
        hows += [Arithmetic("partner"), Arithmetic("partner", 1)]
    if isinstance(node.op, Scores | Attend):
        hows.append(Arithmetic(attention="F16"))
    if isinstance(node.op, Scores):  # which engines of 16 bits leave in float32
        given = [value.astype(np.float32).ravel() for value in case.given.values()]
        hows += [Arithmetic(stage=kind) for kind in types_of(np.concatenate(given))]
    if case.rounded:
        hows.append(Arithmetic(stage=case.rounded))
    if "gelu_tanh" in activated(case):
        hows.append(Arithmetic(gelu_table=True))
    if isinstance(node.op, Rope | SharedRope):
        kinds = (case.rounded,) if case.rounded else ("F16", "BF16")
        hows += [Arithmetic(frequencies=kind) for kind in kinds]
    for how in dict.fromkeys(hows):
        for rounded in dict.fromkeys(("", case.rounded)):
            yield Attempt(case, node, how, rounded)


def _first_fit(attempt: Attempt[Op], entries: list[Entry], proof: Proof) -> Mistake | None:
    for entry in entries:
        if attempt.y is None and not entry.operations:
            continue
        for candidate in entry.candidates(attempt):
            error = _hold(attempt, candidate.made)
            if error is not None and proof.holds(error):
                text = candidate.text
                if attempt.node is not attempt.case.node:
                    text = f"in {attempt.node.key.stage} (not captured): {text}"
                return Mistake(entry.id, text, candidate.parameters, error.rel_l2)
    return None


def _hold(attempt: Attempt[Op], made: Float64) -> LocalError | None:
    """A candidate against B's output; None where it has another size or nothing is left."""
    finished = attempt.finish(made)
    error = attempt.case.error(finished, attempt.rounded)
    whole = error.measured + error.inherited
    return error if whole == finished.size and 2 * error.measured >= whole else None


# -- one wrong position ----------------------------------------------------------------------------


def _at_position(attempt: Attempt[Op], proof: Proof) -> Mistake | None:
    """Only one position is wrong: the others prove it; a mistake that fits its row says how."""
    case, row = attempt.case, attempt.wrong_rows[0]
    index: tuple[slice | int, ...] = (slice(None),) * case.axis + (row,)
    for entry in _entries(attempt.op):
        for candidate in entry.candidates(attempt):
            made = attempt.base.copy()
            made[index] = candidate.made[index]
            error = case.error(made, attempt.rounded)
            if proof.holds(error):
                text = f"at position {row} alone {candidate.text}"
                parameters = {"position": row, "mistake": entry.id, **candidate.parameters}
                return Mistake("position", text, parameters, error.rel_l2)
    others = attempt.base.copy()
    others[index] = case.y[index]
    error = case.error(others, attempt.rounded)
    if not proof.holds(error):
        return None
    return Mistake("position", f"only position {row} is wrong", {"position": row}, error.rel_l2)


# -- products --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Found:
    part: Part
    id: str
    candidate: Candidate
    residual: float


def _in_product(
    case: Case,
    found: Explanation,
    op: Product,
    neighbours: Mapping[type[Op], Numerics],
    honest: float | None,
) -> Mistake | None:
    """Each matrix that nothing explains gets its own mistake; the others are innocent."""
    x, parts = case.replay.product_input(op, case.inputs()[0]), op.parts
    learnt = (neighbours[Product],) if Product in neighbours else ()
    bad = [p for p in parts if p.name in found.unexplained or len(parts) == 1]
    named: list[_Found] = []
    for part in bad:
        trials = _part_trials(case, op.alone(part), case.columns(part), x, learnt)
        mistake = _part_mistake(case, trials, honest)
        if mistake is None:
            return None
        named.append(mistake)
    first = named[0]
    parameters = {**first.candidate.parameters, **_in_file(case, first)}
    if len(parts) > 1:
        parameters["part"] = "".join(each.part.name for each in named)
    text = "; ".join(dict.fromkeys(each.candidate.text for each in named))
    residual = max(each.residual for each in named)
    return Mistake(first.id, text, parameters, residual)


def _in_file(case: Case, found: _Found) -> dict[str, Any]:
    """Which row of the stored tensor is meant, where it is not that of the matrix."""
    row, matrix = (
        found.candidate.parameters.get("row"),
        case.replay.model.weights[found.part.weight],
    )
    if not isinstance(row, int) or matrix.transposed:
        return {}
    stored = matrix.runs(row, 1)[0][0]
    return {} if stored == row else {"tensor_row": stored}


_Trial = tuple[ProductAttempt, str]


def _part_trials(
    case: Case, op: Product, y: Float64, x: Float64, learnt: Sequence[Numerics]
) -> list[_Trial]:
    """One matrix, ``op``'s only part, in every arithmetic that it may have had, and the type that
    its output may have been rounded to; first the one that comes nearest to B."""
    replay, (part,) = case.replay, op.parts
    kind, given = replay.type_of(part.weight), replay.activations(x)
    ways = [Way(name) for name in replay.roundings(part.weight)[0]]
    ways += [how.way(kind) for how in likely_ways(case, op, learnt)]
    if case.rounded:
        ways += [Way(case.rounded), Way(case.rounded, case.rounded)]
    ways = list(dict.fromkeys(ways))
    found = []
    for way, made in zip(ways, replay.multiplied(part.weight, given, ways), strict=True):
        attempt = ProductAttempt(case, op, way, x, y, made)
        found += [(attempt, rounded) for rounded in dict.fromkeys(("", case.rounded))]
    return sorted(found, key=lambda each: _median_off(each[0]))


def _part_mistake(case: Case, trials: list[_Trial], honest: float | None) -> _Found | None:
    """The mistake in one matrix: the first entry of the catalogue that proves itself."""
    nearest = trials[0][0]
    part, y = nearest.part, nearest.y
    proof = Proof(local_error(y, nearest.base, 0), case.limits, honest)
    if not np.any(y) and np.any(nearest.base):
        zero = Candidate(np.zeros_like(y), f"the output of {part.name} is all zero")
        return _Found(part, "zeros", zero, 0.0)
    for entry in PRODUCTS:
        found = _proved(entry, trials, proof)
        if found is not None:
            return found
    return _general(trials, proof) or next(
        filter(None, (_proved(entry, trials, proof) for entry in LAST)), None
    )


def _proved(entry: Entry, trials: list[_Trial], proof: Proof) -> _Found | None:
    """The first candidate that holds in the first arithmetic, its output as it is before rounded;
    each is made once for both."""
    for attempt, group in itertools.groupby(trials, key=lambda trial: trial[0]):
        plain, *others = [rounded for _, rounded in group]
        second: _Found | None = None
        for candidate in entry.candidates(attempt):
            if not proof.near(attempt.y, candidate.made):
                continue
            for rounded in (plain, *others[: second is None]):
                error = local_error(attempt.y, candidate.made, 0, rounded)
                if proof.holds(error):
                    found = _Found(attempt.part, entry.id, candidate, error.rel_l2)
                    if rounded == plain:
                        return found
                    second = found
        if second is not None:
            return second
    return None


def _median_off(attempt: ProductAttempt) -> float:
    """How far the typical output lies from the right one: one bad block does not move it."""
    return float(np.median(np.abs(attempt.y - attempt.base)))


def _general(trials: list[_Trial], proof: Proof) -> _Found | None:
    """Positions shifted, or one wrong position, in a product."""
    for attempt, rounded in trials:
        rows = attempt.base.shape[0]
        for by in range(1, min(8, rows - 1) + 1):
            for step in (by, -by):
                for wrap in (True, False):
                    made = shifted(attempt.base, step, 0, wrap)
                    if not proof.near(attempt.y, made):
                        continue
                    error = local_error(attempt.y, made, 0, rounded)
                    if proof.holds(error):
                        text = f"each position holds the row of position p{-step:+d}"
                        candidate = Candidate(made, text, {"by": step, "axis": "position"})
                        return _Found(attempt.part, "rows_shifted", candidate, error.rel_l2)
        row = int(np.argmax(row_norms(attempt.y - attempt.base, 0)))
        if rows < 3:
            continue
        made = attempt.base.copy()
        made[row] = attempt.y[row]
        error = local_error(attempt.y, made, 0, rounded)
        if proof.holds(error):
            candidate = Candidate(made, f"only position {row} is wrong", {"position": row})
            return _Found(attempt.part, "position", candidate, error.rel_l2)
    return None
