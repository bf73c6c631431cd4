"""The sums behind the metrics of a pair: of rows and of the whole, in float64, block by block."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["RowLayout", "Sums"]

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

BLOCK_VALUES = 1 << 16  # 512 KiB as float64: a few such buffers stay in the cache


@dataclass(frozen=True)
class RowLayout:
    """Flat values seen as ``rows`` of ``width``; row r belongs to position r modulo ``period``."""

    rows: int
    width: int
    period: int
    shape: tuple[int, ...] = ()  # empty: axes unknown
    has_positions: bool = False

    @classmethod
    def of(
        cls, count: int, shape: tuple[int, ...] | None, axes: tuple[str, ...] | None
    ) -> RowLayout:
        """The rows of a tensor: positions of the token axis, or queries under every head."""
        if not shape or not axes or math.prod(shape) != count or count == 0:
            return cls(1, count, 1)
        if axes == ("head", "query", "key"):
            return cls(shape[0] * shape[1], shape[2], shape[1], shape, True)
        if axes[0] == "token":
            return cls(shape[0], count // shape[0], shape[0], shape, True)
        return cls(1, count, 1, shape)

    def at(self, index: int) -> tuple[int, ...]:
        """``index`` along each axis; empty when axes are unknown."""
        if not self.shape:
            return ()
        return tuple(int(part) for part in np.unravel_index(index, self.shape))

    def spans(self, first: int, last: int) -> Iterator[tuple[int, int, int, int]]:
        """(start, stop, first row, rows) of blocks of rows ``first`` to ``last``, in order.

        A block is whole rows, or (rows 1) a piece of one wide row.
        """
        if self.width <= BLOCK_VALUES:
            step = max(1, BLOCK_VALUES // max(1, self.width))
            for row in range(first, last, step):
                end = min(row + step, last)
                yield row * self.width, end * self.width, row, end - row
            return
        for row in range(first, last):
            for start in range(row * self.width, (row + 1) * self.width, BLOCK_VALUES):
                yield start, min(start + BLOCK_VALUES, (row + 1) * self.width), row, 1


class Sums:
    """Running sums of one thread, its buffers, and the largest differences so far."""

    def __init__(self, period: int, top: int) -> None:
        self.xx = self.yy = self.xy = self.sum_x = self.sum_y = 0.0
        self.row_xx = np.zeros(period)
        self.row_dd = np.zeros(period)
        self.used = self.nan_x = self.nan_y = self.inf_x = self.inf_y = 0
        self.identical = True
        self.nonfinite_mismatches = self.mismatches = 0
        self.first_nonfinite: int | None = None
        self.top = top
        self.top_index = np.empty(0, dtype=np.int64)
        self.top_value = np.empty(0)
        self._buffers = [np.empty(0)] * 3
        self._ones = np.empty(0)

    def add(self, x: Float32, y: Float32, start: int, row: int, rows: int, integers: bool) -> None:
        """One block of ``rows`` whole rows (or a piece of one) that starts at value ``start``."""
        n = x.size
        if self._buffers[0].size < n:
            self._buffers = [np.empty(max(n, BLOCK_VALUES)) for _ in range(3)]
            self._ones = np.ones(max(n, BLOCK_VALUES))
        x64, y64, d = (buffer[:n] for buffer in self._buffers)
        left, right = x.view(np.uint32), y.view(np.uint32)
        same = np.array_equal(left[:64], right[:64]) and np.array_equal(left, right)
        self.identical &= same
        x64[...] = x
        row_xx = _row_dots(x64, x64, rows)
        xx = float(row_xx.sum())
        if same and math.isfinite(xx):
            total = float(_row_dots(x64, self._ones[:n], rows).sum())
            xy = yy = xx
            sum_x = sum_y = total
            used, row_dd = n, None
        else:
            y64[...] = y
            yy = float(_row_dots(y64, y64, rows).sum())
            used = n
            if not (math.isfinite(xx) and math.isfinite(yy)):
                used -= self._set_aside(x64, y64, start)
                row_xx = _row_dots(x64, x64, rows)
                xx = float(row_xx.sum())
                yy = float(_row_dots(y64, y64, rows).sum())
            np.subtract(y64, x64, out=d)
            row_dd = _row_dots(d, d, rows)
            xy = float(_row_dots(x64, y64, rows).sum())
            sum_x = float(_row_dots(x64, self._ones[:n], rows).sum())
            sum_y = float(_row_dots(y64, self._ones[:n], rows).sum())
            self._keep_largest(np.abs(d, out=d), start)
            if integers:
                self.mismatches += int(np.count_nonzero(x != y))
        self.xx += xx
        self.yy += yy
        self.xy += xy
        self.sum_x += sum_x
        self.sum_y += sum_y
        self.used += used
        position = (row + np.arange(rows)) % self.row_xx.size
        np.add.at(self.row_xx, position, row_xx)
        if row_dd is not None:
            np.add.at(self.row_dd, position, row_dd)

    def _set_aside(self, x: Float64, y: Float64, start: int) -> int:
        """Count what is not finite, compare where it is, and zero it on both sides."""
        kinds = [
            np.isnan(side) * 1 + np.isposinf(side) * 2 + np.isneginf(side) * 3 for side in (x, y)
        ]
        self.nan_x += int(np.count_nonzero(kinds[0] == 1))
        self.nan_y += int(np.count_nonzero(kinds[1] == 1))
        self.inf_x += int(np.count_nonzero(kinds[0] > 1))
        self.inf_y += int(np.count_nonzero(kinds[1] > 1))
        differing = np.flatnonzero(kinds[0] != kinds[1])
        if differing.size:
            self.nonfinite_mismatches += int(differing.size)
            if self.first_nonfinite is None:
                self.first_nonfinite = start + int(differing[0])
        either = (kinds[0] | kinds[1]) > 0
        x[either] = 0.0
        y[either] = 0.0
        return int(np.count_nonzero(either))

    def _keep_largest(self, d: Float64, start: int) -> None:
        full = self.top_value.size >= self.top
        threshold = float(self.top_value[-1]) if full and self.top else 0.0
        if not self.top or float(d.max(initial=0.0)) <= threshold:
            return
        candidates = np.flatnonzero(d > threshold)
        self._take(candidates + start, d[candidates])

    def _take(self, index: npt.NDArray[np.int64], value: Float64) -> None:
        """Merge candidates: the largest first, of equal ones the lowest index."""
        index = np.concatenate([self.top_index, index])
        value = np.concatenate([self.top_value, value])
        if value.size > self.top:
            bound = np.partition(value, value.size - self.top)[value.size - self.top]
            kept = value >= bound
            index, value = index[kept], value[kept]
        order = np.lexsort((index, -value))[: self.top]
        self.top_index, self.top_value = index[order], value[order]

    def merge(self, other: Sums) -> None:
        """Add what another thread found."""
        for name in ("xx", "yy", "xy", "sum_x", "sum_y", "used", "nan_x", "nan_y", "inf_x",
                     "inf_y", "nonfinite_mismatches", "mismatches"):  # fmt: skip
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.row_xx += other.row_xx
        self.row_dd += other.row_dd
        self.identical &= other.identical
        found = [i for i in (self.first_nonfinite, other.first_nonfinite) if i is not None]
        self.first_nonfinite = min(found) if found else None
        if self.top:
            self._take(other.top_index, other.top_value)


def _row_dots(u: Float64, v: Float64, rows: int) -> Float64:
    """The dot product of each of ``rows`` rows [rows]."""
    if u.size == 0:
        return np.zeros(rows)
    # short products: a long one would start the BLAS library's own threads inside ours
    parts = 16 if rows == 1 and u.size % 16 == 0 else 1
    left, right = u.reshape(rows * parts, 1, -1), v.reshape(rows * parts, -1, 1)
    dots: Float64 = np.matmul(left, right).reshape(rows, parts).sum(axis=1)
    return dots
