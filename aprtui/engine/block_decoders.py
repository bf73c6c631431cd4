"""Block types decoded with torch, eight bytes at a time, to the very bits that ggml gives.

A field of all blocks is gathered into contiguous scratch, viewed as int64 words, masked and
shifted there, then cast into the output: several times faster than arithmetic on single bytes.
Layouts: ggml's ``ggml-common.h`` (public); APR-Q4 from aprender.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

__all__ = ["BLOCK_DECODERS", "Fields", "Workspace"]

_IQ4_VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


class Workspace:
    """Scratch memory that is kept from call to call; one per thread, never shared.

    Fresh memory costs more on its first touch than the arithmetic, so every decoder takes its
    scratch here. Buffers are handed out in order; ``restart`` makes all of them free again.
    """

    def __init__(self) -> None:
        self._buffers: dict[torch.device, list[Tensor]] = {}
        self._views: dict[tuple[torch.device, int, tuple[int, ...], torch.dtype], Tensor] = {}
        self._taken: dict[torch.device, int] = {}

    def restart(self) -> None:
        self._taken.clear()

    def take(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """A contiguous tensor of unspecified values, valid until the next ``restart``."""
        index = self._taken.get(device, 0)
        self._taken[device] = index + 1
        key = (device, index, shape, dtype)
        view = self._views.get(key)
        if view is None:
            view = self._views[key] = self._view(index, shape, dtype, device)
        return view

    def _view(
        self, index: int, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
    ) -> Tensor:
        """The buffer ``index`` seen so; made anew where it is too small."""
        needed = math.prod(shape) * dtype.itemsize
        buffers = self._buffers.setdefault(device, [])
        if index == len(buffers):
            buffers.append(torch.empty(needed, dtype=torch.uint8, device=device))
        elif buffers[index].numel() < needed:
            self._views = {key: view for key, view in self._views.items() if key[1] != index}
            buffers[index] = torch.empty(needed, dtype=torch.uint8, device=device)
        return buffers[index][:needed].view(dtype).view(shape)


class Fields:
    """The fields of ``blocks`` [n, block_bytes] uint8 as contiguous scratch tensors."""

    def __init__(self, blocks: Tensor, workspace: Workspace) -> None:
        self.blocks = blocks
        self.n = blocks.shape[0]
        self._workspace = workspace

    def scratch(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return self._workspace.take(shape, dtype, self.blocks.device)

    def bytes(self, start: int, stop: int) -> Tensor:
        """Bytes ``start..stop`` of every block: [n, stop - start] uint8."""
        gathered = self.scratch((self.n, stop - start), torch.uint8)
        return gathered.copy_(self.blocks[:, start:stop])

    def words(self, start: int, stop: int) -> Tensor:
        """The same as [n, (stop - start) / 8] int64."""
        return self.bytes(start, stop).view(torch.int64)

    def halves(self, start: int, stop: int) -> Tensor:
        """float16 numbers of every block as [n, (stop - start) / 2] float32."""
        stored = self.bytes(start, stop).view(torch.float16)
        return self.scratch(tuple(stored.shape), torch.float32).copy_(stored)

    def bits(self, packed: Tensor, first: int, mask: int) -> Tensor:
        """Bits of every byte of the words ``packed``, moved right by ``first``, then masked.

        A negative ``first`` moves left. The mask is one byte; it keeps what stays in its byte.
        """
        moved = self.scratch(tuple(packed.shape), packed.dtype)
        lanes = _lanes(mask, packed.dtype)
        if first > 0:
            return torch.bitwise_right_shift(packed, first, out=moved).bitwise_and_(lanes)
        if first < 0:
            return torch.bitwise_left_shift(packed, -first, out=moved).bitwise_and_(lanes)
        return torch.bitwise_and(packed, lanes, out=moved)


def _lanes(mask: int, dtype: torch.dtype) -> int:
    """``mask`` in every byte of an integer of ``dtype``."""
    return int.from_bytes(bytes([mask]) * dtype.itemsize, "little", signed=True)


def _bytes_of(words: Tensor, *shape: int, signed: bool = False) -> Tensor:
    return words.view(torch.int8 if signed else torch.uint8).view(shape)


def _scale_pairs(fields: Fields) -> tuple[Tensor, Tensor]:
    """Q4_K's and Q5_K's factors of each sub-block of 32: scale and minimum, both [n, 8, 1].

    Bytes 4..16 hold eight 6-bit scales and minima as three 32-bit words A, B, C: the low six bits
    of A's and B's bytes are the first four of each; C's low nibbles with A's top bits, and its
    high ones with B's, the last four. A and B are worked on as one 64-bit word.
    """
    n = fields.n
    first_two = fields.words(4, 12)
    third = fields.scratch((n, 1), torch.int64)
    third.copy_(fields.bytes(12, 16).view(torch.int32))
    late = fields.bits(first_two, 2, 0x30)
    late.bitwise_or_(torch.bitwise_and(third, 0x0F0F0F0F))
    late.bitwise_or_(third.bitwise_left_shift_(28).bitwise_and_(0x0F0F0F0F << 32))
    sixes = fields.scratch((2, n, 2), torch.int32)
    sixes[:, :, 0].copy_(fields.bits(first_two, 0, 0x3F).view(torch.int32).t())
    sixes[:, :, 1].copy_(late.view(torch.int32).t())
    factors = fields.scratch((2, n, 8), torch.float32).copy_(_bytes_of(sixes, 2, n, 8))
    factors.mul_(fields.halves(0, 4).t().unsqueeze(-1))
    return factors[0].unsqueeze(-1), factors[1].unsqueeze(-1)


def _q4_0(fields: Fields, out: Tensor) -> None:
    packed = fields.words(2, 18)
    halves = out.view(fields.n, 2, 16)
    halves[:, 0].copy_(_bytes_of(fields.bits(packed, 0, 0x0F), fields.n, 16))
    halves[:, 1].copy_(_bytes_of(fields.bits(packed, 4, 0x0F), fields.n, 16))
    out.sub_(8).mul_(fields.halves(0, 2))


def _q4_1(fields: Fields, out: Tensor) -> None:
    packed = fields.words(4, 20)
    halves = out.view(fields.n, 2, 16)
    halves[:, 0].copy_(_bytes_of(fields.bits(packed, 0, 0x0F), fields.n, 16))
    halves[:, 1].copy_(_bytes_of(fields.bits(packed, 4, 0x0F), fields.n, 16))
    factors = fields.halves(0, 4)
    out.mul_(factors[:, :1]).add_(factors[:, 1:])


@lru_cache
def _spread_bits(device: torch.device) -> Tensor:
    """For each byte a word [256] int64: bit i of the byte as bit 4 of the word's byte i."""
    words = [sum((byte >> bit & 1) << (8 * bit + 4) for bit in range(8)) for byte in range(256)]
    return torch.tensor(words, dtype=torch.int64, device=device)


@lru_cache
def _iq4_tables(device: torch.device) -> tuple[Tensor, Tensor]:
    """For each byte the values [256] float32 of its low nibble, and of its high one."""
    values = torch.tensor(_IQ4_VALUES, dtype=torch.float32, device=device)
    return values.repeat(16), values.repeat_interleave(16)


def _five_bits(fields: Fields, first: int, out: Tensor) -> None:
    """Q5_0's and Q5_1's integers 0..31: four bytes of fifth bits at ``first``, then nibbles."""
    spread = _spread_bits(out.device)
    n = fields.n
    index = fields.scratch((2, n, 2), torch.int32)
    index.copy_(fields.bytes(first, first + 4).view(n, 2, 2).transpose(0, 1))
    packed = fields.words(first + 4, first + 20)
    halves = out.view(n, 2, 16)
    fifth = fields.scratch((n * 2,), torch.int64)
    for half, shift in enumerate((0, 4)):
        torch.index_select(spread, 0, index[half].view(-1), out=fifth)
        merged = fields.bits(packed, shift, 0x0F).bitwise_or_(fifth.view(n, 2))
        halves[:, half].copy_(_bytes_of(merged, n, 16))


def _q5_0(fields: Fields, out: Tensor) -> None:
    _five_bits(fields, 2, out)
    out.sub_(16).mul_(fields.halves(0, 2))


def _q5_1(fields: Fields, out: Tensor) -> None:
    _five_bits(fields, 4, out)
    factors = fields.halves(0, 4)
    out.mul_(factors[:, :1]).add_(factors[:, 1:])


def _q8_0(fields: Fields, out: Tensor) -> None:
    out.copy_(fields.blocks[:, 2:].view(torch.int8)).mul_(fields.halves(0, 2))


def _q2_k(fields: Fields, out: Tensor) -> None:
    n = fields.n
    packed = fields.words(16, 80)
    parts = out.view(n, 2, 4, 32)
    for part in range(4):
        parts[:, :, part].copy_(_bytes_of(fields.bits(packed, 2 * part, 3), n, 2, 32))
    nibbles = fields.words(0, 16)
    d = fields.halves(80, 84)
    scale = fields.scratch((n, 16), torch.float32)
    scale.copy_(_bytes_of(fields.bits(nibbles, 0, 0x0F), n, 16)).mul_(d[:, :1])
    minimum = fields.scratch((n, 16), torch.float32)
    minimum.copy_(_bytes_of(fields.bits(nibbles, 4, 0x0F), n, 16)).mul_(d[:, 1:])
    out.view(n, 16, 16).mul_(scale.unsqueeze(-1)).sub_(minimum.unsqueeze(-1))


def _q3_k(fields: Fields, out: Tensor) -> None:
    n = fields.n
    high, low = fields.words(0, 32), fields.words(32, 96)
    parts = out.view(n, 2, 4, 32)
    for half in range(2):
        for part in range(4):
            two = fields.bits(low.view(n, 2, 4)[:, half], 2 * part, 3)
            third = fields.bits(high, 4 * half + part - 2, 4)
            merged = two.bitwise_or_(third)
            parts[:, half, part].copy_(_bytes_of(merged, n, 32))
    nibbles = fields.words(96, 104)
    tops = fields.bytes(104, 108).view(torch.int32)
    scales = fields.scratch((n, 4), torch.int32)
    scales[:, :2].copy_(fields.bits(nibbles, 0, 0x0F).view(torch.int32))
    scales[:, 2:].copy_(fields.bits(nibbles, 4, 0x0F).view(torch.int32))
    for part in range(4):
        scales[:, part].bitwise_or_(fields.bits(tops, 2 * part - 4, 0x30).view(n))
    factors = fields.scratch((n, 16), torch.float32)
    factors.copy_(_bytes_of(scales, n, 16)).sub_(32).mul_(fields.halves(108, 110))
    out.sub_(4)
    out.view(n, 16, 16).mul_(factors.unsqueeze(-1))


def _q4_k(fields: Fields, out: Tensor) -> None:
    n = fields.n
    packed = fields.words(16, 144)
    parts = out.view(n, 4, 2, 32)
    parts[:, :, 0].copy_(_bytes_of(fields.bits(packed, 0, 0x0F), n, 4, 32))
    parts[:, :, 1].copy_(_bytes_of(fields.bits(packed, 4, 0x0F), n, 4, 32))
    scale, minimum = _scale_pairs(fields)
    out.view(n, 8, 32).mul_(scale).sub_(minimum)


def _q5_k(fields: Fields, out: Tensor) -> None:
    n = fields.n
    high, packed = fields.words(16, 48), fields.words(48, 176)
    parts = out.view(n, 4, 2, 32)
    for half in range(2):
        nibbles = fields.bits(packed, 4 * half, 0x0F).view(n, 4, 4)
        for group in range(4):
            nibbles[:, group].bitwise_or_(fields.bits(high, 2 * group + half - 4, 0x10))
        parts[:, :, half].copy_(_bytes_of(nibbles, n, 4, 32))
    scale, minimum = _scale_pairs(fields)
    out.view(n, 8, 32).mul_(scale).sub_(minimum)


def _q6_k(fields: Fields, out: Tensor) -> None:
    halves = 2 * fields.n
    high = fields.words(128, 192).view(halves, 4)
    low = fields.scratch((2, halves, 4), torch.int64)
    low.copy_(fields.words(0, 128).view(halves, 2, 4).transpose(0, 1))
    quarters = out.view(halves, 4, 32)
    for quarter in range(4):
        six = fields.bits(low[quarter % 2], 4 * (quarter // 2), 0x0F)
        six.bitwise_or_(fields.bits(high, 2 * quarter - 4, 0x30))
        quarters[:, quarter].copy_(_bytes_of(six, halves, 32, signed=True).sub_(32))
    factors = fields.scratch((fields.n, 16), torch.float32)
    factors.copy_(fields.bytes(192, 208).view(torch.int8)).mul_(fields.halves(208, 210))
    out.view(fields.n, 16, 16).mul_(factors.unsqueeze(-1))


def _iq4(fields: Fields, packed: Tensor, out: Tensor) -> None:
    """IQ4's sixteen fixed values: ``packed`` [m, 16] uint8 gives [m, 2, 16] float32."""
    index = fields.scratch(tuple(packed.shape), torch.int32).copy_(packed).view(-1)
    looked_up = fields.scratch(tuple(packed.shape), torch.float32)
    halves = out.view(-1, 2, 16)
    for half, table in enumerate(_iq4_tables(out.device)):
        torch.index_select(table, 0, index, out=looked_up.view(-1))
        halves[:, half].copy_(looked_up)


def _iq4_nl(fields: Fields, out: Tensor) -> None:
    _iq4(fields, fields.bytes(2, 18), out)
    out.mul_(fields.halves(0, 2))


def _iq4_xs(fields: Fields, out: Tensor) -> None:
    n = fields.n
    _iq4(fields, fields.bytes(8, 136).view(n * 8, 16), out)
    pairs = torch.arange(0, 16, 2, dtype=torch.int32, device=out.device)
    tops = fields.scratch((n, 1), torch.int32).copy_(fields.bytes(2, 4).view(torch.int16))
    scales = tops.bitwise_right_shift(pairs).bitwise_and_(3).bitwise_left_shift_(4)
    nibbles = fields.bytes(4, 8).view(torch.int32)
    low = fields.scratch((n, 4, 2), torch.uint8)
    low[:, :, 0].copy_(_bytes_of(fields.bits(nibbles, 0, 0x0F), n, 4))
    low[:, :, 1].copy_(_bytes_of(fields.bits(nibbles, 4, 0x0F), n, 4))
    factors = fields.scratch((n, 8), torch.float32).copy_(scales.bitwise_or_(low.view(n, 8)))
    factors.sub_(32).mul_(fields.halves(0, 2))
    out.view(n, 8, 32).mul_(factors.unsqueeze(-1))


def _apr_q4(fields: Fields, out: Tensor) -> None:
    packed = fields.words(2, 18)
    pairs = out.view(fields.n, 16, 2)
    pairs[:, :, 0].copy_(_bytes_of(fields.bits(packed, 0, 0x0F), fields.n, 16))
    pairs[:, :, 1].copy_(_bytes_of(fields.bits(packed, 4, 0x0F), fields.n, 16))
    out.sub_(8).mul_(fields.halves(0, 2))


# Each takes the fields of n blocks and writes their values into ``out`` [n, block_values] float32.
BLOCK_DECODERS: dict[str, Callable[[Fields, Tensor], None]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "IQ4_NL": _iq4_nl,
    "IQ4_XS": _iq4_xs,
    "APR_Q4": _apr_q4,
}
