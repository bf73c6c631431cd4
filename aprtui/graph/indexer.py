"""Sparse attention whose keys an indexer chooses (DeepSeek-V3.2, arXiv 2512.02556): small heads of
its own score each key for each query, and the best of them are looked at. No torch; the kernels are
``engine.indexer``'s.

Shapes: T tokens, I heads of the indexer.
"""

from __future__ import annotations

from dataclasses import dataclass

from aprtui.formats.tracedir import StageKey
from aprtui.graph.blocks import Builder
from aprtui.graph.ops import Heads, Mask, Norm, Op, Part, Product, Rope
from aprtui.graph.rope import RopeTable

__all__ = ["ChooseKeys", "IndexScores", "Indexer", "place_indexer"]


@dataclass(frozen=True)
class IndexScores(Op):
    """By what a query's keys are chosen [1,T,T]: of all ``heads`` the sum of their weight times
    relu(q.k), times ``scale``; 0 where the mask hides the key. The inputs are q [T,I,d], the one
    head of keys [T,1,d], and weights [T,I]."""

    row_wise = False
    remembers = True

    heads: int
    scale: float
    mask: Mask


@dataclass(frozen=True)
class ChooseKeys(Op):
    """Which keys each query looks at [1,T,T]: 1 for the ``top`` of the largest scores among those
    that the mask shows, of equal ones the first; 0 for the others."""

    row_wise = False

    top: int
    mask: Mask


@dataclass(frozen=True)
class Indexer:
    """One layer's: ``heads`` of ``size`` channels, of which the first turn by ``table``; ``norm``
    of its keys. ``shares``: the layer whose choice counts here, which then has no indexer."""

    heads: int
    size: int
    top: int
    table: RopeTable
    norm: Norm
    shares: int | None = None


def place_indexer(b: Builder, x: StageKey, latent: StageKey, how: Indexer, mask: Mask) -> StageKey:
    """The chosen keys, of the layer's normalised input and the latent of its queries."""
    if how.shares is not None:
        return StageKey(how.shares, "index_keys")
    heads, one = Heads(0, how.heads, how.size), Heads(0, 1, how.size)
    q = _product(b, "index_q", heads.width, latent)
    q = b.put("index_q_rope", Rope(how.table, heads), q, head=how.heads, channel=how.size)
    k = _product(b, "index_k", how.size, x)
    extents = {"kv_head": 1, "channel": how.size}
    norm = Norm(b.role("index_k_norm"), how.norm.eps, heads=one, centred=True,
                bias=b.role("index_k_norm_bias"))  # fmt: skip
    k = b.put("index_k_norm", norm, k, **extents)
    k = b.put("index_k_rope", Rope(how.table, one), k, **extents)
    weights = _product(b, "index_weights", how.heads, x)
    score = IndexScores(how.heads, (how.size * how.heads) ** -0.5, mask)
    scores = b.put("index_scores", score, q, k, weights, head=1)
    return b.put("index_keys", ChooseKeys(how.top, mask), scores, head=1)


def _product(b: Builder, name: str, rows: int, x: StageKey) -> StageKey:
    return b.put(name, Product((Part(name, b.role(name), rows),)), x, width=rows)
