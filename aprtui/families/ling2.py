"""Ling 2 and Ring 2 (llama.cpp's bailingmoe2): half of each head turned after its norm, dense
layers first, then experts chosen by DeepSeek-V3's router beside a shared one; of GGUFs alone."""

from __future__ import annotations

from aprtui.families import decoder, routers
from aprtui.families.family import Family
from aprtui.families.rope import read_rope
from aprtui.families.settings import Defaults, Settings
from aprtui.families.tensors import (
    ATTENTION,
    CORRECTION_BIAS,
    DENSE,
    EXPERTS,
    PRE_NORMS,
    QK_NORM,
    SHARED_EXPERT,
    WHOLE,
    Table,
)
from aprtui.graph import Graph

__all__ = ["FAMILY"]


def build(s: Settings) -> Graph:
    sizes, activation = decoder.read_sizes(s), s.activation("hidden_act", "silu")
    sparse = routers.read_dense_first(s, sizes.layers)
    routing = decoder.read_experts(s, "moe_intermediate_size", activation, renormalise=False)
    routing = routers.read_sigmoid(s, routing, "expert_weights_scale", renormalise=False)
    routing = routers.read_groups(s, routing)
    routing = routers.read_shared(s, routing, "", width_of_each=True)
    ffn = decoder.read_mixed_ffn(s, routing, activation, sparse)
    table = read_rope(s, sizes.head_dim, partial=True)
    mask = decoder.mask_of(decoder.read_causal(s), None)
    decoder.read_tied(s)
    how = decoder.attention_of(s, sizes, table=table, mask=mask, norms=sizes.norm())
    return decoder.build_decoder(
        sizes,
        lambda layer: how,
        ffn,
    )


_ATTENTION = (*WHOLE, *PRE_NORMS, *ATTENTION, *QK_NORM)
FAMILY = Family(
    Table((*_ATTENTION, *DENSE, *EXPERTS, *SHARED_EXPERT, *CORRECTION_BIAS)),
    build,
    Defaults(gguf={"rope_theta": 1e4, "tie_word_embeddings": False}),
)
