"""Rows of a weight that an adapter changes: the base's own, and what is added to them.

A block is the rows' numbers of the left factor (and their lengths), then the base's bytes of the
same rows; the right factor is small and kept, once a device. float32 arithmetic, as peft merges a
float32 model (``lora.Linear.get_delta_weight``, ``lora.dora``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from typing import Protocol, Self

import torch
from torch import Tensor

from aprtui.engine.block_decoders import Workspace
from aprtui.engine.coded import joined
from aprtui.formats.modelfile import TensorEntry
from aprtui.formats.quantised.coding import Adapted, padded

__all__ = ["AdaptedRows", "Rows"]


class Rows(Protocol):
    """A stored weight seen as rows: ``dequantise.StoredRows``, ``coded.CodedRows``, or these."""

    entry: TensorEntry
    rows: int
    columns: int

    @property
    def separate(self) -> bool: ...
    def bytes_of(self, first_row: int, rows: int, /) -> Tensor: ...
    def pieces_of(self, first_row: int, rows: int, /) -> list[Tensor]: ...
    def gathered(self, runs: Sequence[tuple[int, int]]) -> Tensor: ...
    def moved(self, first_row: int, rows: int, move: Callable[[Tensor], Tensor]) -> Self: ...
    def moved_runs(
        self, runs: Sequence[tuple[int, int]], move: Callable[[Tensor], Tensor]
    ) -> Self: ...
    def decode(self, raw: Tensor, first: int, out: Tensor, workspace: Workspace, /) -> Tensor: ...


class AdaptedRows:
    """An adapted weight [rows, columns]; ``factor`` gives the values of one of its tensors.

    Threads may share it.
    """

    def __init__(
        self, entry: TensorEntry, base: Rows, factor: Callable[[TensorEntry], Tensor]
    ) -> None:
        assert isinstance(entry.coding, Adapted)
        self.entry, self.coding = entry, entry.coding
        self.rows, self.columns = self.coding.rows, self.coding.columns
        self._base = base
        left, right = (
            factor(side.entry).mT if side.turned else factor(side.entry)
            for side in (self.coding.left, self.coding.right)
        )
        beside = left.reshape(self.rows, -1)
        if self.coding.magnitude is not None:
            beside = torch.cat([beside, factor(self.coding.magnitude).reshape(-1, 1)], dim=1)
        self._beside = beside.contiguous()  # [rows, width] float32
        self._gone = 0  # rows before the first that is kept
        self._right = {torch.device("cpu"): right.reshape(-1, *right.shape[-2:]).contiguous()}

    @property
    def separate(self) -> bool:
        """Whether rows can be taken out one by one: not where experts have a factor each."""
        return self._base.separate and len(self._right[torch.device("cpu")]) == 1

    def bytes_of(self, first: int, rows: int) -> Tensor:
        """The bytes [n] uint8 of these rows. Raises EngineError for rows outside the weight."""
        return joined(self.pieces_of(first, rows))

    def pieces_of(self, first: int, rows: int) -> list[Tensor]:
        """The factor's rows as bytes, and the pieces of the base's."""
        start = first - self._gone
        beside = self._beside[start : start + rows]
        return [_bytes(beside), *self._base.pieces_of(first, rows)]

    def gathered(self, runs: Sequence[tuple[int, int]]) -> Tensor:
        """The bytes of rows in runs, of a weight whose rows are separate."""
        return joined([_bytes(self._taken(runs)), self._base.gathered(runs)])

    def _taken(self, runs: Sequence[tuple[int, int]]) -> Tensor:
        return torch.cat([self._beside[start : start + count] for start, count in runs])

    def moved(self, first: int, rows: int, move: Callable[[Tensor], Tensor]) -> Self:
        """The same weight with what ``move`` makes of these rows' bytes; it has no other rows."""
        there = copy(self)
        there._base = self._base.moved(first, rows, move)
        start = first - self._gone
        there._beside = _moved(self._beside[start : start + rows], move)
        there._gone = first
        return there

    def moved_runs(self, runs: Sequence[tuple[int, int]], move: Callable[[Tensor], Tensor]) -> Self:
        """A weight of what ``move`` makes of the rows in these runs, counted from 0."""
        there = copy(self)
        there._base = self._base.moved_runs(runs, move)
        there._beside, there._gone = _moved(self._taken(runs), move), 0
        return there

    def decode(self, raw: Tensor, first: int, out: Tensor, workspace: Workspace) -> Tensor:
        """The values of rows ``first``.. into ``out`` [n, columns] float32, contiguous.

        ``raw`` is what ``bytes_of`` or ``gathered`` gave for them, on ``out``'s device.
        """
        if not out.numel():
            return out
        count, size = len(out), 4 * len(out) * self.coding.width
        beside = raw[:size].view(torch.float32).view(count, -1)
        self._base.decode(raw[padded(size) :], first, out, workspace)
        right = self._right_on(out.device)
        rank, each = right.shape[1], self.rows // len(right)
        start = 0
        while start < count:  # one matrix after the other, of packed experts
            matrix, place = divmod(first + start, each)
            stop = min(count, start + each - place)
            change = torch.mm(beside[start:stop, :rank], right[matrix if len(right) > 1 else 0])
            out[start:stop].add_(change.mul_(self.coding.scale))
            start = stop
        if self.coding.magnitude is not None:
            out.mul_((beside[:, -1] / torch.linalg.vector_norm(out, dim=1)).unsqueeze(1))
        return out

    def _right_on(self, device: torch.device) -> Tensor:
        if device not in self._right:
            self._right[device] = self._right[torch.device("cpu")].to(device)
        return self._right[device]


def _bytes(values: Tensor) -> Tensor:
    return values.contiguous().view(-1).view(torch.uint8)


def _moved(values: Tensor, move: Callable[[Tensor], Tensor]) -> Tensor:
    return move(_bytes(values)).view(torch.float32).view(values.shape)
