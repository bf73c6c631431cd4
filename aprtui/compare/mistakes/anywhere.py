"""Mistakes that can befall any stage: zeros, a scale, rows shifted along the positions, dropout."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from aprtui.compare.mistakes.attempt import Attempt, Candidate, Entry, neat
from aprtui.graph.ops import Op

__all__ = ["ANYWHERE", "dropped", "fitted_scales", "shifted"]

Float64 = npt.NDArray[np.float64]

MAX_SHIFT = 8  # positions
_DROPPED = (0.01, 0.6)  # the share of values that a dropout takes
_SPREADS = 5.0  # that it may lie away from the rate by which the others grow


def zeros(at: Attempt[Op]) -> Iterator[Candidate]:
    if np.any(at.base):
        yield Candidate(np.zeros_like(at.base), "the output is all zero")


def fitted_scales(y: Float64, base: Float64, rounded: str) -> Iterator[float]:
    """Factors c for which c * base may be y: least squares, in few digits first."""
    use = np.isfinite(y) & np.isfinite(base)
    square = float(np.square(base[use]).sum())
    if not square:
        return
    factor = float((y[use] * base[use]).sum()) / square
    if factor and np.isfinite(factor):
        found = neat(factor, 1e-2 if rounded else 1e-4)
        yield from (each for each in found if each != 1.0)


def scaled(at: Attempt[Op]) -> Iterator[Candidate]:
    if at.y is None:
        return
    for factor in fitted_scales(at.y, at.base, at.rounded):
        yield Candidate(
            at.base * factor, f"the output is multiplied by {factor:g}", {"factor": factor}
        )


def shifted(values: Float64, by: int, axis: int, wrap: bool) -> Float64:
    """Rows moved by ``by`` positions; zeros, or the other end, move in."""
    moved = np.roll(values, by, axis=axis)
    if not wrap:
        gap = slice(0, by) if by > 0 else slice(by, None)
        index = [slice(None)] * values.ndim
        index[axis] = gap
        moved[tuple(index)] = 0.0
    return moved


def rows_shifted(at: Attempt[Op]) -> Iterator[Candidate]:
    axis = at.node.position_axis
    positions = at.base.shape[axis]
    if at.node.axes[axis].name != "token":  # of one position, or of queries and keys
        return
    for by in range(1, min(MAX_SHIFT, positions - 1) + 1):
        for step in (by, -by):
            for wrap in (True, False):
                yield Candidate(
                    shifted(at.base, step, axis, wrap),
                    f"each position holds the row of position p{-step:+d}",
                    {"by": step, "axis": "position"},
                )


def dropped(y: Float64, base: Float64) -> Iterator[Candidate]:
    """Values dropped by chance, the others grown by as much as keeps the mean."""
    use = np.isfinite(y) & np.isfinite(base) & (base != 0)
    lost, kept = use & (y == 0), use & (y != 0)
    share, square = lost.sum() / max(use.sum(), 1), float(np.square(base[kept]).sum())
    if not _DROPPED[0] < share < _DROPPED[1] or not square:
        return
    grown = float((y[kept] * base[kept]).sum()) / square
    rate = 1.0 - 1.0 / grown if grown > 1.0 else 0.0
    spread = (share * (1.0 - share) / use.sum()) ** 0.5
    if not rate or abs(share - rate) > _SPREADS * spread:
        return
    for used in neat(rate, 1e-2):
        times = 1.0 / (1.0 - used)
        text = (
            f"dropout of {used:.3g}: {share:.1%} of the values are 0, the others times {times:.4g}"
        )
        yield Candidate(np.where(lost, 0.0, base * times), text, {"rate": used})


def dropout(at: Attempt[Op]) -> Iterator[Candidate]:
    if at.y is not None:
        yield from dropped(at.y, at.base)


ANYWHERE = (
    Entry("zeros", (), zeros),
    Entry("scaled", (), scaled),
    Entry("rows_shifted", (), rows_shifted),
    Entry("dropout", (), dropout),
)
