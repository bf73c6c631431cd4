"""Rows of one side's matrices as float32, in the form in which two models are compared."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch

from aprtui.engine.dequantise import StoredRows, Workspace, decode_rows
from aprtui.engine.workers import for_each, one_core
from aprtui.formats.blocks import BLOCK_TYPES
from aprtui.formats.maps import forget_pages
from aprtui.formats.modelfile import TensorEntry, tensor_bytes
from aprtui.model.open import Matrix
from aprtui.model.operand import RELEASE_BYTES, Operand

__all__ = ["WeightReader", "block_rows", "side_by_side"]

BLOCK_VALUES = 1 << 19  # float32 values of a block: one of each side stays in the cache

Float32 = npt.NDArray[np.float32]
_CPU = torch.device("cpu")
_Item = TypeVar("_Item")


def side_by_side(function: Callable[[_Item], None], items: Sequence[_Item]) -> None:
    """Call ``function`` with every item on all cores, each item on one; raises what a call did."""
    with one_core():
        for_each(function, items, _CPU)


def block_rows(columns: int, head_rows: int = 0) -> int:
    """Rows of one block: about BLOCK_VALUES values, whole heads where rows are reordered."""
    unit = head_rows or 1
    return max(1, BLOCK_VALUES // (columns * unit)) * unit


class WeightReader:
    """Rows of one side's matrices as float32; memory for one block, kept from call to call."""

    def __init__(self) -> None:
        self._workspace = Workspace()
        self._buffer = torch.empty(0, dtype=torch.float32)
        self._turned = torch.empty(0, dtype=torch.float32)
        self._opened: _OpenTensor | None = None

    def block(self, operand: Operand, first: int, rows: int) -> torch.Tensor:
        """Rows [rows, columns] float32 on the CPU; valid until the next call.

        ``first`` and ``rows`` are whole heads where ``operand.head_rows`` is set. Raises
        BadFileError for a tensor whose bytes are not those of its shape, EngineError for a type
        without a decoder.
        """
        matrix = operand.matrix
        values = rows * matrix.columns
        if self._buffer.numel() < values:
            self._buffer = torch.empty(values, dtype=torch.float32)
        if matrix.rows == 1:
            found = self._vector(matrix)
        else:
            found = self._buffer[:values].view(rows, matrix.columns)
            self._open(matrix.entry).decode(matrix.first_row + first, found, self._workspace)
        if operand.head_rows:
            found = self._to_halves(found, operand.head_rows)
        return found.add_(operand.offset) if operand.offset else found

    def blocks(self, operand: Operand) -> Iterator[tuple[int, Float32]]:
        """(first row, block [n, columns]) over the whole matrix; a block is valid until the next.

        Raises as ``block`` does.
        """
        step = block_rows(operand.columns, operand.head_rows)
        for first in range(0, operand.rows, step):
            yield first, self.block(operand, first, min(step, operand.rows - first)).numpy()
        self.release()

    def rows_at(self, operand: Operand, indices: Sequence[int]) -> Float32:
        """Chosen rows [len(indices), columns] float32. Raises as ``block`` does."""
        matrix = operand.matrix
        if matrix.rows == 1:
            return np.repeat(self.block(operand, 0, 1).numpy(), len(indices), axis=0)
        found = torch.empty(len(indices), matrix.columns, dtype=torch.float32)
        rows = [matrix.first_row + operand.stored_row(row) for row in indices]
        self._open(matrix.entry).decode_each(rows, found, self._workspace)
        self.release()
        return (found.add_(operand.offset) if operand.offset else found).numpy()

    def release(self) -> None:
        """Give back the pages of the map that were read last."""
        if self._opened is not None:
            self._opened.release()

    def _open(self, entry: TensorEntry) -> _OpenTensor:
        if self._opened is None or self._opened.entry is not entry:
            self.release()
            self._opened = _OpenTensor(entry)
        return self._opened

    def _vector(self, matrix: Matrix) -> torch.Tensor:
        """A norm's weight or a bias [1, columns], maybe a window of a fused one."""
        entry = matrix.entry
        whole = decode_rows(entry, 0, math.prod(entry.shape[:-1]), _CPU).reshape(-1)
        return whole[matrix.first_row : matrix.first_row + matrix.columns].view(1, -1)

    def _to_halves(self, found: torch.Tensor, head: int) -> torch.Tensor:
        """Rows (or, of a vector, values) 2i and 2i + 1 of each head moved to i and i + head/2."""
        if self._turned.numel() < found.numel():
            self._turned = torch.empty(found.numel(), dtype=torch.float32)
        width = 1 if found.shape[0] == 1 else found.shape[1]
        turned = self._turned[: found.numel()].view(-1, 2, head // 2, width)
        turned.copy_(found.reshape(-1, head // 2, 2, width).transpose(1, 2))
        return turned.view(found.shape)


class _OpenTensor:
    """A stored tensor, checked once, and which of its bytes were read since the last release."""

    def __init__(self, entry: TensorEntry) -> None:
        self.entry = entry
        self._rows = StoredRows(entry)
        self._stored = tensor_bytes(entry)
        self._address = self._stored.__array_interface__["data"][0]
        self._read = (self._stored.size, 0)  # first byte, and the one after the last

    def decode(self, first_row: int, out: torch.Tensor, workspace: Workspace) -> None:
        """Rows from ``first_row`` on into ``out`` [rows, columns] float32."""
        raw = self._raw(first_row, out.shape[0])
        self._rows.decode(raw, first_row, out, workspace)
        if self._read[1] - self._read[0] >= RELEASE_BYTES:
            self.release()

    def decode_each(self, rows: Sequence[int], out: torch.Tensor, workspace: Workspace) -> None:
        """Single rows into ``out`` [len(rows), columns] float32, at once where rows are blocks."""
        flat = self.entry.flat or self.entry.type == "APR_Q4"
        if flat and self._rows.columns % BLOCK_TYPES[self.entry.type].values:
            for place, row in enumerate(rows):
                self._rows.decode(self._raw(row, 1), row, out[place : place + 1], workspace)
        elif rows:
            raw = torch.cat([self._raw(row, 1) for row in rows])
            self._rows.decode(raw, 0, out, workspace)

    def release(self) -> None:
        first, last = self._read
        forget_pages(self._stored[first:last])
        self._read = (self._stored.size, 0)

    def _raw(self, first_row: int, rows: int) -> torch.Tensor:
        raw = self._rows.bytes_of(first_row, rows)
        start = raw.data_ptr() - self._address
        self._read = (min(self._read[0], start), max(self._read[1], start + raw.numel()))
        return raw
