"""How far a captured output lies from the replay of its inputs: whole, and in its worst row."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from aprtui.engine.replay import halfway

__all__ = ["LocalError", "local_error", "row_norms"]

Float64 = npt.NDArray[np.float64]

_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class LocalError:
    """rel_l2 of B's output against the replay, and of the position (row) that is worst.

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

    def within(self, limits: tuple[float, float]) -> bool:
        """Whether both bars (whole, worst row) hold and no NaN or Inf was born here."""
        return self.born == 0 and self.rel_l2 <= limits[0] and self.worst_row_rel_l2 <= limits[1]


def row_norms(values: Float64, axis: int) -> Float64:
    """The norm of each position along ``axis``."""
    other = tuple(place for place in range(values.ndim) if place != axis)
    return np.asarray(np.sqrt(np.square(values).sum(axis=other)))


def local_error(y: Float64, replayed: Float64, axis: int, rounded: str = "") -> LocalError:
    """B's output ``y`` against the replay, same shape; positions run along ``axis``.

    ``rounded`` ("BF16", "F16"): y was rounded to that type when it was written; only what lies
    beyond half a unit of its last place is an error then.
    """
    known = np.abs(replayed) <= _LARGEST  # False for NaN
    finite = np.isfinite(y)
    born = known & ~finite
    use = known & finite
    reference = np.where(use, replayed, 0.0)
    error = np.where(use, y, 0.0) - reference
    if rounded:
        slack = halfway(np.where(use, y, 0.0), rounded)
        error = np.sign(error) * np.maximum(np.abs(error) - slack, 0.0)
    rows, norms = row_norms(error, axis), row_norms(reference, axis)
    ratio = _ratio(rows, norms)
    worst_row = int(np.argmax(ratio)) if ratio.size else 0
    if born.any():
        flat = int(np.argmax(born))
    else:
        flat = int(np.argmax(np.abs(error))) if error.size else 0
    place = np.unravel_index(flat, y.shape) if y.size else ()
    total = _ratio(np.sqrt(np.square(rows).sum())[None], np.sqrt(np.square(norms).sum())[None])
    return LocalError(
        float(total[0]),
        float(ratio[worst_row]) if ratio.size else 0.0,
        worst_row,
        tuple(int(i) for i in place),
        int(born.sum()),
        int((~known).sum()),
        int(use.sum()),
    )


def _ratio(error: Float64, norm: Float64) -> Float64:
    """error / norm; 0 where there is no error, infinite where there is one and the norm is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(error == 0.0, 0.0, error / norm))
