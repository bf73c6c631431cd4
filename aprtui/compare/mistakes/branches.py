"""Mistakes in the embedding, biases, residual additions and activations."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from aprtui.compare.mistakes.anywhere import fitted_scales, shifted
from aprtui.compare.mistakes.attempt import Attempt, Candidate, Entry
from aprtui.engine.replay import ACTIVATIONS, activate
from aprtui.graph import Role

__all__ = ["BRANCHES"]

Float64 = npt.NDArray[np.float64]


# -- embedding -------------------------------------------------------------------------------------


def embedding_scale(at: Attempt) -> Iterator[Candidate]:
    root = math.sqrt(at.config.hidden_size)
    right = at.config.embedding_scale
    if right != 1.0:
        yield Candidate(
            at.base / right, f"not multiplied by sqrt(H) = {right:g}", {"used": 1.0, "right": right}
        )
    else:
        text = f"multiplied by sqrt(H) = {root:g}, which this family does not do"
        yield Candidate(at.base * root, text, {"used": root, "right": 1.0})


def wrong_token(at: Attempt) -> Iterator[Candidate]:
    if at.y is None or not at.wrong_rows or not at.case.replay.tokens:
        return
    replay, rows = at.case.replay, list(at.wrong_rows)
    scale = at.config.embedding_scale
    found = replay.find_rows(Role("embedding"), at.y[rows], scale, at.rounded)
    tokens = [each for each in found if each is not None]
    if len(tokens) < len(rows):
        return
    made = at.base.copy()
    made[rows] = replay.rows(Role("embedding"), tokens) * scale
    right = [replay.tokens[row] for row in rows]
    text = "; ".join(
        f"position {p} holds token {used} where {want} was given"
        for p, used, want in list(zip(rows, tokens, right, strict=True))[:4]
    )
    parameters: dict[str, object] = {"position": rows[0], "token": tokens[0], "right": right[0]}
    if len(rows) > 1:
        parameters = {"positions": rows, "tokens": tokens, "right": right}
    yield Candidate(made, text, parameters)


# -- biases ----------------------------------------------------------------------------------------


def _bias_parts(at: Attempt) -> dict[str, tuple[int, int]]:
    q, kv = at.config.q_size, at.config.kv_size
    return {"q": (0, q), "k": (q, q + kv), "v": (q + kv, q + 2 * kv)}


def _wrong_parts(at: Attempt) -> dict[str, tuple[int, int]]:
    if at.y is None:
        return _bias_parts(at)
    bar = 8e-3 if at.rounded else at.case.limits[1]
    return {
        name: (first, last)
        for name, (first, last) in _bias_parts(at).items()
        if np.linalg.norm((at.y - at.base)[:, first:last])
        > bar * np.linalg.norm(at.base[:, first:last])
    }


def _with_factors(at: Attempt, factors: dict[str, float]) -> Float64:
    made = at.base.copy()
    for part, factor in factors.items():
        first, last = _bias_parts(at)[part]
        bias = at.case.replay.vector(Role(f"{part}_bias", at.layer))
        made[:, first:last] += (factor - 1.0) * bias
    return made


def bias_missing(at: Attempt) -> Iterator[Candidate]:
    parts = _wrong_parts(at)
    if parts:
        names = " and ".join(parts)
        parameters = {"part": "".join(parts)}
        made = _with_factors(at, dict.fromkeys(parts, 0.0))
        yield Candidate(made, f"the bias of {names} was not added", parameters)


def bias_scaled(at: Attempt) -> Iterator[Candidate]:
    if at.y is None:
        return
    factors: dict[str, float] = {}
    for part, (first, last) in _wrong_parts(at).items():
        bias = at.case.replay.vector(Role(f"{part}_bias", at.layer))
        off = (at.y - at.inputs[0])[:, first:last]
        fitted = fitted_scales(off, np.broadcast_to(bias, off.shape), at.rounded)
        factors[part] = next(fitted, 0.0)
    if factors:
        said = ", ".join(f"that of {part} by {factor:g}" for part, factor in factors.items())
        parameters: dict[str, object] = {"factors": factors}
        if len(factors) == 1:
            part, factor = next(iter(factors.items()))
            parameters = {"part": part, "factor": factor}
        yield Candidate(_with_factors(at, factors), f"the bias is multiplied: {said}", parameters)


# -- residuals -------------------------------------------------------------------------------------


def _names(at: Attempt) -> tuple[str, str]:
    return "hidden", at.node.inputs[1].stage


def branch_missing(at: Attempt) -> Iterator[Candidate]:
    hidden, branch = at.inputs
    yield Candidate(hidden, f"{_names(at)[1]} was not added", {"missing": _names(at)[1]})
    yield Candidate(
        branch, "only the branch was kept: the residual stream was lost", {"missing": "hidden"}
    )
    earlier = at.case.captured.by_key[at.node.inputs[0]]
    if earlier.kind.operation == "add":
        key = earlier.inputs[0]
        if at.case.captured.state(key) == "whole" and not at.case.last:
            made = at.case.captured.wide(key) + branch
            text = f"added to {key} where {at.node.inputs[0].stage} is right"
            yield Candidate(made, text, {"missing": earlier.inputs[1].stage})


def branch_twice(at: Attempt) -> Iterator[Candidate]:
    hidden, branch = at.inputs
    yield Candidate(
        hidden + 2 * branch, f"{_names(at)[1]} was added twice", {"twice": _names(at)[1]}
    )
    yield Candidate(2 * hidden + branch, "hidden was added twice", {"twice": "hidden"})


def residual_shift(at: Attempt) -> Iterator[Candidate]:
    hidden, branch = at.inputs
    for name, moved, other in (("hidden", hidden, branch), (_names(at)[1], branch, hidden)):
        for by in range(1, min(4, hidden.shape[0] - 1) + 1):
            for step in (by, -by):
                text = f"the rows of {name} are shifted by {step:+d} positions"
                for wrap in (True, False):
                    made = shifted(moved, step, 0, wrap) + other
                    yield Candidate(made, text, {"by": step, "of": name})


def post_norm_missing(at: Attempt) -> Iterator[Candidate]:
    norm = at.case.captured.by_key[at.node.inputs[1]]
    if norm.kind.operation != "rms_norm" or at.case.last:
        return
    key = norm.inputs[0]
    if at.case.captured.state(key) == "whole":
        made = at.inputs[0] + at.case.captured.wide(key)
        text = f"{key.stage} was added without its norm ({norm.key.stage})"
        yield Candidate(made, text, {"norm": norm.key.stage})


def branch_scaled(at: Attempt) -> Iterator[Candidate]:
    if at.y is None:
        return
    hidden, branch = at.inputs
    for name, one, other in ((_names(at)[1], branch, hidden), ("hidden", hidden, branch)):
        for factor in fitted_scales(at.y - other, one, at.rounded):
            text = f"{name} is multiplied by {factor:g} before it is added"
            yield Candidate(other + factor * one, text, {"of": name, "factor": factor})


# -- activations -----------------------------------------------------------------------------------


def activation(at: Attempt) -> Iterator[Candidate]:
    right = at.config.activation
    for used in ACTIVATIONS:
        if used != right:
            text = f"{used} where the model says {right}"
            yield Candidate(activate(at.inputs[0], used), text, {"used": used, "right": right})


def gate_activation(at: Attempt) -> Iterator[Candidate]:
    """A product of gate and up that did not use the activation as captured."""
    captured = at.case.captured
    act = captured.by_key[at.node.inputs[0]]
    if captured.state(act.inputs[0]) != "whole" or at.case.last:
        return
    gate, up, right = captured.wide(act.inputs[0]), at.inputs[1], at.config.activation
    for used in ACTIVATIONS:
        if used != right:
            text = f"{used}(gate) * up where the model says {right}"
            yield Candidate(activate(gate, used) * up, text, {"used": used, "right": right})
    yield Candidate(activate(up, right) * gate, f"{right}(up) * gate: the two are swapped",
                    {"used": right, "right": right, "applied_to": "ffn_up"})  # fmt: skip


def clipped(at: Attempt) -> Iterator[Candidate]:
    if at.y is None:
        return
    low, high = float(at.y.min()), float(at.y.max())
    text = "the output is clipped to {:g} .. {:g}"
    yield Candidate(np.clip(at.base, low, high), text.format(low, high),
                    {"low": low, "high": high})  # fmt: skip
    yield Candidate(np.minimum(at.base, high), f"the output is clipped at {high:g}",
                    {"high": high})  # fmt: skip
    if at.operation != "activation":
        return
    x, name = at.inputs[0], at.config.activation
    limit = _preimage(high, name)
    if limit is not None:
        text = f"the input is clipped at {limit:g}"
        yield Candidate(activate(np.minimum(x, limit), name), text, {"input": limit})
        yield Candidate(activate(np.clip(x, -limit, limit), name), text, {"input": limit})


def _preimage(high: float, name: str) -> float | None:
    """The positive input whose activation is ``high``; both activations rise there."""
    if high <= 0:
        return None
    low, up = 0.0, high + 10.0
    for _ in range(80):
        middle = (low + up) / 2
        below = float(activate(np.array([middle]), name)[0]) < high
        low, up = (middle, up) if below else (low, middle)
    return up


BRANCHES = (
    Entry("embedding_scale", ("embed",), embedding_scale),
    Entry("wrong_token", ("embed",), wrong_token),
    Entry("bias_missing", ("qkv_bias",), bias_missing),
    Entry("bias_scaled", ("qkv_bias",), bias_scaled),
    Entry("branch_missing", ("add",), branch_missing),
    Entry("branch_twice", ("add",), branch_twice),
    Entry("residual_shift", ("add",), residual_shift),
    Entry("post_norm_missing", ("add",), post_norm_missing),
    Entry("scaled", ("add",), branch_scaled),
    Entry("activation", ("activation",), activation),
    Entry("activation", ("multiply",), gate_activation),
    Entry("clipped", ("activation", "multiply"), clipped),
)
