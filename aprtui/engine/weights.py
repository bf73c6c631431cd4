"""Weights by role, streamed: blocks of rows are dequantised straight into the product."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from aprtui.engine.dequantise import Workspace, decode_rows
from aprtui.model.open import Matrix, Model
from aprtui.model.roles import Role

__all__ = ["WeightStream"]

# float32 values of one block of rows: 4 MiB stay in the cache between dequantising and multiplying
# (specs/numerics.md 5).
BLOCK_VALUES = 1 << 20


class WeightStream:
    """One model's weights on one device, in one dtype, a block of rows at a time."""

    def __init__(self, model: Model, device: torch.device, dtype: torch.dtype) -> None:
        self.model = model
        self.device = device
        self.dtype = dtype
        self._workspace = Workspace()
        self._buffer = torch.empty(0, dtype=torch.float32, device=device)

    def blocks(self, role: Role) -> Iterator[tuple[int, torch.Tensor]]:
        """(first row, block [rows, columns] in the stream's dtype) of a matrix, in order of rows.

        A block is valid until the next one is asked for.
        """
        matrix = self.model.weights[role]
        step = max(1, BLOCK_VALUES // matrix.columns)
        for first in range(0, matrix.rows, step):
            yield first, self._decode(matrix, first, min(step, matrix.rows - first))

    def vector(self, role: Role) -> torch.Tensor:
        """A norm's weight or a bias [columns] in the stream's dtype."""
        matrix = self.model.weights[role]
        if len(matrix.entry.shape) == 1 and matrix.first_row:
            whole = decode_rows(matrix.entry, 0, 1, self.device).reshape(-1)
            return whole[matrix.first_row : matrix.first_row + matrix.columns].to(self.dtype)
        return decode_rows(matrix.entry, 0, 1, self.device).reshape(-1).to(self.dtype)

    def rows(self, role: Role, indices: tuple[int, ...]) -> torch.Tensor:
        """Chosen rows [len(indices), columns] of a matrix in the stream's dtype."""
        matrix = self.model.weights[role]
        table = torch.empty((len(indices), matrix.columns), dtype=self.dtype, device=self.device)
        for place, index in enumerate(indices):
            table[place] = self._decode(matrix, index, 1)[0]
        return table

    def linear(self, x: torch.Tensor, role: Role) -> torch.Tensor:
        """x [n, columns] times the matrix transposed: [n, rows], in the stream's dtype."""
        out = torch.empty(
            (x.shape[0], self.model.weights[role].rows), dtype=self.dtype, device=self.device
        )
        for first, block in self.blocks(role):
            out[:, first : first + block.shape[0]] = x @ block.T
        return out

    def _decode(self, matrix: Matrix, first: int, rows: int) -> torch.Tensor:
        values = rows * matrix.columns
        if self._buffer.numel() < values:
            self._buffer = torch.empty(values, dtype=torch.float32, device=self.device)
        out = self._buffer[:values].view(rows, matrix.columns)
        start = matrix.first_row + first
        block = decode_rows(matrix.entry, start, rows, self.device, out, self._workspace)
        return block if self.dtype == torch.float32 else block.to(self.dtype)
