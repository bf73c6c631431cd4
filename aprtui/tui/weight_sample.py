"""A weight's values without torch: a sample of its rows at once, all of them block by block.

Its bytes are read, not mapped: a file may be cut short while it is looked at.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from aprtui.compare.metrics import Cancelled
from aprtui.compare.statistics import Histogram, Statistics, histogram, one_pass, statistics
from aprtui.engine.native import NATIVE_TYPES, decode_array
from aprtui.formats.blocks import BLOCK_TYPES, stored_bytes
from aprtui.formats.files import OpenFile, open_file
from aprtui.formats.modelfile import TensorEntry

__all__ = ["WeightLook", "look_at_all", "look_at_weight", "row_blocks", "rows_at", "sample_values"]

SAMPLE = 1 << 20  # values: a larger tensor is looked at in evenly spaced rows first
BLOCK_VALUES = 1 << 20  # decoded at once
MAX_ROW_VALUES = 1 << 25  # of one row, which is read whole
Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class WeightLook:
    """One weight in numbers; of ``looked`` values when that is less than ``count``.

    Percentiles are of a sample where the weight is larger than one.
    """

    entry: TensorEntry
    statistics: Statistics
    histogram: Histogram
    looked: int
    count: int

    @property
    def exact(self) -> bool:
        return self.looked >= self.count


def look_at_weight(entry: TensorEntry, bins: int) -> WeightLook | None:
    """Statistics and a histogram of a sample; None for a type that has no numpy decoder.

    The histogram lies between the 0.1st and 99.9th percentiles, the rest is counted beside it.
    Raises BadFileError when the file became shorter.
    """
    values = sample_values(entry)
    if values is None:
        return None
    counted = histogram(values, bins, clip=(0.1, 99.9))
    return WeightLook(entry, statistics(values), counted, values.size, math.prod(entry.shape))


def look_at_all(
    sampled: WeightLook, cancelled: Callable[[], bool], progress: Callable[[int], None]
) -> WeightLook:
    """The same of every value, counted between the sample's edges; memory of one block.

    ``progress`` is told how many values were decoded so far. Raises metrics.Cancelled, and
    BadFileError as ``look_at_weight``.
    """
    entry = sampled.entry
    stored = _Stored(entry)
    if not stored.known:
        return sampled

    def blocks() -> Iterator[Float32]:
        done = 0
        for block in stored.blocks():
            if cancelled():
                raise Cancelled
            yield block
            done += block.size
            progress(done)

    found, counted = one_pass(blocks(), sampled.histogram.edges, sampled.statistics.percentiles)
    return WeightLook(entry, found, counted, sampled.count, sampled.count)


def sample_values(entry: TensorEntry) -> Float32 | None:
    """At most about SAMPLE values [n] float32, whole rows spread evenly over the tensor."""
    stored = _Stored(entry)
    return stored.decode(max(-(-stored.total // SAMPLE), 1)) if stored.known else None


def rows_at(entry: TensorEntry, first: int, count: int) -> Float32 | None:
    """Rows [count, columns] float32 of a tensor seen as rows of its last axis; None where nothing
    here decodes them: a type for torch, or blocks that run across rows.

    Raises BadFileError when the file became shorter.
    """
    stored = _Stored(entry)
    if not stored.known or (entry.shape and stored.width != entry.shape[-1]):
        return None
    return stored.rows_at(first, count)


def row_blocks(entry: TensorEntry, first: int, last: int) -> Iterator[tuple[int, Float32]] | None:
    """Rows ``first`` .. ``last`` of the last axis as they are decoded: the first one's number, and
    rows [n, columns] float32; None where nothing here decodes them.

    Raises BadFileError when the file became shorter.
    """
    stored = _Stored(entry)
    if not stored.known or (entry.shape and stored.width != entry.shape[-1]):
        return None
    step = max(1, BLOCK_VALUES // max(stored.width, 1))

    def blocks() -> Iterator[tuple[int, Float32]]:
        for row in range(first, last, step):
            found = stored.rows_at(row, min(step, last - row))
            assert found is not None
            yield row, found

    return blocks()


class _Stored:
    """A tensor's bytes as rows that can be decoded one by one.

    Blocks that run over the flat tensor (``flat``, APR_Q4) are rows of one block, the last of
    which may hold values past the end.
    """

    def __init__(self, entry: TensorEntry) -> None:
        self.entry = entry
        self.total = math.prod(entry.shape)
        kind = BLOCK_TYPES.get(entry.type)
        own = entry.type in ("APR_Q4", "APR_Q8")
        by_block = entry.flat or entry.type == "APR_Q4"
        self.known = (
            kind is not None
            and (kind.ggml_code is not None or own)
            and entry.size_bytes == stored_bytes(entry.type, entry.shape, flat=entry.flat)
            and (by_block or entry.shape[-1:] <= (MAX_ROW_VALUES,))
        )
        if kind is None or not self.total or not self.known:
            self.width, self.rows = 1, 0
            return
        self.scale: np.float32 | None = None
        self.start = entry.offset
        self.width = kind.values if by_block else math.prod(entry.shape[-1:])
        self.rows = -(-self.total // self.width)
        self.row_bytes = kind.bytes if by_block else entry.size_bytes // self.rows
        with open_file(entry.path) as file:
            if entry.type == "APR_Q8":  # one scale before all values
                self.scale = file.array(self.start, 4).view("<f4")[0]
                self.start, self.row_bytes = self.start + 4, self.width
            self.known = self._decode(self._read(file, 0, 1)) is not None

    def _read(self, file: OpenFile, first: int, count: int) -> npt.NDArray[np.uint8]:
        """Rows [count, row_bytes] uint8 from ``first`` on."""
        size = self.row_bytes
        return file.array(self.start + first * size, count * size).reshape(count, size)

    def decode(self, step: int) -> Float32:
        """Every ``step``-th row [n] float32."""
        if not self.rows:
            return np.empty(0, dtype=np.float32)
        with open_file(self.entry.path) as file:
            if step == 1:
                chosen = self._read(file, 0, self.rows)
            else:
                every = range(0, self.rows, step)
                chosen = np.concatenate([self._read(file, row, 1) for row in every])
        found = self._decode(chosen)
        return np.empty(0, dtype=np.float32) if found is None else found.reshape(-1)[: self.total]

    def rows_at(self, first: int, count: int) -> Float32 | None:
        """Whole rows [count, width] float32."""
        with open_file(self.entry.path) as file:
            return self._decode(self._read(file, first, count))

    def blocks(self) -> Iterator[Float32]:
        """All values [n] float32, about BLOCK_VALUES at a time."""
        step = max(1, BLOCK_VALUES // self.width)
        left = self.total
        with open_file(self.entry.path) as file:
            for first in range(0, self.rows, step):
                found = self._decode(self._read(file, first, min(step, self.rows - first)))
                assert found is not None
                yield found.reshape(-1)[:left]
                left -= found.size

    def _decode(self, rows: npt.NDArray[np.uint8]) -> Float32 | None:
        """Rows of bytes to rows of values; None where nothing decodes the type."""
        if self.scale is not None:
            scaled: Float32 = rows.view(np.int8).astype(np.float32)
            scaled *= self.scale
            return scaled
        found = _decode(rows, self.entry.type)
        return None if found is None else found[:, : self.width]


def _decode(rows: npt.NDArray[np.uint8], type_name: str) -> Float32 | None:
    """Rows of blocks [rows, bytes] to [rows, values]: in C where it can, else by NumPy."""
    kind = BLOCK_TYPES[type_name]
    if type_name in NATIVE_TYPES:
        blocks = np.ascontiguousarray(rows)
        values = blocks.shape[1] // kind.bytes * kind.values
        found: Float32 = np.empty((len(blocks), values), dtype=np.float32)
        decode_array(type_name, blocks, found)
        return found
    if type_name == "F32":
        found = rows.view("<f4")
        return found
    if type_name == "F16":
        return rows.view("<f2").astype(np.float32)
    if type_name == "APR_Q4":
        return _apr_q4(rows)
    import gguf.quants

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
