"""Ling and Ring of the first generation (llama.cpp's bailingmoe): llama with experts chosen by a
softmax beside shared ones, in all layers; of GGUFs alone."""

from __future__ import annotations

from dataclasses import replace

from aprtui.families import decoder
from aprtui.families.family import Family
from aprtui.families.rope import read_rope
from aprtui.families.settings import Defaults, Settings
from aprtui.families.tensors import (
    ATTENTION,
    EXPERTS,
    PRE_NORMS,
    QKV_BIAS,
    SHARED_EXPERT,
    WHOLE,
    Table,
)
from aprtui.graph import Graph
from aprtui.graph.ops import Route

__all__ = ["FAMILY"]


def build(s: Settings) -> Graph:
    sizes, activation = decoder.read_sizes(s), s.activation("hidden_act", "silu")
    normed = s.flag("expert_weights_norm", False)
    scale = s.number("expert_weights_scale", 1.0)
    if scale == 0:  # llama.cpp takes it for none
        raise s.fail("expert_weights_scale is 0")
    routing = decoder.read_experts(s, "moe_intermediate_size", activation, renormalise=normed)
    shared = routing.size * s.integer("expert_shared_count")
    s.say("shared_expert_intermediate_size", shared)
    routing = replace(
        routing,
        route=Route(renormalise=normed, scale=scale), shared_size=shared, shared_gate=False,
    )  # fmt: skip
    s.take("intermediate_size", None)
    table, biases = read_rope(s, sizes.head_dim), decoder.read_biases(s)
    mask = decoder.mask_of(decoder.read_causal(s), None)
    decoder.read_tied(s)
    how = decoder.attention_of(s, sizes, table=table, mask=mask, **biases)
    return decoder.build_decoder(sizes, lambda layer: how, lambda b, x: b.experts(x, routing))


FAMILY = Family(
    Table((*WHOLE, *PRE_NORMS, *ATTENTION, *QKV_BIAS, *EXPERTS, *SHARED_EXPERT)),
    build,
    Defaults(gguf={"rope_theta": 1e4, "tie_word_embeddings": False}),
    adjacent_in_gguf=True,
)
