"""How far a captured output lies from the replay of its inputs: whole, and in its worst row."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from aprtui.engine.replay import halfway

__all__ = ["LocalError", "beyond_rounding", "local_error", "row_norms"]

Float64 = npt.NDArray[np.float64]

_BLOCK_VALUES = 1 << 21  # 16 MiB of float64 a temporary
_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class LocalError:
    """rel_l2 of B's output against the replay, of the position (row) that is worst, of the median.

    ``worst`` is the index along each axis of the largest difference. ``born`` counts NaN and Inf
    where the replay has none, ``inherited`` the elements whose replay is not finite itself: they
    take no part. ``measured`` elements did.
    """

    rel_l2: float
    worst_row_rel_l2: float
    worst_row: int
    worst: tuple[int, ...]
    born: int
    inherited: int
    measured: int
    median_row_rel_l2: float = 0.0

    def within(self, limits: tuple[float, float]) -> bool:
        """Whether both bars (whole, worst row) hold and no NaN or Inf was born here."""
        return self.born == 0 and self.rel_l2 <= limits[0] and self.worst_row_rel_l2 <= limits[1]


def row_norms(values: Float64, axis: int) -> Float64:
    """The norm of each position along ``axis``."""
    other = tuple(place for place in range(values.ndim) if place != axis)
    return np.asarray(np.sqrt(np.square(values).sum(axis=other)))


def local_error(y: Float64, replayed: Float64, axis: int, rounded: str = "") -> LocalError:
    """B's output ``y`` against the replay, same shape; positions run along ``axis``.

    One axis alone is the channels of one position: logits.
    ``rounded`` ("BF16", "F16"): y was rounded to that type when it was written; only what lies
    beyond half a unit of its last place is an error then. Temporaries are bounded.
    """
    if not y.size:
        return LocalError(0.0, 0.0, 0, (), 0, 0, 0)
    if y.ndim == 1:
        found = local_error(y[None], replayed[None], 0, rounded)
        return replace(found, worst=found.worst[1:])
    rows, norms = np.zeros(y.shape[axis]), np.zeros(y.shape[axis])
    worst = (-1.0, 0)  # (largest error, its flat index); NaN and Inf born here come before any
    born = inherited = 0
    slab = y.size // y.shape[0]
    step = max(1, _BLOCK_VALUES // slab)
    for first in range(0, y.shape[0], step):
        part, right = y[first : first + step], replayed[first : first + step]
        known = np.abs(right) <= _LARGEST  # False for NaN
        use = known & np.isfinite(part)
        if not use.all():
            lost = known & ~use
            if lost.any() and not born:
                worst = (np.inf, first * slab + int(np.argmax(lost)))
            born += int(lost.sum())
            inherited += int((~known).sum())
            part, right = np.where(use, part, 0.0), np.where(use, right, 0.0)
        error = beyond_rounding(part, right, rounded)
        place = slice(first, first + step) if axis == 0 else slice(None)
        rows[place] += np.square(row_norms(error, axis))
        norms[place] += np.square(row_norms(right, axis))
        largest = int(np.argmax(np.abs(error)))
        worst = max(worst, (float(np.abs(error).flat[largest]), first * slab + largest))
    ratio = _ratio(np.sqrt(rows), np.sqrt(norms))
    worst_row = int(np.argmax(ratio))
    total = _ratio(np.sqrt(rows.sum())[None], np.sqrt(norms.sum())[None])
    return LocalError(
        float(total[0]),
        float(ratio[worst_row]),
        worst_row,
        tuple(int(i) for i in np.unravel_index(worst[1], y.shape)),
        born,
        inherited,
        y.size - born - inherited,
        float(np.median(ratio)),
    )


def beyond_rounding(y: Float64, right: Float64, rounded: str) -> Float64:
    """y - right, of which only what lies beyond half a unit of y's last place counts where y was
    ``rounded`` when it was written."""
    error = y - right
    if not rounded:
        return error
    return np.asarray(np.sign(error) * np.maximum(np.abs(error) - halfway(y, rounded), 0.0))


def _ratio(error: Float64, norm: Float64) -> Float64:
    """error / norm; 0 where there is no error, infinite where there is one and the norm is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(error == 0.0, 0.0, error / norm))
