"""Two sides of a pair brought to the same elements, or the reason why they cannot be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from aprtui.formats.tracedir import StageRecord
from aprtui.graph.vocabulary import facts_of
from aprtui.text import count, ranges

__all__ = ["Aligned", "align", "only_rows"]

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Aligned:
    """Two flat arrays of equal size and what their elements mean."""

    x: Float32
    y: Float32
    shape: tuple[int, ...] | None
    axes: tuple[str, ...] | None
    positions: tuple[int, ...] | None = None  # of its rows, where not those that B holds


def align(a: StageRecord, b: StageRecord, x: Float32, y: Float32, *, last: bool) -> Aligned | str:
    """The two sides ready to be compared, or why they cannot be."""
    if last:
        return _align_last(a, b, x, y)
    common = _common(a, b, x, y)
    if common is not None:
        return common
    shapes = f"{_shape_text(a, x)} against {_shape_text(b, y)}"
    known = next((side for side in (a, b) if side.shape is not None), a)
    if x.size == y.size and not _contradict(a, b):
        fits = known.shape is not None and math.prod(known.shape) == x.size
        return Aligned(x, y, *((known.shape, known.axes) if fits else (None, None)))
    if _is_token_first(a) and (_is_row_of(x, a, y) or _is_row_of(y, b, x)):
        return f"{shapes}: one side may hold only the last position (--positions last)"
    return shapes


def only_rows(aligned: Aligned, rows: Sequence[int], positions: Sequence[int]) -> Aligned:
    """Some rows of two sides whose shape is known, by number; ``positions``: where these stand."""
    shape, axis = aligned.shape, int(aligned.axes == ("head", "query", "key"))
    assert shape is not None
    taken = [
        np.take(side.reshape(shape), rows, axis=axis).reshape(-1) for side in (aligned.x, aligned.y)
    ]
    cut = (*shape[:axis], len(rows), *shape[axis + 1 :])
    return Aligned(taken[0], taken[1], cut, aligned.axes, tuple(positions))


def _common(a: StageRecord, b: StageRecord, x: Float32, y: Float32) -> Aligned | str | None:
    """The positions that both sides hold, where one holds other ones than the other; else None."""
    if not _is_token_first(a) or not any(map(_stands_elsewhere, (a, b))):
        return None
    sides = [_by_position(record, values) for record, values in ((a, x), (b, y))]
    left, right = sides
    if left is None or right is None or list(left) == list(right):
        return None
    both = [position for position in left if position in right]
    if not both:
        return f"no position in common: {ranges(left)} against {ranges(right)}"
    rows = [np.stack([side[position] for position in both]) for side in (left, right)]
    if rows[0].shape != rows[1].shape:
        return f"{_shape_text(a, x)} against {_shape_text(b, y)}"
    axes = ("token", *(f"dim{place}" for place in range(1, rows[0].ndim)))
    named = next(
        (each.axes for each in (a, b) if each.axes and len(each.axes) == rows[0].ndim), axes
    )
    return Aligned(rows[0].reshape(-1), rows[1].reshape(-1), rows[0].shape, named, tuple(both))


def _stands_elsewhere(record: StageRecord) -> bool:
    """Whether a side's rows are not those of a prompt from its first token on."""
    late = record.rows is not None and record.rows.positions[:1] > (0,)
    return late or isinstance(record.positions, tuple)


def _by_position(record: StageRecord, values: Float32) -> dict[int, Float32] | None:
    """The rows of a side by where they stand; None where that is not known."""
    shape = record.shape
    if not shape or math.prod(shape) != values.size:
        return None
    shaped = values.reshape(shape)
    if facts_of(record.key.stage).logits and len(shape) == 1:
        shaped = shaped[None]
    held = record.held()
    if held is None or len(held) != len(shaped):
        return None
    return dict(zip(held, shaped, strict=True))


def _contradict(a: StageRecord, b: StageRecord) -> bool:
    if a.shape is None or b.shape is None:
        return False
    if len(a.shape) == len(b.shape):
        return a.shape != b.shape
    return a.shape[0] != b.shape[0]


def _is_token_first(record: StageRecord) -> bool:
    facts = facts_of(record.key.stage)
    return facts.axes[:1] == ("token",) or facts.logits


def _is_row_of(whole: Float32, record: StageRecord, row: Float32) -> bool:
    """Whether ``row`` may be one position of ``whole``, by its shape where that is known."""
    if not 0 < row.size < whole.size:
        return False
    if record.shape is not None and len(record.shape) > 1:
        return record.shape[0] * row.size == whole.size
    return whole.size % row.size == 0


def _shape_text(record: StageRecord, values: Float32) -> str:
    if record.shape is None:
        return f"{count(values.size)} values"
    shape = "[" + ", ".join(map(str, record.shape)) + "]"
    if math.prod(record.shape) != values.size:
        return f"{count(values.size)} values where {shape} is stated"
    return shape


def _align_last(a: StageRecord, b: StageRecord, x: Float32, y: Float32) -> Aligned | str:
    """The last position of each side; a flat side is read by the other's size."""
    rows = [_last_row(record, values) for record, values in ((a, x), (b, y))]
    left, right = rows
    if left is None and right is None and x.size != y.size and _is_token_first(a):
        size = min(x.size, y.size)
        left = (x[:size], (1, size), ("token", "channel"))
        right = (y[:size], (1, size), ("token", "channel"))
        if x.size > size:
            left = (x[-size:], *left[1:])
        else:
            right = (y[-size:], *right[1:])
        if max(x.size, y.size) % size:
            return f"{_shape_text(a, x)} against {_shape_text(b, y)}"
    elif left is None and right is not None and _is_token_first(a):
        left = (x[-right[0].size :], *right[1:])
    elif right is None and left is not None and _is_token_first(b):
        right = (y[-left[0].size :], *left[1:])
    if left is None or right is None:
        return "the last position cannot be told without a shape (--model MODEL tells it)"
    if left[0].size != right[0].size:
        return (
            f"the last positions differ in size: {count(left[0].size)} against "
            f"{count(right[0].size)} values"
        )
    return Aligned(left[0], right[0], left[1], left[2])


def _last_row(
    record: StageRecord, values: Float32
) -> tuple[Float32, tuple[int, ...], tuple[str, ...]] | None:
    shape, axes = record.shape, record.axes
    if not shape or not axes or math.prod(shape) != values.size or not values.size:
        return None
    if axes[0] == "token":
        return values[-(values.size // shape[0]) :], (1, *shape[1:]), axes
    if axes == ("head", "query", "key"):
        row = values.reshape(shape)[:, -1:, :]
        return np.ascontiguousarray(row).reshape(-1), (shape[0], 1, shape[2]), axes
    return values, shape, axes
