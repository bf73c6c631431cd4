"""How other engines round: ggml's activation blocks, bfloat16, float16, ggml's GELU table.

Every function returns float64 values that the rounded form stands for. Measured against
llama.cpp's own output: docs/numerics.md 2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

from aprtui.formats.blocks import BLOCK_TYPES

__all__ = [
    "PARTNERS",
    "ROUNDINGS",
    "ROUND_TO",
    "SCALED",
    "TF32_AWAY",
    "WEIGHTS_SCALED",
    "gelu_f16_table",
    "round_bf16",
    "round_e4m3",
    "round_e5m2",
    "round_f16",
    "round_q4_0",
    "round_q8_0",
    "round_q8_1",
    "round_q8_k",
    "round_tf32",
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


def round_tf32(x: Tensor, away: bool = False) -> Tensor:
    """x as a TensorFloat-32 unit reads it: ten bits after the leading one, to nearest even, or half
    ``away`` from zero, as CUDA's conversion rounds."""
    bits = x.float().contiguous().view(torch.int32)
    half = 0x1000 if away else 0xFFF + ((bits >> 13) & 1)
    rounded = ((bits + half) & ~0x1FFF).view(torch.float32).double()
    return torch.where(x.isfinite(), rounded, x.double())


TF32_AWAY = "TF32 (ties away from zero)"


def round_e4m3(x: Tensor) -> Tensor:
    """x as float8 e4m3 holds it (to nearest even), beyond 448 the largest."""
    return x.float().clamp(-448.0, 448.0).to(torch.float8_e4m3fn).double()


def round_e5m2(x: Tensor) -> Tensor:
    """x as float8 e5m2 holds it (to nearest even), beyond 57,344 the largest."""
    return x.float().clamp(-57344.0, 57344.0).to(torch.float8_e5m2).double()


def round_q4_0(x: Tensor) -> Tensor:
    """x [n, columns] in ggml's Q4_0: blocks of 32, the element of largest magnitude is -8 times
    the float16 scale; the code is x / scale + 8.5, cut off, at most 15."""
    blocks = x.float().reshape(x.shape[0], -1, 32)
    largest = torch.gather(blocks, -1, blocks.abs().argmax(-1, keepdim=True))
    scale = largest / -8.0
    inverse = torch.where(scale == 0, torch.zeros_like(scale), 1.0 / scale)
    codes = torch.floor(blocks * inverse + 8.5).clamp(0.0, 15.0) - 8.0
    return (codes.double() * scale.half().double()).reshape(x.shape)


_SCALES = {"float32": "", "float16": "F16", "bfloat16": "BF16"}  # by the name that is told
_LARGEST = {"int8": 127.0, "float8 e4m3": 448.0, "float8 e5m2": 57344.0}
_TOGETHER = {"per tensor": -1, "per token": 0, "in blocks of 32": 32, "in blocks of 64": 64,
             "in blocks of 128": 128}  # fmt: skip


def _round_scaled(
    x: Tensor, kind: str, together: str, scale_type: str, inverse: bool = False
) -> Tensor:
    """x [n, columns] in a type of _LARGEST, symmetric: what is rounded together shares the scale
    max abs / largest, kept in its own type. Codes are those of x over the scale that is kept, or
    times its ``inverse`` in float32."""
    size = _TOGETHER[together]
    rows = (
        x.float().reshape(1, -1)
        if size < 0
        else x.float().reshape(x.shape[0], -1, size or x.shape[1])
    )
    scale = rows.abs().amax(-1, keepdim=True) / _LARGEST[kind]
    scale = ROUND_TO[_SCALES[scale_type]](scale).float()
    exact = rows * (1.0 / scale) if inverse else rows / scale
    scaled = torch.where(scale > 0, exact, torch.zeros_like(rows))
    if kind == "int8":
        codes = torch.round(scaled).clamp(-127.0, 127.0).double()
    else:
        codes = (round_e4m3 if kind == "float8 e4m3" else round_e5m2)(scaled)
    return (codes * scale.double()).reshape(x.shape)


def _scaled_roundings() -> Iterator[tuple[str, tuple[Callable[[Tensor], Tensor], int]]]:
    """Every pairing of a type, of what shares a scale and of the scale's type, by its name."""
    for kind in _LARGEST:
        for together, size in _TOGETHER.items():
            for scale in _SCALES if kind == "int8" else ("float32",):
                rounding = partial(_round_scaled, kind=kind, together=together, scale_type=scale)
                name = f"{kind} {together}, {scale} scale"
                yield name, (rounding, max(size, 1))
                if kind == "int8":
                    yield f"{name} by its inverse", (partial(rounding, inverse=True), max(size, 1))


ROUND_TO: dict[str, Callable[[Tensor], Tensor]] = {
    "": lambda x: x,
    "BF16": round_bf16,
    "F16": round_f16,
    "F32": lambda x: x.float(),
    "TF32": round_tf32,
    TF32_AWAY: partial(round_tf32, away=True),
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
    "TF32": (round_tf32, 1),
    TF32_AWAY: (ROUND_TO[TF32_AWAY], 1),
}

SCALED = dict(_scaled_roundings())
"""The same for int8 and float8 with a scale, by what shares one and the scale's own type."""
ROUNDINGS |= SCALED

WEIGHTS_SCALED = {
    f"{kind} weights {together}": (kind, each)
    for kind in ("float8 e4m3", "int8")
    for together, each in (("per tensor", False), ("per row", True))
}
"""Weights that a runtime rounds to eight bits when it loads them: the type, and whether each row of
a matrix has a scale of its own."""


def round_weights(x: Tensor, name: str, largest: float) -> Tensor:
    """Rows x [n, columns] of a matrix in a form of WEIGHTS_SCALED; ``largest``: of all of it."""
    kind, each_row = WEIGHTS_SCALED[name]
    if each_row:
        return _round_scaled(x, kind, "per token", "float32")
    edge = x.new_full((1, x.shape[1]), largest)  # the scale is that of the whole matrix
    return _round_scaled(torch.cat((x, edge)), kind, "per tensor", "float32")[:-1]


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
