"""Stages as an engine of low precision computes them: inner results are rounded as well."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch

from aprtui.engine import ops
from aprtui.engine.ops import Operands
from aprtui.graph import Node, Role

__all__ = ["INSIDE", "NESTED", "STEPS"]

Tensor = torch.Tensor


def _scores_inside(
    op: Operands, node: Node, given: tuple[Tensor, ...], cut: Callable[[Tensor], Tensor]
) -> Tensor:
    """q.k is rounded before it is scaled."""
    raw = dataclasses.replace(op.config, score_scale=1.0, score_softcap=None)
    q, k = given
    seen = ops.visible(op.config, node.key.layer or 0, 0, q.shape[0], k.shape[0], q.device)
    scaled = cut(ops.score_block(raw, q, k, seen)) * op.config.scale
    cap = op.config.score_softcap
    return scaled if cap is None else cut(torch.tanh(cut(cut(scaled) / cap))) * cap


def _experts_inside(
    op: Operands, node: Node, given: tuple[Tensor, ...], cut: Callable[[Tensor], Tensor]
) -> Tensor:
    """Every product, activation and partial sum is rounded; experts in order of their ids."""
    x, weights, ids = given
    layer, out, ids = node.key.layer, torch.zeros_like(given[0]), ids.long()
    for expert in sorted(set(ids.flatten().tolist())):
        tokens, ranks = (ids == expert).nonzero(as_tuple=True)
        gate, up = (
            op.weights.linear(x[tokens], Role(name, layer, expert))
            for name in ("expert_gate", "expert_up")
        )
        inner = cut(cut(ops.activate(gate, op.config.activation)) * up)
        down = op.weights.linear(inner, Role("expert_down", layer, expert))
        out[tokens] = cut(out[tokens] + cut(down * weights[tokens, ranks, None]))
    return out


def _norm_steps(
    op: Operands, node: Node, given: tuple[Tensor, ...], cut: Callable[[Tensor], Tensor]
) -> Tensor:
    """The normalised row is rounded before the weight multiplies it."""
    heads = {"q_norm": ops.query_heads, "k_norm": ops.key_heads}.get(node.kind.operation)
    x = heads(given[0], op.config) if heads else given[0]
    ones = torch.full_like(x[0], 1.0 - op.config.norm_offset)
    weight = op.weights.vector(Role(node.kind.weights[0], node.key.layer)) + op.config.norm_offset
    return cut(ops.normalise(x, ones, op.config)) * weight


def _rope_steps(
    op: Operands, node: Node, given: tuple[Tensor, ...], cut: Callable[[Tensor], Tensor]
) -> Tensor:
    """cos, sin and each of the products with them are rounded."""
    heads = ops.query_heads if node.kind.operation == "q_rope" else ops.key_heads
    x = heads(given[0], op.config)
    cos, sin = (cut(each) for each in ops.rotation(op.config, node.key.layer or 0, x.shape[0]))
    none = torch.zeros_like(cos)
    along = ops.rotate(x, cos, none, op.config.rope_layout)
    across = ops.rotate(x, none, sin, op.config.rope_layout)
    return cut(along) + cut(across)


Rounded = Callable[[Operands, Node, tuple[Tensor, ...], Callable[[Tensor], Tensor]], Tensor]
INSIDE: dict[str, Rounded] = {"scores": _scores_inside, "experts": _experts_inside}
STEPS: dict[str, Rounded] = {
    "rms_norm": _norm_steps,
    "q_norm": _norm_steps,
    "k_norm": _norm_steps,
    "q_rope": _rope_steps,
    "k_rope": _rope_steps,
}
NESTED = frozenset({*INSIDE, *STEPS})
"""Operations inside which an engine of low precision rounds more than once."""
