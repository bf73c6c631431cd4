"""Values beyond a type's range: NaN and Inf that are born of them, or values held at it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from aprtui.compare.bisection import Mistake
from aprtui.compare.case import Case
from aprtui.compare.localerror import LocalError, row_norms
from aprtui.compare.mistakes.attempt import Attempt, Candidate, Entry, ProductAttempt
from aprtui.engine.replay import Arithmetic
from aprtui.formats.tracedir import StageKey
from aprtui.graph.ops import Experts, Norm, Op, Product, Scores
from aprtui.text import count, number

__all__ = ["LARGEST", "RANGES", "born_nonfinite", "saturated_product"]

Float64 = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

LARGEST = {
    "float8 e4m3": 448.0, "float8 e5m2": 57_344.0, "float16": 65_504.0,
    "bfloat16": 3.3895e38, "float32": 3.4028235e38,
}  # fmt: skip
"""The largest finite number of each type that activations are kept in."""

_SATURATING = {kind: LARGEST[kind] for kind in ("float8 e4m3", "float8 e5m2", "float16")}
_AT_ONCE = 1 << 22  # terms of products that are looked at together
_TERMS = 1 << 31  # and in all

_ROUNDED = {"float16": "F16", "bfloat16": "BF16"}
_TIE = 1.0 + 2.0**-12  # a value a little beyond the largest is rounded to it


@dataclass(frozen=True)
class _Beyond:
    """Which outputs break where values ``what`` lie beyond the largest of a type."""

    kind: str
    what: str
    broken: Bools
    count: int
    largest: float
    place: tuple[int, ...]


def born_nonfinite(case: Case, error: LocalError) -> Mistake | None:
    """NaN or Inf born here: of values beyond a type's range where these explain which elements
    broke, else by place; the rest of the stage must be right."""
    with np.errstate(all="ignore"):
        right = case.run()
        broken = ~np.isfinite(case.y) & np.isfinite(right)
        op = case.op
        inside = _inside_products(case, op) if isinstance(op, Product) and not case.between else ()
        for beyond in (*_beyond(case, right), *inside):
            if np.array_equal(beyond.broken, broken):
                left = _rest(case, beyond, right)
                if left is not None:
                    return _overflow(case, beyond, left, error.born)
    if not (error.rel_l2 <= case.limits[0] and error.worst_row_rel_l2 <= case.limits[1]):
        return None
    value = float(case.y[error.worst])
    what = "NaN" if np.isnan(value) else "Inf"
    place = dict(zip(case.axes, error.worst, strict=False))
    said = ", ".join(f"{axis} {i}" for axis, i in place.items())
    values = f"{count(error.born, 'value')} {'is' if error.born == 1 else 'are'} {what}"
    text = f"{values} where the inputs make finite ones, the first at {said}"
    return Mistake("nonfinite", text, {"count": error.born, "value": what, **place}, error.rel_l2)


def _beyond(case: Case, right: Float64) -> Iterator[_Beyond]:
    """Every way in which a type's range may have broken elements, the outputs' own first."""
    for kind, largest in LARGEST.items():
        over = np.abs(right) > largest * _TIE
        if over.any():
            place = np.unravel_index(int(np.argmax(np.abs(right))), right.shape)
            yield _Beyond(kind, "outputs", over, int(over.sum()), float(np.abs(right).max()),
                          tuple(int(i) for i in place))  # fmt: skip
    if isinstance(case.op, Scores) and case.op.cap is None and case.op.scale != 1.0:
        yield from _before_scale(right, case.op.scale)
    if not isinstance(case.op, Product | Experts) or case.between or case.axis:
        return
    x = case.inputs()[0].reshape(len(case.inputs()[0]), -1)
    if isinstance(case.op, Product):
        x = case.replay.product_input(case.op, case.inputs()[0])
    for kind, largest in LARGEST.items():
        over = np.abs(x) > largest * _TIE
        if over.any() and (case.y.ndim == 1 or len(x) == len(case.y)):
            rows = over.any(axis=1)
            shape = (-1,) + (1,) * (case.y.ndim - 1)
            broken = np.broadcast_to(rows.reshape(shape) if case.y.ndim > 1 else rows, case.y.shape)
            row, column = np.unravel_index(int(np.argmax(np.abs(x))), x.shape)
            yield _Beyond(kind, f"values of {_name(case.node.inputs[0])}", broken,
                          int(over.sum()), float(np.abs(x).max()),
                          (int(row), int(column)))  # fmt: skip


def _name(key: StageKey) -> str:
    return key.stage


def _before_scale(right: Float64, scale: float) -> Iterator[_Beyond]:
    """Scores that are too large before they are scaled."""
    raw = np.abs(right / scale)
    over = raw > LARGEST["float16"] * _TIE
    if over.any():
        place = np.unravel_index(int(np.argmax(raw)), raw.shape)
        yield _Beyond("float16", "scores before their scale", over, int(over.sum()),
                      float(raw.max()), (int(place[1]),))  # fmt: skip


def _inside_products(case: Case, op: Product) -> Iterator[_Beyond]:
    """Terms of a product's sums, or the sums on their way, beyond float16: of the outputs only."""
    x, rows = case.replay.product_input(op, case.inputs()[0]), op.parts[0].rows
    if len(op.parts) > 1 or op.cap is not None or len(x) * x.shape[1] * rows > _TERMS:
        return
    largest = LARGEST["float16"] * _TIE
    terms, sums = np.zeros((len(x), rows)), np.zeros((len(x), rows))
    for first, block in case.replay.blocks(op.parts[0].weight):
        step = max(1, _AT_ONCE // block.shape[1])
        for start in range(0, len(block), step):
            some = block[start : start + step]
            place = slice(first + start, first + start + len(some))
            for at, row in enumerate(x):
                each = row * some
                terms[at, place] = np.abs(each).max(1)
                sums[at, place] = np.abs(np.cumsum(each, axis=1)).max(1)
    for what, most in (("products", terms), ("sums on their way", np.maximum(terms, sums))):
        over = most > largest
        if over.any():
            row, _ = np.unravel_index(int(np.argmax(most)), most.shape)
            yield _Beyond("float16", f"{what} of {case.key.stage}", over.reshape(case.y.shape),
                          int(over.sum()), float(most.max()), (int(row),))  # fmt: skip


# -- values that are held at the largest -----------------------------------------------------------


def saturated(at: Attempt[Op]) -> Iterator[Candidate]:
    """Outputs beyond a type's largest number are that number."""
    yield from _held(at.base, "outputs", lambda made: made)


def saturated_product(at: ProductAttempt) -> Iterator[Candidate]:
    yield from _held(at.base, "outputs", lambda made: made)
    name = _name(at.case.node.inputs[0])
    yield from _held(at.x, f"values of {name}", lambda held: at.product(held))


def _held(values: Float64, what: str, made_of: Callable[[Float64], Float64]) -> Iterator[Candidate]:
    for kind, largest in _SATURATING.items():
        over = np.abs(values) > largest * _TIE
        if not over.any():
            continue
        beyond, most = int(over.sum()), float(np.abs(values).max())
        text = (
            f"{count(beyond)} {what} lie beyond {kind}'s {number(largest, 6)} and are held at it, "
            f"the largest is {number(most, 6)}"
        )
        parameters = {"type": kind, "what": what, "count": beyond, "largest": most}
        yield Candidate(made_of(np.clip(values, -largest, largest)), text, parameters)


def squares_overflow(at: Attempt[Norm]) -> Iterator[Candidate]:
    """A norm whose mean of squares is infinite in float16 makes zeros of the row."""
    if at.op.centred or not at.inputs or at.op.heads is not None:
        return
    squares = np.square(at.inputs[0])
    most = squares.max(-1)
    over = most > LARGEST["float16"] * _TIE
    if not over.any():
        return
    made = np.where(over[..., None], 0.0, at.base)
    rows = np.flatnonzero(over).tolist()
    text = (
        f"squares beyond float16's {number(LARGEST['float16'], 6)} made zeros of "
        f"{count(len(rows), 'row')}, the largest is {number(float(most.max()), 6)}"
    )
    parameters = {
        "type": "float16", "what": "squares", "count": len(rows), "largest": float(most.max()),
        "positions": rows,
    }  # fmt: skip
    yield Candidate(made, text, parameters)


RANGES = (
    Entry("saturated", (), saturated),
    Entry("overflow", (Norm,), squares_overflow),
)


def _rest(case: Case, beyond: _Beyond, right: Float64) -> float | None:
    """What is left of the elements that did not break, in the type or exactly; None where they
    are wrong too."""
    tries = [right]
    kind = _ROUNDED.get(beyond.kind)
    if kind is not None:
        for how in (
            Arithmetic(product=kind, weights=kind),
            Arithmetic(product=kind),
            Arithmetic(product=kind, weights=kind, stage=kind),
        ):
            tries.append(case.run(how))
    kept = ~beyond.broken
    if not kept.any():
        return 0.0
    for made in tries:
        away = np.where(kept & np.isfinite(made), case.y - made, 0.0)
        norms = row_norms(np.where(kept, np.nan_to_num(right), 0.0), case.axis)
        left = float(np.linalg.norm(away)) / max(float(np.linalg.norm(norms)), 1e-300)
        if left <= max(case.limits[0], 2.0**-12 if case.rounded else 0.0):
            return left
    return None


def _overflow(case: Case, beyond: _Beyond, left: float, born: int) -> Mistake:
    positions = np.flatnonzero(
        beyond.broken.any(axis=tuple(i for i in range(beyond.broken.ndim) if i != case.axis))
    ).tolist()
    largest = LARGEST[beyond.kind]
    text = (
        f"{count(beyond.count)} {beyond.what} lie beyond {beyond.kind}'s {number(largest, 6)}, "
        f"the largest is {number(beyond.largest, 6)} at position {beyond.place[0]}: "
        f"{count(born, 'value')} became NaN or Inf"
    )
    parameters = {
        "type": beyond.kind, "what": beyond.what, "count": beyond.count,
        "largest": beyond.largest, "positions": positions, "born": born,
    }  # fmt: skip
    return Mistake("overflow", text, parameters, left)
