"""One matrix of a product: which honest way of multiplying by it made B's output."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from aprtui.compare.case import Case
from aprtui.compare.localerror import LocalError, beyond_rounding, local_error
from aprtui.compare.numerics import Numerics, likely_ways, limits_of, other_ways
from aprtui.engine.replay import Activations, Arithmetic
from aprtui.graph.ops import Part, Product

__all__ = ["Fit", "fit_part"]

Float64 = npt.NDArray[np.float64]

_SAMPLED = 48  # of the matrix's rows: what they make tells which of sixty roundings it can be
_FEW_POSITIONS = 16  # of a long prompt, likewise
_TRIED = 4  # of those that do best on the sample are computed whole


@dataclass(frozen=True)
class Fit:
    """An output made in one of the honest ways, and how far B's lies from it."""

    error: LocalError
    made: Float64
    numerics: Numerics


def fit_part(
    case: Case, op: Product, y: Float64, x: Activations, learnt: Sequence[Numerics]
) -> tuple[Float64, Fit]:
    """(the plain product, the best fit) of one matrix: ``op``'s only part, which made ``y`` of x.

    The likely ways are computed whole, with one decode of the matrix. Where none of them fits, all
    others are held against a few outputs, and those that do best there are computed whole.
    """
    fits, plain = [], None
    for ways in _tries(case, op, y, x, learnt):
        made = _multiplied(case, op, x, ways)
        plain = made[0] if plain is None else plain
        fits += [
            fit for how, out in zip(ways, made, strict=True) for fit in _fits(case, how, out, y)
        ]
        best = min(fits, key=lambda fit: _rank(fit, case, op.parts[0]))
        if (
            best.error.within(limits_of(case, best.numerics, op.parts[0])) and best.error.measured
        ) or best.error.born:
            break
    assert plain is not None
    return plain, best


def _tries(
    case: Case, op: Product, y: Float64, x: Activations, learnt: Sequence[Numerics]
) -> Iterator[list[Arithmetic]]:
    """The likely ways, then the promising of all others."""
    likely = likely_ways(case, op, learnt)
    yield likely
    rest = [how for how in other_ways(case, op) if how not in likely]
    yield _promising(case, op, y, x, rest)


def _multiplied(
    case: Case,
    op: Product,
    x: Activations,
    hows: Sequence[Arithmetic],
    rows: Sequence[int] | None = None,
) -> list[Float64]:
    (role,) = op.matrices
    kind = case.replay.type_of(role)
    made = case.replay.multiplied(role, x, [how.way(kind) for how in hows], rows)
    if rows is not None:
        return made
    return [case.replay.finish(op, each, how) for how, each in zip(hows, made, strict=True)]


def _fits(case: Case, how: Arithmetic, made: Float64, y: Float64) -> list[Fit]:
    outputs = ("", case.rounded) if case.rounded else ("",)
    return [
        Fit(local_error(y, made.reshape(y.shape), 0, output), made, Numerics(how, output))
        for output in outputs
    ]


def _promising(
    case: Case, op: Product, y: Float64, x: Activations, hows: Sequence[Arithmetic]
) -> list[Arithmetic]:
    """The few that come nearest in the typical one of some outputs: a fault in a few of them does
    not move it."""
    rows = np.unique(np.linspace(0, y.shape[1] - 1, _SAMPLED).astype(np.int64)).tolist()
    few = slice(0, _FEW_POSITIONS)
    wanted = y[few][:, rows]
    finish = case.replay.sampled(op, rows)
    made = _multiplied(case, op, x, hows, rows)
    with np.errstate(all="ignore"):
        off = [
            _distance(case, wanted, finish(each, how)[few])
            for how, each in zip(hows, made, strict=True)
        ]
    order = sorted(range(len(hows)), key=lambda place: off[place])
    return [hows[place] for place in sorted(order[:_TRIED])]


def _distance(case: Case, y: Float64, made: Float64) -> tuple[float, float]:
    """(the median output's error, the mean's) relative to the outputs' size; NaN is far away."""
    error = beyond_rounding(y, made, case.rounded)
    off = np.linalg.norm(error, axis=0) / np.maximum(np.linalg.norm(y, axis=0), 1e-30)
    off = np.nan_to_num(off, nan=np.inf)
    return float(np.median(off)), float(off.mean())


def _rank(fit: Fit, case: Case, part: Part) -> tuple[bool | float, ...]:
    """What was measured first: one scale of a whole tensor with a NaN leaves nothing. Then fits
    inside the bars, among them those that do not lean on the output's rounding, as they come: of
    roundings that coincide (blocks of 256 of 256 columns) the usual one does."""
    if not fit.error.measured:
        return (True,)
    tight = fit.error.within(case.limits)
    inside = tight or fit.error.within(limits_of(case, fit.numerics, part))
    left = 0.0 if inside else fit.error.rel_l2
    return (False, not tight, not inside, inside and bool(fit.numerics.output), left)
