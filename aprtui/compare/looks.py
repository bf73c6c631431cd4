"""What an unexplained error looks like: which rows, heads, channels, keys and experts hold it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress

import numpy as np
import numpy.typing as npt

from aprtui.compare.case import Case
from aprtui.compare.explain import Explanation
from aprtui.compare.localerror import row_norms
from aprtui.engine.replay import Arithmetic
from aprtui.graph.ops import Bias, Experts, Product
from aprtui.text import count, ranges

__all__ = ["looks_like", "wrong_rows"]

Float64 = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

_ROUNDED = 8e-3  # how far a right row of 16-bit values may lie
_SHARE = 0.999  # of the squared error that a place must hold to be named
_PART = 0.75  # of an axis: a run that is longer says nothing
_NEARER = 0.5  # times the typical error of the plain replay: another one is taken then
_PERIODS = (256, 128, 64, 32, 16, 8, 4, 2)
_TOGETHER = 32  # columns of the input
_SAMPLE = 128  # outputs of a product that tell of its input's columns
_AXIS_NAMES = {
    "token": "position", "query": "position", "key": "key", "head": "head", "kv_head": "kv head",
    "rank": "rank", "expert": "expert", "vocab": "token id",
}  # fmt: skip


def looks_like(case: Case, found: Explanation, usual: Arithmetic | None = None) -> str:
    """One sentence on the shape of the error; always something, never a claim about the cause.

    ``usual`` is how such stages of B round: what is right by it is no part of the error.
    """
    if found.residual.born:
        made = found.replayed if found.replayed.shape == case.y.shape else case.run()
        return _born(case, made)
    made = _nearest(case, found, usual)
    y = case.y
    use = np.isfinite(y) & np.isfinite(made)
    off = np.where(use, y - made, 0.0)
    squared = np.square(off)
    total = float(squared.sum())
    if not total:
        return "no finite value differs"
    words = [*_whole(y[use], made[use]), *_empty(case, made)]
    for axis, name in enumerate(case.axes):
        other = tuple(place for place in range(y.ndim) if place != axis)
        held = squared.sum(axis=other)
        words.extend(_places(held, total, _AXIS_NAMES.get(name, "channel"), y.shape[axis]))
    words.extend(_seen(case, made))
    words.extend(_experts(case, squared))
    if not words:
        words.extend(_everywhere(case, off))
    parts = [part for part in found.unexplained if part != case.key.stage]
    if parts and len(parts) < len(case.parts):
        words.append(f"only in {', '.join(parts)}")
    if not words:
        share = float(np.mean(np.abs(off) > 1e-5 * np.abs(made).max()))
        words.append(f"spread over {share:.0%} of the values")
    return "; ".join(dict.fromkeys(words))


def _nearest(case: Case, found: Explanation, usual: Arithmetic | None) -> Float64:
    """The replay that the typical value of B lies nearest to: plain, or as such stages round."""
    tries = [case.run()]
    if found.replayed.shape == case.y.shape:
        tries.append(found.replayed)
    if usual is not None:
        with suppress(RuntimeError):  # torch: columns that are no multiple of the rounding's block
            tries.append(case.run(usual))
    away = [float(np.nanmedian(np.abs(case.y - made))) for made in tries]
    best = int(np.argmin(away))
    return tries[best] if away[best] < _NEARER * away[0] else tries[0]


def wrong_rows(case: Case, found: Explanation) -> tuple[int, ...] | None:
    """The rows of the capture that lie beyond the bar of one; None where no axis runs along
    positions."""
    made = found.replayed if found.replayed.shape == case.y.shape else case.run()
    if made.shape != case.y.shape or case.y.ndim < 2 or case.node.timeless:
        return None
    bar = max(case.limits[1], _ROUNDED if case.rounded else 0.0)
    finite = np.isfinite(case.y) & np.isfinite(made)
    norms = row_norms(np.where(finite, made, 0.0), case.axis)
    off = row_norms(np.where(finite, case.y - made, 0.0), case.axis) > bar * norms
    other = tuple(place for place in range(finite.ndim) if place != case.axis)
    off |= (~np.isfinite(case.y) & np.isfinite(made)).any(axis=other)
    held = range(len(off)) if case.rows is None else case.rows
    return tuple(held[int(place)] for place in np.flatnonzero(off))


def _born(case: Case, made: Float64) -> str:
    born = ~np.isfinite(case.y) & np.isfinite(made)
    words = [f"{int(born.sum()):,} of {born.size:,} values are NaN or Inf, born here"]
    for axis, name in enumerate(case.axes):
        other = tuple(place for place in range(born.ndim) if place != axis)
        hit = np.flatnonzero(born.any(axis=other))
        if 0 < hit.size <= _PART * born.shape[axis] and born.shape[axis] > 3:
            words.append(f"all in {_named(_AXIS_NAMES.get(name, 'channel'), hit.tolist())}")
    return "; ".join(words)


def _named(name: str, places: Sequence[int]) -> str:
    """``head 5``, ``heads 5-7``: the many in runs, a few of them."""
    said = ranges(list(places))
    some = said.split(", ")
    said = ", ".join(some[:6]) + (f" and {len(some) - 6} runs more" if len(some) > 6 else "")
    return f"{name} {said}" if len(places) == 1 else f"{name}s {said}"


def _whole(y: Float64, made: Float64) -> list[str]:
    """Scale, and whether the same values stand in another order."""
    norms = float(np.linalg.norm(y)), float(np.linalg.norm(made))
    if not norms[0]:
        return ["all zero"]
    if not norms[1]:
        return ["not zero where the replay is"]
    if y.size > 1 and y.min() == y.max() and made.min() < made.max():
        return [f"every value is {y[0]:.6g}"]
    scale = float(y @ made) / norms[1] ** 2
    cosine = float(y @ made) / (norms[0] * norms[1])
    if np.linalg.norm(y - scale * made) < 0.2 * np.linalg.norm(y - made):
        return [f"scaled by {scale:.6g}"]
    order = float(np.linalg.norm(np.sort(y) - np.sort(made))) / norms[1]
    if order < 1e-4 and cosine < 0.9999:
        return ["the right values in another order (a permutation)"]
    return []


def _empty(case: Case, made: Float64) -> Iterator[str]:
    """Rows, heads or channels of B that are zero, or all one number, and should not be."""
    for axis, name in enumerate(case.axes):
        if case.y.shape[axis] < 2 or case.y.ndim < 2:
            continue
        y = np.moveaxis(case.y, axis, 0).reshape(case.y.shape[axis], -1)
        base = np.moveaxis(made, axis, 0).reshape(y.shape)
        called = _AXIS_NAMES.get(name, "channel")
        zero = np.flatnonzero(~y.any(axis=1) & base.any(axis=1))
        if 0 < zero.size < len(y):
            yield f"{_named(called, zero.tolist())} all zero"
        alike = (y == y[:, :1]).all(axis=1) & y.any(axis=1) & (base != base[:, :1]).any(axis=1)
        if y.shape[1] > 1 and 0 < alike.sum() < len(y):
            yield f"{_named(called, np.flatnonzero(alike).tolist())} of one value throughout"


def _places(held: Float64, total: float, name: str, extent: int) -> list[str]:
    """The few indices of one axis, or the run or the pattern, that hold nearly all the error."""
    if extent < 3:
        return []
    order = np.argsort(-held)
    enough = int(np.searchsorted(np.cumsum(held[order]), _SHARE * total)) + 1
    places = sorted(int(i) for i in order[:enough])
    if enough <= max(1, min(3, extent // 4)):
        return [f"only {_named(name, places)}"]
    summed = np.concatenate(([0.0], np.cumsum(held)))
    trace = (1.0 - _SHARE) / 2 * total
    first = int(np.searchsorted(summed, trace, side="right")) - 1
    last = int(np.searchsorted(summed, total - trace, side="left")) - 1
    if last - first + 1 <= _PART * extent:
        block = _block(first, last, extent)
        return [f"only {name}s {first} to {last}{block}"]
    if name not in ("channel", "token id"):
        return []
    return _periodic(held, total, name)


def _block(first: int, last: int, extent: int) -> str:
    for size in (32, 256):
        if extent >= 4 * size and first // size == last // size:
            return f" (inside one block of {size})"
    return ""


def _periodic(held: Float64, total: float, name: str) -> list[str]:
    """Which part of every block of a size holds the error: halves, odd channels."""
    for size in reversed(_PERIODS):
        if held.size % size or held.size < 2 * size:
            continue
        by_place = held.reshape(-1, size).sum(axis=0)
        order = np.argsort(-by_place)
        enough = int(np.searchsorted(np.cumsum(by_place[order]), _SHARE * total)) + 1
        places = sorted(int(i) for i in order[:enough])
        if enough <= size // 2 and places[-1] - places[0] + 1 == enough:
            return [f"only {name}s {places[0]} to {places[-1]} of every {size}"]
    return []


def _seen(case: Case, made: Float64) -> Iterator[str]:
    """Keys that count where they should not, or do not where they should."""
    if case.axes[-2:] != ("query", "key"):
        return
    hidden = ((made != 0) & (case.y == 0)).any(axis=0)
    shown = ((made == 0) & (case.y != 0)).any(axis=0)
    for mask, what in ((hidden, "not seen"), (shown, "seen beyond the mask")):
        if mask.any():
            queries = np.flatnonzero(mask.any(axis=1))
            keys = np.flatnonzero(mask.any(axis=0))
            yield (
                f"{_named('key', keys.tolist())} {what} by {count(len(queries))} "
                f"{'query' if len(queries) == 1 else 'queries'}, "
                f"the first is {int(queries[0])}"
            )


def _experts(case: Case, squared: Float64) -> Iterator[str]:
    """Experts whose tokens are wrong while those of all others are right."""
    if not isinstance(case.op, Experts) or case.y.ndim != 2:
        return
    ids = case.inputs()[2].astype(int)
    rows = squared.sum(axis=1)
    wrong = rows > 1e-6 * rows.max()
    if wrong.all() or len(ids) != len(wrong):
        return
    right = {expert for row in ids[~wrong].tolist() for expert in row}
    blamed = {expert for row in ids[wrong].tolist() for expert in row} - right
    if blamed and all(blamed & set(row) for row in ids[wrong].tolist()):
        yield f"only tokens of {_named('expert', sorted(blamed))}"


def _everywhere(case: Case, off: Float64) -> Iterator[str]:
    """The structure of an error in all places: a bias, columns of the input."""
    if (
        off.ndim == 2
        and len(off) > 1
        and np.abs(off - off.mean(axis=0)).max() < 1e-4 * np.abs(off).max()
    ):
        yield from _same_everywhere(case, off.mean(axis=0))
    if isinstance(case.op, Product) and not case.between and len(case.parts) == 1:
        yield from _columns(case, off)


def _same_everywhere(case: Case, vector: Float64) -> Iterator[str]:
    said = "the same at every position"
    parts = case.op.parts if isinstance(case.op, Product | Bias) else ()
    for part in parts:
        if part.bias is not None and isinstance(case.op, Product | Bias):
            bias, held = case.replay.vector(part.bias), vector[case.op.columns(part)]
            factor = float(held @ bias) / max(float(bias @ bias), 1e-300)
            if np.linalg.norm(held - factor * bias) < 1e-3 * np.linalg.norm(held):
                said += f": {factor:+.4g} times the bias of {part.name}"
    yield said


def _columns(case: Case, off: Float64) -> Iterator[str]:
    """Which blocks of the input's columns the error is made of, and by what share of their own."""
    assert isinstance(case.op, Product)
    x, role = case.replay.product_input(case.op, case.inputs()[0]), case.parts[0].weight
    error = off.reshape(len(x), -1)
    columns, rows = x.shape[1], error.shape[1]
    blocks = columns // _TOGETHER
    if columns % _TOGETHER or len(x) * min(rows, _SAMPLE) < 4 * blocks or case.op.cap:
        return
    sample = np.unique(np.linspace(0, rows - 1, min(rows, _SAMPLE)).astype(int))
    factor = case.op.factor(case.parts[0])
    weights = factor * case.replay.rows(role, sample.tolist())
    shares = np.einsum(
        "tbs,rbs->trb", x.reshape(len(x), blocks, -1), weights.reshape(len(sample), blocks, -1),
        optimize=True,
    ).reshape(-1, blocks)  # fmt: skip
    wanted = error[:, sample].reshape(-1)
    if not (np.isfinite(shares).all() and np.isfinite(wanted).all()):
        return
    solved = np.linalg.lstsq(shares, wanted, rcond=None)[0]
    if np.linalg.norm(shares @ solved - wanted) > 0.1 * np.linalg.norm(wanted):
        return
    blamed = np.flatnonzero(np.abs(solved) > 0.05 * np.abs(solved).max())
    if blamed.size <= _PART * blocks:
        runs = [(int(b) * _TOGETHER, int(b) * _TOGETHER + _TOGETHER - 1) for b in blamed[:6]]
        said = ", ".join(f"{first} to {last}" for first, last in runs)
        yield f"made of columns {said} of the input, {float(np.median(solved[blamed])):+.3g} times"
