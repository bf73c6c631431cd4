"""Whose rows are whose in a pass of transformers: sequences of a batch, padded on the left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from aprtui.engine.adapters import Put
from aprtui.formats.tracedir import StageKey

__all__ = ["Lane", "Lanes"]

Tensor = torch.Tensor


@dataclass(frozen=True)
class Lane:
    """One sequence in one pass: ``rows`` of it from position ``first`` on. ``pad`` columns before
    its first token are padding. ``held``: of each stage that is computed once more, those of its
    inputs that were seen."""

    put: Put
    first: int
    rows: int
    pad: int = 0
    held: dict[StageKey, dict[StageKey, Tensor]] = field(default_factory=dict)

    @property
    def end(self) -> int:
        """How many positions the sequence has come to."""
        return self.first + self.rows


class Lanes:
    """The sequences of a pass, in the order of the batch. All have ``width`` columns in it."""

    def __init__(self, lanes: Sequence[Lane]) -> None:
        self.lanes = tuple(lanes)
        self.width = max(lane.rows for lane in lanes)
        self.columns = max(lane.pad + lane.end for lane in lanes)

    def __len__(self) -> int:
        return len(self.lanes)

    def of(self, value: Tensor, place: int) -> Tensor:
        """One sequence's part of [B,...,width,...] or of the rows [B*width,n] of all; it has
        ``width`` rows yet."""
        if value.dim() < 3:
            value = value.reshape(len(self.lanes), -1, *value.shape[1:])
        return value[place]

    def keys(self, scores: Tensor, lane: Lane) -> Tensor:
        """Scores [A,width,S] of the last S columns as [A,rows,positions]: 0 where a key is no
        longer held."""
        first = self.columns - scores.shape[-1]  # the column of the first key that is held
        whole = scores.new_zeros(scores.shape[0], lane.rows, lane.end)
        held = max(first, lane.pad)
        whole[..., held - lane.pad :] = scores[:, -lane.rows :, held - first :]
        return whole
