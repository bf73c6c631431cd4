"""Every metric of one pair of tensors (specs/compare.md 2): float64 sums, block by block."""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from aprtui.compare.logits import LogitsMetrics

__all__ = [
    "Cancelled",
    "Element",
    "Metrics",
    "RowLayout",
    "compare_values",
    "mapping",
]

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

BLOCK_VALUES = 1 << 16  # 512 KiB as float64: a few such buffers stay in the cache
RELEASE_VALUES = 1 << 23  # mapped pages are given back after so many values: 32 MiB a side
PARALLEL_VALUES = 1 << 22  # below this a second thread costs more than it saves
MAX_THREADS = 4


class Cancelled(Exception):
    """The caller's ``cancelled`` hook said so; nothing was computed to the end."""


@dataclass(frozen=True)
class Element:
    """One element of a pair; ``at`` is its index along each axis, empty when axes are unknown."""

    index: int
    a: float
    b: float
    abs_diff: float
    at: tuple[int, ...] = ()


@dataclass(frozen=True)
class Metrics:
    """The metrics of one pair: A (x) is the reference, B (y) the test, d = y - x.

    Elements that are not finite on one side take no part in the sums; they are counted. Where A
    is all zero: rel_l2 is 0 when B is zero too, else infinite; cosine 1 or 0; scale 1 or NaN.
    ``worst_row`` is a position along the token (or query) axis, None when axes are unknown.
    """

    count: int
    identical: bool  # bit for bit
    max_abs: float
    max_abs_index: int
    max_abs_at: tuple[int, ...]
    rms: float
    rel_l2: float
    cosine: float
    worst_row_rel_l2: float
    worst_row: int | None
    scale: float
    std_ratio: float
    mean_a: float
    mean_b: float
    std_a: float
    std_b: float
    nan_a: int
    nan_b: int
    inf_a: int
    inf_b: int
    nonfinite_mismatches: int
    first_nonfinite: Element | None
    top: tuple[Element, ...]
    mismatches: int | None = None  # of integers: elements that are not the same whole number
    logits: LogitsMetrics | None = None


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


def compare_values(
    x: Float32,
    y: Float32,
    *,
    shape: tuple[int, ...] | None = None,
    axes: tuple[str, ...] | None = None,
    top: int = 10,
    integers: bool = False,
    reorder: Callable[[Float32], Float32] | None = None,
    cancelled: Callable[[], bool] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Metrics:
    """The metrics of two flat arrays [n] float32 of equal size.

    ``shape`` and ``axes`` name positions and give elements their coordinates. ``reorder`` rewrites
    rows [rows, width] of ``y`` before they are compared. Memory maps are given back as they are
    read. ``progress`` is told the values done since its last call, from any thread. Raises
    Cancelled when ``cancelled`` says so.
    """
    if x.size != y.size:
        raise ValueError(f"{x.size} values against {y.size}")
    layout = RowLayout.of(x.size, shape, axes)
    job = _Job(x, y, layout, top, integers, reorder, cancelled, progress)
    threads = min(MAX_THREADS, os.cpu_count() or 1) if x.size > PARALLEL_VALUES else 1
    if threads == 1:
        total = job.run(layout.spans(0, layout.rows))
    else:
        spans = list(layout.spans(0, layout.rows))
        edges = [len(spans) * part // threads for part in range(threads + 1)]
        with ThreadPoolExecutor(threads) as pool:
            parts = pool.map(job.run, (iter(spans[i:j]) for i, j in pairwise(edges)))
            total, *others = parts
        for other in others:
            total.merge(other)
    return _finish(total, job)


@dataclass(frozen=True)
class _Job:
    """One comparison as every thread of it sees it."""

    x: Float32
    y: Float32
    layout: RowLayout
    top: int
    integers: bool
    reorder: Callable[[Float32], Float32] | None
    cancelled: Callable[[], bool] | None
    progress: Callable[[int], None] | None

    def run(self, spans: Iterator[tuple[int, int, int, int]]) -> _Sums:
        sums = _Sums(self.layout.period, self.top)
        maps = [mapped for array in (self.x, self.y) if (mapped := mapping(array)) is not None]
        since = 0
        for start, stop, row, rows in spans:
            if self.cancelled is not None and self.cancelled():
                raise Cancelled
            x, y = self.x[start:stop], self.y[start:stop]
            if self.reorder is not None:
                y = np.ascontiguousarray(self.reorder(y.reshape(rows, -1))).reshape(-1)
            sums.add(x, y, start, row, rows, self.integers)
            if self.progress is not None:
                self.progress(stop - start)
            since += stop - start
            if since >= RELEASE_VALUES:
                since = 0
                for mapped in maps:
                    mapped.madvise(mmap.MADV_DONTNEED)
        return sums


def mapping(array: Any) -> mmap.mmap | None:
    """The memory map that ``array`` is a view of, where the platform can give pages back."""
    if not hasattr(mmap, "MADV_DONTNEED"):
        return None
    while array is not None:
        if isinstance(array, mmap.mmap):
            return array
        array = getattr(array, "base", None)
    return None


class _Sums:
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

    def merge(self, other: _Sums) -> None:
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


def _finish(sums: _Sums, job: _Job) -> Metrics:
    n, used = job.x.size, max(1, sums.used)
    dd = float(sums.row_dd.sum())
    norm_x, norm_y = math.sqrt(sums.xx), math.sqrt(sums.yy)
    mean_x, mean_y = sums.sum_x / used, sums.sum_y / used
    std_x = math.sqrt(max(0.0, sums.xx / used - mean_x * mean_x))
    std_y = math.sqrt(max(0.0, sums.yy / used - mean_y * mean_y))
    top = _top_elements(sums, job)
    with np.errstate(divide="ignore", invalid="ignore"):
        rows = np.sqrt(sums.row_dd / sums.row_xx)
    rows[sums.row_dd == 0] = 0.0
    worst = int(rows.argmax()) if rows.size else 0
    if norm_x and norm_y:
        cosine = min(1.0, max(-1.0, sums.xy / (norm_x * norm_y)))
    else:
        cosine = 1.0 if norm_x == norm_y else 0.0
    return Metrics(
        count=n,
        identical=sums.identical,
        max_abs=top[0].abs_diff if top else 0.0,
        max_abs_index=top[0].index if top else 0,
        max_abs_at=top[0].at if top else (),
        rms=math.sqrt(dd / used),
        rel_l2=_ratio(math.sqrt(dd), norm_x, 0.0),
        cosine=cosine,
        worst_row_rel_l2=float(rows[worst]) if rows.size else 0.0,
        worst_row=worst if job.layout.has_positions else None,
        scale=sums.xy / sums.xx if sums.xx else (1.0 if dd == 0 else math.nan),
        std_ratio=_ratio(std_y, std_x, 1.0),
        mean_a=mean_x,
        mean_b=mean_y,
        std_a=std_x,
        std_b=std_y,
        nan_a=sums.nan_x,
        nan_b=sums.nan_y,
        inf_a=sums.inf_x,
        inf_b=sums.inf_y,
        nonfinite_mismatches=sums.nonfinite_mismatches,
        first_nonfinite=(
            None if sums.first_nonfinite is None else _element(job, sums.first_nonfinite)
        ),
        top=top[: job.top],
        mismatches=sums.mismatches if job.integers else None,
    )


def _ratio(value: float, by: float, both_zero: float) -> float:
    if by:
        return value / by
    return both_zero if value == 0 else math.inf


def _top_elements(sums: _Sums, job: _Job) -> tuple[Element, ...]:
    """The largest differences; when fewer differ than were asked for, the first equal ones too."""
    index = [int(i) for i in sums.top_index]
    chosen = set(index)
    for candidate in range(min(job.x.size, job.top)):
        if len(index) >= job.top:
            break
        if candidate not in chosen:
            index.append(candidate)
    return tuple(_element(job, i) for i in index)


def _element(job: _Job, index: int) -> Element:
    width = job.layout.width
    a = float(job.x[index])
    if job.reorder is None:
        b = float(job.y[index])
    else:
        row = index // width
        block = job.reorder(job.y[row * width : (row + 1) * width].reshape(1, -1))
        b = float(block.reshape(-1)[index - row * width])
    return Element(index, a, b, abs(b - a), job.layout.at(index))
