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


def _size(ar: Pass, x: Tensor, floor: float = 0.0) -> Tensor:
    """The root mean square over the last axis."""
    mean = ar.cut(ar.cut(x.square()).mean(-1, keepdim=True))
    return ar.cut(mean.clamp(min=floor).sqrt())


def _alike(ar: Pass, x: Tensor, parts: Tensor, streams: int, floor: float) -> Tensor:
    """x [T,H] and the parts at its size: [T,S,H]."""
    rows = parts.reshape(len(x), streams - 1, -1)
    sized = ar.cut(rows * _size(ar, x)[:, None]) / _size(ar, rows, floor)
    return torch.cat((x[:, None], sized), dim=1)


def streams(ar: Pass, op: Streams, x: Tensor, parts: Tensor) -> Tensor:
    """[T,S,H]."""
    return _alike(ar, x, parts, op.streams, op.floor)


def merge(ar: Pass, op: Merge, x: Tensor, parts: Tensor) -> Tensor:
    """[T,H]."""
    return ar.cut(_alike(ar, x[:, 0], parts, op.streams, op.floor)).mean(1)


def modes(ar: Pass, op: Modes, x: Tensor) -> Tensor:
    """[T,S]."""
    from aprtui.engine.ops import normalise

    x = x if op.stream is None else x[:, op.stream]
    scaled = ar.cut(normalise(ar, op.norm, x)) * ar.number(1.0 / op.hidden)
    return ar.map(torch.tanh, ar.product(scaled, op.part.weight))


def predict(ar: Pass, op: Predict, x: Tensor, modes: Tensor) -> Tensor:
    """[T,S,H]: row j of a token's coefficients [S,S] mixes what is added to stream j."""
    mixed = ar.product(modes, op.part.weight).reshape(len(x), op.streams, op.streams)
    return x + ar.cut(torch.bmm(mixed, x))


def correct(ar: Pass, op: Correct, x: Tensor, made: Tensor, modes: Tensor) -> Tensor:
    """[T,S,H]."""
    weights = ar.cut(ar.product(modes, op.part.weight) + 1.0)
    new = ar.cut(made - x[:, op.active])
    return x + ar.cut(new[:, None] * weights[:, :, None])


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
    deviation = ar.cut(x.std(-1, keepdim=True, unbiased=op.unbiased))
    above = ar.cut(deviation * ar.number(op.times))
    return (x - ar.cut(ar.cut(x.mean(-1, keepdim=True)) + above)).clamp(min=0.0)


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
