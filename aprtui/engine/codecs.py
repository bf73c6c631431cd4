"""Codecs: the stored bytes of a weight, a block of its rows at a time, and the values they mean.

The weight stream knows rows alone. Where they lie in the file (a window of a fused tensor, every
other row of an interleaved one, the columns of a transposed one) and how they are encoded is its
codec's business.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from copy import copy
from typing import Protocol, Self

import torch
from torch import Tensor

from aprtui.engine.block_decoders import Workspace
from aprtui.engine.dequantise import StoredRows, rows_of
from aprtui.errors import EngineError
from aprtui.formats.blocks import BLOCK_TYPES
from aprtui.model.open import Matrix
from aprtui.text import clean

__all__ = ["Codec", "codec_of"]


class Codec(Protocol):
    """A weight [rows, columns]. Threads may share one, each with a workspace of its own."""

    rows: int
    columns: int

    def bytes_of(self, first: int, rows: int) -> Tensor:
        """The stored bytes [n] uint8 of these rows, contiguous: all that ``decode`` needs of them.

        Raises EngineError for rows outside the weight.
        """

    def pieces_of(self, first: int, rows: int) -> list[Tensor]:
        """The same bytes where they lie: each piece but the last ``padded``, one after the other,
        they are what ``bytes_of`` gives."""

    def decode(self, raw: Tensor, first: int, out: Tensor, workspace: Workspace) -> Tensor:
        """The values of rows ``first``.. into ``out`` [n, columns] float32, contiguous.

        ``raw`` is what ``bytes_of`` gave for them, on ``out``'s device. Raises EngineError for a
        type that has no decoder.
        """

    def moved(self, move: Callable[[Tensor], Tensor]) -> Self:
        """The same weight with its bytes where ``move`` puts them."""


def codec_of(matrix: Matrix) -> Codec:
    """The codec of a weight. Raises BadFileError for bytes that are not those of its shape,
    EngineError for a layout that its type cannot have."""
    if matrix.transposed:
        return _Transposed(matrix)
    if matrix.rows == 1:
        return _Vector(matrix)
    return _Scattered(matrix) if matrix.period else _Window(matrix)


class _Stored(ABC):
    """What all have in common: one tensor, and the weight's place in it."""

    def __init__(self, matrix: Matrix) -> None:
        self.rows, self.columns = matrix.rows, matrix.columns
        self._matrix = matrix
        self._tensor = rows_of(matrix.entry)

    @abstractmethod
    def bytes_of(self, first: int, rows: int) -> Tensor:
        """As ``Codec`` says."""

    def pieces_of(self, first: int, rows: int) -> list[Tensor]:
        return [self.bytes_of(first, rows)]


class _Window(_Stored):
    """Rows one after the other: a whole tensor, a part of a fused one, one of packed experts."""

    def bytes_of(self, first: int, rows: int) -> Tensor:
        return self._tensor.bytes_of(self._matrix.first_row + first, rows)

    def pieces_of(self, first: int, rows: int) -> list[Tensor]:
        return self._tensor.pieces_of(self._matrix.first_row + first, rows)

    def decode(self, raw: Tensor, first: int, out: Tensor, workspace: Workspace) -> Tensor:
        return self._tensor.decode(raw, self._matrix.first_row + first, out, workspace)

    def moved(self, move: Callable[[Tensor], Tensor]) -> Self:
        there = copy(self)
        there._tensor = self._tensor.moved(self._matrix.first_row, self.rows, move)
        return there


class _Scattered(_Stored):
    """Groups of rows, ``period`` rows apart: gate and up in turn, q, k and v of each head."""

    _together = False  # whether they were moved: then they lie one after the other

    def __init__(self, matrix: Matrix) -> None:
        super().__init__(matrix)
        if not self._tensor.separate:
            raise EngineError(
                f"{clean(matrix.entry.name)} ({matrix.entry.type}): its rows share blocks, words "
                "or scales, and cannot be taken out one by one"
            )

    def bytes_of(self, first: int, rows: int) -> Tensor:
        if self._together:
            return self._tensor.bytes_of(first, rows)
        return self._tensor.gathered(self._matrix.runs(first, rows))

    def decode(self, raw: Tensor, first: int, out: Tensor, workspace: Workspace) -> Tensor:
        return self._tensor.decode(raw, 0, out, workspace)

    def moved(self, move: Callable[[Tensor], Tensor]) -> Self:
        there = copy(self)
        there._tensor = self._tensor.moved_runs(self._matrix.runs(0, self.rows), move)
        there._together = True
        return there


class _Transposed(_Stored):
    """A weight stored as [columns, rows], a value at a time: Conv1D's, experts' of gpt_oss."""

    _whole: Tensor | None = None  # the bytes of all rows, where they were moved

    def __init__(self, matrix: Matrix) -> None:
        super().__init__(matrix)
        entry, tensor = matrix.entry, self._tensor
        if not isinstance(tensor, StoredRows) or tensor.flat or BLOCK_TYPES[entry.type].values > 1:
            raise EngineError(
                f"{clean(entry.name)} ({entry.type}): stored transposed in blocks of several values"
            )
        self._plain, self._value_bytes = tensor, BLOCK_TYPES[entry.type].bytes

    def bytes_of(self, first: int, rows: int) -> Tensor:
        """[columns, rows] values, row-major."""
        if self._whole is None:
            across = self._plain.bytes_of(self._matrix.stack * self.columns, self.columns)
            runs = self._matrix.runs(first, rows)
        else:
            across, runs = self._whole, [(first, rows)]
        table = across.view(self.columns, -1, self._value_bytes)
        return _picked(table, 1, runs).reshape(-1)

    def decode(self, raw: Tensor, first: int, out: Tensor, workspace: Workspace) -> Tensor:
        rows = out.shape[0]
        across = workspace.take((self.columns, rows), torch.float32, out.device)
        self._plain.decode_values(raw, across, workspace)
        return out.copy_(across.T)

    def moved(self, move: Callable[[Tensor], Tensor]) -> Self:
        there = copy(self)
        there._whole = move(self.bytes_of(0, self.rows))
        return there


class _Vector(_Stored):
    """One row of values: a norm's weight or a bias, maybe a part of a fused or packed one."""

    def __init__(self, matrix: Matrix) -> None:
        super().__init__(matrix)
        runs, width = matrix.runs(0, self.columns), self._tensor.columns
        last = runs[-1][0] + runs[-1][1]
        self._first = runs[0][0] // width  # of the stored rows that hold it
        self._count = -(-last // width) - self._first
        self._runs = [(start - self._first * width, n) for start, n in runs]

    def bytes_of(self, first: int, rows: int) -> Tensor:
        return self._tensor.bytes_of(self._first, self._count)

    def decode(self, raw: Tensor, first: int, out: Tensor, workspace: Workspace) -> Tensor:
        whole = torch.empty((self._count, self._tensor.columns), device=out.device)
        values = self._tensor.decode(raw, self._first, whole, workspace).view(-1)
        return out.copy_(_picked(values, 0, self._runs)[None])

    def moved(self, move: Callable[[Tensor], Tensor]) -> Self:
        there = copy(self)
        there._tensor = self._tensor.moved(self._first, self._count, move)
        return there


def _picked(values: Tensor, axis: int, runs: list[tuple[int, int]]) -> Tensor:
    """What lies in these runs of an axis, one after the other."""
    if len(runs) == 1:
        return values.narrow(axis, *runs[0])
    places = torch.tensor([start + place for start, n in runs for place in range(n)])
    return values.index_select(axis, places.to(values.device))
