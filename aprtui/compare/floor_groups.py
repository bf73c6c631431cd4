"""One head or one expert that is a little wrong in a stage that is right as a whole."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from aprtui.compare.case import Case
from aprtui.compare.localerror import row_norms
from aprtui.graph.ops import Attend, Experts, Scores
from aprtui.text import count

__all__ = ["Apart", "head_apart", "rows_of_an_expert"]

Float64 = npt.NDArray[np.float64]

_U = 2.0**-24
_TIMES = 12.0  # the error of the other heads, or rows: honest ones lie within 4
_LEAST = 0.3  # spreads that the median head is taken to have at least
_LEAST_ROW = 1e-7  # relative, likewise of rows
_FEW = 3  # heads, or rows without the expert, that are needed to say what is usual
_COMMON = 0.25  # of the heads beyond: then it is no single one

Apart = tuple[str, float, tuple[int, ...]]
"""What is to be said, how many times the usual error it is, the worst place."""


def head_apart(case: Case, made: Float64) -> Apart | None:
    """The head of scores or of an attention whose sums are off, against the other heads'."""
    spread = _spread(case)
    axis = next((at for at, name in enumerate(case.axes) if name == "head"), None)
    if spread is None or axis is None or not case.y.shape == made.shape == spread.shape:
        return None
    heads = case.y.shape[axis]
    error = np.abs(case.y - made)
    z = np.where(spread > 0, error / np.where(spread > 0, spread, 1.0), 0.0)
    terms = np.maximum((np.moveaxis(spread, axis, 0).reshape(heads, -1) > 0).sum(1), 1)
    squares = np.square(np.moveaxis(z, axis, 0).reshape(heads, -1)).sum(1)
    of_each = np.sqrt(squares / terms)
    usual = max(float(np.median(of_each)), _LEAST)
    head = int(np.argmax(of_each))
    times = float(of_each[head]) / usual
    if heads < _FEW or not times > _TIMES or float((of_each > _TIMES * usual).mean()) > _COMMON:
        return None
    own = np.zeros_like(z)
    index = (slice(None),) * axis + (head,)
    own[index] = z[index]
    place = tuple(int(at) for at in np.unravel_index(int(np.argmax(own)), z.shape))
    return f"only head {head}: {times:,.0f} times the error of the other heads", times, place


def _spread(case: Case) -> Float64 | None:
    """u * (sqrt(sum of the squared terms) + the sum) of each output: the operation of squares."""
    op = case.op
    if isinstance(op, Scores):
        if op.cap is not None or op.alibi is not None or op.temperature is not None:
            return None
        scale = abs(op.scale)
    elif isinstance(op, Attend):
        scale = abs(op.scale)
    else:
        return None
    squares = case.shaped(case.replay.run(case.node, [np.square(each) for each in case.inputs()]))
    spread = np.sqrt(np.abs(squares) / scale) * scale
    return np.asarray(_U * (spread + np.where(spread > 0, np.abs(case.y), 0.0)))


def rows_of_an_expert(case: Case, made: Float64) -> Apart | None:
    """The expert whose rows, all of them and no others, are off."""
    if not isinstance(case.op, Experts) or case.y.shape != made.shape or case.last:
        return None
    ids = case.inputs()[2].astype(np.int64)
    if len(ids) != len(made):
        return None
    error, norms = row_norms(case.y - made, 0), row_norms(made, 0)
    off = np.where(norms > 0, error / np.where(norms > 0, norms, 1.0), 0.0)
    for expert in np.unique(ids[int(np.argmax(off))]).tolist():
        chose = (ids == expert).any(1)
        if (~chose).sum() < _FEW:
            continue
        usual = max(float(np.median(off[~chose])), _LEAST_ROW)
        times = float(off[chose].min()) / usual
        if times > _TIMES and float(off[~chose].max()) <= _TIMES * usual:
            worst = np.abs(case.y - made) * chose[:, None]
            place = tuple(int(at) for at in np.unravel_index(int(np.argmax(worst)), made.shape))
            rows = count(int(chose.sum()), "row")
            text = (
                f"only the {rows} that chose expert {expert}: {times:,.0f} times the others' error"
            )
            return text, times, place
    return None
