"""The kernels of ``graph.altup``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from aprtui.graph.altup import (
    Correct,
    Merge,
    Modes,
    Outliers,
    Pick,
    Predict,
    Spread,
    StreamProduct,
    Streams,
)
from aprtui.graph.ops import Op

if TYPE_CHECKING:
    from aprtui.engine.ops import Pass

__all__ = ["ALTUP"]

Tensor = torch.Tensor


def _size(x: Tensor, floor: float = 0.0) -> Tensor:
    """The root mean square over the last axis."""
    return x.square().mean(-1, keepdim=True).clamp(min=floor).sqrt()


def _alike(x: Tensor, parts: Tensor, streams: int, floor: float) -> Tensor:
    """x [T,H] and the parts at its size: [T,S,H]."""
    rows = parts.reshape(len(x), streams - 1, -1)
    sized = rows * _size(x)[:, None] / _size(rows, floor)
    return torch.cat((x[:, None], sized), dim=1)


def streams(ar: Pass, op: Streams, x: Tensor, parts: Tensor) -> Tensor:
    """[T,S,H]."""
    return _alike(x, parts, op.streams, op.floor)


def merge(ar: Pass, op: Merge, x: Tensor, parts: Tensor) -> Tensor:
    """[T,H]."""
    return _alike(x[:, 0], parts, op.streams, op.floor).mean(1)


def modes(ar: Pass, op: Modes, x: Tensor) -> Tensor:
    """[T,S]."""
    from aprtui.engine.ops import normalise

    x = x if op.stream is None else x[:, op.stream]
    scaled = ar.cut(normalise(ar, op.norm, x)) / op.hidden
    return ar.map(torch.tanh, ar.product(scaled, op.part.weight))


def predict(ar: Pass, op: Predict, x: Tensor, modes: Tensor) -> Tensor:
    """[T,S,H]: row j of a token's coefficients [S,S] mixes what is added to stream j."""
    mixed = ar.product(modes, op.part.weight).reshape(len(x), op.streams, op.streams)
    return x + torch.bmm(mixed, x)


def correct(ar: Pass, op: Correct, x: Tensor, made: Tensor, modes: Tensor) -> Tensor:
    """[T,S,H]."""
    weights = ar.product(modes, op.part.weight) + 1.0
    new = made - x[:, op.active]
    return x + new[:, None] * weights[:, :, None]


def pick(ar: Pass, op: Pick, x: Tensor) -> Tensor:
    """[T,H]."""
    found = x[:, op.stream]
    return found.contiguous() if op.weight is None else found * ar.vector(op.weight)


def spread(ar: Pass, op: Spread, x: Tensor, branch: Tensor) -> Tensor:
    """[T,S,H]."""
    return torch.cat((x[:, :1], x[:, 1:] + branch[:, None]), dim=1)


def stream_product(ar: Pass, op: StreamProduct, x: Tensor) -> Tensor:
    """[T,(S-1)*H]."""
    made = (
        ar.product(x[:, place + 1].contiguous(), part.weight) for place, part in enumerate(op.parts)
    )
    return torch.cat(tuple(made), dim=1)


def outliers(ar: Pass, op: Outliers, x: Tensor) -> Tensor:
    """[T,F]."""
    deviation = x.std(-1, keepdim=True, unbiased=op.unbiased)
    return (x - (x.mean(-1, keepdim=True) + deviation * op.times)).clamp(min=0.0)


ALTUP: dict[type[Op], Callable[..., Tensor]] = {
    Correct: correct,
    Merge: merge,
    Modes: modes,
    Outliers: outliers,
    Pick: pick,
    Predict: predict,
    Spread: spread,
    StreamProduct: stream_product,
    Streams: streams,
}
