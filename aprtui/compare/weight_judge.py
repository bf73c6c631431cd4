"""One role's weights on both sides decoded, measured and judged: equal, rounding, or differing."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from aprtui.compare.bars import floor_of
from aprtui.compare.weight_floors import ROUNDING_FACTOR, passed_through, rounding_limit
from aprtui.compare.weight_looks import Suspect, name_look
from aprtui.compare.weight_results import TensorResult, WeightMetrics
from aprtui.compare.weight_sides import WeightSide
from aprtui.compare.weight_sketches import Sketches
from aprtui.engine.row_sums import RowSums, measure_rows
from aprtui.engine.weight_blocks import WeightReader, side_by_side
from aprtui.graph import Role
from aprtui.model.operand import Operand
from aprtui.text import count, number

__all__ = ["Judge"]

_ROW_FACTOR = 4.0  # a row worse than this many medians is no rounding (docs/compare.md 6)

Pair = tuple[Operand, Operand]
Tell = Callable[[Role, int], None]


class Judge:
    """Judges roles by their values, several at a time; each thread has its own buffers."""

    def __init__(self, sides: tuple[WeightSide, WeightSide], tell: Tell) -> None:
        self._sides = sides
        self._tell = tell  # of values that are measured
        self._sketches = Sketches(*sides)
        self._own = threading.local()

    def judge_all(self, found: dict[Role, TensorResult], pairs: dict[Role, Pair]) -> None:
        """Put the result of each pair into ``found``, which holds where the tensors lie.

        Raises BadFileError, and EngineError for a block type without a decoder.
        """

        def run(role: Role) -> None:
            found[role] = self._judge(found[role], *pairs[role])

        side_by_side(run, list(pairs))

    @property
    def _readers(self) -> tuple[WeightReader, WeightReader]:
        """This thread's readers of A and B."""
        if not hasattr(self._own, "readers"):
            self._own.readers = (WeightReader(), WeightReader())
        readers: tuple[WeightReader, WeightReader] = self._own.readers
        return readers

    def _judge(self, result: TensorResult, a: Operand, b: Operand) -> TensorResult:
        role = result.role
        if (a.rows, a.columns) != (b.rows, b.columns):
            look = name_look(self._suspect(role, a, b, None, rounding_limit(a, b)))
            message = f"{a.rows:,} x {a.columns:,} in A, {b.rows:,} x {b.columns:,} in B"
            return replace(result, kind="shape", looks_like=look, message=message)
        sums = measure_rows(a, b, self._readers, lambda values: self._tell(role, values))
        metrics, limit = _metrics(sums), rounding_limit(a, b, sums)
        result = replace(result, kind="equal", limit=limit, metrics=metrics)
        if sums.equal:
            return result
        message = _not_rounding(metrics, limit, a.rows * a.columns, _noise(sums, a, b))
        if not message:
            return replace(result, kind="rounding")
        if (narrowed := self._narrowed(result, a, b) or self._folded(result, a, b)) is not None:
            return narrowed
        look = name_look(self._suspect(role, a, b, sums, limit))
        if look is not None and look.id == "some_blocks":
            message = ""  # no other row differs: there is no median to hold the worst against
        return replace(result, kind="differs", looks_like=look, message=message)

    def _suspect(
        self, role: Role, a: Operand, b: Operand, sums: RowSums | None, limit: float
    ) -> Suspect:
        return Suspect(role, self._sides, a, b, sums, self._readers, limit, self._sketches)

    def _folded(self, result: TensorResult, a: Operand, b: Operand) -> TensorResult | None:
        """``equal`` or ``rounding`` where one file holds the weight times what the other's pass
        multiplies by."""
        factors = [side.factors.get(result.role, 1.0) for side in self._sides]
        if factors[0] == factors[1]:
            return None
        left, right = (replace(x, factor=by) for x, by in zip((a, b), factors, strict=True))
        sums = measure_rows(left, right, self._readers, lambda values: None)
        metrics, limit = _metrics(sums), rounding_limit(left, right, sums)
        if _not_rounding(metrics, limit, a.rows * a.columns, _noise(sums, left, right)):
            return None
        said = " and ".join(
            f"{name}'s pass by {by:g}" for name, by in zip("AB", factors, strict=True) if by != 1.0
        )
        return replace(
            result, kind="equal" if sums.equal else "rounding", metrics=metrics, limit=limit,
            message=f"multiplied in {said}", folded=True,
        )  # fmt: skip

    def _narrowed(self, result: TensorResult, a: Operand, b: Operand) -> TensorResult | None:
        """``rounding`` where a float32 side holds only numbers of a narrower float."""
        apart = 0.0 if result.metrics is None else result.metrics.rel_l2
        if apart > ROUNDING_FACTOR * floor_of("BF16"):
            return None
        narrow = [passed_through(*each) for each in zip((a, b), self._readers, strict=True)]
        limit = max((ROUNDING_FACTOR * floor_of(kind) for kind in narrow if kind), default=0.0)
        if apart > limit:
            return None
        held = [f"{name} holds {kind} numbers" for name, kind in zip("AB", narrow, strict=True)
                if kind]  # fmt: skip
        return replace(result, kind="rounding", limit=limit, message=" and ".join(held))


def _metrics(sums: RowSums) -> WeightMetrics:
    """The numbers of a whole matrix from the sums of its rows; a.b = a.a + a.(b - a)."""
    dd, aa, bb, along = (
        float(part.sum()) for part in (sums.difference, sums.a, sums.b, sums.along)
    )
    dot = aa + along
    rows = _row_rel_l2(sums)
    worst = int(rows.argmax()) if rows.size else 0
    norms = math.sqrt(aa * bb)
    return WeightMetrics(
        rel_l2=math.sqrt(dd / aa) if aa else (math.inf if dd else 0.0),
        cosine=max(-1.0, min(1.0, dot / norms)) if norms else float(aa == bb),
        scale=1.0 + along / aa if aa else math.nan,
        max_abs=sums.max_abs,
        max_abs_at=sums.max_abs_at,
        worst_row_rel_l2=float(rows[worst]) if rows.size else 0.0,
        worst_row=worst,
        median_row_rel_l2=float(np.median(rows)) if rows.size else 0.0,
        nonfinite_a=sums.nonfinite_a,
        nonfinite_b=sums.nonfinite_b,
    )


def _row_rel_l2(sums: RowSums) -> np.ndarray[Any, np.dtype[np.float64]]:
    with np.errstate(divide="ignore", invalid="ignore"):
        rows: np.ndarray[Any, np.dtype[np.float64]] = np.where(
            sums.difference == 0, 0.0, np.sqrt(sums.difference / sums.a)
        )
    return rows


def _noise(sums: RowSums, a: Operand, b: Operand) -> np.ndarray[Any, np.dtype[np.float64]]:
    """What the rounding of each row is measured by: rel_l2, or where the whole tensor has one
    scale (APR-Q8) the plain size of the error, which then is the same for small rows and large."""
    if "APR_Q8" in (a.matrix.entry.type, b.matrix.entry.type):
        return np.sqrt(sums.difference)
    return _row_rel_l2(sums)


def _not_rounding(
    metrics: WeightMetrics,
    limit: float,
    values: int,
    noise: np.ndarray[Any, np.dtype[np.float64]],
) -> str:
    """Why the difference is not the formats' rounding; empty where it is.

    Rounding shrinks values by about the floor squared, and its mean goes to zero with the root of
    their number; a scale beyond that is an error of its own though it hide below the floor.
    """
    if metrics.nonfinite_a != metrics.nonfinite_b:
        return (
            f"{count(metrics.nonfinite_a)} NaN or infinite in A, {count(metrics.nonfinite_b)} in B"
        )
    if not metrics.rel_l2 <= limit:
        return f"rel_l2 {number(metrics.rel_l2, 3)} > {number(limit, 3)}"
    floor = limit / ROUNDING_FACTOR
    if abs(1.0 - metrics.scale) > 2 * floor**2 + 6 * floor / math.sqrt(values):
        return f"scaled by {number(metrics.scale, 5)}, more than rounding does"
    worst, median = int(noise.argmax()), float(np.median(noise))
    if noise[worst] > _ROW_FACTOR * median and noise.size > 1:
        times = noise[worst] / median if median else math.inf
        return f"row {worst:,} is {number(float(times), 3)} times the median row"
    return ""
