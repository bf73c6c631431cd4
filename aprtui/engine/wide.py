"""Products in float64 of activations rounded as another engine rounds them."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import torch

from aprtui.engine.codecs import codec_of
from aprtui.engine.rounding import ROUND_TO, ROUNDINGS, round_q8_1
from aprtui.engine.weights import WeightStream
from aprtui.graph import Role
from aprtui.model.open import Matrix, Model

__all__ = ["WideStream", "rounded_rows"]

Tensor = torch.Tensor

_ROWS_AT_ONCE = 64  # of a decoded block, widened: they stay in the cache
_MINIMA = {"Q4_1": 20, "Q5_1": 24}  # bytes of a block; its minimum is the float16 at byte 2


class _Buffer(threading.local):
    """One thread's memory for a block of float64 weights: fresh memory costs more than sums."""

    def __init__(self) -> None:
        self._values = torch.empty(0, dtype=torch.float64)

    def take(self, shape: torch.Size) -> Tensor:
        if self._values.numel() < shape.numel():
            self._values = torch.empty(shape.numel(), dtype=torch.float64)
        return self._values[: shape.numel()].view(shape)


def rounded_rows(x: Tensor, name: str) -> Tensor:
    """x [n, columns] as a rounding of ROUNDINGS leaves it; "" is as it is.

    Raises RuntimeError for columns that are no multiple of its block.
    """
    return ROUNDINGS[name][0](x) if name else x.double()


class WideStream(WeightStream):
    """One model's weights in float64 on the CPU; products are summed in float64."""

    def __init__(self, model: Model) -> None:
        super().__init__(model, torch.device("cpu"), torch.float64)
        self._stored = WeightStream(model, self.device, torch.float32)
        self._wide = _Buffer()

    def type_of(self, role: Role) -> str:
        """The block type that a weight is stored in."""
        return self.model.weights[role].entry.type

    def linear(self, x: Tensor, role: Role) -> Tensor:
        return self.products(x, role)[0]

    def products(
        self, x: Tensor, role: Role, names: Sequence[str] = ("",), weights: str = ""
    ) -> list[Tensor]:
        """x [n, columns] rounded each way, times the matrix transposed; one decode for all.

        ``weights``: "BF16" or "F16" when the matrix is rounded too.
        """
        matrix = self.model.weights[role]
        rows = torch.cat([rounded_rows(x, name) for name in names])
        together = torch.empty((len(rows), matrix.rows), dtype=torch.float64)

        def multiply(first: int, block: Tensor) -> None:
            for start in range(0, len(block), _ROWS_AT_ONCE):
                part = block[start : start + _ROWS_AT_ONCE]
                wide = self._wide.take(part.shape).copy_(ROUND_TO[weights](part))
                place = slice(first + start, first + start + len(part))
                together[:, place] = rows @ wide.T

        self._stored.for_blocks(role, multiply)
        out = [together[n * len(x) : (n + 1) * len(x)] for n in range(len(names))]
        for made, name in zip(out, names, strict=True):
            if name == "Q8_1" and matrix.entry.type in _MINIMA:
                _add_sums(made, x, matrix)
        return out


def _add_sums(out: Tensor, x: Tensor, matrix: Matrix) -> None:
    """Q8_1's own sum of a block, not the sum of its values, multiplies the block's minimum."""
    values, sums = round_q8_1(x)
    missing = sums - values.reshape(x.shape[0], -1, 32).sum(-1)
    size, codec = _MINIMA[matrix.entry.type], codec_of(matrix)
    for first in range(0, matrix.rows, 1024):
        last = min(first + 1024, matrix.rows)
        blocks = codec.bytes_of(first, last - first).view(last - first, -1, size)
        minima = blocks[:, :, 2:4].contiguous().view(torch.float16)[..., 0].double()
        out[:, first:last] += missing @ minima.T
