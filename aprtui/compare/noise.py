"""Is what no arithmetic explains exactly still nothing but rounding? Fused kernels of 16 bits.

Inside a fused kernel the order of roundings cannot be told from its output. What is left under the
best arithmetic is *within rounding* where it is no larger than so many roundings make it, and looks
like noise: it leans neither to the output nor to any mistake of the catalogue, and no position,
head or channel has more of it than the rest (docs/compare.md 5).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from aprtui.compare.case import Case
from aprtui.compare.explain import Explanation
from aprtui.compare.mistakes.attempt import Attempt
from aprtui.compare.mistakes.naming import CATALOGUE
from aprtui.engine.replay import INSIDE, STEPS, Arithmetic, halfway
from aprtui.graph.ops import (
    Activate,
    Attend,
    Experts,
    Norm,
    Op,
    Rope,
    Route,
    Scores,
    SharedRope,
    Softmax,
    Xielu,
)
from aprtui.graph.recurrent import Decay, GatedNorm, Steps

__all__ = ["TYPES", "Noise", "as_noise"]

Float64 = npt.NDArray[np.float64]

TYPES = {"BF16": "bfloat16", "F16": "float16"}

_INNER: dict[type[Op], int] = {
    Norm: 2, Rope: 2, SharedRope: 2, Scores: 1, Softmax: 2, Attend: 1, Activate: 2, Xielu: 4,
    Experts: 6, Route: 4, Decay: 2, GatedNorm: 3, Steps: 2,
}  # fmt: skip
"""Roundings inside an operation, beside that of what it makes; a norm that is fused with the sum
before it reads what was not rounded."""

_ONE = 0.29  # of a unit: the RMS of one rounding, which is spread evenly over half a unit each way
_TOGETHER = 1.5  # independent roundings add in squares; this is left for those that are not
_LEANING = 0.25  # the cosine with the output, or with a mistake: noise has next to none
_CHANCE = 4.0  # standard deviations of a cosine of as large values whose signs are chance
_NUDGE = 1e-2  # that a parameter is moved by, to see where the output goes
_FEW = 4  # values say nothing about how even an error is
_UNEVEN = 4.0  # times the whole's units that one position, head or channel may have


@dataclass(frozen=True)
class Noise:
    """``units`` of the type's last place are left, RMS, of ``bar`` that its roundings may make.

    ``against`` says why it is no rounding; empty where it is.
    """

    units: float
    bar: float
    against: str = ""


def as_noise(case: Case, found: Explanation) -> Noise | None:
    """Whether rounding is all that is left of a stage; None where that is not asked: an output in
    more than 16 bits, a plain operation, a product that nothing shows."""
    fused = bool(case.between) or isinstance(case.op, (*INSIDE, *STEPS))
    hidden = any(node.op.matrices for node in case.between)
    if not case.rounded or not fused or hidden or found.residual.born:
        return None
    made = found.best
    if made.shape != case.y.shape or not np.isfinite(made).all():
        return None
    count = sum(_INNER.get(type(node.op), 0) for node in case.chain) + len(case.between)
    bar = _ONE * min(1.0 + count, _TOGETHER * (1.0 + count) ** 0.5)
    error, unit = case.y - made, 2.0 * halfway(case.y, case.rounded)
    units = float(np.linalg.norm(error) / np.linalg.norm(unit))
    return Noise(units, bar, _against(case, found.how, made, error, unit, units, bar))


def _against(
    case: Case,
    how: Arithmetic,
    made: Float64,
    error: Float64,
    unit: Float64,
    units: float,
    bar: float,
) -> str:
    if units > bar:
        return f"{units:.2g} units where roundings make {bar:.2g}"
    if _leans(error, made):
        return "it leans to the output, as a wrong scale does"
    places = [(axis,) for axis in range(error.ndim)]
    apart = tuple(axis for axis in range(error.ndim) if axis != case.axis)
    for axes in dict.fromkeys((*places, apart)):
        uneven = _uneven(error, unit, axes, units)
        if uneven is not None:
            where = zip((case.axes[axis] for axis in axes), uneven, strict=True)
            return f"{', '.join(f'{name} {at}' for name, at in where)} has most of it"
    for id_, instead in _mistakes(case, how):
        if instead.shape == made.shape and _leans(error, np.nan_to_num(instead - made)):
            return f"it leans to {id_}"
    return ""


def _leans(error: Float64, along: Float64) -> bool:
    """Whether an error lies along a direction more than chance and a little allow."""
    size = float(np.linalg.norm(error) * np.linalg.norm(along))
    if not size:
        return False
    terms = error * along
    return abs(float(terms.sum())) > _LEANING * size + _CHANCE * float(np.linalg.norm(terms))


def _uneven(
    error: Float64, unit: Float64, axes: tuple[int, ...], units: float
) -> tuple[int, ...] | None:
    """The place along some axes that has far more of the error than the whole."""
    other = tuple(axis for axis in range(error.ndim) if axis not in axes)
    of_each = int(np.prod([error.shape[axis] for axis in other]))
    if of_each < _FEW or of_each == error.size:
        return None
    usual = float(np.sqrt(np.square(unit).mean()))
    own = np.sqrt(np.square(unit).mean(other))
    held = np.sqrt(np.square(error).mean(other)) / np.maximum(own, usual / 2)
    worst = np.unravel_index(int(np.argmax(held)), held.shape)
    most = _UNEVEN * units * (1.0 + 2.0 / of_each**0.5)
    return tuple(int(at) for at in worst) if held[worst] > most else None


def _mistakes(case: Case, how: Arithmetic) -> Iterator[tuple[str, Float64]]:
    """What would have been made of the stage instead by each mistake of the catalogue, and by a
    parameter that is a little off: what nothing captured cannot be fitted."""
    for node in case.chain:
        attempt: Attempt[Op] = Attempt(case, node, how, case.rounded)
        for name, op in _nudged(node.op):
            yield name, attempt.finish(attempt.remade(op))
        for entry in CATALOGUE:
            if entry.operations and not isinstance(node.op, entry.operations):
                continue
            if attempt.y is None and not entry.operations:
                continue
            for candidate in entry.candidates(attempt):
                yield entry.id, attempt.finish(candidate.made)


def _nudged(op: Op) -> Iterator[tuple[str, Op]]:
    if isinstance(op, Scores):
        yield "score_scale", replace(op, scale=op.scale * (1 + _NUDGE))
    elif isinstance(op, Norm):
        yield "norm_eps", replace(op, eps=op.eps * (1 + _NUDGE))
    elif isinstance(op, Rope):
        turned = replace(op.table, theta=op.table.theta * (1 + _NUDGE))
        yield "rope_theta", replace(op, table=turned)
