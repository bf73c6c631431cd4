"""Mistakes in RMSNorm: left out, without its weight, with another eps or another weight."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from aprtui.compare.mistakes.attempt import Attempt, Candidate, Entry, neat
from aprtui.graph import Role

__all__ = ["NORMS", "heads_of"]

Float64 = npt.NDArray[np.float64]

_OPERATIONS = ("rms_norm", "q_norm", "k_norm")
_ROLES = ("attn_norm", "ffn_norm", "attn_post_norm", "ffn_post_norm", "q_norm", "k_norm",
          "final_norm")  # fmt: skip


def heads_of(at: Attempt, which: str) -> Float64:
    """Q [T,A,d] or K [T,K,d] cut out of the node's first input."""
    config, x = at.config, at.inputs[0]
    if x.ndim == 3:
        return x
    start, width = (0, config.q_size) if which == "q" else (config.q_size, config.kv_size)
    return x[:, start : start + width].reshape(x.shape[0], -1, config.head_dim)


def _x(at: Attempt) -> Float64:
    return at.inputs[0] if at.operation == "rms_norm" else heads_of(at, at.operation[0])


def _role(at: Attempt) -> Role:
    return Role(at.node.kind.weights[0], at.node.key.layer)


def _weight(at: Attempt) -> Float64:
    return at.case.replay.vector(_role(at)) + at.config.norm_offset


def _normalised(at: Attempt, eps: float | None = None) -> Float64:
    x = _x(at)
    mean = np.square(x).mean(-1, keepdims=True)
    return np.asarray(x / np.sqrt(mean + (at.config.rms_norm_eps if eps is None else eps)))


def missing(at: Attempt) -> Iterator[Candidate]:
    yield Candidate(_x(at), "the norm was left out")


def no_weight(at: Attempt) -> Iterator[Candidate]:
    yield Candidate(_normalised(at), "normalised, but not multiplied by the norm's weight")


def one_plus(at: Attempt) -> Iterator[Candidate]:
    right = at.config.norm_offset
    for offset in (0.0, 1.0, -1.0):
        if offset != right:
            config = dataclasses.replace(at.config, norm_offset=offset)
            used = {0.0: "w", 1.0: "1 + w", -1.0: "w - 1"}
            text = f"multiplied by {used[offset]} where this file's weight means {used[right]}"
            yield Candidate(at.remade(config), text, {"used": used[offset], "right": used[right]})


def layernorm(at: Attempt) -> Iterator[Candidate]:
    x = _x(at)
    centred = x - x.mean(-1, keepdims=True)
    spread = np.sqrt(np.square(centred).mean(-1, keepdims=True) + at.config.rms_norm_eps)
    yield Candidate(centred / spread * _weight(at), "LayerNorm (the mean taken off) for RMSNorm")


def eps(at: Attempt) -> Iterator[Candidate]:
    if at.y is None:
        return
    target = _x(at) * _weight(at)
    scale = (at.y * target).sum(-1) / np.square(target).sum(-1)
    mean = np.square(_x(at)).mean(-1)
    trust = 1.0 / np.square(mean)  # where the mean square is small a row tells eps best
    value = float(((1.0 / np.square(scale) - mean) * trust).sum() / trust.sum())
    if not np.isfinite(value):
        return
    for found in (*neat(abs(value), 0.3), 0.0):
        text = f"eps {found:g} where the model says {at.config.rms_norm_eps:g}"
        made = _normalised(at, found) * _weight(at)
        yield Candidate(made, text, {"eps": found, "right": at.config.rms_norm_eps})


def other_weight(at: Attempt) -> Iterator[Candidate]:
    normalised, own, replay = _normalised(at), _role(at), at.case.replay
    layers = sorted(range(at.config.num_layers), key=lambda layer: abs(layer - at.layer))
    roles = [Role(name, layer) for layer in layers for name in _ROLES] + [Role("final_norm")]
    for role in roles:
        fits = replay.has(role) and replay.shape(role)[1] == normalised.shape[-1]
        if role != own and fits:
            weight = replay.vector(role) + at.config.norm_offset
            text = f"multiplied by the weight of {role} in place of {own}"
            yield Candidate(normalised * weight, text, {"weight": str(role)})


def weight_shift(at: Attempt) -> Iterator[Candidate]:
    if at.y is None:
        return
    normalised, weight = _normalised(at), _weight(at)
    axes = tuple(range(normalised.ndim - 1))
    used = (at.y * normalised).sum(axes) / np.square(normalised).sum(axes)
    used, known = used - used.mean(), weight - weight.mean()
    likeness = np.fft.irfft(np.fft.rfft(used) * np.conj(np.fft.rfft(known)), n=weight.size)
    by = int(np.argmax(likeness))
    by = by if by <= weight.size // 2 else by - weight.size
    if by:
        text = f"the norm's weight is shifted by {by:+d} channels"
        yield Candidate(normalised * np.roll(weight, by), text, {"by": by})


NORMS = (
    Entry("norm_missing", _OPERATIONS, missing),
    Entry("norm_no_weight", _OPERATIONS, no_weight),
    Entry("norm_one_plus", _OPERATIONS, one_plus),
    Entry("norm_layernorm", _OPERATIONS, layernorm),
    Entry("norm_eps", _OPERATIONS, eps),
    Entry("norm_other_weight", _OPERATIONS, other_weight),
    Entry("norm_weight_shift", _OPERATIONS, weight_shift),
)
