"""Naming the mistake: every catalogue entry that applies is tried, and must prove itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from aprtui.compare.bisection import Mistake
from aprtui.compare.case import Case
from aprtui.compare.explain import Explanation, Numerics, activated
from aprtui.compare.localerror import LocalError, local_error
from aprtui.compare.mistakes.anywhere import ANYWHERE
from aprtui.compare.mistakes.attempt import (
    Attempt,
    Candidate,
    Entry,
    ProductAttempt,
)
from aprtui.compare.mistakes.attention import ATTENTION
from aprtui.compare.mistakes.branches import BRANCHES
from aprtui.compare.mistakes.experts import EXPERTS
from aprtui.compare.mistakes.norms import NORMS
from aprtui.compare.mistakes.products import PRODUCTS
from aprtui.compare.mistakes.recurrent import RECURRENT
from aprtui.compare.mistakes.rope import ROPE
from aprtui.engine.replay import EXACT, Arithmetic
from aprtui.graph import Node
from aprtui.graph.ops import Attend, Choose, Experts, Op, Part, Product, Route, Scores
from aprtui.text import count

__all__ = ["CATALOGUE", "name_mistake"]

Float64 = npt.NDArray[np.float64]

CATALOGUE: tuple[Entry, ...] = (
    *BRANCHES, *NORMS, *ROPE, *ATTENTION, *EXPERTS, *RECURRENT, *ANYWHERE
)  # fmt: skip
"""Entries in the order in which they are tried: what is special before what is general."""


def name_mistake(
    case: Case, found: Explanation, neighbours: Mapping[type[Op], Numerics]
) -> Mistake | None:
    """What B did instead at a culprit, proven by a residual inside the bars; None if nothing fits.

    ``neighbours`` are the numerics that explained other stages, by operation.
    """
    if found.residual.born:
        return _nonfinite(case, found.residual)
    if isinstance(case.op, Product) and not case.between:
        return _in_product(case, found, case.op)
    trials = [trial for node in reversed(case.chain) for trial in _trials(case, node, neighbours)]
    for attempt in trials:
        mistake = _first_fit(attempt, _entries(attempt.op))
        if mistake is not None:
            return mistake
    for attempt in trials:
        if attempt.node is case.node and len(attempt.wrong_rows) == 1:
            return _at_position(attempt)
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
    if case.rounded:
        hows.append(Arithmetic(stage=case.rounded))
    if "gelu_tanh" in activated(case):
        hows.append(Arithmetic(gelu_table=True))
    for how in dict.fromkeys(hows):
        for rounded in dict.fromkeys(("", case.rounded)):
            yield Attempt(case, node, how, rounded)


def _first_fit(attempt: Attempt[Op], entries: list[Entry]) -> Mistake | None:
    for entry in entries:
        if attempt.y is None and not entry.operations:
            continue
        for candidate in entry.candidates(attempt):
            error = _hold(attempt, candidate.made)
            if error is not None and error.within(attempt.case.limits):
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


def _nonfinite(case: Case, error: LocalError) -> Mistake | None:
    """NaN or Inf born here; the rest of the stage must be right."""
    if not (error.rel_l2 <= case.limits[0] and error.worst_row_rel_l2 <= case.limits[1]):
        return None
    value = float(case.y[error.worst])
    what = "NaN" if np.isnan(value) else "Inf"
    place = dict(zip(case.axes, error.worst, strict=False))
    said = ", ".join(f"{axis} {i}" for axis, i in place.items())
    values = f"{count(error.born, 'value')} {'is' if error.born == 1 else 'are'} {what}"
    text = f"{values} where the inputs make finite ones, the first at {said}"
    return Mistake("nonfinite", text, {"count": error.born, "value": what, **place}, error.rel_l2)


# -- one wrong position ----------------------------------------------------------------------------


def _at_position(attempt: Attempt[Op]) -> Mistake | None:
    """Only one position is wrong: the others prove it; a mistake that fits its row says how."""
    case, row = attempt.case, attempt.wrong_rows[0]
    index: tuple[slice | int, ...] = (slice(None),) * case.axis + (row,)
    for entry in _entries(attempt.op):
        for candidate in entry.candidates(attempt):
            made = attempt.base.copy()
            made[index] = candidate.made[index]
            error = case.error(made, attempt.rounded)
            if error.within(case.limits):
                text = f"at position {row} alone {candidate.text}"
                parameters = {"position": row, "mistake": entry.id, **candidate.parameters}
                return Mistake("position", text, parameters, error.rel_l2)
    others = attempt.base.copy()
    others[index] = case.y[index]
    error = case.error(others, attempt.rounded)
    if not error.within(case.limits):
        return None
    return Mistake("position", f"only position {row} is wrong", {"position": row}, error.rel_l2)


# -- products --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Found:
    part: Part
    id: str
    candidate: Candidate
    residual: float


def _in_product(case: Case, found: Explanation, op: Product) -> Mistake | None:
    """Each matrix that nothing explains gets its own mistake; the others are innocent."""
    x, parts = case.replay.product_input(op, case.inputs()[0]), op.parts
    bad = [p for p in parts if p.name in found.unexplained or len(parts) == 1]
    named: list[_Found] = []
    for part in bad:
        mistake = _part_mistake(case, op.alone(part), case.columns(part), x)
        if mistake is None:
            return None
        named.append(mistake)
    first = named[0]
    parameters = dict(first.candidate.parameters)
    if len(parts) > 1:
        parameters["part"] = "".join(each.part.name for each in named)
    text = "; ".join(each.candidate.text for each in named)
    residual = max(each.residual for each in named)
    return Mistake(first.id, text, parameters, residual)


def _part_mistake(case: Case, op: Product, y: Float64, x: Float64) -> _Found | None:
    """The mistake in one matrix, ``op``'s only part, which made ``y`` of ``x``."""
    replay, (part,) = case.replay, op.parts
    names = [*replay.roundings(part.weight)[0]]
    if case.rounded:
        names.append(case.rounded)
    products = replay.products(part.weight, x, names)
    trials = [
        (ProductAttempt(case, op, name, x, y, replay.finish(op, made)), rounded)
        for name, made in zip(names, products, strict=True)
        for rounded in dict.fromkeys(("", case.rounded))
    ]
    # The arithmetic that comes nearest to B is the likeliest to be B's.
    trials.sort(key=lambda each: _median_off(each[0]))
    if not np.any(y) and np.any(trials[0][0].base):
        zero = Candidate(np.zeros_like(y), f"the output of {part.name} is all zero")
        return _Found(part, "zeros", zero, 0.0)
    for entry in PRODUCTS:
        for attempt, rounded in trials:
            for candidate in entry.candidates(attempt):
                error = local_error(y, candidate.made, 0, rounded)
                if error.within(case.limits):
                    return _Found(part, entry.id, candidate, error.rel_l2)
    return _general(case, trials)


def _median_off(attempt: ProductAttempt) -> float:
    """How far the typical output lies from the right one: one bad block does not move it."""
    return float(np.median(np.abs(attempt.y - attempt.base)))


def _general(case: Case, trials: list[tuple[ProductAttempt, str]]) -> _Found | None:
    """Positions shifted, or one wrong position, in a product."""
    for attempt, rounded in trials:
        rows = attempt.base.shape[0]
        for by in range(1, min(8, rows - 1) + 1):
            for step in (by, -by):
                for gap in (False, True):
                    made = np.roll(attempt.base, step, axis=0)
                    if gap:
                        made[slice(0, step) if step > 0 else slice(step, None)] = 0.0
                    error = local_error(attempt.y, made, 0, rounded)
                    if error.within(case.limits):
                        text = f"each position holds the row of position p{-step:+d}"
                        candidate = Candidate(made, text, {"by": step, "axis": "position"})
                        return _Found(attempt.part, "rows_shifted", candidate, error.rel_l2)
        off = np.linalg.norm(attempt.y - attempt.base, axis=1)
        row = int(np.argmax(off))
        if rows < 3:
            continue
        made = attempt.base.copy()
        made[row] = attempt.y[row]
        error = local_error(attempt.y, made, 0, rounded)
        if error.within(case.limits):
            candidate = Candidate(made, f"only position {row} is wrong", {"position": row})
            return _Found(attempt.part, "position", candidate, error.rel_l2)
    return None
