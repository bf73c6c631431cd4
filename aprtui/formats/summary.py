"""The handful of numbers that a manifest keeps of each tensor. No torch, bounded memory.

Where C was compiled when aprtui was installed it counts in one pass, and lets other threads run.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

try:
    from aprtui.formats._stage_file import measure as measure_in_c
except ImportError:  # there was no compiler when aprtui was installed
    _HAS_C = False
else:
    _HAS_C = os.environ.get("APRTUI_NATIVE") != "off"

__all__ = ["finite_json", "json_number", "summarise"]

_BLOCK_VALUES = 1 << 15  # two blocks of float64 stay in a core's second-level cache


def json_number(value: float) -> float | str:
    """A float as JSON can hold it: "NaN", "Infinity" and "-Infinity" by name."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def finite_json(value: Any) -> Any:
    """``value`` for JSON: NaN and infinities become "NaN", "Infinity", "-Infinity"."""
    if isinstance(value, float):
        return json_number(value)
    if isinstance(value, Mapping):
        return {key: finite_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite_json(item) for item in value]
    return value


def summarise(values: npt.NDArray[np.float32]) -> dict[str, Any]:
    """min, max, mean, std, rms over the finite values; how many are zero, NaN or infinite.

    Sums are float64, taken in blocks. Without a finite value the numbers are "NaN".
    """
    flat = np.ascontiguousarray(values, dtype=np.float32).reshape(-1)
    if _HAS_C:
        found = measure_in_c(flat.__array_interface__["data"][0], flat.size)
    else:
        found = _measure(flat)
    total, squares, low, high, finite, zeros, nan = found
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


def _measure(
    flat: npt.NDArray[np.float32],
) -> tuple[float, float, float, float, int, int, int]:
    """What C's ``measure`` gives, in more passes."""
    total = squares = 0.0
    low, high = math.inf, -math.inf
    finite = zeros = nan = 0
    room = np.empty(min(flat.size, _BLOCK_VALUES))
    for start in range(0, flat.size, _BLOCK_VALUES):
        block = flat[start : start + _BLOCK_VALUES]
        wide = room[: block.size]
        wide[:] = block
        with np.errstate(invalid="ignore"):
            part = float(wide.sum())
        if not math.isfinite(part):  # no sum of finite float32 values leaves float64
            nan += int(np.count_nonzero(np.isnan(block)))
            block = block[np.isfinite(block)]
            wide = block.astype(np.float64)
            part = float(wide.sum())
        finite += block.size
        if block.size:
            total += part
            low, high = min(low, float(block.min())), max(high, float(block.max()))
            zeros += int(np.count_nonzero(block == 0))
            # not np.dot: BLAS threads spin beside ours
            squares += float(np.square(wide, out=wide).sum())
    return total, squares, low, high, finite, zeros, nan
