"""The handful of numbers that a manifest keeps of each tensor. No torch, bounded memory."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["json_number", "summarise"]

_BLOCK_VALUES = 1 << 18


def json_number(value: float) -> float | str:
    """A float as JSON can hold it: "NaN", "Infinity" and "-Infinity" by name."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def summarise(values: npt.NDArray[np.float32]) -> dict[str, Any]:
    """min, max, mean, std, rms over the finite values; how many are zero, NaN or infinite.

    Sums are float64, taken in blocks. Without a finite value the numbers are "NaN".
    """
    flat = values.reshape(-1)
    total = squares = 0.0
    low, high = math.inf, -math.inf
    finite = zeros = nan = 0
    for start in range(0, flat.size, _BLOCK_VALUES):
        block = flat[start : start + _BLOCK_VALUES].astype(np.float64)
        good = np.isfinite(block)
        if not good.all():
            nan += int(np.isnan(block).sum())
            block = block[good]
        finite += block.size
        if block.size:
            total += float(block.sum())
            squares += float(np.square(block).sum())  # not np.dot: BLAS threads spin beside ours
            low, high = min(low, float(block.min())), max(high, float(block.max()))
            zeros += block.size - int(np.count_nonzero(block))
    mean = total / finite if finite else math.nan
    square_mean = squares / finite if finite else math.nan
    variance = square_mean - mean * mean
    numbers = {
        "min": low if finite else math.nan,
        "max": high if finite else math.nan,
        "mean": mean,
        "std": math.sqrt(max(variance, 0.0)) if finite else math.nan,
        "rms": math.sqrt(square_mean),
    }
    counts = {"zeros": zeros, "nan": nan, "inf": flat.size - finite - nan}
    return {name: json_number(value) for name, value in numbers.items()} | counts
