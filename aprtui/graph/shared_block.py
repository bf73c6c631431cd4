"""A block of attention and an FFN that layers share (Zamba 2, arXiv 2411.15242): it is given the
layer's input beside the embedding, and each layer adapts its products by matrices of low rank."""

from __future__ import annotations

from dataclasses import dataclass, replace

from aprtui.formats.tracedir import StageKey
from aprtui.graph.blocks import Attention, Builder
from aprtui.graph.ops import Activate, Adapt, Beside, Multiply, Norm, Part, Product

__all__ = ["SharedBlock", "place_block"]


@dataclass(frozen=True)
class SharedBlock:
    """``size``: F of its FFN, whose products have biases where ``biased``; ``rank``: that of the
    FFN's adapters. The norms' weights are set where they are placed."""

    attention: Attention
    norm: Norm
    size: int
    activation: str
    rank: int
    biased: bool


def place_block(b: Builder, hidden: StageKey, embedding: StageKey, how: SharedBlock) -> StageKey:
    """From the layer's input to what is added to that of its scan. Nothing is added to the stream
    between attention and FFN."""
    width = 2 * b.hidden_size
    both = b.put("block_in", Beside(), hidden, embedding, width=width)
    norm = replace(how.norm, weight=b.role("block_norm"))
    mixed = b.attention(b.put("block_norm", norm, both, width=width), how.attention, _ATTENDED)
    x = b.norm("block_ffn_norm", mixed, how.norm)
    plain = [b.put(f"block_{n}", _product(b, n, how.size, how), x, ffn=how.size) for n in _INWARD]
    low = b.put("block_low", Product((Part("low", b.role("ffn_low"), how.rank),)), x,
                width=how.rank)  # fmt: skip
    gate, up = (
        b.put(f"block_{n}_adapted", _adapt(b, n, how), made, low, ffn=how.size)
        for n, made in zip(_INWARD, plain, strict=True)
    )
    act = b.put("block_silu", Activate(how.activation), gate, ffn=how.size)
    inner = b.put("block_swigl", Multiply(), act, up, ffn=how.size)
    made = b.put("block_out", _product(b, "down", b.hidden_size, how), inner)
    own = Part("linear", b.role("block_linear"), b.hidden_size)
    return b.put("block_linear", Product((own,)), made)


_ATTENDED = "block_attn_out"
_INWARD = ("gate", "up")


def _product(b: Builder, name: str, rows: int, how: SharedBlock) -> Product:
    bias = b.role(f"{name}_bias") if how.biased else None
    return Product((Part(name, b.role(name), rows, bias),))


def _adapt(b: Builder, name: str, how: SharedBlock) -> Adapt:
    return Adapt((Part(name, b.role(f"{name}_high"), how.size),), how.rank)
