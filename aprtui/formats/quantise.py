"""Encoders of the types that the ``.apr`` writer makes from float32 values; numpy, vectorised."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from aprtui.errors import EngineError

__all__ = ["encode", "encode_apr_q4", "encode_apr_q8", "encode_bf16", "encode_q6_k"]

Float32 = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

_SUPER = 256  # values in a Q6_K block
_SUB = 16  # values that share one of its scales
_AT_ONCE = 2048  # Q6_K blocks encoded together: about 20 MB of intermediates


def encode(type_name: str, values: Float32) -> Bytes:
    """``values`` (any shape) as the bytes of a stored tensor of ``type_name``, [n] uint8.

    F32, F16, BF16, APR_Q4, APR_Q8 or Q6_K. The rows of a matrix can be encoded in pieces for all
    but APR_Q8 (one scale for all) and, where a piece is no multiple of 32 values, APR_Q4.
    Raises EngineError for values that are not finite, where the type would smear them.
    """
    if type_name == "F32":
        return np.ascontiguousarray(values, dtype="<f4").reshape(-1).view(np.uint8)
    if type_name == "F16":
        return np.ascontiguousarray(values, dtype="<f2").reshape(-1).view(np.uint8)
    encoders = {
        "BF16": encode_bf16,
        "APR_Q4": encode_apr_q4,
        "APR_Q8": encode_apr_q8,
        "Q6_K": encode_q6_k,
    }
    return encoders[type_name](np.asarray(values, dtype=np.float32))


def encode_bf16(values: Float32) -> Bytes:
    """The upper half of each float32, rounded to nearest even; NaNs stay NaN."""
    bits = np.ascontiguousarray(values, dtype="<f4").reshape(-1).view("<u4")
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    is_nan = (bits & 0x7FFFFFFF) > 0x7F800000
    return np.where(is_nan, (bits >> 16) | 0x40, rounded).astype("<u2").view(np.uint8)


def encode_apr_q4(values: Float32) -> Bytes:
    """APR-Q4: over the flattened tensor, 32 values in 18 bytes, float16 scale and nibbles in order.

    The last block may be short: zero bytes fill it. docs/apr-format.md 1.8.
    """
    flat = _finite(values)
    padded = np.zeros(-(-flat.size // 32) * 32, dtype=np.float32)
    padded[: flat.size] = flat
    blocks = padded.reshape(-1, 32)
    peak = np.abs(blocks).max(axis=1)
    scale = np.where(peak > 0, peak / np.float32(7), np.float32(1)).astype(np.float32)
    nibbles = (np.clip(_rounded(blocks / scale[:, None]), -8, 7) + 8).astype(np.uint8)
    nibbles.reshape(-1)[flat.size :] = 0
    out = np.empty((len(blocks), 18), dtype=np.uint8)
    out[:, :2] = _half(scale[:, None]).view(np.uint8)
    out[:, 2:] = nibbles[:, 0::2] | (nibbles[:, 1::2] << 4)
    return out.reshape(-1)


def encode_apr_q8(values: Float32) -> Bytes:
    """APR-Q8: one float32 scale for the tensor, then a signed byte a value; nothing if empty."""
    flat = _finite(values)
    if not flat.size:
        return np.empty(0, dtype=np.uint8)
    peak = np.abs(flat).max()
    scale = peak / np.float32(127) if peak > 0 else np.float32(1)
    out = np.empty(4 + flat.size, dtype=np.uint8)
    out[:4] = np.array([scale], dtype="<f4").view(np.uint8)
    out[4:] = np.clip(_rounded(flat / scale), -127, 127).astype(np.int8).view(np.uint8)
    return out


def encode_q6_k(values: Float32) -> Bytes:
    """Q6_K: 256 values in 210 bytes, 16 of them to a scale; layout as in docs/apr-format.md 1.8.

    Rows of a matrix are padded with zeros to whole blocks; other tensors are encoded flat. Each
    scale is the best of 19 near the largest value, by squared error weighted with the square.
    """
    flat = _finite(values)
    rows, columns = values.shape if values.ndim == 2 else (1, flat.size)
    padded = np.zeros((rows, -(-columns // _SUPER) * _SUPER), dtype=np.float32)
    padded[:, :columns] = flat.reshape(rows, columns)
    blocks = padded.reshape(-1, _SUPER)
    out = np.empty((len(blocks), 210), dtype=np.uint8)
    for start in range(0, len(blocks), _AT_ONCE):
        out[start : start + _AT_ONCE] = _q6_k_blocks(blocks[start : start + _AT_ONCE])
    return out.reshape(-1)


def _q6_k_blocks(blocks: Float32) -> Bytes:
    """Blocks [n, 256] float32 as [n, 210] uint8."""
    subs = blocks.reshape(-1, _SUPER // _SUB, _SUB)
    scales = _best_scales(subs)
    widest = np.take_along_axis(scales, np.abs(scales).argmax(axis=1)[:, None], axis=1)
    step = _half(widest / np.float32(-128))  # the widest scale becomes -128
    unit = step.astype(np.float32)
    small = np.clip(_ratio(scales, unit).round(), -128, 127)
    levels = np.clip(_ratio(subs, (unit * small)[..., None]).round(), -32, 31)
    q = (levels + 32).astype(np.uint8).reshape(-1, 2, 4, 32)  # halves, quarters of 32
    out = np.empty((len(blocks), 210), dtype=np.uint8)
    low = q & 15
    out[:, :128] = (low[:, :, :2] | (low[:, :, 2:] << 4)).reshape(-1, 128)
    high = q >> 4
    out[:, 128:192] = (
        high[:, :, 0] | (high[:, :, 1] << 2) | (high[:, :, 2] << 4) | (high[:, :, 3] << 6)
    ).reshape(-1, 64)
    out[:, 192:208] = small.astype(np.int8).view(np.uint8)
    out[:, 208:] = step.view(np.uint8)
    return out


def _best_scales(subs: Float32) -> Float32:
    """For sub-blocks [n, 16, 16] the scales [n, 16] whose rounding to -32..31 errs the least."""
    peak = np.take_along_axis(subs, np.abs(subs).argmax(axis=-1)[..., None], axis=-1)
    shares = _ratio(subs, peak)  # of the largest, so that no power of it over- or underflows
    weights = shares * shares
    best = np.zeros(subs.shape[:-1], dtype=np.float32)
    best_gain = np.zeros_like(best)
    for tenths in range(-9, 10):
        levels = np.clip((shares * np.float32(-32 - tenths / 10)).round(), -32, 31)
        along = (weights * shares * levels).sum(axis=-1)
        square = (weights * levels * levels).sum(axis=-1)
        scale = _ratio(along, square)
        gain = scale * along
        better = gain > best_gain
        best = np.where(better, scale, best)
        best_gain = np.where(better, gain, best_gain)
    return best * peak[..., 0]


def _ratio(above: Float32 | np.float32, below: Float32) -> Float32:
    """``above / below``, and 0 where ``below`` is 0 or the quotient would not be finite."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        quotient = np.asarray(above / below, dtype=np.float32)
    quotient[~np.isfinite(quotient)] = 0
    return quotient


def _rounded(values: Float32) -> Float32:
    """Rounded to the nearest integer, halves away from zero (numpy's own rounds them to even)."""
    magnitude = np.abs(values)
    whole = np.floor(magnitude)
    rounded: Float32 = np.copysign(whole + (magnitude - whole >= 0.5), values).astype(np.float32)
    return rounded


def _finite(values: Float32) -> Float32:
    flat = np.ascontiguousarray(values, dtype=np.float32).reshape(-1)
    if not np.isfinite(flat).all():
        raise EngineError("values that are NaN or infinite cannot be quantised")
    return flat


def _half(scale: Float32) -> npt.NDArray[np.float16]:
    """Scales as little-endian float16; EngineError for one that is too large for it."""
    with np.errstate(over="ignore"):
        half: npt.NDArray[np.float16] = scale.astype("<f2")
    if not np.isfinite(half).all():
        raise EngineError("values too large for the float16 scales of their type")
    return half
