"""Rows of one side's matrices as float32, in the form in which two models are compared.

C decodes them where it can, and torch is not imported: it takes longer to load than a gigabyte of
weights to compare. What C does not know, torch decodes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt

from aprtui.engine.native import NATIVE_TYPES, decode_array
from aprtui.engine.processors import MOST_THREADS, processors
from aprtui.formats.blocks import BLOCK_TYPES
from aprtui.formats.maps import forget_pages
from aprtui.formats.modelfile import TensorEntry, whole_bytes
from aprtui.model.open import Matrix
from aprtui.model.operand import RELEASE_BYTES, Operand

if TYPE_CHECKING:
    from aprtui.engine.adapted import AdaptedRows
    from aprtui.engine.coded import CodedRows
    from aprtui.engine.dequantise import StoredRows, Workspace

__all__ = ["WeightReader", "block_rows", "side_by_side"]

BLOCK_VALUES = 1 << 20  # float32 values of a block: 4 MiB a side; each costs 50 us of Python


Bytes = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]
_Item = TypeVar("_Item")


def side_by_side(function: Callable[[_Item], None], items: Sequence[_Item]) -> None:
    """Call ``function`` with every item on all cores, each item on one; raises what a call did."""
    with ThreadPoolExecutor(min(processors(), MOST_THREADS), "weights") as threads:
        for _ in threads.map(function, items):
            pass


def block_rows(columns: int, head_rows: int = 0) -> int:
    """Rows of one block: about BLOCK_VALUES values, whole heads where rows are reordered."""
    unit = head_rows or 1
    return max(1, BLOCK_VALUES // (columns * unit)) * unit


class WeightReader:
    """Rows of one side's matrices as float32; memory for one block, kept from call to call."""

    def __init__(self) -> None:
        self._buffer = np.empty(0, dtype=np.float32)
        self._turned = np.empty(0, dtype=np.float32)
        self._opened: _OpenTensor | None = None

    def block(self, operand: Operand, first: int, rows: int) -> Float32:
        """Rows [rows, columns], contiguous; valid until the next call.

        ``first`` and ``rows`` are whole heads where ``operand.head_rows`` is set. Raises
        BadFileError for a tensor whose bytes are not those of its shape, EngineError for a type
        without a decoder.
        """
        matrix = operand.matrix
        values = rows * matrix.columns
        if self._buffer.size < values:
            self._buffer = np.empty(values, dtype=np.float32)
        if matrix.rows == 1:
            found = self._vector(matrix)
        elif not matrix.plain:
            found = self._by_codec(matrix, first, rows)
        else:
            found = self._buffer[:values].reshape(rows, matrix.columns)
            self._open(matrix.entry).decode(matrix.first_row + first, found)
        if operand.head_rows:
            found = self._to_halves(found, operand.head_rows)
        return _moved(found, operand)

    def blocks(self, operand: Operand) -> Iterator[tuple[int, Float32]]:
        """(first row, block [n, columns]) over the whole matrix; a block is valid until the next.

        Raises as ``block`` does.
        """
        step = block_rows(operand.columns, operand.head_rows)
        for first in range(0, operand.rows, step):
            yield first, self.block(operand, first, min(step, operand.rows - first))
        self.release()

    def rows_at(self, operand: Operand, indices: Sequence[int]) -> Float32:
        """Chosen rows [len(indices), columns] float32. Raises as ``block`` does."""
        matrix = operand.matrix
        if matrix.rows == 1:
            return np.repeat(self.block(operand, 0, 1), len(indices), axis=0)
        found = np.empty((len(indices), matrix.columns), dtype=np.float32)
        if not matrix.plain:
            for place, row in enumerate(indices):
                found[place] = self._by_codec(matrix, operand.stored_row(row), 1)
            return _moved(found, operand)
        rows = [matrix.first_row + operand.stored_row(row) for row in indices]
        self._open(matrix.entry).decode_each(rows, found)
        self.release()
        return _moved(found, operand)

    def release(self) -> None:
        """Give back the pages of the map that were read last."""
        if self._opened is not None:
            self._opened.release()

    def _open(self, entry: TensorEntry) -> _OpenTensor:
        if self._opened is None or self._opened.entry is not entry:
            self.release()
            self._opened = _OpenTensor(entry)
        return self._opened

    def _vector(self, matrix: Matrix) -> Float32:
        """A norm's weight or a bias [1, columns], maybe a window of a fused one."""
        entry = matrix.entry
        whole = np.empty((math.prod(entry.shape[:-1]), entry.shape[-1]), dtype=np.float32)
        self._open(entry).decode(0, whole)
        parts = [
            whole.reshape(-1)[start : start + n] for start, n in matrix.runs(0, matrix.columns)
        ]
        return np.concatenate(parts).reshape(1, -1)

    def _by_codec(self, matrix: Matrix, first: int, rows: int) -> Float32:
        """Rows that do not lie one after the other."""
        import torch

        from aprtui.engine.block_decoders import Workspace
        from aprtui.engine.codecs import codec_of
        from aprtui.engine.workers import one_core

        with one_core(), torch.inference_mode():
            codec = codec_of(matrix)
            out = torch.empty((rows, matrix.columns), dtype=torch.float32)
            codec.decode(codec.bytes_of(first, rows), first, out, Workspace())
            return out.numpy()

    def _to_halves(self, found: Float32, head: int) -> Float32:
        """Rows (or, of a vector, values) 2i and 2i + 1 of each head moved to i and i + head/2."""
        if self._turned.size < found.size:
            self._turned = np.empty(found.size, dtype=np.float32)
        width = 1 if found.shape[0] == 1 else found.shape[1]
        turned = self._turned[: found.size].reshape(-1, 2, head // 2, width)
        turned[:] = found.reshape(-1, head // 2, 2, width).swapaxes(1, 2)
        return turned.reshape(found.shape)


def _moved(found: Float32, operand: Operand) -> Float32:
    """``found`` as the operand means it: its offset added, out of the logarithm, times the factor,
    heads in order."""
    if operand.offset:
        found += np.float32(operand.offset)
    if operand.logged:
        np.negative(np.exp(found, out=found), out=found)
    if operand.factor != 1.0:
        found *= np.float32(operand.factor)
    if operand.dealt is not None:
        heads = found.reshape(len(found), -1, *operand.dealt)
        return np.ascontiguousarray(heads.swapaxes(1, 2)).reshape(found.shape)
    return found


class _OpenTensor:
    """A stored tensor, or the parts of one weight, checked once, and which of its bytes were read
    since the last release (of parts: how many)."""

    def __init__(self, entry: TensorEntry) -> None:
        self.entry = entry
        self._by_torch: tuple[StoredRows | CodedRows | AdaptedRows, Workspace] | None = None
        self._row_bytes = 0  # where each row is whole blocks of its own that C decodes
        self._parts: list[Bytes] = []
        self._read = (0, 0)  # first byte, and the one after the last
        if entry.coding is not None:
            self._parts = [whole_bytes(part.entry) for part in entry.coding.streamed]
            return
        self._stored = whole_bytes(entry)
        self._read = (self._stored.size, 0)
        kind, columns = BLOCK_TYPES[entry.type], entry.shape[-1]
        if (entry.type == "F32" or entry.type in NATIVE_TYPES) and columns % kind.values == 0:
            self._row_bytes = columns // kind.values * kind.bytes

    def decode(self, first_row: int, out: Float32) -> None:
        """Rows from ``first_row`` on into ``out`` [rows, columns]."""
        if self._row_bytes:
            start = first_row * self._row_bytes
            self._decode(self._took(start, len(out) * self._row_bytes), out)
        else:
            self._decode_by_torch(first_row, out)
        if self._read[1] - self._read[0] >= RELEASE_BYTES:
            self.release()

    def decode_each(self, rows: Sequence[int], out: Float32) -> None:
        """Single rows into ``out`` [len(rows), columns]."""
        if self._row_bytes and rows:
            size = self._row_bytes
            self._decode(np.concatenate([self._took(row * size, size) for row in rows]), out)
            return
        for place, row in enumerate(rows):
            self._decode_by_torch(row, out[place : place + 1])

    def release(self) -> None:
        if self.entry.coding is not None:
            for part in self._parts:
                forget_pages(part)
            self._read = (0, 0)
            return
        first, last = self._read
        forget_pages(self._stored[first:last])
        self._read = (self._stored.size, 0)

    def _decode(self, raw: Bytes, out: Float32) -> None:
        if self.entry.type == "F32":
            out[:] = raw.view("<f4").reshape(out.shape)
        else:
            decode_array(self.entry.type, raw, out)

    def _decode_by_torch(self, first_row: int, out: Float32) -> None:
        import torch

        from aprtui.engine.dequantise import Workspace, rows_of
        from aprtui.engine.workers import one_core

        with one_core(), torch.inference_mode():
            if self._by_torch is None:
                self._by_torch = rows_of(self.entry), Workspace()
            stored, workspace = self._by_torch
            raw = stored.bytes_of(first_row, len(out))
            if self.entry.coding is not None:
                self._read = (0, self._read[1] + raw.numel())
            else:
                at = raw.data_ptr() - self._stored.__array_interface__["data"][0]
                self._took(at, raw.numel())
            stored.decode(raw, first_row, torch.from_numpy(out), workspace)

    def _took(self, start: int, size: int) -> Bytes:
        self._read = (min(self._read[0], start), max(self._read[1], start + size))
        return self._stored[start : start + size]
