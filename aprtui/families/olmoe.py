"""OLMoE: olmo2's QK norm over the whole width, norms before the branches, an FFN of experts."""

from __future__ import annotations

from dataclasses import replace

from aprtui.families import decoder
from aprtui.families.family import Family
from aprtui.families.rope import read_rope
from aprtui.families.settings import Defaults, Settings
from aprtui.families.tensors import (
    ATTENTION,
    EXPERTS,
    OUTPUT_BIAS,
    PRE_NORMS,
    QK_NORM,
    QKV_BIAS,
    WHOLE,
    Table,
)
from aprtui.graph import Graph

__all__ = ["FAMILY"]

_HF = {
    "vocab_size": 50_304, "hidden_size": 2048, "intermediate_size": 2048, "num_layers": 16,
    "num_heads": 16, "num_kv_heads": None, "hidden_act": "silu", "max_positions": 4096,
    "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "rope_theta": 1e4,
    "attention_bias": False, "num_experts_per_tok": 8, "num_experts": 64, "norm_topk_prob": False,
}  # fmt: skip


def build(s: Settings) -> Graph:
    sizes = decoder.read_sizes(s)
    activation = s.activation("hidden_act", "silu")
    s.must_be("clip_qkv", (None,), "q, k and v are clipped")
    table, biases = read_rope(s, sizes.head_dim), decoder.read_biases(s)
    mask = decoder.mask_of(decoder.read_causal(s), None)
    norms = replace(sizes.norm(), whole=True)
    decoder.read_tied(s)
    routing = decoder.read_experts(
        s, "intermediate_size", activation, renormalise=s.flag("norm_topk_prob")
    )
    how = decoder.attention_of(s, sizes, table=table, mask=mask, norms=norms, **biases)
    return decoder.build_decoder(sizes, lambda layer: how, lambda b, x: b.experts(x, routing))


FAMILY = Family(
    Table((*WHOLE, *PRE_NORMS, *ATTENTION, *QKV_BIAS, *OUTPUT_BIAS, *QK_NORM, *EXPERTS)),
    build,
    Defaults(
        hf=_HF,
        gguf={"rope_theta": 1e4, "norm_topk_prob": False, "tie_word_embeddings": False},
        apr={"rope_theta": 1e4, "rms_norm_eps": 1e-5, "norm_topk_prob": False},
    ),
)
