"""A weight's values without torch: some of its rows, dequantised, for statistics and histogram."""

from __future__ import annotations

import math
from dataclasses import dataclass

import gguf
import gguf.quants
import numpy as np
import numpy.typing as npt

from aprtui.compare.statistics import Histogram, Statistics, histogram, statistics
from aprtui.formats.blocks import BLOCK_TYPES
from aprtui.formats.modelfile import TensorEntry, tensor_bytes

__all__ = ["WeightLook", "look_at_weight", "sample_values"]

SAMPLE = 1 << 20  # values: a larger tensor is looked at in evenly spaced rows
Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class WeightLook:
    """One weight in numbers; of ``looked`` values when that is less than ``count``."""

    entry: TensorEntry
    statistics: Statistics
    histogram: Histogram
    looked: int
    count: int


def look_at_weight(entry: TensorEntry, bins: int) -> WeightLook | None:
    """Statistics and a histogram of a weight; None for a type that has no numpy decoder.

    Raises BadFileError when the file became shorter.
    """
    values = sample_values(entry)
    if values is None:
        return None
    counted = histogram(values, bins, clip=(0.1, 99.9))
    return WeightLook(entry, statistics(values), counted, values.size, math.prod(entry.shape))


def sample_values(entry: TensorEntry) -> Float32 | None:
    """At most about SAMPLE values [n] float32, whole rows spread evenly over the tensor."""
    stored = tensor_bytes(entry)
    total, columns = math.prod(entry.shape), entry.shape[-1] if entry.shape else 1
    if total == 0:
        return np.empty(0, dtype=np.float32)
    if entry.type == "APR_Q8":
        scaled: Float32 = stored[4 : 4 + min(total, SAMPLE)].view(np.int8).astype(np.float32)
        scaled *= stored[:4].view("<f4")[0]
        return scaled
    kind = BLOCK_TYPES.get(entry.type)
    if kind is None or (kind.ggml_code is None and entry.type != "APR_Q4"):
        return None
    if entry.flat or entry.type == "APR_Q4":
        blocks = stored.reshape(-1, kind.bytes)
        blocks = blocks[:: max(-(-total // SAMPLE), 1)]
        decoded = _apr_q4(blocks) if entry.type == "APR_Q4" else _decode(blocks, entry.type)
        return None if decoded is None else decoded.reshape(-1)[:total]
    rows = total // columns
    table = stored.reshape(rows, -1)[:: max(-(-total // SAMPLE), 1)]
    decoded = _decode(np.ascontiguousarray(table), entry.type)
    return None if decoded is None else decoded[:, :columns].reshape(-1)


def _decode(rows: npt.NDArray[np.uint8], type_name: str) -> Float32 | None:
    """Rows of blocks [rows, bytes] to [rows, values] by gguf's own decoders."""
    if type_name == "F32":
        found: Float32 = rows.view("<f4")
        return found
    if type_name == "F16":
        return rows.view("<f2").astype(np.float32)
    try:
        found = gguf.quants.dequantize(rows, gguf.GGMLQuantizationType[type_name])
    except (NotImplementedError, KeyError):
        return None
    return found


def _apr_q4(blocks: npt.NDArray[np.uint8]) -> Float32:
    """Blocks of 32: a float16 scale, then nibbles in order, low first, each less 8."""
    scale = blocks[:, :2].copy().view("<f2").astype(np.float32)
    packed = blocks[:, 2:]
    nibbles = np.stack([packed & 15, packed >> 4], axis=2).reshape(len(blocks), -1)
    return (nibbles.astype(np.float32) - 8.0) * scale
