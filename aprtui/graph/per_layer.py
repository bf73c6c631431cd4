"""Embeddings of the layers' own (Gemma 3n and 4): a table with a row of all layers for each token,
a product of the token's embedding, and in each layer what a gate lets through of both."""

from __future__ import annotations

from dataclasses import dataclass, replace

from aprtui.formats.tracedir import StageKey
from aprtui.graph.blocks import Builder
from aprtui.graph.ops import Activate, Add, Embed, Heads, Multiply, Norm, Part, Product
from aprtui.graph.role import Role

__all__ = ["PerLayer", "place_gated", "place_inputs"]


@dataclass(frozen=True)
class PerLayer:
    """``size`` channels for each of ``layers``; the table has ``rows``. ``norm``: of each layer's
    part of the product, which is divided by the root of the hidden size first."""

    layers: int
    size: int
    rows: int
    norm: Norm
    activation: str


def place_inputs(b: Builder, embedding: StageKey, how: PerLayer) -> StageKey:
    """What the layers are given [T,layers,size]."""
    width = how.layers * how.size
    table = Embed(Role("per_layer_embedding"), how.rows, how.size**0.5)
    rows = b.put("per_layer_embedding", table, width=width)
    part = Part("per_layer_projection", Role("per_layer_projection"), width)
    made = b.put("per_layer_projection", Product((part,)), embedding, width=width)
    slots = {"slot": how.layers, "channel": how.size}
    norm = replace(
        how.norm, weight=Role("per_layer_norm"), scale=b.hidden_size**-0.5,
        heads=Heads(0, how.layers, how.size),
    )  # fmt: skip
    normed = b.put("per_layer_norm", norm, made, **slots)
    return b.put("per_layer_input", Add(total=2**-0.5), normed, rows, **slots)


def place_gated(b: Builder, x: StageKey, inputs: StageKey, how: PerLayer) -> StageKey:
    """The branch of x that the layer's own embedding goes through, normalised."""
    layer = b.layer or 0
    gate = Part("per_layer_gate", b.role("per_layer_gate"), how.size)
    gated = b.put("per_layer_gate", Product((gate,)), x, width=how.size)
    act = b.put("per_layer_act", Activate(how.activation), gated, width=how.size)
    window = Heads(layer * how.size, 1, how.size)
    own = b.put("per_layer_gated", Multiply(window), act, inputs, width=how.size)
    out = Part("per_layer_out", b.role("per_layer_out"), b.hidden_size)
    made = b.put("per_layer_out", Product((out,)), own)
    norm = replace(how.norm, weight=None)
    return b.norm("per_layer_post_norm", made, norm)
