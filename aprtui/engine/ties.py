"""Rounding ties inside the experts: what changes when an activation goes the other way."""

from __future__ import annotations

from collections.abc import Callable

import torch

from aprtui.engine import ops
from aprtui.engine.ops import Operands
from aprtui.engine.rounding import ROUNDINGS
from aprtui.graph import Node, Role

__all__ = ["expert_flips"]

Tensor = torch.Tensor

_NEAR = 1e-5  # of a block's largest: what float32 sums may move an activation by
_HALF_UNIT = 0.5 / 127
_MAX_FLIPS = 256


def expert_flips(
    op: Operands,
    node: Node,
    given: tuple[Tensor, ...],
    rounding: Callable[[Role], str],
    exact: Callable[[Tensor, Role], Tensor],
) -> Tensor:
    """What each near tie adds to the experts' sum when it rounds the other way: [n, hidden].

    ``given`` are the inputs of one position: x [1,H], weights and ids [1,k]. Between its products
    an engine rounds act(gate) * up in blocks of integers; a value within float32's error of a half
    may become either neighbour. ``rounding`` names the rounding before the product with a matrix
    (of rounding.ROUNDINGS); types without a unit common to a block have no such ties here.
    ``exact`` multiplies rows by a matrix as they are.
    """
    x, weights, ids = given
    found = [torch.zeros(0, x.shape[1], dtype=torch.float64)]
    for rank, expert in enumerate(ids[0].long().tolist()):
        gate, up, down = (
            Role(name, node.key.layer, expert)
            for name in ("expert_gate", "expert_up", "expert_down")
        )
        inner = ops.activate(op.weights.linear(x, gate), op.config.activation)
        changes = _changes(inner * op.weights.linear(x, up), rounding(down))
        if len(changes):
            found.append(exact(changes, down) * weights[0, rank])
    return torch.cat(found)[:_MAX_FLIPS]


def _changes(inner: Tensor, name: str) -> Tensor:
    """The near ties of inner [1,F], each as the row [n,F] of what it alone changes."""
    if not name:
        return inner[:0]
    rounded, block = ROUNDINGS[name]
    largest = inner.reshape(-1, block).abs().amax(1).repeat_interleave(block)[None]
    rows = []
    for step in (_NEAR, -_NEAR):
        change = (rounded(inner + step * largest) - rounded(inner))[0]
        places = (change.abs() > _HALF_UNIT * largest[0]).nonzero()[:, 0]
        places = places[largest[0, places] > 0][:_MAX_FLIPS]
        alone = change.new_zeros(len(places), len(change))
        alone[torch.arange(len(places)), places] = change[places]
        rows.append(alone)
    return torch.cat(rows)
