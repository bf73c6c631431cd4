"""Every metric of one pair of tensors (docs/compare.md 2): float64 sums, block by block."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from aprtui.compare.logits import LogitsMetrics
from aprtui.compare.metric_sums import RowLayout, Sums
from aprtui.engine.processors import processors
from aprtui.formats.maps import forget_pages

__all__ = [
    "Cancelled",
    "Element",
    "Metrics",
    "compare_values",
]

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

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
    threads = min(MAX_THREADS, processors()) if x.size > PARALLEL_VALUES else 1
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

    def run(self, spans: Iterator[tuple[int, int, int, int]]) -> Sums:
        sums = Sums(self.layout.period, self.top)
        first: int | None = None  # of the values whose pages are still held
        for start, stop, row, rows in spans:
            if self.cancelled is not None and self.cancelled():
                raise Cancelled
            x, y = self.x[start:stop], self.y[start:stop]
            if self.reorder is not None:
                y = np.ascontiguousarray(self.reorder(y.reshape(rows, -1))).reshape(-1)
            sums.add(x, y, start, row, rows, self.integers)
            if self.progress is not None:
                self.progress(stop - start)
            first = start if first is None else first
            if stop - first >= RELEASE_VALUES:
                for side in (self.x, self.y):
                    forget_pages(side[first:stop])
                first = stop
        return sums


def _finish(sums: Sums, job: _Job) -> Metrics:
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
    if dd == 0.0:
        cosine = 1.0  # exactly, which the quotient of two rounded sums may not be
    elif norm_x and norm_y:
        cosine = min(1.0, max(-1.0, sums.xy / (norm_x * norm_y)))
    else:
        cosine = 0.0
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


def _top_elements(sums: Sums, job: _Job) -> tuple[Element, ...]:
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
