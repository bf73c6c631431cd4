"""What an unexplained error looks like: which rows, heads, channels and blocks hold it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from aprtui.compare.case import Case
from aprtui.compare.explain import Explanation
from aprtui.compare.localerror import row_norms
from aprtui.formats.rows import Rows

__all__ = ["looks_like", "wrong_rows"]

Float64 = npt.NDArray[np.float64]

_ROUNDED = 8e-3  # how far a right row of 16-bit values may lie
_SHARE = 0.999  # of the squared error that a place must hold to be named
_AXIS_NAMES = {
    "token": "position", "query": "position", "key": "key", "head": "head", "kv_head": "kv head",
    "rank": "rank", "expert": "expert", "vocab": "token id",
}  # fmt: skip


def looks_like(case: Case, found: Explanation) -> str:
    """One sentence on the shape of the error; always something, never a claim about the cause."""
    made = found.replayed if found.replayed.shape == case.y.shape else case.run()
    y = case.y
    use = np.isfinite(y) & np.isfinite(made)
    if found.residual.born:
        return _born(case, made)
    off = np.where(use, y - made, 0.0)
    squared = np.square(off)
    total = float(squared.sum())
    if not total:
        return "no finite value differs"
    words = [*_whole(y[use], made[use])]
    for axis, name in enumerate(case.axes):
        other = tuple(place for place in range(y.ndim) if place != axis)
        held = squared.sum(axis=other)
        words.extend(_places(held, total, _AXIS_NAMES.get(name, "channel"), y.shape[axis]))
    parts = [part for part in found.unexplained if part != case.key.stage]
    if parts:
        words.append(f"only in {', '.join(parts)}")
    if not words:
        share = float(np.mean(np.abs(off) > 1e-5 * np.abs(made).max()))
        words.append(f"spread over {share:.0%} of the values")
    return "; ".join(words)


def wrong_rows(case: Case, found: Explanation) -> Rows | None:
    """The rows that lie beyond the bar of one row; None where no axis runs along positions."""
    made = found.replayed if found.replayed.shape == case.y.shape else case.run()
    if made.shape != case.y.shape or case.y.ndim < 2:
        return None
    bar = max(case.limits[1], _ROUNDED if case.rounded else 0.0)
    finite = np.isfinite(case.y) & np.isfinite(made)
    norms = row_norms(np.where(finite, made, 0.0), case.axis)
    off = row_norms(np.where(finite, case.y - made, 0.0), case.axis) > bar * norms
    other = tuple(place for place in range(finite.ndim) if place != case.axis)
    off |= (~np.isfinite(case.y) & np.isfinite(made)).any(axis=other)
    held = range(len(off)) if case.rows is None else case.rows
    return case.captured.rows.only([held[int(place)] for place in np.flatnonzero(off)])


def _born(case: Case, made: Float64) -> str:
    born = ~np.isfinite(case.y) & np.isfinite(made)
    words = [f"{int(born.sum()):,} of {born.size:,} values are NaN or Inf, born here"]
    for axis, name in enumerate(case.axes):
        other = tuple(place for place in range(born.ndim) if place != axis)
        hit = np.flatnonzero(born.any(axis=other))
        if 0 < hit.size <= 3 < born.shape[axis]:
            places = ", ".join(map(str, hit.tolist()))
            words.append(f"all in {_AXIS_NAMES.get(name, 'channel')} {places}")
    return "; ".join(words)


def _whole(y: Float64, made: Float64) -> list[str]:
    """Scale, and whether the same values stand in another order."""
    norms = float(np.linalg.norm(y)), float(np.linalg.norm(made))
    if not norms[0]:
        return ["all zero"]
    if not norms[1]:
        return ["not zero where the replay is"]
    scale = float(y @ made) / norms[1] ** 2
    cosine = float(y @ made) / (norms[0] * norms[1])
    if np.linalg.norm(y - scale * made) < 0.2 * np.linalg.norm(y - made):
        return [f"scaled by {scale:.6g}"]
    order = float(np.linalg.norm(np.sort(y) - np.sort(made))) / norms[1]
    if order < 1e-4 and cosine < 0.9999:
        return ["the right values in another order (a permutation)"]
    return []


def _places(held: Float64, total: float, name: str, extent: int) -> list[str]:
    """The few indices of one axis, or the block of channels, that hold nearly all the error."""
    if extent < 3:
        return []
    order = np.argsort(-held)
    enough = int(np.searchsorted(np.cumsum(held[order]), _SHARE * total)) + 1
    if enough <= max(1, min(3, extent // 4)):
        places = sorted(int(i) for i in order[:enough])
        return [f"only {name} {', '.join(map(str, places))}"]
    if name not in ("channel", "token id"):
        return []
    for size in (32, 256):
        if extent % size or extent < 4 * size:
            continue
        blocks = held.reshape(-1, size).sum(axis=1)
        block = int(np.argmax(blocks))
        if blocks[block] >= _SHARE * total:
            return [f"only channels {block * size} to {(block + 1) * size - 1} (a block of {size})"]
    return []
