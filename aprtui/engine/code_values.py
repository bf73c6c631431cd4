"""Codes to values: the arithmetic of each coding, in float32, in the order its own library has.

Sources, which the tests hold each to: compressed-tensors (``dequantize``), GPTQModel
(``dequantize_weight``), AutoAWQ (``dequantize_gemm``), bitsandbytes (``dequantize_4bit``,
``int8_vectorwise_dequant``), transformers (``Fp8Dequantize``, ``convert_moe_packed_tensors``),
ModelOpt (``NVFP4QTensor.dequantize``), MLX (``dequantize``). Where they compute in 16 bits, these
are the values before that rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from aprtui.engine.block_decoders import Workspace
from aprtui.formats.quantised.coding import Affine, Coding, Float4, Scaled, Table4, Turned

__all__ = ["DECODERS", "Pieces", "as_numbers"]

_DTYPES = {
    "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.uint8,
    "I8": torch.int8, "U8": torch.uint8, "I32": torch.int32, "U32": torch.int32,
    "I64": torch.int64,
}  # fmt: skip
_AWQ_SHIFTS = (0, 16, 4, 20, 8, 24, 12, 28)  # of the eight values of a word, in order


def as_numbers(type_name: str, raw: Tensor) -> Tensor:
    """Stored bytes [n] as the numbers they are; words without a sign as int32 of the same bits."""
    dtype = _DTYPES[type_name]
    if raw.storage_offset() % dtype.itemsize or raw.data_ptr() % dtype.itemsize:
        raw = raw.clone()
    return raw.view(dtype)


@dataclass(frozen=True)
class Pieces:
    """The pieces of a block's parts by name, as numbers; ``first``: the block's first row."""

    parts: Mapping[str, Tensor]
    first: int
    workspace: Workspace

    def __getitem__(self, name: str) -> Tensor:
        return self.parts[name]

    def get(self, name: str) -> Tensor | None:
        return self.parts.get(name)

    def floats(self, name: str) -> Tensor:
        """A part of scales as float32."""
        return self.parts[name].to(torch.float32)


def _scaled(coding: Scaled, pieces: Pieces, out: Tensor) -> None:
    codes = pieces["codes"]
    if codes.dtype == torch.int8:
        out.copy_(codes)
    else:
        _float8(codes, out)
    if pieces.get("zero") is not None:
        _each_block(coding, pieces, pieces.floats("zero"), out, Tensor.sub_)
    scale = pieces["scale"]
    numbers = _powers(scale) if scale.dtype == torch.uint8 else scale.to(torch.float32)
    _each_block(coding, pieces, numbers, out, Tensor.mul_)
    if coding.factor != 1.0:
        out.mul_(coding.factor)


def _float8(codes: Tensor, out: Tensor) -> None:
    """FP8 to float32. On the CPU by way of float16, whose bits they are but for the exponent's
    bias: torch's own conversion takes one number at a time there."""
    if codes.device.type != "cpu":
        out.copy_(codes)
        return
    stored = codes.view(torch.int8).to(torch.int16)  # the sign in the upper byte
    if codes.dtype == torch.float8_e5m2:
        out.copy_((stored << 8).view(torch.float16))
        return
    halves = (stored << 7).bitwise_and_(0x3F80).bitwise_or_(stored & -0x8000)
    out.copy_(halves.view(torch.float16)).mul_(2.0**8)
    nan = stored & 0x7F == 0x7F
    if not nan.is_cpu or nan.any():  # to ask a device stops its stream
        out.masked_fill_(nan, math.nan)


def _each_block(
    coding: Scaled, pieces: Pieces, numbers: Tensor, out: Tensor, apply: Callable[..., Any]
) -> None:
    """``apply`` to each block of ``out`` its own number."""
    height, width = coding.block
    if height == 0:
        apply(out, numbers.view(()))
        return
    if height > 1:
        rows = torch.arange(pieces.first, pieces.first + len(out), device=out.device) // height
        numbers = numbers[rows - pieces.first // height]
    _each_group(numbers, out, width, apply)


def _each_group(numbers: Tensor, out: Tensor, width: int, apply: Callable[..., Any]) -> None:
    """``apply`` to each ``width`` columns of ``out`` [n, columns] the number of numbers [n, groups]
    that is theirs; the last group may be narrower."""
    columns = out.shape[1]
    if numbers.shape[1] == 1:
        apply(out, numbers)
    elif columns % width == 0:
        apply(out.view(len(out), -1, width), numbers.unsqueeze(-1))
    else:
        apply(out, numbers.repeat_interleave(width, dim=1)[:, :columns])


def _affine(coding: Affine, pieces: Pieces, out: Tensor) -> None:
    _unpack(_row_bytes(pieces["codes"]), coding.bits, out)
    scale, groups = pieces.floats("scale"), pieces.get("groups")
    if pieces.get("bias") is not None:
        _by_group(scale, out, coding.group, groups, Tensor.mul_)
        _narrowed(out, coding.narrow)
        _by_group(pieces.floats("bias"), out, coding.group, groups, Tensor.add_)
        _narrowed(out, coding.narrow)
        return
    out.sub_(coding.middle)
    zero = pieces.get("zero")
    if zero is not None:
        per = 32 // coding.bits
        numbers = torch.empty((zero.shape[1], len(zero) * per), device=out.device)
        _unpack(_row_bytes(zero.T), coding.bits, numbers)
        skipped = pieces.first % per
        numbers = numbers[:, skipped : skipped + len(out)].T.contiguous().sub_(coding.middle)
        _by_group(numbers, out, coding.group, groups, Tensor.sub_)
    _by_group(scale, out, coding.group, groups, Tensor.mul_)


def _narrowed(out: Tensor, kind: str) -> None:
    """``out`` rounded to a type of _DTYPES, where one is named."""
    if kind:
        out.copy_(out.to(_DTYPES[kind]))


def _by_group(
    numbers: Tensor, out: Tensor, width: int, groups: Tensor | None, apply: Callable[..., Any]
) -> None:
    """As ``_each_group``, or by the group that each column is of."""
    if groups is None:
        _each_group(numbers, out, width, apply)
    else:
        apply(out, numbers[:, groups.to(torch.int64)])


def _turned(coding: Turned, pieces: Pieces, out: Tensor) -> None:
    n, groups = len(out), pieces.get("groups")
    scale = pieces.floats("scale").T.contiguous()
    codes, packed = pieces["codes"], pieces["zero"]
    if coding.interleaved:
        skipped = pieces.first % 8
        out.copy_(_awq_values(codes)[skipped : skipped + n])
        zero = _awq_values(packed)[skipped : skipped + n]
    else:
        _unpack(_row_bytes(codes.T), coding.bits, out)
        stored = _row_bytes(packed)
        numbers = torch.empty((len(stored), 8 * stored.shape[1] // coding.bits), device=out.device)
        _unpack(stored, coding.bits, numbers)
        skipped = pieces.first % (32 if coding.bits == 3 else 32 // coding.bits)
        zero = numbers[:, skipped : skipped + n].T.contiguous()
        if coding.plus:  # stored zero points wrap as their bits do
            zero.add_(coding.plus).remainder_(1 << coding.bits)
    _by_group(zero, out, coding.group, groups, Tensor.sub_)
    _by_group(scale, out, coding.group, groups, Tensor.mul_)


def _awq_values(words: Tensor) -> Tensor:
    """[columns, words] int32 to [8 words, columns] float32, rows in order."""
    turned = words.T.contiguous()
    values = torch.empty((len(turned), 8, turned.shape[1]), device=words.device)
    for place, shift in enumerate(_AWQ_SHIFTS):
        values[:, place].copy_((turned >> shift).bitwise_and_(15))
    return values.view(8 * len(turned), -1)


def _row_bytes(words: Tensor) -> Tensor:
    """Rows of words [n, words] as rows of bytes, contiguous."""
    return words.contiguous().view(-1).view(torch.uint8).view(len(words), -1)


def _unpack(packed: Tensor, bits: int, out: Tensor) -> None:
    """Rows of bytes [n, bytes] to integers in ``out`` [n, count] float32: bits one after the other,
    lowest first; what is left of a row is padding."""
    n, count = out.shape
    if bits == 8:
        out.copy_(packed[:, :count])
        return
    if bits == 4 and count % 2 == 0:
        half = packed[:, : count // 2]
        pairs = out.view(n, -1, 2)
        pairs[..., 0].copy_(half & 15)
        pairs[..., 1].copy_(half >> 4)
        return
    groups = math.ceil(count / 8)  # eight values are whole bytes, ``bits`` of them
    words = torch.zeros((n, groups, 8), dtype=torch.uint8, device=packed.device)
    spread = torch.nn.functional.pad(packed, (0, max(groups * bits - packed.shape[1], 0)))
    words[..., :bits] = spread[:, : groups * bits].view(n, groups, bits)
    streams = words.view(torch.int64).view(n, groups)
    values = torch.empty((n, groups, 8), device=packed.device)
    for place in range(8):
        values[..., place].copy_((streams >> place * bits).bitwise_and_((1 << bits) - 1))
    out.copy_(values.view(n, -1)[:, :count])


@lru_cache
def _exponents(device: torch.device) -> Tensor:
    """2^(byte - 127) for each byte [256] float32; 255 is NaN (OCP's E8M0)."""
    powers = torch.ldexp(torch.ones(256), torch.arange(256) - 127)
    powers[255] = math.nan
    return powers.to(device)


def _powers(stored: Tensor) -> Tensor:
    return _exponents(stored.device)[stored.to(torch.int32)]


def _float4(coding: Float4, pieces: Pieces, out: Tensor) -> None:
    """A nibble is a float16's sign, two bits of its exponent and one of its mantissa."""
    packed = _row_bytes(pieces["codes"]).view(-1).to(torch.int16)
    pairs = out.view(-1, 2)
    low = (packed & 7).bitwise_left_shift_(9).bitwise_or_((packed & 8) << 12)
    high = (packed & 0x70).bitwise_left_shift_(5).bitwise_or_((packed & 0x80) << 8)
    pairs[:, 0].copy_(low.view(torch.float16))
    pairs[:, 1].copy_(high.view(torch.float16))
    out.mul_(2.0**14)
    scale = pieces["scale"]
    if coding.exponents:
        numbers = _powers(scale)
    else:
        numbers = scale.to(torch.float32)
        whole = pieces["global"].view(())
        numbers = numbers / whole if coding.divides else numbers * whole
    _each_group(numbers, out, coding.group, Tensor.mul_)


def _table4(coding: Table4, pieces: Pieces, out: Tensor) -> None:
    table = pieces["table"]
    start = pieces.first * coding.columns
    codes = pieces["codes"].view(torch.uint8).view(-1).to(torch.int32)
    pairs = torch.empty((codes.numel(), 2), device=out.device)
    pairs[:, 0].copy_(torch.index_select(table.repeat_interleave(16), 0, codes))
    pairs[:, 1].copy_(torch.index_select(table.repeat(16), 0, codes))
    out.view(-1).copy_(pairs.view(-1)[start % 2 : start % 2 + out.numel()])
    absmax, first_block = pieces["absmax"].view(-1), start // coding.block
    if coding.nested_block:
        blocks = torch.arange(first_block, first_block + absmax.numel(), device=out.device)
        inner = blocks // coding.nested_block - start // (coding.block * coding.nested_block)
        values = pieces["nested_table"][absmax.to(torch.int32)]
        absmax = values * pieces["nested_absmax"].view(-1)[inner] + coding.offset
    if coding.columns % coding.block == 0:
        out.view(-1, coding.block).mul_(absmax.unsqueeze(-1))
        return
    places = torch.arange(start, start + out.numel(), device=out.device) // coding.block
    out.view(-1).mul_(absmax[places - first_block])


DECODERS: Mapping[type[Coding], Callable[[Any, Pieces, Tensor], None]] = {
    Scaled: _scaled,
    Affine: _affine,
    Turned: _turned,
    Float4: _float4,
    Table4: _table4,
}
