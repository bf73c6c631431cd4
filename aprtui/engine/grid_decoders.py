"""Block types of grids, ternaries and four-bit floats, decoded with torch on any device.

IQ1, IQ2 and IQ3 look up eight or four values at once in ggml's grids; TQ1 and TQ2 hold ternaries;
MXFP4 and NVFP4 hold E2M1 floats. To the very bits that ggml gives. The grids are the gguf package's
own; it is imported where such a block is met.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from aprtui.engine.block_decoders import Fields

__all__ = ["GRID_DECODERS"]

_FP4_DOUBLED = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)
_SHARE = 0.125  # IQ1's shift of all values of a group


@lru_cache
def _grid(type_name: str, device: torch.device) -> Tensor:
    """A grid [entries, 8 or 4] float32."""
    import gguf.quants

    codec = getattr(gguf.quants, type_name)
    codec.init_grid()
    return torch.from_numpy(codec.grid.reshape(codec.grid_shape)).to(device, torch.float32)


@lru_cache
def _seven_bit_signs(device: torch.device) -> Tensor:
    """[128, 8] of 1 and -1: the eighth makes the number of minus signs even."""
    codes = torch.arange(128)
    bits = codes[:, None] >> torch.arange(7) & 1
    bits = torch.cat((bits, bits.sum(1, keepdim=True) & 1), dim=1)
    return (1 - 2 * bits).to(device, torch.float32)


@lru_cache
def _fp4(device: torch.device) -> Tensor:
    return torch.tensor(_FP4_DOUBLED, dtype=torch.float32, device=device)


def _bytes(fields: Fields, start: int, stop: int) -> Tensor:
    """Bytes of every block [n, stop - start] int32."""
    return fields.bytes(start, stop).to(torch.int32)


def _shorts(fields: Fields, start: int, stop: int) -> Tensor:
    """Little-endian 16-bit numbers without a sign, as int32."""
    return fields.bytes(start, stop).view(torch.int16).to(torch.int32) & 0xFFFF


def _words(fields: Fields, start: int, stop: int) -> Tensor:
    """Little-endian 32-bit numbers without a sign, as int64."""
    return fields.bytes(start, stop).view(torch.int32).to(torch.int64) & 0xFFFFFFFF


def _shifted(packed: Tensor, shifts: range, mask: int) -> Tensor:
    """[..., m] to [..., m, len(shifts)]: each number moved right by each shift, then masked."""
    moves = torch.arange(shifts.start, shifts.stop, shifts.step, device=packed.device)
    return packed.unsqueeze(-1) >> moves.to(packed.dtype) & mask


def _bit_signs(packed: Tensor) -> Tensor:
    """Bytes [..., m] to [..., m, 8] of 1 and -1, lowest bit first."""
    return (1 - 2 * _shifted(packed, range(0, 8), 1)).to(torch.float32)


def _put(out: Tensor, scale: Tensor, values: Tensor, signs: Tensor | None = None) -> None:
    """``out`` [n, 256]: groups of values [n, groups, ...] by scales [n, groups], with signs."""
    n, groups = scale.shape
    product = values.view(n, groups, -1) * scale.unsqueeze(-1)
    if signs is not None:
        product *= signs.view(n, groups, -1)
    out.copy_(product.view(out.shape))


def _iq2_xxs(fields: Fields, out: Tensor) -> None:
    n = fields.n
    pairs = _words(fields, 2, 66).view(n, 8, 2)
    scale = fields.halves(0, 2) * (0.5 + (pairs[..., 1] >> 28).to(torch.float32)) * 0.25
    signs = _seven_bit_signs(out.device)[_shifted(pairs[..., 1], range(0, 28, 7), 127)]
    codes = _shifted(pairs[..., 0], range(0, 32, 8), 255)
    _put(out, scale, _grid("IQ2_XXS", out.device)[codes], signs)


def _nibble_scales(fields: Fields, start: int, stop: int) -> Tensor:
    """[n, 2 * bytes] float32: low nibbles before high ones."""
    packed = _bytes(fields, start, stop)
    return _shifted(packed, range(0, 8, 4), 15).view(fields.n, -1).to(torch.float32)


def _iq2_xs(fields: Fields, out: Tensor) -> None:
    codes = _shorts(fields, 2, 66)
    scale = fields.halves(0, 2) * (0.5 + _nibble_scales(fields, 66, 74)) * 0.25
    signs = _seven_bit_signs(out.device)[codes >> 9]
    _put(out, scale, _grid("IQ2_XS", out.device)[codes & 511], signs)


def _iq2_s(fields: Fields, out: Tensor) -> None:
    n = fields.n
    high = _shifted(_bytes(fields, 66, 74), range(0, 8, 2), 3).view(n, -1)
    codes = _bytes(fields, 2, 34) | high << 8
    scale = fields.halves(0, 2) * (0.5 + _nibble_scales(fields, 74, 82)) * 0.25
    signs = _bit_signs(_bytes(fields, 34, 66))
    _put(out, scale, _grid("IQ2_S", out.device)[codes], signs)


def _iq3_xxs(fields: Fields, out: Tensor) -> None:
    scales = _words(fields, 66, 98)
    scale = fields.halves(0, 2) * (0.5 + (scales >> 28).to(torch.float32)) * 0.5
    signs = _seven_bit_signs(out.device)[_shifted(scales, range(0, 28, 7), 127)]
    _put(out, scale, _grid("IQ3_XXS", out.device)[_bytes(fields, 2, 66)], signs)


def _iq3_s(fields: Fields, out: Tensor) -> None:
    n = fields.n
    ninth = _shifted(_bytes(fields, 66, 74), range(0, 8), 1).view(n, -1)
    codes = _bytes(fields, 2, 66) | ninth << 8
    scale = fields.halves(0, 2) * (1 + 2 * _nibble_scales(fields, 106, 110))
    signs = _bit_signs(_bytes(fields, 74, 106))
    _put(out, scale, _grid("IQ3_S", out.device)[codes], signs)


def _iq1_s(fields: Fields, out: Tensor) -> None:
    n = fields.n
    high = _shorts(fields, 34, 50)
    scale = fields.halves(0, 2) * (2 * (high >> 12 & 7) + 1).to(torch.float32)
    share = torch.where(high & 0x8000 == 0, _SHARE, -_SHARE).unsqueeze(-1)
    codes = _bytes(fields, 2, 34) | _shifted(high, range(0, 12, 3), 7).view(n, -1) << 8
    values = _grid("IQ1_S", out.device)[codes].view(n, 8, 32)
    _put(out, scale, values + share)


def _iq1_m(fields: Fields, out: Tensor) -> None:
    n = fields.n
    scales = _shorts(fields, 48, 56)
    places = torch.tensor((12, 8, 4, 0), dtype=torch.int32, device=out.device)
    bits = ((scales & 0xF000) >> places).sum(dim=1, dtype=torch.int32)
    whole = bits.to(torch.int16).view(torch.float16).to(torch.float32).unsqueeze(-1)
    scale = whole * (2 * _shifted(scales, range(0, 12, 3), 7).view(n, 16) + 1).to(torch.float32)
    high = _shifted(_bytes(fields, 32, 48), range(0, 8, 4), 15).view(n, 32)
    codes = _bytes(fields, 0, 32) | (high & 7) << 8
    share = torch.where(high & 8 == 0, _SHARE, -_SHARE).unsqueeze(-1)
    _put(out, scale, _grid("IQ1_M", out.device)[codes] + share)


def _ternaries(packed: Tensor, powers: tuple[int, ...], run: int) -> Tensor:
    """Bytes of base-3 digits [n, m] to [n, digits * m], ``run`` bytes at a time digit by digit."""
    factors = torch.tensor(powers, dtype=torch.int32, device=packed.device)
    digits = packed.view(len(packed), -1, 1, run) * factors.view(1, 1, -1, 1) & 255
    return ((digits * 3 >> 8) - 1).view(len(packed), -1)


def _tq1_0(fields: Fields, out: Tensor) -> None:
    packed = _bytes(fields, 0, 52)
    fives, fours = (1, 3, 9, 27, 81), (1, 3, 9, 27)
    parts = (
        _ternaries(packed[:, :32].contiguous(), fives, 32),
        _ternaries(packed[:, 32:48].contiguous(), fives, 16),
        _ternaries(packed[:, 48:].contiguous(), fours, 4),
    )
    out.copy_(torch.cat(parts, dim=1)).mul_(fields.halves(52, 54))


def _tq2_0(fields: Fields, out: Tensor) -> None:
    packed = _bytes(fields, 0, 64).view(fields.n, 2, 1, 32)
    shifts = torch.arange(0, 8, 2, dtype=torch.int32, device=out.device).view(1, 1, 4, 1)
    out.copy_(((packed >> shifts & 3) - 1).view(out.shape)).mul_(fields.halves(64, 66))


def _mxfp4(fields: Fields, out: Tensor) -> None:
    n = fields.n
    exponent = _bytes(fields, 0, 1)
    bits = torch.where(exponent < 2, 0x00200000 << exponent, exponent - 1 << 23)
    packed = _bytes(fields, 1, 17)
    codes = torch.stack((packed & 15, packed >> 4), dim=1)
    out.copy_(_fp4(out.device)[codes].view(n, 32)).mul_(bits.to(torch.int32).view(torch.float32))


def _nvfp4(fields: Fields, out: Tensor) -> None:
    n = fields.n
    stored = _bytes(fields, 0, 4)
    exponent, mantissa = stored >> 3 & 15, (stored & 7).to(torch.float32)
    normal = torch.ldexp(1.0 + mantissa / 8.0, exponent - 7)
    scale = torch.where(exponent == 0, mantissa * 2.0**-9, normal) * 0.5
    scale = torch.where((stored == 0) | (stored == 0x7F), 0.0, scale)
    packed = _bytes(fields, 4, 36).view(n, 4, 8)
    codes = torch.cat((packed & 15, packed >> 4), dim=2)
    _put(out, scale, _fp4(out.device)[codes])


GRID_DECODERS: dict[str, Callable[[Fields, Tensor], None]] = {
    "IQ1_S": _iq1_s,
    "IQ1_M": _iq1_m,
    "IQ2_XXS": _iq2_xxs,
    "IQ2_XS": _iq2_xs,
    "IQ2_S": _iq2_s,
    "IQ3_XXS": _iq3_xxs,
    "IQ3_S": _iq3_s,
    "TQ1_0": _tq1_0,
    "TQ2_0": _tq2_0,
    "MXFP4": _mxfp4,
    "NVFP4": _nvfp4,
}
