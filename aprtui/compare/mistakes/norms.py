"""Mistakes in norms: left out, without the weight, with another eps or another weight."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from aprtui.compare.mistakes.attempt import Attempt, Candidate, Entry, neat
from aprtui.engine.replay import heads_of
from aprtui.graph import Role
from aprtui.graph.ops import Norm

__all__ = ["NORMS"]

Float64 = npt.NDArray[np.float64]


def _x(at: Attempt[Norm]) -> Float64:
    """What is normalised, in the output's shape."""
    x, heads = at.inputs[0], at.op.heads
    return x if heads is None else heads_of(x, heads)


def _rows(at: Attempt[Norm], values: Float64) -> Float64:
    """Values of the output's shape with what is normalised together along the last axis."""
    return values.reshape(len(values), -1) if at.op.whole else values


def _factor(at: Attempt[Norm]) -> Float64 | None:
    """What each channel is multiplied by; None without a weight."""
    role = at.op.weight
    if at.op.own:
        return np.stack([at.case.replay.vector(each) for each in at.op.own]) + at.op.offset
    return None if role is None else _along(at, role) + at.op.offset


def _along(at: Attempt[Norm], role: Role) -> Float64:
    """A vector along the rows of ``_rows``: of every head its own where it holds them all."""
    vector, rows = at.case.replay.vector(role), _rows(at, at.base)
    return vector if vector.size == rows.shape[-1] else vector.reshape(rows.shape[1:])


def _normalised(at: Attempt[Norm]) -> Float64:
    return _rows(at, at.remade(replace(at.op, weight=None, bias=None, own=())))


def _weighed(at: Attempt[Norm], factor: Float64) -> Float64:
    """The norm with other factors of its channels."""
    made = _normalised(at) * factor
    if at.op.bias is not None:
        made = made + _along(at, at.op.bias)
    return made.reshape(at.base.shape)


def missing(at: Attempt[Norm]) -> Iterator[Candidate]:
    yield Candidate(_x(at), "the norm was left out")


def no_weight(at: Attempt[Norm]) -> Iterator[Candidate]:
    if at.op.weight is not None or at.op.own:
        made = at.remade(replace(at.op, weight=None, own=()))
        yield Candidate(made, "normalised, but not multiplied by the norm's weight")


def one_plus(at: Attempt[Norm]) -> Iterator[Candidate]:
    right, said = at.op.offset, {0.0: "w", 1.0: "1 + w", -1.0: "w - 1"}
    if at.op.weight is None or right not in said:
        return
    for offset in (0.0, 1.0, -1.0):
        if offset != right:
            text = f"multiplied by {said[offset]} where this file's weight means {said[right]}"
            parameters = {"used": said[offset], "right": said[right]}
            yield Candidate(at.remade(replace(at.op, offset=offset)), text, parameters)


def layernorm(at: Attempt[Norm]) -> Iterator[Candidate]:
    if not at.op.centred:
        made = at.remade(replace(at.op, centred=True))
        yield Candidate(made, "LayerNorm (the mean taken off) for RMSNorm")


def mean_left_in(at: Attempt[Norm]) -> Iterator[Candidate]:
    if at.op.centred:
        made = at.remade(replace(at.op, centred=False))
        yield Candidate(made, "RMSNorm (the mean left in) for LayerNorm")


def eps(at: Attempt[Norm]) -> Iterator[Candidate]:
    if at.y is None:
        return
    x, y, factor = _rows(at, _x(at)), _rows(at, at.y), _factor(at)
    if at.op.centred:
        x = x - x.mean(-1, keepdims=True)
    if at.op.bias is not None:
        y = y - _along(at, at.op.bias)
    target = x if factor is None else x * factor
    scale = (y * target).sum(-1) / np.square(target).sum(-1)
    mean = np.square(x).mean(-1)
    trust = 1.0 / np.square(mean)  # where the mean square is small a row tells eps best
    value = float(((1.0 / np.square(scale) - mean) * trust).sum() / trust.sum())
    if not np.isfinite(value):
        return
    for found in (*neat(abs(value), 0.3), 0.0):
        text = f"eps {found:g} where the model says {at.op.eps:g}"
        made = at.remade(replace(at.op, eps=found))
        yield Candidate(made, text, {"eps": found, "right": at.op.eps})


def eps_scaled(at: Attempt[Norm]) -> Iterator[Candidate]:
    """eps multiplied by what the row holds, or added outside of the root."""
    x, eps = _rows(at, _x(at)), at.op.eps
    if at.op.centred:
        x = x - x.mean(-1, keepdims=True)
    mean = np.square(x).mean(-1, keepdims=True)
    largest = np.abs(x).max(-1, keepdims=True)
    rows = {
        "max|x|^2 of the row": np.sqrt(mean + eps * largest**2),
        "max|x| of the row": np.sqrt(mean + eps * largest),
        "the row's mean square": np.sqrt(mean + eps * mean),
        "the row's sum of squares": np.sqrt(mean + eps * mean * x.shape[-1]),
        "the row's size": np.sqrt(mean + eps * x.shape[-1]),
    }
    for by, root in rows.items():
        made = _divided(at, x, root)
        yield Candidate(made, f"eps is multiplied by {by}", {"by": by, "right": eps})
    outside = _divided(at, x, np.sqrt(mean) + eps)
    text = "eps is added to the root and not under it"
    yield Candidate(outside, text, {"by": "outside the root", "right": eps})
    for least in (np.sqrt(np.maximum(mean, eps)), np.maximum(np.sqrt(mean), eps)):
        made = _divided(at, x, least)
        yield Candidate(made, "eps is the least of the mean square and not added to it",
                        {"by": "the least", "right": eps})  # fmt: skip


def _divided(at: Attempt[Norm], x: Float64, root: Float64) -> Float64:
    """x over another root, times the norm's weight, plus its bias."""
    factor = _factor(at)
    made = x / root if factor is None else x / root * factor
    if at.op.bias is not None:
        made = made + _along(at, at.op.bias)
    return made.reshape(at.base.shape)


def other_weight(at: Attempt[Norm]) -> Iterator[Candidate]:
    own, replay = at.op.weight, at.case.replay
    if own is None:
        return
    here, width = at.node.key.layer or 0, replay.shape(own)[1]
    norms = (node for node in at.graph if isinstance(node.op, Norm))
    nearest = sorted(
        norms, key=lambda node: (node.key.layer is None, abs((node.key.layer or 0) - here))
    )
    for role in (node.op.weight for node in nearest if isinstance(node.op, Norm)):
        if role is not None and role != own and replay.shape(role)[1] == width:
            made = at.remade(replace(at.op, weight=role))
            text = f"multiplied by the weight of {role} in place of {own}"
            yield Candidate(made, text, {"weight": str(role)})


def weight_shift(at: Attempt[Norm]) -> Iterator[Candidate]:
    factor = _factor(at)
    if at.y is None or factor is None:
        return
    normalised = _normalised(at)
    axes = tuple(range(normalised.ndim - 1))
    used = (_rows(at, at.y) * normalised).sum(axes) / np.square(normalised).sum(axes)
    used, known = used - used.mean(), factor - factor.mean()
    likeness = np.fft.irfft(np.fft.rfft(used) * np.conj(np.fft.rfft(known)), n=factor.size)
    by = int(np.argmax(likeness))
    by = by if by <= factor.size // 2 else by - factor.size
    if by:
        text = f"the norm's weight is shifted by {by:+d} channels"
        yield Candidate(_weighed(at, np.roll(factor, by)), text, {"by": by})


NORMS = (
    Entry("norm_missing", (Norm,), missing),
    Entry("norm_no_weight", (Norm,), no_weight),
    Entry("norm_one_plus", (Norm,), one_plus),
    Entry("norm_layernorm", (Norm,), layernorm),
    Entry("norm_rms", (Norm,), mean_left_in),
    Entry("norm_eps", (Norm,), eps),
    Entry("eps_scaled", (Norm,), eps_scaled),
    Entry("norm_other_weight", (Norm,), other_weight),
    Entry("norm_weight_shift", (Norm,), weight_shift),
)
