"""ERNIE 4.5 with experts: softmax scores, a bias for the choice, shared experts, some layers
dense."""

from __future__ import annotations

from dataclasses import replace

from aprtui.families import decoder, routers
from aprtui.families.family import Family
from aprtui.families.keys import only
from aprtui.families.rope import read_rope
from aprtui.families.settings import Defaults, Settings
from aprtui.families.tensors import (
    ATTENTION,
    CORRECTION_BIAS,
    DENSE,
    EXPERTS,
    PRE_NORMS,
    SHARED_EXPERT,
    WHOLE,
    Table,
)
from aprtui.graph import Graph
from aprtui.graph.blocks import Routing

__all__ = ["FAMILY"]

_HF = {
    "vocab_size": 103_424, "hidden_size": 2560, "intermediate_size": 12_288, "num_layers": 28,
    "num_heads": 20, "num_kv_heads": 4, "hidden_act": "silu", "max_positions": 131_072,
    "rms_norm_eps": 1e-5, "tie_word_embeddings": True, "rope_theta": 5e5,
    "moe_intermediate_size": 1536, "moe_k": 6, "moe_num_experts": 64, "moe_num_shared_experts": 2,
    "moe_layer_start_index": 1, "moe_layer_end_index": -1, "moe_layer_interval": 1,
    "moe_norm_min": 1e-12,
}  # fmt: skip


def _sparse(s: Settings, layers: int) -> list[bool]:
    """Which layers have experts: every so many, from one to another."""
    if s.file.format == "gguf":
        first, last = s.integer("leading_dense_block_count", 0), -1
        every = s.integer("interleave_moe_layer_step")
    else:
        first, last = s.integer("moe_layer_start_index"), s.integer("moe_layer_end_index")
        every = s.integer("moe_layer_interval")
    if every < 1:
        raise s.fail(f"moe_layer_interval is {every}")
    last = layers - 1 if last == -1 else last
    sparse = [(n + 1) % every == 0 and first <= n <= last for n in range(layers)]
    s.say("sparse_layers", tuple(sparse))
    return sparse


def _routing(s: Settings, activation: str) -> Routing:
    routing = decoder.read_experts(
        s, "moe_intermediate_size", activation, renormalise=True,
        names=("moe_num_experts", "moe_k"),
    )  # fmt: skip
    routing = routers.read_shared(s, routing, "moe_num_shared_experts")
    if s.file.format == "gguf":
        floor, corrected = routers.LEAST_SUM, s.shape("correction_bias") is not None
    else:
        floor, corrected = s.number("moe_norm_min"), True
    return replace(routing, route=replace(routing.route, floor=floor), corrected=corrected)


def build(s: Settings) -> Graph:
    sizes = decoder.read_sizes(s)
    activation = s.activation("hidden_act", "silu")
    s.must_be("use_bias", (False, None), "the products have biases")
    table = read_rope(s, sizes.head_dim)
    mask = decoder.mask_of(decoder.read_causal(s), None)
    decoder.read_tied(s)
    sparse, routing = _sparse(s, sizes.layers), _routing(s, activation)
    ffn = decoder.read_mixed_ffn(s, routing, activation, sparse)
    how = decoder.attention_of(s, sizes, table=table, mask=mask)
    return decoder.build_decoder(
        sizes,
        lambda layer: how,
        ffn,
    )


FAMILY = Family(
    Table((*WHOLE, *PRE_NORMS, *ATTENTION, *DENSE, *EXPERTS, *SHARED_EXPERT, *CORRECTION_BIAS)),
    build,
    Defaults(hf=_HF, gguf={"rope_theta": 1e4}),
    adjacent=True,
    published={
        "compression_ratio": only(1.0), "use_rmsnorm": only(True), "moe_gate": only("topk"),
    },
)  # fmt: skip
