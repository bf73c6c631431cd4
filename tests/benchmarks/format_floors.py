"""Measures what rounding a matrix to each format leaves: the floors of ``aprtui/compare/bars.py``.

    python -m tests.benchmarks.format_floors

Relative RMS over normal values and over heavier tails (Student's t of 6 degrees of freedom), 64
rows of 4096. GGUF types: the gguf package's quantiser, or ggml's own where that has none
(``ggml_quantize_chunk`` of llama-cpp-cffi, importance 1), read back by the gguf package.
Others: each format's own rounding in numpy and torch, as its library rounds without calibration.
Nothing of aprtui's decoders takes part.
"""

# mypy: ignore-errors
from __future__ import annotations

import math

import numpy as np
import torch

ROWS, COLUMNS = 64, 4096
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
)  # fmt: skip
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
E2M1 = tuple(sorted({sign * value for value in _E2M1 for sign in (1, -1)}))
_BNB_FP4 = (0.0, 0.0052083333, 0.66666667, 1.0, 0.33333333, 0.5, 0.16666667, 0.25)
BNB_FP4 = tuple(sorted({sign * value for value in _BNB_FP4 for sign in (1, -1)}))
GGML = (
    "Q8_0", "Q6_K", "Q5_K", "Q5_1", "Q5_0", "Q4_K", "Q4_1", "Q4_0", "Q3_K", "Q2_K", "IQ4_XS",
    "IQ4_NL", "IQ3_S", "IQ3_XXS", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S", "TQ1_0", "TQ2_0",
    "MXFP4", "NVFP4",
)  # fmt: skip


def rounded(kind: str, weights: np.ndarray) -> np.ndarray:
    """What a matrix becomes."""
    return PLAIN[kind](weights) if kind in PLAIN else by_ggml(kind, weights)


def left(weights: np.ndarray, values: np.ndarray) -> float:
    """Relative RMS of the rounding."""
    difference = np.asarray(values, dtype=np.float64).reshape(weights.shape) - weights
    return math.sqrt(float((difference**2).mean() / (weights.astype(np.float64) ** 2).mean()))


def by_ggml(kind: str, weights: np.ndarray) -> np.ndarray:
    """Quantised by ggml, or by the gguf package; read back by the latter."""
    import gguf

    code = gguf.GGMLQuantizationType[kind]
    try:
        raw = gguf.quants.quantize(weights, code)
    except NotImplementedError:
        raw = _by_c(kind, code, weights)
    return gguf.quants.dequantize(raw, code)


def _by_c(kind: str, code: int, weights: np.ndarray) -> np.ndarray:
    import ctypes
    import importlib.util

    import gguf

    spec = importlib.util.find_spec("llama._llama_cpp_cpu")
    lib = ctypes.CDLL(spec.origin)
    block, size = gguf.GGML_QUANT_SIZES[code]
    out = np.zeros((ROWS, COLUMNS // block * size), dtype=np.uint8)
    importance = np.ones(COLUMNS, dtype=np.float32)
    source = np.ascontiguousarray(weights, dtype=np.float32)
    lib.ggml_quantize_chunk.restype = ctypes.c_size_t
    lib.ggml_quantize_chunk.argtypes = [ctypes.c_int] + [ctypes.c_void_p] * 2 + [
        ctypes.c_int64] * 3 + [ctypes.c_void_p]  # fmt: skip
    written = lib.ggml_quantize_chunk(
        int(code), source.ctypes.data, out.ctypes.data, 0, ROWS, COLUMNS, importance.ctypes.data
    )
    assert written == out.size, (kind, written, out.size)
    return out


def to_table(values: np.ndarray, table: tuple[float, ...]) -> np.ndarray:
    """Each value's nearest entry."""
    entries = np.array(table)
    return entries[np.abs(values[..., None] - entries).argmin(-1)]


def absmax(weights: np.ndarray, group: int) -> tuple[np.ndarray, np.ndarray]:
    grouped = weights.reshape(len(weights), -1, group).astype(np.float64)
    return grouped, np.abs(grouped).max(-1, keepdims=True)


def affine(weights: np.ndarray, bits: int, group: int, symmetric: bool) -> np.ndarray:
    """Integers with a scale a group, a zero point too unless ``symmetric``."""
    grouped, most = absmax(weights, group)
    if symmetric:
        scale = most / ((2**bits - 1) / 2)
        half = 2 ** (bits - 1)
        return (grouped / scale).round().clip(-half, half - 1) * scale
    low, high = grouped.min(-1, keepdims=True), grouped.max(-1, keepdims=True)
    scale = (high - low) / (2**bits - 1)
    zero = (-low / scale).round()
    return ((grouped / scale).round() + zero).clip(0, 2**bits - 1) * scale - zero * scale


def float8(weights: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """One scale a row: the row's largest is the type's largest."""
    grouped, most = absmax(weights, COLUMNS)
    scale = most / torch.finfo(dtype).max
    return torch.from_numpy(grouped / scale).float().to(dtype).double().numpy() * scale


def blocks4(weights: np.ndarray, table: tuple[float, ...], group: int) -> np.ndarray:
    """bitsandbytes: a table times the block's largest."""
    grouped, most = absmax(weights, group)
    return to_table(grouped / most, table) * most


def mxfp4(weights: np.ndarray) -> np.ndarray:
    """OCP: the scale is the power of two below the block's largest, by 4 (E2M1's largest's)."""
    grouped, most = absmax(weights, 32)
    scale = np.exp2(np.floor(np.log2(most)) - 2)
    return to_table(grouped / scale, E2M1) * scale


def nvfp4(weights: np.ndarray) -> np.ndarray:
    grouped, most = absmax(weights, 16)
    whole = np.abs(weights).max() / (448 * 6)
    scale = torch.from_numpy(most / 6 / whole).float().to(torch.float8_e4m3fn).double().numpy()
    return to_table(grouped / (scale * whole), E2M1) * scale * whole


def int8_rows(weights: np.ndarray) -> np.ndarray:
    grouped, most = absmax(weights, COLUMNS)
    return (grouped * (127 / most)).round() * (most / 127)


PLAIN = {
    "FP8_E4M3": lambda w: float8(w, torch.float8_e4m3fn),
    "FP8_E5M2": lambda w: float8(w, torch.float8_e5m2),
    "INT8": int8_rows, "BNB_INT8": int8_rows,
    "BNB_NF4": lambda w: blocks4(w, NF4, 64), "BNB_FP4": lambda w: blocks4(w, BNB_FP4, 64),
    "MXFP4_HF": mxfp4, "MXFP4_CT": mxfp4, "MLX_MXFP4": mxfp4,
    "NVFP4_MO": nvfp4, "NVFP4_CT": nvfp4,
    **{f"GPTQ_{b}": lambda w, b=b: affine(w, b, 128, True) for b in (2, 3, 4, 8)},
    "AWQ_4": lambda w: affine(w, 4, 128, False),
    **{f"CT_INT{b}": lambda w, b=b: affine(w, b, 128, True) for b in (4, 8)},
    **{f"MLX_{b}": lambda w, b=b: affine(w, b, 64, False) for b in (2, 3, 4, 5, 6, 8)},
}  # fmt: skip
"""By our name of the type: the values that a matrix becomes."""


def normal() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((ROWS, COLUMNS)).astype(np.float32)


def tailed() -> np.ndarray:
    return np.random.default_rng(2).standard_t(6, (ROWS, COLUMNS)).astype(np.float32)


def main() -> None:
    from aprtui.compare.bars import floor_of

    print(f"{'type':10} {'normal':>8} {'tailed':>8} {'floor':>8}")
    for kind in (*GGML, *PLAIN):
        found = []
        for weights in (normal(), tailed()):
            try:
                found.append(f"{left(weights, rounded(kind, weights)):8.4f}")
            except Exception as error:
                found.append(type(error).__name__[:8])
        print(f"{kind:10} {found[0]} {found[1]} {floor_of(kind):8.4f}", flush=True)


if __name__ == "__main__":
    main()
