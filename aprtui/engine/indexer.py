"""Kernels of the indexer (``graph.indexer``), each written once against an arithmetic, as those of
``engine.ops`` are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from aprtui.graph.indexer import ChooseKeys, IndexScores
from aprtui.graph.ops import Mask, Op

if TYPE_CHECKING:
    from collections.abc import Callable

    from aprtui.engine.ops import Pass

__all__ = ["INDEXER", "hidden_keys"]

Tensor = torch.Tensor


def _shown(mask: Mask, rows: int, keys: int, device: torch.device) -> Tensor:
    """Which keys the mask shows to the last ``rows`` queries [rows,keys] bool."""
    from aprtui.engine.ops import visible

    return visible(mask, keys - rows, keys, keys, device)


def index_scores(ar: Pass, op: IndexScores, q: Tensor, k: Tensor, weights: Tensor) -> Tensor:
    """[1,t,S]: of t rows against the keys of theirs and of all rows before."""
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    q, k, weights = q.to(wide), k.to(wide)[:, 0], weights.to(wide)
    k = torch.cat((ar.recall(k[:0]), k))
    ar.keep(k)
    made = q.new_zeros(len(q), len(k))
    for head in range(op.heads):  # one at a time: [I,t,S] is never whole
        made += weights[:, head, None] * torch.relu(ar.met(q[:, head], k))
    seen = _shown(op.mask, len(q), len(k), q.device)
    return (made * op.scale).masked_fill(~seen, 0.0)[None]


def choose_keys(ar: Pass, op: ChooseKeys, scores: Tensor) -> Tensor:
    """[1,t,S] of 0 and 1."""
    shown = hidden_keys(op, scores)
    _, order = torch.sort(shown, dim=-1, descending=True, stable=True)
    best = torch.zeros_like(scores).scatter(-1, order[..., : op.top], 1.0)
    return best.masked_fill(torch.isneginf(shown), 0.0)


def hidden_keys(op: ChooseKeys, scores: Tensor) -> Tensor:
    """Scores [1,t,S] with -inf for the keys that the mask hides."""
    rows, keys = scores.shape[1:]
    seen = _shown(op.mask, rows, keys, scores.device)
    return scores.masked_fill(~seen, float("-inf"))


INDEXER: dict[type[Op], Callable[..., Tensor]] = {
    ChooseKeys: choose_keys,
    IndexScores: index_scores,
}
