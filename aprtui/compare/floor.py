"""One wrong weight of a large matrix: an explained stage judged once more, output by output.

The error of a whole tensor does not see it. Each output's error is divided by what summing in
float32 makes of it (u * sqrt(sum (w x)^2), u = 2^-24, and the rounding of the output), and the
largest is held against the median of the same stage: honest ones stay below 17 medians however an
engine sums, one quantum of one weight makes fifty and more (docs/compare.md 5).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from aprtui.compare.bisection import Mistake
from aprtui.compare.case import Case
from aprtui.compare.explain import Explanation
from aprtui.compare.fits import Fit
from aprtui.compare.floor_groups import head_apart, rows_of_an_expert
from aprtui.compare.localerror import beyond_rounding
from aprtui.engine.replay import EXACT, Activations, Arithmetic, halfway, terms_norm, types_of
from aprtui.graph.ops import Add, Bias, Embed, Multiply, Norm, Part, Product

__all__ = ["Judged", "Outlier", "judge_finely"]

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

_U = 2.0**-24
_FACTOR = 40.0  # medians: honest ones have 17 at most, one quantum 50 at least
_LEAST = 0.3  # spreads that the median is taken to be at least: outputs may be exact
_LEAST_NARROW = 0.5  # times sqrt(columns): the same where 16 bits hide most of the sums' errors
_TIED = 8.0  # medians of all that a position's own median may be: else an activation went the
# other way in its rounding, which moves all outputs of the position
_TOP, _SAMPLE = 24, 48  # outputs whose spread is computed: the most suspect, and some of all
_RUN = 8  # outputs of the sample that lie side by side: decoded at once
_HONEST = 17.0 / 40.0  # of the bar: what the right column may leave at a position
_APART = 3.0  # times what the right column leaves, the next best one does
_COMMON = 0.1  # of the sample beyond the bar: then it is no single weight


@dataclass(frozen=True)
class Outlier:
    """One output that is wrong in a stage that is right as a whole: ``medians`` is its error in
    medians of its stage. ``part`` is the matrix concerned where the stage has several. ``alone``:
    no other output of it is wrong."""

    text: str
    medians: float
    place: tuple[int, ...]
    part: str = ""
    mistake: Mistake | None = None
    alone: bool = False


@dataclass(frozen=True)
class Judged:
    """``hidden``: how far one weight may be off, relative to a typical one of its matrix, before
    it is seen; None where nothing says."""

    outlier: Outlier | None = None
    hidden: float | None = None


def judge_finely(case: Case, found: Explanation) -> Judged:
    """Judge a stage output by output under what explains it best, where the spread of its
    operation is known."""
    if isinstance(case.op, Product) and not case.between:
        return _product(case, case.op, found)
    if case.between or found.how != EXACT or found.numerics.output:
        return Judged()
    apart = head_apart(case, found.best) or rows_of_an_expert(case, found.best)
    if apart is not None:
        return Judged(Outlier(*apart))
    spread = _spread(case)
    return Judged() if spread is None else Judged(_elementwise(case, found.best, spread))


# -- element by element ----------------------------------------------------------------------------


def _spread(case: Case) -> Float64 | None:
    """What float32 makes of each output of a norm, a bias, a sum, a product of two; None for
    operations whose error depends on the position.

    A bias may have been added inside the product that B shows without it: the sums of that are of
    the typical product's size.
    """
    y, given = np.abs(case.y), [np.abs(each) for each in case.inputs()] if case.node.inputs else []
    if isinstance(case.op, Add | Bias | Multiply):
        if any(each.shape != y.shape for each in given):
            return None
        if isinstance(case.op, Bias):
            typical = np.sqrt(np.square(given[0]).mean(-1, keepdims=True))
            given = [np.maximum(given[0], typical)]
        return _U * (y if isinstance(case.op, Multiply) else y + np.maximum.reduce(given))
    if isinstance(case.op, Norm):
        plain = case.op.bias is None and not case.op.centred  # else small ones are of large terms
        return _U * y if plain else _U * (y + y.max(-1, keepdims=True))
    return _U * y if isinstance(case.op, Embed) else None


def _elementwise(case: Case, made: Float64, spread: Float64) -> Outlier | None:
    """The worst element of the worst channel, against its own position's median."""
    if case.y.ndim < 2 or made.shape != case.y.shape:
        return None
    rows = len(case.y)
    written = types_of(case.y.astype(np.float32).reshape(-1)) or ("",)
    error = np.minimum.reduce([np.abs(beyond_rounding(case.y, made, kind)) for kind in written])
    error = error.reshape(rows, -1)
    usual = np.sqrt(np.square(case.y).reshape(rows, -1).mean(1, keepdims=True))
    z = error / np.maximum(spread.reshape(rows, -1), _U * 1e-3 * usual + 1e-40)
    z = np.where(np.isfinite(z), z, 0.0)
    medians = np.maximum(np.median(z, axis=1, keepdims=True), _LEAST)
    worst = int(np.argmax(z / medians))
    place = np.unravel_index(worst, z.shape)
    times = float((z / medians).flat[worst])
    if times <= _FACTOR or float((z > _FACTOR * medians).mean()) > _COMMON:
        return None
    index = tuple(int(at) for at in np.unravel_index(worst, case.y.shape))
    off = float(case.y.flat[worst] - made.flat[worst])
    where = _where(case, index)
    text = f"{where} is off by {off:.3g}, {times:,.0f} times what its neighbours are"
    every = int((z[:, place[1]] > _FACTOR * medians[:, 0]).sum())
    text += f"; so it is at {every} of {rows} positions" if every > 1 else ""
    return Outlier(text, times, index)


def _where(case: Case, index: tuple[int, ...]) -> str:
    names = {"token": "position", "hidden": "channel", "ffn": "channel", "qkv": "channel"}
    return ", ".join(
        f"{names.get(axis, axis)} {at}" for axis, at in zip(case.axes, index, strict=True)
    )


# -- products --------------------------------------------------------------------------------------


def _product(case: Case, op: Product, found: Explanation) -> Judged:
    x = case.replay.activations(case.replay.product_input(op, case.inputs()[0]))
    hidden: list[float] = []
    for part, fit in zip(op.parts, found.fits, strict=True):
        judged = _part(case, op.alone(part), part, x, fit)
        if judged.outlier is not None:
            return judged
        if judged.hidden is not None:
            hidden.append(judged.hidden)
    return Judged(None, max(hidden, default=None))


def _part(case: Case, op: Product, part: Part, x: Activations, fit: Fit) -> Judged:
    how = fit.numerics.how
    if how.running or how.partial:
        return Judged()
    if how.stage and (op.factor(part) != 1.0 or op.cap is not None):
        return Judged()
    y = case.columns(part)
    made = fit.made.reshape(y.shape)
    error = beyond_rounding(y, made, fit.numerics.output)
    if not np.isfinite(error).all():
        return Judged()
    tie = _tie(case, part, made, how)
    looked = _looked_at(case, op, part, x, fit, np.sign(error) * np.maximum(abs(error) - tie, 0.0))
    if looked is None:
        return Judged()
    columns, right = [*looked.suspects, *looked.sample], looked.right
    bar, hidden = _FACTOR * looked.median * looked.spread, np.zeros_like(looked.spread)
    if fit.numerics.output:
        hidden = halfway(y[:, columns], fit.numerics.output) + tie[:, columns]
    beyond = np.where(right[:, None], looked.z[:, : len(looked.suspects)], 0.0)
    times = float(beyond.max()) / looked.median
    if times <= _FACTOR:
        rest = slice(len(looked.suspects), None)
        seen = (bar + hidden)[right][:, rest]
        return Judged(None, _hidden(seen, looked.x[right], looked.weights[rest]))
    at, column = np.unravel_index(int(np.argmax(beyond)), beyond.shape)
    row = looked.suspects[column]
    outlier = _one_output(
        case,
        part,
        (int(at), row),
        times,
        (y - made)[right, row],
        looked.x[right],
        looked.weights[column],
        (_HONEST * bar + hidden)[right, column],
        int((beyond > _FACTOR * looked.median).any(0).sum()) == 1,
    )
    return Judged(outlier)


@dataclass(frozen=True)
class _Looked:
    """Outputs that are looked at: the ``suspects``, then the ``sample``, both as columns of y.

    ``x`` [n, columns] as it is multiplied, ``weights`` their rows of the matrix; ``spread`` and
    ``z`` (error / spread) [n, outputs]; ``median`` of the sample's z; ``right`` [n]: positions
    whose activations did not round the other way.
    """

    suspects: list[int]
    sample: list[int]
    x: Float64
    weights: Float64
    spread: Float64
    z: Float64
    median: float
    right: npt.NDArray[np.bool_]


def _looked_at(
    case: Case, op: Product, part: Part, x: Activations, fit: Fit, error: Float64
) -> _Looked | None:
    """The outputs whose ``error`` [n, rows] is held against the rest; None where it is no single
    weight's: at no position, or in too much of the sample."""
    how, y = fit.numerics.how, case.columns(part)
    suspects, sample = _outputs(error, fit.made.reshape(y.shape))
    columns = [*suspects, *sample]
    rounded = case.replay.rounded_rows(x, how.way(case.replay.type_of(part.weight)).activations)
    weights = case.replay.rows(part.weight, columns, how.weights)
    factor = op.factor(part)
    weights = weights if factor == 1.0 else factor * weights
    spread = _U * terms_norm(rounded, weights) + _U * np.abs(y[:, columns]) + 1e-40
    z = np.abs(error[:, columns]) / spread
    of_sample = z[:, len(suspects) :]
    least = _LEAST_NARROW * rounded.shape[1] ** 0.5 if fit.numerics.output else _LEAST
    median = max(float(np.median(of_sample)), least)
    right = np.median(of_sample, axis=1) <= _TIED * median
    if not right.any() or float((of_sample[right] > _FACTOR * median).mean()) > _COMMON:
        return None
    return _Looked(suspects, sample, rounded, weights, spread, z, median, right)


def _tie(case: Case, part: Part, made: Float64, how: Arithmetic) -> Float64:
    """What a product that was rounded before its bias may have made of each output by rounding the
    other way: a unit."""
    if not how.stage or part.bias is None:
        return np.zeros_like(made)
    return 2.0 * halfway(made - case.replay.vector(part.bias), how.stage)


def _outputs(error: Float64, made: Float64) -> tuple[list[int], list[int]]:
    """(the outputs with the largest error for their size, evenly spread runs of them)."""
    size = np.sqrt(np.square(made).mean(0))
    ratio = np.abs(error).max(0) / np.maximum(size, 1e-30)
    count = min(_TOP, len(ratio))
    suspects = np.argpartition(-ratio, count - 1)[:count]
    starts = np.linspace(0, max(0, len(ratio) - _RUN), _SAMPLE // _RUN).astype(np.int64)
    sample = np.unique(starts[:, None] + np.arange(min(_RUN, len(ratio))))
    return suspects.tolist(), sample.tolist()


def _hidden(bar: Float64, x: Float64, weights: Float64) -> float | None:
    """What one weight, in the best column at the best position of a typical output, may be off by,
    relative to the matrix's typical weight."""
    typical = float(np.sqrt(np.square(weights).mean()))
    largest = np.abs(x).max(1, keepdims=True)
    if not typical or not largest.all():
        return None
    return float(np.median((bar / largest).min(0))) / typical


def _one_output(
    case: Case,
    part: Part,
    place: tuple[int, int],
    times: float,
    error: Float64,
    x: Float64,
    weights: Float64,
    bar: Float64,
    alone: bool,
) -> Outlier:
    """An output that is wrong, and the one weight that explains it, where one does.

    ``error`` [n] at the positions that are judged, ``x`` [n, columns], ``weights`` its row.
    """
    at, row = place
    columns = case.op.columns(part) if isinstance(case.op, Product) else slice(0)
    index = (at, columns.start + row)[-case.y.ndim :]
    several = len(case.parts) > 1
    label = f"row {row} of {part.name}" if several else f"row {row}"
    text = f"only {label}: {times:,.0f} times the error of its neighbours"
    if len(error) < 2:
        text += "; one position cannot tell which weight of it"
    found = _one_weight(error, x, bar)
    name = part.name if several else ""
    if found is None:
        return Outlier(text, times, index, name, alone=alone)
    column, off, left = found
    stored = float(weights[column])
    quantum = _quantum(case, part, weights, column)
    text += f"; the weight in column {column} explains it"
    counts = off / quantum if quantum else 0.0
    said = f"{label}, column {column}: the weight counts as {stored + off:.6g} where {stored:.6g}"
    said += " is stored"
    if quantum and abs(counts - round(counts)) < 0.02 * max(1.0, abs(counts)) and round(counts):
        said += f" ({round(counts):+d} of its steps of {quantum:.3g})"
    parameters: dict[str, object] = {
        "row": row, "column": column, "stored": stored, "used": stored + off,
    }  # fmt: skip
    if quantum:
        parameters["quanta"] = counts
    if several:
        parameters["part"] = part.name
    return Outlier(text, times, index, name, Mistake("one_weight", said, parameters, left), alone)


def _one_weight(error: Float64, x: Float64, bar: Float64) -> tuple[int, float, float] | None:
    """(column, by how much, what is left of the error) of the one weight that explains an output's
    ``error`` to ``bar`` at every position; None where none does, or more than one would."""
    with np.errstate(all="ignore"):
        ends = np.stack(((error - bar)[:, None] / x, (error + bar)[:, None] / x))
    free = x == 0  # says nothing of the weight, and can only be right by itself
    low = np.where(free, -np.inf, ends.min(0)).max(0)
    high = np.where(free, np.inf, ends.max(0)).min(0)
    alone = (np.abs(error) <= bar)[:, None] | ~free
    columns = np.flatnonzero((low <= high) & alone.all(0) & np.isfinite(low + high))
    if not len(columns) or len(error) < 2:
        return None
    along = x[:, columns]
    off = np.clip(error @ along / np.square(along).sum(0), low[columns], high[columns])
    left = np.linalg.norm((error[:, None] - off * along) / bar[:, None], axis=0)
    order = np.argsort(left)
    best = int(order[0])
    if len(order) > 1 and left[order[1]] < _APART * left[best]:
        return None
    rest = float(np.linalg.norm(error - off[best] * along[:, best]) / np.linalg.norm(error))
    return int(columns[best]), float(off[best]), rest


def _quantum(case: Case, part: Part, weights: Float64, column: int) -> float:
    """The step between the values of the block that a weight lies in; 0 where each stands alone."""
    size = min(case.replay.block_values(part.weight), 32)
    if size < 2:
        return 0.0
    if case.replay.type_of(part.weight) in ("Q6_K", "Q3_K", "Q2_K"):
        size = 16
    first = column // size * size
    values = np.unique(weights[first : first + size])
    gaps = np.diff(values)
    return float(gaps.min()) if gaps.size else 0.0
