"""Mistakes in the embedding, biases, residual additions and activations."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from aprtui.compare.mistakes.anywhere import fitted_scales, shifted
from aprtui.compare.mistakes.attempt import Attempt, Candidate, Entry
from aprtui.engine.replay import ACTIVATIONS, activate
from aprtui.graph.ops import (
    Activate,
    Adapt,
    Add,
    Bias,
    Clip,
    Embed,
    Multiply,
    Norm,
    Part,
    Positions,
)

__all__ = ["BRANCHES"]

Float64 = npt.NDArray[np.float64]


# -- embedding -------------------------------------------------------------------------------------


def embedding_scale(at: Attempt[Embed]) -> Iterator[Candidate]:
    right, root = at.op.scale, math.sqrt(at.base.shape[-1])
    if right != 1.0:
        made, factor = at.remade(replace(at.op, scale=1.0)), f"{right:g}"
        factor = f"sqrt(H) = {factor}" if math.isclose(right, root) else factor
        yield Candidate(made, f"not multiplied by {factor}", {"used": 1.0, "right": right})
    else:
        text = f"multiplied by sqrt(H) = {root:g}, which this family does not do"
        made = at.remade(replace(at.op, scale=root))
        yield Candidate(made, text, {"used": root, "right": 1.0})


def wrong_token(at: Attempt[Embed]) -> Iterator[Candidate]:
    if at.y is None or not at.wrong_rows or not at.case.replay.tokens:
        return
    replay, rows = at.case.replay, list(at.wrong_rows)
    found = replay.find_rows(at.op.table, at.y[rows], at.op.scale, at.rounded)
    tokens = [each for each in found if each is not None]
    if len(tokens) < len(rows):
        return
    made = at.base.copy()
    made[rows] = replay.rows(at.op.table, tokens) * at.op.scale
    right = [replay.tokens[row] for row in rows]
    text = "; ".join(
        f"position {p} holds token {used} where {want} was given"
        for p, used, want in list(zip(rows, tokens, right, strict=True))[:4]
    )
    parameters: dict[str, object] = {"position": rows[0], "token": tokens[0], "right": right[0]}
    if len(rows) > 1:
        parameters = {"positions": rows, "tokens": tokens, "right": right}
    yield Candidate(made, text, parameters)


def positions_missing(at: Attempt[Positions]) -> Iterator[Candidate]:
    yield Candidate(at.inputs[0], "the rows of the positions are not added")


def positions_shifted(at: Attempt[Positions]) -> Iterator[Candidate]:
    """Another row of the table taken for position 0: OPT's begin at its third."""
    last = at.op.rows - len(at.base)
    for first in (at.op.first + 1, at.op.first - 1, 0, 2):
        if first != at.op.first and 0 <= first <= last:
            text = f"position 0 has row {first} of the table where row {at.op.first} is right"
            made = at.remade(replace(at.op, first=first))
            yield Candidate(made, text, {"used": first, "right": at.op.first})


def clip_missing(at: Attempt[Clip]) -> Iterator[Candidate]:
    yield Candidate(at.inputs[0], f"q, k and v are not kept within {at.op.limit:g}")


def other_table(at: Attempt[Embed]) -> Iterator[Candidate]:
    """The table's bytes, read as another decoder reads them."""
    replay, role = at.case.replay, at.op.table
    for reading in replay.misreadings(role) if replay.tokens else ():
        kind = replay.type_of(role)
        made = replay.misread_rows(role, replay.tokens, reading) * at.op.scale
        text = f"the blocks of {kind} are read {reading.text}"
        yield Candidate(made, text, {"type": kind, "reading": reading.text})


# -- biases ----------------------------------------------------------------------------------------


def _wrong_parts(at: Attempt[Bias]) -> list[Part]:
    """The parts with a bias whose columns are wrong; all of them where that is not known."""
    biased = [part for part in at.op.parts if part.bias is not None]
    if at.y is None:
        return biased
    away = at.y - at.base
    return [
        part
        for part in biased
        for columns in (at.op.columns(part),)
        if np.linalg.norm(away[:, columns]) > at.bar * np.linalg.norm(at.base[:, columns])
    ]


def _bias(at: Attempt[Bias], part: Part) -> Float64:
    assert part.bias is not None
    return at.case.replay.vector(part.bias)


def bias_missing(at: Attempt[Bias]) -> Iterator[Candidate]:
    parts = _wrong_parts(at)
    if parts:
        names = [part.name for part in parts]
        left = tuple(replace(p, bias=None) if p in parts else p for p in at.op.parts)
        text = f"the bias of {' and '.join(names)} was not added"
        yield Candidate(at.remade(replace(at.op, parts=left)), text, {"part": "".join(names)})


def bias_scaled(at: Attempt[Bias]) -> Iterator[Candidate]:
    if at.y is None:
        return
    factors: dict[str, float] = {}
    made = at.base.copy()
    for part in _wrong_parts(at):
        columns, bias = at.op.columns(part), _bias(at, part)
        off = (at.y - at.inputs[0])[:, columns]
        fitted = fitted_scales(off, np.broadcast_to(bias, off.shape), at.rounded)
        factors[part.name] = next(fitted, 0.0)
        made[:, columns] += (factors[part.name] - 1.0) * bias
    if factors:
        said = ", ".join(f"that of {part} by {factor:g}" for part, factor in factors.items())
        parameters: dict[str, object] = {"factors": factors}
        if len(factors) == 1:
            name, factor = next(iter(factors.items()))
            parameters = {"part": name, "factor": factor}
        yield Candidate(made, f"the bias is multiplied: {said}", parameters)


# -- residuals -------------------------------------------------------------------------------------


def _branch(at: Attempt[Add]) -> str:
    return at.node.inputs[1].stage


def _both(at: Attempt[Add]) -> tuple[Float64, Float64]:
    """hidden, and the branch in its shape."""
    hidden, branch = at.inputs
    return hidden, branch.reshape(hidden.shape)


def branch_missing(at: Attempt[Add]) -> Iterator[Candidate]:
    hidden, branch = _both(at)
    name = _branch(at)
    without = hidden if at.op.total == 1.0 else hidden * at.op.total
    yield Candidate(without, f"{name} was not added", {"missing": name})
    alone = at.remade(inputs=(np.zeros_like(hidden), branch))
    text = "only the branch was kept: the residual stream was lost"
    yield Candidate(alone, text, {"missing": "hidden"})
    earlier = at.graph[at.node.inputs[0]]
    before = at.captured(earlier.inputs[0]) if isinstance(earlier.op, Add) else None
    if before is not None:
        text = f"added to {earlier.inputs[0]} where {earlier.key.stage} is right"
        made = at.remade(inputs=(before, branch))
        yield Candidate(made, text, {"missing": earlier.inputs[1].stage})


def scale_missing(at: Attempt[Add]) -> Iterator[Candidate]:
    if at.op.scale != 1.0:
        text = f"{_branch(at)} is not multiplied by {at.op.scale:g} before it is added"
        made = at.remade(replace(at.op, scale=1.0))
        yield Candidate(made, text, {"used": 1.0, "right": at.op.scale})
    if at.op.total != 1.0:
        text = f"the sum is not multiplied by {at.op.total:g}"
        made = at.remade(replace(at.op, total=1.0))
        yield Candidate(made, text, {"used": 1.0, "right": at.op.total})


def branch_twice(at: Attempt[Add]) -> Iterator[Candidate]:
    hidden, branch = _both(at)
    name = _branch(at)
    twice = at.remade(replace(at.op, scale=2 * at.op.scale))
    yield Candidate(twice, f"{name} was added twice", {"twice": name})
    made = at.remade(inputs=(2 * hidden, branch))
    yield Candidate(made, "hidden was added twice", {"twice": "hidden"})


def residual_shift(at: Attempt[Add]) -> Iterator[Candidate]:
    hidden, branch = _both(at)
    steps = (step for by in range(1, min(4, len(hidden) - 1) + 1) for step in (by, -by))
    for step in steps:
        for wrap in (True, False):
            for name, given in (
                ("hidden", (shifted(hidden, step, 0, wrap), branch)),
                (_branch(at), (hidden, shifted(branch, step, 0, wrap))),
            ):
                text = f"the rows of {name} are shifted by {step:+d} positions"
                made = at.remade(inputs=given)
                yield Candidate(made, text, {"by": step, "of": name})


def post_norm_missing(at: Attempt[Add]) -> Iterator[Candidate]:
    norm = at.graph[at.node.inputs[1]]
    plain = at.captured(norm.inputs[0]) if isinstance(norm.op, Norm) else None
    if plain is not None:
        made = at.remade(inputs=(at.inputs[0], plain))
        text = f"{norm.inputs[0].stage} was added without its norm ({norm.key.stage})"
        yield Candidate(made, text, {"norm": norm.key.stage})


def branch_scaled(at: Attempt[Add]) -> Iterator[Candidate]:
    if at.y is None:
        return
    hidden, branch = _both(at)
    right, name, y = at.op.scale, _branch(at), at.y / at.op.total
    for factor in fitted_scales(y - hidden, right * branch, at.rounded):
        text = f"{name} is multiplied by {factor * right:g} before it is added"
        text += f" where the model says {right:g}" if right != 1.0 else ""
        made = at.remade(replace(at.op, scale=factor * right))
        yield Candidate(made, text, {"of": name, "factor": factor * right})
    for factor in fitted_scales(y - right * branch, hidden, at.rounded):
        text = f"hidden is multiplied by {factor:g} before it is added"
        made = at.remade(inputs=(factor * hidden, branch))
        yield Candidate(made, text, {"of": "hidden", "factor": factor})


# -- adapters of low rank that are part of a model -------------------------------------------------


def adapter_missing(at: Attempt[Adapt]) -> Iterator[Candidate]:
    x, name = at.inputs[0], at.node.inputs[1].stage
    yield Candidate(x, f"what the adapters make of {name} is not added", {"missing": name})
    for part in at.op.parts if len(at.op.parts) > 1 else ():
        made, columns = at.base.copy(), at.op.columns(part)
        made[:, columns] = x[:, columns]
        yield Candidate(made, f"the adapter of {part.name} is left out", {"missing": part.name})


def other_adapter(at: Attempt[Adapt]) -> Iterator[Candidate]:
    """The latents raised by another layer's matrices."""
    own = at.op.matrices[0]
    for node in at.graph:
        same = node.key.stage == at.node.key.stage and node.key.layer != at.node.key.layer
        if same and isinstance(node.op, Adapt) and node.op.rank == at.op.rank:
            role = node.op.matrices[0]
            text = f"adapted by {role} in place of {own}"
            parameters = {"weight": str(role), "own": str(own)}
            yield Candidate(at.remade(node.op), text, parameters)


# -- activations -----------------------------------------------------------------------------------


def activation(at: Attempt[Activate]) -> Iterator[Candidate]:
    right = at.op.name
    for used in ACTIVATIONS:
        if used != right:
            text = f"{used} where the model says {right}"
            made = at.remade(replace(at.op, name=used))
            yield Candidate(made, text, {"used": used, "right": right})
    text = f"{right} is taken twice"
    yield Candidate(at.remade(inputs=(at.base,)), text, {"used": f"{right} twice", "right": right})


def gate_activation(at: Attempt[Multiply]) -> Iterator[Candidate]:
    """A product of gate and up that did not use the activation as captured."""
    act = at.graph[at.node.inputs[0]]
    gate = at.captured(act.inputs[0]) if isinstance(act.op, Activate) else None
    if gate is None or not isinstance(act.op, Activate):
        return
    up, right = at.inputs[1], act.op.name
    for used in ACTIVATIONS:
        if used != right:
            through = at.elsewhere(act, replace(act.op, name=used), gate)
            text = f"{used}(gate) * up where the model says {right}"
            made = at.remade(inputs=(through, up))
            yield Candidate(made, text, {"used": used, "right": right})
    if at.op.window is not None:
        return
    swapped = at.remade(inputs=(at.elsewhere(act, act.op, up), gate))
    parameters = {"used": right, "right": right, "applied_to": at.node.inputs[1].stage}
    yield Candidate(swapped, f"{right}(up) * gate: the two are swapped", parameters)


def clipped(at: Attempt[Activate | Multiply]) -> Iterator[Candidate]:
    if at.y is None:
        return
    low, high = float(at.y.min()), float(at.y.max())
    if low == high:
        return
    text = "the output is clipped to {:g} .. {:g}"
    yield Candidate(np.clip(at.base, low, high), text.format(low, high),
                    {"low": low, "high": high})  # fmt: skip
    yield Candidate(np.minimum(at.base, high), f"the output is clipped at {high:g}",
                    {"high": high})  # fmt: skip
    limit = _preimage(high, at.op.name) if isinstance(at.op, Activate) else None
    if limit is not None:
        x, text = at.inputs[0], f"the input is clipped at {limit:g}"
        for used in (np.minimum(x, limit), np.clip(x, -limit, limit)):
            yield Candidate(at.remade(inputs=(used,)), text, {"input": limit})


def _preimage(high: float, name: str) -> float | None:
    """The positive input whose activation is ``high``: all activations rise there."""
    if high <= 0:
        return None
    low, up = 0.0, high + 10.0
    for _ in range(80):
        middle = (low + up) / 2
        below = float(activate(np.array([middle]), name)[0]) < high
        low, up = (middle, up) if below else (low, middle)
    return up


BRANCHES = (
    Entry("embedding_scale", (Embed,), embedding_scale),
    Entry("wrong_token", (Embed,), wrong_token),
    Entry("positions_missing", (Positions,), positions_missing),
    Entry("positions_shifted", (Positions,), positions_shifted),
    Entry("clip_missing", (Clip,), clip_missing),
    Entry("other_matrix", (Embed,), other_table),
    Entry("bias_missing", (Bias,), bias_missing),
    Entry("bias_scaled", (Bias,), bias_scaled),
    Entry("branch_missing", (Add,), branch_missing),
    Entry("branch_missing", (Adapt,), adapter_missing),
    Entry("other_layer", (Adapt,), other_adapter),
    Entry("branch_scale_missing", (Add,), scale_missing),
    Entry("branch_twice", (Add,), branch_twice),
    Entry("residual_shift", (Add,), residual_shift),
    Entry("post_norm_missing", (Add,), post_norm_missing),
    Entry("scaled", (Add,), branch_scaled),
    Entry("activation", (Activate,), activation),
    Entry("activation", (Multiply,), gate_activation),
    Entry("clipped", (Activate, Multiply), clipped),
)
