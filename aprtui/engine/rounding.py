"""How other engines round: ggml's activation blocks, bfloat16, float16, ggml's GELU table.

Every function returns float64 values that the rounded form stands for. Measured against
llama.cpp's own output: docs/numerics.md 2.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from aprtui.formats.blocks import BLOCK_TYPES

__all__ = [
    "PARTNERS",
    "ROUNDINGS",
    "ROUND_TO",
    "gelu_f16_table",
    "round_bf16",
    "round_f16",
    "round_q8_0",
    "round_q8_1",
    "round_q8_k",
]

Tensor = torch.Tensor


def round_bf16(x: Tensor) -> Tensor:
    """x as bfloat16 holds it (round to nearest even)."""
    return x.float().bfloat16().double()


def round_f16(x: Tensor) -> Tensor:
    """x as float16 holds it (round to nearest even)."""
    return x.float().half().double()


def _nearest(x: Tensor, half_even: bool) -> Tensor:
    return torch.round(x) if half_even else torch.sign(x) * torch.floor(x.abs() + 0.5)


def _quotient(number: float, x: Tensor) -> Tensor:
    """number / x, rounded once: torch's own ``number / x`` is number times its rounded 1 / x."""
    return torch.full_like(x, number) / x


def round_q8_0(x: Tensor, half_even: bool = True) -> Tensor:
    """x [n, columns] in blocks of 32: q = round(x / d), d = max abs / 127 kept as float16.

    ``half_even``: as ggml's x86 kernels (x * (127 / max abs)); else as its C reference (times 1/d,
    halves away from zero). Columns must be a multiple of 32.
    """
    quantised, scale = _q8_0(x, half_even)
    return (quantised.double() * scale.half().double()).reshape(x.shape)


def round_q8_1(x: Tensor) -> tuple[Tensor, Tensor]:
    """(values [n, columns], sums [n, columns/32]): as Q8_0, and s = f16(d * sum of q) a block.

    s multiplies the minimum of a Q4_1 or Q5_1 weight block; d is not yet rounded in it.
    """
    quantised, scale = _q8_0(x, True)
    values = (quantised.double() * scale.half().double()).reshape(x.shape)
    sums = (scale.squeeze(-1) * quantised.sum(-1)).half().double()
    return values, sums


def _q8_0(x: Tensor, half_even: bool) -> tuple[Tensor, Tensor]:
    blocks = x.float().reshape(x.shape[0], -1, 32)
    largest = blocks.abs().amax(-1, keepdim=True)
    scale = largest / 127.0
    inverse = _quotient(127.0, largest) if half_even else 1.0 / scale
    inverse = torch.where(largest > 0, inverse, torch.zeros_like(inverse))
    return _nearest(blocks * inverse, half_even), scale


def round_q8_k(x: Tensor) -> Tensor:
    """x [n, columns] in blocks of 256: the element of largest magnitude maps to -127.

    iscale = -127 / max; q = min(127, round-half-even(iscale * x)); value q / iscale. Columns must
    be a multiple of 256.
    """
    blocks = x.float().reshape(x.shape[0], -1, 256)
    largest = torch.gather(blocks, -1, blocks.abs().argmax(-1, keepdim=True))
    inverse = _quotient(-127.0, largest)
    inverse = torch.where(largest == 0, torch.zeros_like(largest), inverse)
    quantised = torch.round(blocks * inverse).clamp(max=127.0)
    scale = torch.where(largest == 0, torch.zeros_like(largest), 1.0 / inverse)
    return (quantised.double() * scale.double()).reshape(x.shape)


def gelu_f16_table(x: Tensor) -> Tensor:
    """gelu(x) as ggml's CPU looks it up: float16 in, float16 out; 0 below -10, x above 10."""
    inner = round_f16(x).float()
    table = torch.nn.functional.gelu(inner, approximate="tanh").half().double()
    wide = x.double()
    table = torch.where(wide <= -10.0, torch.zeros_like(wide), table)
    return torch.where(wide >= 10.0, wide, table)


ROUND_TO: dict[str, Callable[[Tensor], Tensor]] = {
    "": lambda x: x,
    "BF16": round_bf16,
    "F16": round_f16,
    "F32": lambda x: x.float(),
}
"""Types of single numbers: what each makes of x; "F32" alone goes on in its own dtype."""

# Name -> (what it does to the rows of a product, columns must be a multiple of).
ROUNDINGS: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "Q8_0": (round_q8_0, 32),
    "Q8_0 (ties away from zero)": (lambda x: round_q8_0(x, half_even=False), 32),
    "Q8_1": (lambda x: round_q8_1(x)[0], 32),
    "Q8_K": (round_q8_k, 256),
    "F16": (round_f16, 1),
    "BF16": (round_bf16, 1),
}

_EVEN_AND_AWAY = ("Q8_0", "Q8_0 (ties away from zero)")


def _partner(name: str) -> tuple[str, ...]:
    if name in ("F16", "BF16"):
        return (name,)
    if name in ("Q4_0", "Q5_0", "Q8_0", "IQ4_NL", "MXFP4"):
        return _EVEN_AND_AWAY
    if name in ("Q4_1", "Q5_1"):
        return ("Q8_1",)
    return ("Q8_K",) if BLOCK_TYPES[name].values == 256 else ()


class _Partners(dict[str, tuple[str, ...]]):
    """None for what is no block type of GGUF or .apr: a quantised checkpoint's weight."""

    def __missing__(self, name: str) -> tuple[str, ...]:
        return ()


PARTNERS = _Partners({name: _partner(name) for name in BLOCK_TYPES})
"""Block type of a weight -> what ggml's CPU rounds the activations to before the product."""
