"""Two matrices compared row by row, decoded side by side in blocks that stay in the cache."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from aprtui.engine.weight_blocks import WeightReader, block_rows
from aprtui.model.operand import Operand

try:
    from aprtui.engine._row_sums import measure as measure_in_c
except ImportError:  # there was no compiler when aprtui was installed
    _HAS_C = False
else:
    _HAS_C = os.environ.get("APRTUI_NATIVE") != "off"

__all__ = ["RowSums", "measure_rows", "sampled_places"]

SAMPLED_COLUMNS = 16
_TOLD_VALUES = 1 << 22  # compared between two words of progress

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
Progress = Callable[[int], None]
_DD, _AA, _BB, _ALONG, _MAX = range(5)  # what is summed of each row


@dataclass(frozen=True)
class RowSums:
    """What the comparison of two matrices [rows, columns] leaves of each row.

    ``difference``, ``a`` and ``b`` are sums of squares, float64 [rows], of b - a, of a and of b
    over the finite values; ``along`` is the sum of a (b - a). Where just one side is NaN or
    infinite, or both are in other ways, the row's ``difference`` is infinite. ``sample_a`` and
    ``sample_b`` are the values themselves, float32 [rows, n], at ``sampled_places(columns)``.
    """

    difference: Float64
    a: Float64
    b: Float64
    along: Float64
    sample_a: Float32
    sample_b: Float32
    max_abs: float
    max_abs_at: tuple[int, int]
    nonfinite_a: int
    nonfinite_b: int

    @property
    def equal(self) -> bool:
        """Whether every value is the same; NaN and NaN count as the same."""
        return self.max_abs == 0.0 and not self.difference.any()


@lru_cache(maxsize=256)
def sampled_places(total: int, wanted: int = SAMPLED_COLUMNS) -> list[int]:
    """Up to ``wanted`` whole numbers below ``total``, evenly spread, both ends among them."""
    return sorted({int(place) for place in np.linspace(0, total - 1, min(wanted, total))})


def measure_rows(
    a: Operand,
    b: Operand,
    readers: tuple[WeightReader, WeightReader],
    progress: Progress | None = None,
) -> RowSums:
    """Compare two matrices of one shape [rows, columns]. Raises as WeightReader.block does."""
    rows = a.rows
    places = np.array(sampled_places(a.columns), dtype=np.int64)
    sums = np.zeros((rows, 5), dtype=np.float64)
    samples = np.empty((2, rows, len(places)), dtype=np.float32)
    worst, worst_at, nonfinite, untold = 0.0, (0, 0), [0, 0], 0
    measure = _measure_by_c if _HAS_C else _Measure()
    step = block_rows(a.columns, math.lcm(a.head_rows or 1, b.head_rows or 1))
    for first in range(0, rows, step):
        last = min(first + step, rows)
        x, y = (reader.block(operand, first, last - first)
                for reader, operand in zip(readers, (a, b), strict=True))  # fmt: skip
        part = sums[first:last]
        if not measure(x, y, part, places, samples[:, first:last]):
            bad = _with_nonfinite(x, y, part)
            nonfinite = [nonfinite[side] + bad[side] for side in (0, 1)]
        row = int(part[:, _MAX].argmax())
        if part[row, _MAX] > worst:
            worst = float(part[row, _MAX])
            worst_at = (first + row, _farthest(x[row], y[row]))
        untold += x.size
        if progress is not None and (untold >= _TOLD_VALUES or last == rows):
            progress(untold)
            untold = 0
    for reader in readers:
        reader.release()
    return RowSums(
        sums[:, _DD], sums[:, _AA], sums[:, _BB], sums[:, _ALONG], samples[0], samples[1],
        worst, worst_at, nonfinite[0], nonfinite[1],
    )  # fmt: skip


def _measure_by_c(x: Float32, y: Float32, sums: Float64, places: Int64, samples: Float32) -> bool:
    """Compare blocks x and y [rows, columns] float32 in one pass; whether all sums are finite.

    Fills ``sums`` [rows, 5] and ``samples`` [2, rows, len(places)]; both are contiguous in rows.
    """
    x, y = np.ascontiguousarray(x), np.ascontiguousarray(y)
    return measure_in_c(
        _address(x), _address(y), x.shape[0], x.shape[1], _address(sums), _address(places),
        len(places), _address(samples[0]), _address(samples[1]),
    )  # fmt: skip


def _address(array: npt.NDArray[Any]) -> int:
    address: int = array.__array_interface__["data"][0]
    return address


class _Measure:
    """The same with NumPy, in more passes; keeps the memory of the difference."""

    def __init__(self) -> None:
        self._scratch = np.empty(0, dtype=np.float32)

    def __call__(
        self, x: Float32, y: Float32, sums: Float64, places: Int64, samples: Float32
    ) -> bool:
        if self._scratch.size < x.size:
            self._scratch = np.empty(x.size, dtype=np.float32)
        with np.errstate(invalid="ignore", over="ignore"):
            d = np.subtract(y, x, out=self._scratch[: x.size].reshape(x.shape))
            for place, values in ((_DD, d), (_AA, x), (_BB, y)):
                sums[:, place] = _sums_of_products(values, values)
            sums[:, _ALONG] = _sums_of_products(d, x)
            sums[:, _MAX] = np.maximum(d.max(axis=1), -d.min(axis=1))
        for sample, values in zip(samples, (x, y), strict=True):
            sample[:] = values[:, places]
        return bool(np.isfinite(sums).all())


def _sums_of_products(x: Float32, y: Float32) -> Float64:
    """The float64 sum over each row of x times y, both [rows, columns]."""
    sums: Float64 = np.einsum("ij,ij->i", x, y, dtype=np.float64)
    return sums


def _farthest(x: Float32, y: Float32) -> int:
    """The column of the largest difference; a NaN or infinite one is larger than any number."""
    with np.errstate(invalid="ignore", over="ignore"):
        d = np.abs(y.astype(np.float64) - x)
    d[~np.isfinite(d)] = math.inf
    d[_same(x, y)] = 0.0
    return int(d.argmax())


def _same(x: npt.NDArray[Any], y: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    same: npt.NDArray[np.bool_] = (x == y) | (np.isnan(x) & np.isnan(y))
    return same


def _with_nonfinite(x: Float32, y: Float32, sums: Float64) -> tuple[int, int]:
    """A block with NaN, infinite or huge values again, in float64; how many are not finite."""
    with np.errstate(invalid="ignore"):
        wide = [values.astype(np.float64) for values in (x, y)]
        bad = [~np.isfinite(values) for values in wide]
        apart = np.where(_same(*wide), 0.0, wide[1] - wide[0])
        d = np.nan_to_num(apart, nan=math.inf, posinf=math.inf, neginf=-math.inf)
    for values, where in zip(wide, bad, strict=True):
        values[where] = 0.0
    for place, values in ((_DD, d), (_AA, wide[0]), (_BB, wide[1])):
        sums[:, place] = (values * values).sum(axis=1)
    sums[:, _ALONG] = (wide[0] * np.where(np.isfinite(d), d, 0.0)).sum(axis=1)
    sums[:, _MAX] = np.abs(d).max(axis=1)
    return int(bad[0].sum()), int(bad[1].sum())
