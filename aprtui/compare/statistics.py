"""Statistics and histogram of one tensor: exact, block by block, in bounded memory."""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from aprtui.compare.metrics import Cancelled
from aprtui.formats.maps import mapping

__all__ = [
    "PERCENTILES",
    "Histogram",
    "OutlierChannel",
    "Statistics",
    "histogram",
    "one_pass",
    "outlier_channels",
    "percentiles",
    "sample",
    "statistics",
]

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Hook = Callable[[], bool]

PERCENTILES = (1.0, 5.0, 25.0, 50.0, 75.0, 95.0, 99.0)
_BLOCK = 1 << 18
_RELEASE = 1 << 24  # values read before the pages of a map are given back
_SMALLEST_NORMAL = float(np.finfo(np.float32).smallest_normal)


@dataclass(frozen=True)
class Statistics:
    """One tensor's values. Moments, extremes and percentiles are of the finite values only.

    They are NaN when there is no finite value. ``denormals`` are non-zero values below the
    smallest normal float32. Percentiles interpolate linearly between neighbours (numpy's default).
    """

    count: int
    min: float
    max: float
    mean: float
    std: float
    rms: float
    zeros: int
    denormals: int
    nan: int
    pos_inf: int
    neg_inf: int
    percentiles: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class Histogram:
    """Counts of the finite values between ``edges`` [bins + 1]; the rest beside them.

    ``scale`` is "linear" or "symlog": edges evenly spaced in asinh(value / linear), so that a
    few huge channels do not leave all else in one bar.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    below: int
    above: int
    nan: int
    inf: int
    scale: str = "linear"


@dataclass(frozen=True)
class OutlierChannel:
    """A channel whose rms is far above the typical one; ``ratio`` is to the median channel."""

    channel: int
    rms: float
    ratio: float


@dataclass
class _Moments:
    """Sums over the finite values so far; deviations are from the first block's mean."""

    centre: float = 0.0
    used: int = 0
    total: float = 0.0
    squares: float = 0.0
    about_centre: float = 0.0
    lowest: float = math.inf
    highest: float = -math.inf
    zeros: int = 0
    denormals: int = 0
    nan: int = 0
    pos_inf: int = 0
    neg_inf: int = 0

    def add(self, block: Float32) -> None:
        finite = np.isfinite(block)
        if not finite.all():
            self.nan += int(np.count_nonzero(np.isnan(block)))
            self.pos_inf += int(np.count_nonzero(np.isposinf(block)))
            self.neg_inf += int(np.count_nonzero(np.isneginf(block)))
            block = block[finite]
        if block.size == 0:
            return
        magnitude = np.abs(block)
        zeros = int(block.size - np.count_nonzero(block))
        self.zeros += zeros
        self.denormals += int(np.count_nonzero(magnitude < np.float32(_SMALLEST_NORMAL))) - zeros
        values = block.astype(np.float64)
        if self.used == 0:
            self.centre = float(values.mean())
        self.used += values.size
        self.total += float(values.sum())
        self.squares += float(values @ values)
        values -= self.centre
        self.about_centre += float(values @ values)
        self.lowest = min(self.lowest, float(block.min()))
        self.highest = max(self.highest, float(block.max()))

    def told(self, percentiles_: tuple[tuple[float, float], ...]) -> Statistics:
        """The sums as statistics; the extremes and means NaN where nothing was finite."""
        lowest, highest, mean, std, rms = (math.nan,) * 5
        if self.used:
            lowest, highest = self.lowest, self.highest
            mean = self.total / self.used
            variance = self.about_centre / self.used - (mean - self.centre) ** 2
            std = math.sqrt(max(0.0, variance))
            rms = math.sqrt(self.squares / self.used)
        return Statistics(
            self.used + self.nan + self.pos_inf + self.neg_inf,
            lowest, highest, mean, std, rms,
            self.zeros, self.denormals, self.nan, self.pos_inf, self.neg_inf, percentiles_,
        )  # fmt: skip


def statistics(
    values: Float32,
    cancelled: Hook | None = None,
    wanted: Sequence[float] = PERCENTILES,
) -> Statistics:
    """Exact statistics of ``values`` (any shape). Raises metrics.Cancelled."""
    moments = _Moments()
    for block in _blocks(values, cancelled):
        moments.add(block)
    found: tuple[tuple[float, float], ...] = ()
    if moments.used:
        found = tuple(zip(wanted, percentiles(values, wanted, cancelled), strict=True))
    return moments.told(found)


def one_pass(
    blocks: Iterable[Float32], edges: Sequence[float], percentiles_: tuple[tuple[float, float], ...]
) -> tuple[Statistics, Histogram]:
    """Statistics and counts between ``edges`` of values that come once, block [n] by block.

    Percentiles take two more passes: those that are known, of a sample say, are passed through.
    """
    moments, counted = _Moments(), _Counts(np.asarray(edges, dtype=np.float64))
    for block in blocks:
        moments.add(block)
        counted.add(block)
    return moments.told(percentiles_), counted.told("linear")


def _blocks(values: Float32, cancelled: Hook | None) -> Iterator[Float32]:
    flat = values.reshape(-1)
    mapped = mapping(flat) if flat.size > _RELEASE else None
    for start in range(0, flat.size, _BLOCK):
        if cancelled is not None and cancelled():
            raise Cancelled
        yield np.asarray(flat[start : start + _BLOCK])
        if mapped is not None and start % _RELEASE == 0:  # or a large file's pages count as ours
            mapped.madvise(mmap.MADV_DONTNEED)


# -- percentiles: radix selection in two passes ----------------------------------------------------


def percentiles(
    values: Float32, wanted: Sequence[float], cancelled: Hook | None = None
) -> tuple[float, ...]:
    """The exact percentiles of the finite values, in two passes whatever the size.

    The bits of a float32, with the negative ones flipped, sort as unsigned integers: the first
    pass counts their upper halves, the second the lower halves of those that hold a wanted rank.
    NaN when nothing is finite. Raises metrics.Cancelled.
    """
    upper = np.zeros(1 << 16, dtype=np.int64)
    for block in _blocks(values, cancelled):
        upper += np.bincount(_sortable(block) >> np.uint32(16), minlength=1 << 16)
    ends = np.cumsum(upper)
    total = int(ends[-1])
    if total == 0:
        return (math.nan,) * len(wanted)
    places = [(total - 1) * percent / 100 for percent in wanted]
    ranks = {math.floor(place) for place in places} | {math.ceil(place) for place in places}
    bucket_of = {rank: int(np.searchsorted(ends, rank, side="right")) for rank in ranks}
    lower = {bucket: np.zeros(1 << 16, dtype=np.int64) for bucket in bucket_of.values()}
    for block in _blocks(values, cancelled):
        bits = _sortable(block)
        for bucket, counts in lower.items():
            inside = bits[bits >> np.uint32(16) == bucket] & np.uint32(0xFFFF)
            counts += np.bincount(inside, minlength=1 << 16)
    at = {}
    for rank, bucket in bucket_of.items():
        within = rank - (int(ends[bucket]) - int(upper[bucket]))
        low = int(np.searchsorted(np.cumsum(lower[bucket]), within, side="right"))
        at[rank] = _from_sortable(bucket << 16 | low)
    found = []
    for place in places:
        left, right = at[math.floor(place)], at[math.ceil(place)]
        found.append(left + (right - left) * (place - math.floor(place)))
    return tuple(found)


def _sortable(block: Float32) -> npt.NDArray[np.uint32]:
    bits = np.ascontiguousarray(block[np.isfinite(block)]).view(np.uint32)
    sign = np.uint32(0x80000000)
    return np.where(bits & sign, ~bits, bits | sign)


def _from_sortable(bits: int) -> float:
    raw = bits & 0x7FFFFFFF if bits & 0x80000000 else ~bits & 0xFFFFFFFF
    return float(np.array([raw], dtype=np.uint32).view(np.float32)[0])


# -- histogram -------------------------------------------------------------------------------------


def histogram(
    values: Float32,
    bins: int = 40,
    span: tuple[float, float] | None = None,
    *,
    scale: str = "linear",
    clip: tuple[float, float] | None = None,
    cancelled: Hook | None = None,
) -> Histogram:
    """Exact counts in ``bins`` equal steps over ``span``, or from the least to the largest value.

    ``clip`` (two percentiles, say (1, 99)) takes the span from the values; what lies outside is
    counted in ``below`` and ``above``. ``scale`` "symlog" makes the steps equal in
    asinh(value / s), s being the median magnitude of a sample. Raises metrics.Cancelled.
    """
    if bins < 1:
        raise ValueError("a histogram needs a bin")
    if span is None:
        low_high = percentiles(values, clip or (0.0, 100.0), cancelled)
        span = (low_high[0], low_high[1])
    low, high = span
    if math.isnan(low) or math.isnan(high):
        low = high = 0.0
    if low == high:  # one value: a step around it that float64 can tell apart
        margin = abs(low) * 1e-3 or 0.5
        low, high = low - margin, high + margin
    linear = _linear_part(values) if scale == "symlog" else 1.0
    steps = (
        np.linspace(math.asinh(low / linear), math.asinh(high / linear), bins + 1)
        if scale == "symlog"
        else np.linspace(low, high, bins + 1)
    )
    edges = np.sinh(steps) * linear if scale == "symlog" else steps
    edges[0], edges[-1] = low, high
    counted = _Counts(edges)
    for block in _blocks(values, cancelled):
        counted.add(block)
    return counted.told(scale)


class _Counts:
    """Counts of values between ``edges`` [bins + 1] so far, the rest beside them."""

    def __init__(self, edges: Float64) -> None:
        self.edges = edges
        even = np.linspace(edges[0], edges[-1], edges.size)
        self.even = bool(np.array_equal(edges, even))  # six times as quick to count
        self.counts = np.zeros(edges.size - 1, dtype=np.int64)
        self.below = self.above = self.nan = self.infinite = 0

    def add(self, block: Float32) -> None:
        finite = block[np.isfinite(block)].astype(np.float64)
        missing = block.size - finite.size
        if missing:
            is_nan = int(np.count_nonzero(np.isnan(block)))
            self.nan += is_nan
            self.infinite += missing - is_nan
        self.below += int(np.count_nonzero(finite < self.edges[0]))
        self.above += int(np.count_nonzero(finite > self.edges[-1]))
        if self.even:
            span = (float(self.edges[0]), float(self.edges[-1]))
            self.counts += np.histogram(finite, self.counts.size, span)[0]
        else:
            self.counts += np.histogram(finite, self.edges)[0]

    def told(self, scale: str) -> Histogram:
        return Histogram(
            tuple(map(float, self.edges)), tuple(map(int, self.counts)),
            self.below, self.above, self.nan, self.infinite, scale,
        )  # fmt: skip


def _linear_part(values: Float32) -> float:
    some = np.abs(sample(values, 1 << 14))
    some = some[np.isfinite(some) & (some > 0)]
    return float(np.median(some)) if some.size else 1.0


def sample(values: Float32, size: int) -> Float32:
    """At most ``size`` values at fixed places spread over the whole: a first look, not a result.

    One place is drawn in each of ``size`` equal stretches, so that no stride hides a channel.
    """
    flat = values.reshape(-1)
    if flat.size <= size:
        return np.asarray(flat)
    edges = np.linspace(0, flat.size, size + 1).astype(np.int64)
    draws = np.random.default_rng(0).random(size)
    places = edges[:-1] + (draws * np.diff(edges)).astype(np.int64)
    mapped = mapping(flat) if flat.size > _RELEASE else None
    if mapped is None:
        return np.asarray(flat[places])
    found = np.empty(size, dtype=np.float32)
    for part in np.array_split(np.arange(size), -(-flat.size // _RELEASE)):
        found[part] = flat[places[part]]
        mapped.madvise(mmap.MADV_DONTNEED)  # a value from every page is the whole file
    return found


def outlier_channels(
    values: Float32,
    channels: int,
    *,
    ratio: float = 6.0,
    most: int = 8,
    cancelled: Hook | None = None,
) -> tuple[OutlierChannel, ...]:
    """Channels (of the last axis) whose rms is over ``ratio`` times the median channel's.

    The largest first. Values that are not finite count as 0. Raises metrics.Cancelled, and
    ValueError when ``channels`` does not divide the count.
    """
    flat = values.reshape(-1)
    if channels < 1 or flat.size % channels:
        raise ValueError(f"{flat.size} values are not rows of {channels}")
    squares = np.zeros(channels)
    rows = flat.size // channels
    step = max(1, _BLOCK // channels)
    mapped = mapping(flat) if flat.size > _RELEASE else None
    for row in range(0, rows, step):
        if mapped is not None and row // step % (_RELEASE // _BLOCK) == 0:
            mapped.madvise(mmap.MADV_DONTNEED)
        if cancelled is not None and cancelled():
            raise Cancelled
        block = flat[row * channels : (row + step) * channels].reshape(-1, channels)
        wide = np.where(np.isfinite(block), block, np.float32(0)).astype(np.float64)
        squares += np.einsum("ij,ij->j", wide, wide)
    rms = np.sqrt(squares / max(1, rows))
    typical = float(np.median(rms))
    if typical == 0:
        return ()
    order = np.argsort(-rms, kind="stable")[:most]
    return tuple(
        OutlierChannel(int(i), float(rms[i]), float(rms[i]) / typical)
        for i in order
        if rms[i] > ratio * typical
    )
