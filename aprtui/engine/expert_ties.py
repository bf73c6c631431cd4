"""Rounding ties inside the experts: what changes when an activation goes the other way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from aprtui.engine import ops
from aprtui.engine.arithmetic import Rounded, product_rounding
from aprtui.engine.rounding import ROUNDINGS
from aprtui.graph import Node, Role
from aprtui.graph.ops import Experts

__all__ = ["expert_flips"]

Tensor = torch.Tensor

_NEAR = 1e-5  # of a block's largest: what float32 sums may move an activation by
_HALF_UNIT = 0.5 / 127
_MAX_FLIPS = 256


class _Recording(Rounded):
    """Keeps what each matrix was multiplied with."""

    def __init__(self, *how: Any) -> None:
        super().__init__(*how)
        self.multiplied: list[tuple[Role, Tensor]] = []

    def product(self, x: Tensor, role: Role) -> Tensor:
        self.multiplied.append((role, x))
        return super().product(x, role)


def expert_flips(ar: Rounded, node: Node, given: Sequence[Tensor]) -> Tensor:
    """What each near tie adds to the experts' sum when it rounds the other way: [n, hidden].

    ``given`` are the inputs of one position: x [1,H], weights and ids [1,k]. Between its products
    an engine rounds act(gate) * up in blocks of integers; a value within float32's error of a half
    may become either neighbour. Types without a unit common to a block have no such ties.
    """
    assert isinstance(node.op, Experts)
    x, weights, ids = given
    recording = _Recording(ar.weights, ar.how)
    ops.compute(recording, node, given)
    shares = dict(zip(ids[0].long().tolist(), weights[0], strict=True))
    found = [torch.zeros(0, x.shape[1], dtype=torch.float64)]
    for role, inner in recording.multiplied:
        if role.name != node.op.down.name or role.expert is None:
            continue
        changes = _changes(inner, product_rounding(ar.weights.type_of(role), ar.how))
        if len(changes):
            share = 1.0 if node.op.on_input else shares[role.expert]
            found.append(ar.weights.linear(changes, role) * share)
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
