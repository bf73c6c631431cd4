"""Block types decoded by Triton: one kernel a type, one launch for all blocks, torch's very bits.

Each decoder gives the value ``i`` of the block that begins at ``p``, for a tile of values at once.
Products and differences are rounded each by itself, as ggml's are: the kernels are compiled without
contraction to fused multiply-adds. Layouts: ggml's ``ggml-common.h`` (public); APR-Q4 aprender's.
Importing this imports triton: see ``engine.kernels``.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from aprtui.formats.blocks import BLOCK_TYPES

__all__ = ["DECODERS", "decode", "launch_options"]

_TILE = 1024  # values a program decodes: whole blocks of every type

# IQ4's sixteen values as signed bytes, the first in the lowest byte of the first word.
_IQ4_LOW = tl.constexpr(0xF6EADDCFBFAD9881)
_IQ4_HIGH = tl.constexpr(0x7159453526190D01)


@triton.jit
def _bits(p, shift, mask):
    """Bits of the byte at p, moved right and masked."""
    return (tl.load(p).to(tl.int32) >> shift) & mask


@triton.jit
def _half(p):
    """The float16 at p, which may be at an odd address, as float32."""
    bits = tl.load(p).to(tl.uint16) | (tl.load(p + 1).to(tl.uint16) << 8)
    return bits.to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def _signed(p):
    """The signed byte at p as float32."""
    return tl.load(p).to(tl.int8, bitcast=True).to(tl.float32)


@triton.jit
def _half_block_nibble(p, i):
    """Of 32 values in 16 bytes the i-th: low nibbles first, then the high ones."""
    return _bits(p + i % 16, i % 32 // 16 * 4, 15)


@triton.jit
def _q4_0(p, i):
    return (_half_block_nibble(p + 2, i) - 8).to(tl.float32) * _half(p)


@triton.jit
def _q4_1(p, i):
    return _half_block_nibble(p + 4, i).to(tl.float32) * _half(p) + _half(p + 2)


@triton.jit
def _fifth_bit(p, i):
    return _bits(p + i // 8, i % 8, 1) << 4


@triton.jit
def _q5_0(p, i):
    q = _half_block_nibble(p + 6, i) | _fifth_bit(p + 2, i)
    return (q - 16).to(tl.float32) * _half(p)


@triton.jit
def _q5_1(p, i):
    q = _half_block_nibble(p + 8, i) | _fifth_bit(p + 4, i)
    return q.to(tl.float32) * _half(p) + _half(p + 2)


@triton.jit
def _q8_0(p, i):
    return _signed(p + 2 + i) * _half(p)


@triton.jit
def _quarter_bits(p, i):
    """Two bits of the i-th of 256: each 128 in 32 bytes, 32 values a pair of bits."""
    return _bits(p + i // 128 * 32 + i % 32, i % 128 // 32 * 2, 3)


@triton.jit
def _q2_k(p, i):
    factors = p + i // 16
    scale = _bits(factors, 0, 15).to(tl.float32) * _half(p + 80)
    minimum = _bits(factors, 4, 15).to(tl.float32) * _half(p + 82)
    return _quarter_bits(p + 16, i).to(tl.float32) * scale - minimum


@triton.jit
def _q3_k(p, i):
    part = i // 16
    low = _bits(p + 96 + part % 8, part // 8 * 4, 15)
    top = _bits(p + 104 + part % 4, part // 4 * 2, 3)
    scale = ((low | (top << 4)) - 32).to(tl.float32) * _half(p + 108)
    third = _bits(p + i % 32, i // 32, 1) << 2
    return ((_quarter_bits(p + 32, i) | third) - 4).to(tl.float32) * scale


@triton.jit
def _scale_and_minimum(p, part):
    """Q4_K's and Q5_K's six-bit factors of a sub-block 0..7, times the block's two float16."""
    first, second, third = p + 4 + part % 4, p + 8 + part % 4, p + 12 + part % 4
    late_scale = _bits(third, 0, 15) | (_bits(first, 6, 3) << 4)
    late_minimum = _bits(third, 4, 15) | (_bits(second, 6, 3) << 4)
    scale = tl.where(part < 4, _bits(first, 0, 63), late_scale)
    minimum = tl.where(part < 4, _bits(second, 0, 63), late_minimum)
    return scale.to(tl.float32) * _half(p), minimum.to(tl.float32) * _half(p + 2)


@triton.jit
def _pair_nibble(p, i):
    """Of 256 values the i-th: each 64 in 32 bytes, low nibbles first."""
    return _bits(p + i // 64 * 32 + i % 32, i % 64 // 32 * 4, 15)


@triton.jit
def _q4_k(p, i):
    scale, minimum = _scale_and_minimum(p, i // 32)
    return _pair_nibble(p + 16, i).to(tl.float32) * scale - minimum


@triton.jit
def _q5_k(p, i):
    scale, minimum = _scale_and_minimum(p, i // 32)
    fifth = _bits(p + 16 + i % 32, i // 32, 1) << 4
    return (_pair_nibble(p + 48, i) | fifth).to(tl.float32) * scale - minimum


@triton.jit
def _q6_k(p, i):
    low = _bits(p + i // 128 * 64 + i % 64, i % 128 // 64 * 4, 15)
    q = low | (_quarter_bits(p + 128, i) << 4)
    return (q - 32).to(tl.float32) * (_signed(p + 192 + i // 16) * _half(p + 208))


@triton.jit
def _iq4(nibble):
    """IQ4's value of a nibble as float32."""
    words = tl.where(nibble < 8, _IQ4_LOW, _IQ4_HIGH)
    byte = (words >> (nibble % 8 * 8).to(tl.uint64)) & 255
    return byte.to(tl.uint8).to(tl.int8, bitcast=True).to(tl.float32)


@triton.jit
def _iq4_nl(p, i):
    return _iq4(_half_block_nibble(p + 2, i)) * _half(p)


@triton.jit
def _iq4_xs(p, i):
    part = i // 32
    low = _bits(p + 4 + part // 2, part % 2 * 4, 15)
    top = _bits(p + 2 + part // 4, part % 4 * 2, 3)
    scale = ((low | (top << 4)) - 32).to(tl.float32) * _half(p)
    return _iq4(_half_block_nibble(p + 8 + part * 16, i)) * scale


@triton.jit
def _apr_q4(p, i):
    return (_bits(p + 2 + i // 2, i % 2 * 4, 15) - 8).to(tl.float32) * _half(p)


@triton.jit(do_not_specialize=["n"])
def _decode(
    blocks,
    out,
    n,
    decoder: tl.constexpr,
    block_bytes: tl.constexpr,
    block_values: tl.constexpr,
    tile: tl.constexpr,
):
    """``decoder`` over n blocks; programs past the last value read the last block."""
    lane = tl.arange(0, tile)
    block = tl.program_id(0).to(tl.int64) * (tile // block_values) + lane // block_values
    i = lane % block_values
    values = decoder(blocks + tl.minimum(block, n - 1) * block_bytes, i)
    tl.store(out + block * block_values + i, values, mask=block < n)


DECODERS = {
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


def launch_options(type_name: str) -> dict[str, object]:
    """What a launch of the type's kernel fixes: its constants, and that nothing is contracted."""
    kind = BLOCK_TYPES[type_name]
    return {
        "decoder": DECODERS[type_name],
        "block_bytes": kind.bytes,
        "block_values": kind.values,
        "tile": _TILE,
        "enable_fp_fusion": False,
    }


def decode(type_name: str, blocks: torch.Tensor, out: torch.Tensor) -> None:
    """The values of ``blocks`` [n, block_bytes] uint8 into ``out`` [n, block_values] float32.

    Both contiguous and on one CUDA device (on the CPU under TRITON_INTERPRET=1), n at least 1. The
    kernel is queued on that device's current stream.
    """
    blocks = blocks.contiguous()
    programs = triton.cdiv(out.numel(), _TILE)
    with torch.cuda.device_of(blocks):  # triton launches on the current device
        _decode[(programs,)](blocks, out, blocks.shape[0], **launch_options(type_name))
