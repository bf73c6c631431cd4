"""Weights by role, streamed: blocks of rows are dequantised straight into the product."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import torch

from aprtui.engine.dequantise import StoredRows, Workspace
from aprtui.engine.staging import Staging
from aprtui.engine.workers import for_each
from aprtui.model.open import Matrix, Model
from aprtui.model.roles import Role

__all__ = ["WeightStream"]

# float32 values of one block of rows: 4 MiB stay in the cache between dequantising and multiplying
# (specs/numerics.md 5). Whole groups of rows: of others the products' kernels round the last rows
# in another order than the rest.
BLOCK_VALUES = 1 << 20
_ROW_GROUP = 32
# Beyond some tokens the activations no longer fit the cache: wider blocks read them less often.
_FEW_TOKENS = 64
_WIDE_ROWS = 128


class _Scratch(threading.local):
    """Memory of one thread that is used for every block."""

    def __init__(self) -> None:
        self.workspace = Workspace()
        self.values = torch.empty(0)


class WeightStream:
    """One model's weights on one device, in one dtype, a block of rows at a time."""

    def __init__(self, model: Model, device: torch.device, dtype: torch.dtype) -> None:
        self.model = model
        self.device = device
        self.dtype = dtype
        self._scratch = _Scratch()
        self._staging = Staging(device) if device.type == "cuda" else None

    @staticmethod
    def spans(matrix: Matrix, tokens: int = 1) -> list[tuple[int, int]]:
        """(first row, rows) of each block of a matrix for a product with so many tokens."""
        least = _ROW_GROUP if tokens <= _FEW_TOKENS else _WIDE_ROWS
        step = max(least, BLOCK_VALUES // matrix.columns // _ROW_GROUP * _ROW_GROUP)
        return [(first, min(step, matrix.rows - first)) for first in range(0, matrix.rows, step)]

    def blocks(self, role: Role) -> Iterator[tuple[int, torch.Tensor]]:
        """(first row, block [rows, columns] in the stream's dtype) of a matrix, in order of rows.

        A block is valid until the next one is asked for.
        """
        matrix = self.model.weights[role]
        stored = StoredRows(matrix.entry)
        for first, rows in self.spans(matrix):
            yield first, self.decode(stored, matrix.first_row + first, rows)

    def vector(self, role: Role) -> torch.Tensor:
        """A norm's weight or a bias [columns] in the stream's dtype."""
        matrix = self.model.weights[role]
        stored = StoredRows(matrix.entry)
        if len(matrix.entry.shape) == 1 and matrix.first_row:
            whole = self.decode(stored, 0, 1).reshape(-1)
            return whole[matrix.first_row : matrix.first_row + matrix.columns].clone()
        return self.decode(stored, 0, 1).reshape(-1).clone()

    def rows(self, role: Role, indices: tuple[int, ...]) -> torch.Tensor:
        """Chosen rows [len(indices), columns] of a matrix in the stream's dtype."""
        matrix = self.model.weights[role]
        stored = StoredRows(matrix.entry)
        table = torch.empty((len(indices), matrix.columns), dtype=self.dtype, device=self.device)
        for place, index in enumerate(indices):
            table[place] = self.decode(stored, matrix.first_row + index, 1)[0]
        return table

    def linear(self, x: torch.Tensor, role: Role) -> torch.Tensor:
        """x [n, columns] times the matrix transposed: [n, rows], in the stream's dtype."""
        matrix = self.model.weights[role]
        out = torch.empty((x.shape[0], matrix.rows), dtype=self.dtype, device=self.device)

        def multiply(first: int, block: torch.Tensor) -> None:
            out[:, first : first + block.shape[0]] = x @ block.T

        self.for_blocks(role, multiply, x.shape[0])
        return out

    def for_blocks(
        self, role: Role, use: Callable[[int, torch.Tensor], None], tokens: int = 1
    ) -> None:
        """Call ``use`` with what ``blocks`` yields, on all threads, in no order."""
        matrix = self.model.weights[role]
        stored = StoredRows(matrix.entry)

        def decode(span: tuple[int, int]) -> None:
            first, rows = span
            use(first, self.decode(stored, matrix.first_row + first, rows))

        for_each(decode, self.spans(matrix, tokens), self.device)

    def decode(self, stored: StoredRows, first: int, rows: int) -> torch.Tensor:
        """Rows of a tensor in the stream's dtype, valid until this thread's next block."""
        scratch, size = self._scratch, rows * stored.columns
        if scratch.values.numel() < size:
            scratch.values = torch.empty(size, dtype=torch.float32, device=self.device)
        out = scratch.values[:size].view(rows, stored.columns)
        raw = stored.bytes_of(first, rows)
        if self._staging is not None:
            with self._staging.on_device(raw) as copied:
                stored.decode(copied, first, out, scratch.workspace)
        else:
            stored.decode(raw.to(self.device), first, out, scratch.workspace)
        return out.to(self.dtype)
