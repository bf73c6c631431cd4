"""Latent attention (DeepSeek-V2, arXiv 2405.04434): queries, keys and values of low rank, a part of
each key that turns and that all heads share, values of another size than the keys."""

from __future__ import annotations

from dataclasses import dataclass, replace

from aprtui.formats.tracedir import StageKey
from aprtui.graph.blocks import Builder
from aprtui.graph.indexer import Indexer, place_indexer
from aprtui.graph.ops import (
    Attend,
    Heads,
    Mask,
    Norm,
    Part,
    Product,
    Rope,
    Scores,
    SharedKeys,
    SharedRope,
    Softmax,
    Temperature,
)
from aprtui.graph.rope import RopeTable

__all__ = ["LatentAttention", "place_latent"]


@dataclass(frozen=True)
class LatentAttention:
    """One layer's. ``q_rank`` None: the queries have no latent. ``still`` and ``turned`` are the
    channels of a key that RoPE leaves and turns, ``value`` those of a value. ``biased``: the
    products with the layer's input, and the last one, have biases. ``split``: the weights that make
    keys and values of their latent are a tensor each, head by head. ``table`` None: nothing
    turns. ``indexer``: what chooses the keys that are looked at, where not all are;
    ``temperature``: queries are multiplied by it."""

    heads: int
    q_rank: int | None
    kv_rank: int
    still: int
    turned: int
    value: int
    scale: float
    mask: Mask
    table: RopeTable | None
    norm: Norm
    biased: bool = False
    split: bool = False
    indexer: Indexer | None = None
    temperature: Temperature | None = None

    @property
    def key(self) -> int:
        return self.still + self.turned


def place_latent(b: Builder, x: StageKey, how: LatentAttention) -> StageKey:
    """From the normalised input to the output projection."""
    q, latent_q = _queries(b, x, how)
    queries = Heads(0, how.heads, how.key)
    if how.table is not None:
        q = b.put("q_post_rope", Rope(how.table, queries, how.still), q,
                  head=how.heads, channel=how.key)  # fmt: skip
    wide = how.kv_rank + how.turned
    kv_a = b.put("kv_a", _product(b, "kv_a", wide, how.biased), x, width=wide)
    window = Heads(0, 1, how.kv_rank)
    norm = replace(how.norm, weight=b.role("kv_a_norm"), heads=window)
    latent = b.put("kv_a_norm", norm, kv_a, kv_head=1, channel=how.kv_rank)
    each = how.still + how.value
    kv_b = b.put("kv_b", Product(_expanding(b, how)), latent, width=how.heads * each)
    parts = Heads(how.kv_rank, 1, how.turned), Heads(0, how.heads, how.still, each)
    joined = SharedKeys(*parts) if how.table is None else SharedRope(how.table, *parts)
    k = b.put("k_joined" if how.table is None else "k_post_rope", joined, kv_a, kv_b,
              kv_head=how.heads, channel=how.key)  # fmt: skip
    score = Scores(how.heads, how.heads, how.scale, how.mask,
                   queries=queries if how.table is None else None,
                   temperature=how.temperature)  # fmt: skip
    chosen = () if how.indexer is None else (place_indexer(b, x, latent_q, how.indexer, how.mask),)
    scores = b.put("attn_scores", score, q, k, *chosen, head=how.heads)
    weights = b.put("attn_softmax", Softmax(how.mask), scores, *chosen, head=how.heads)
    values = Heads(how.still, how.heads, how.value, each)
    mixed = b.put("attention", Attend(how.heads, values), weights, kv_b,
                  head=how.heads, channel=how.value)  # fmt: skip
    return b.put("attn_out", _product(b, "o", b.hidden_size, how.biased), mixed)


def _queries(b: Builder, x: StageKey, how: LatentAttention) -> tuple[StageKey, StageKey]:
    """The queries, and what they are made of."""
    width = how.heads * how.key
    if how.q_rank is None:
        return b.put("q_b", _product(b, "q", width), x, width=width), x
    latent = b.put("q_a", _product(b, "q_a", how.q_rank, how.biased), x, width=how.q_rank)
    norm = replace(how.norm, weight=b.role("q_a_norm"))
    latent = b.put("q_a_norm", norm, latent, width=how.q_rank)
    return b.put("q_b", _product(b, "q_b", width), latent, width=width), latent


def _product(b: Builder, name: str, rows: int, biased: bool = False) -> Product:
    bias = b.role(f"{name}_bias") if biased else None
    return Product((Part(name, b.role(name), rows, bias),))


def _expanding(b: Builder, how: LatentAttention) -> tuple[Part, ...]:
    """What makes each head's still part of a key, and its value, of the latent."""
    if not how.split:
        return (Part("kv_b", b.role("kv_b"), how.heads * (how.still + how.value)),)
    rows = {"k_b": how.still, "v_b": how.value}
    return tuple(
        Part(f"{name} of head {head}", b.role(name)._replace(expert=head), rows[name])
        for head in range(how.heads)
        for name in rows
    )
