"""The text part of Qwen3-VL-MoE: qwen3vl whose FFN is made of experts, in all layers or some."""

from __future__ import annotations

from dataclasses import replace

from aprtui.families import decoder
from aprtui.families.family import Family
from aprtui.families.keys import only
from aprtui.families.qwen3vl import TENSORS, read_attention
from aprtui.families.settings import Defaults, Settings
from aprtui.families.tensors import DENSE, EXPERTS, Table
from aprtui.graph import Graph

__all__ = ["FAMILY"]

_HF = {
    "vocab_size": 151_936, "hidden_size": 2048, "intermediate_size": 5632, "num_layers": 24,
    "num_heads": 16, "num_kv_heads": 16, "head_dim": None, "hidden_act": "silu",
    "max_positions": 128_000, "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
    "rope_theta": 5e5, "attention_bias": False, "decoder_sparse_step": 1,
    "moe_intermediate_size": 1408, "num_experts_per_tok": 4, "num_experts": 60,
    "mlp_only_layers": None,
}  # fmt: skip
_IN_FOLDERS = ("experts_gate_up", "experts_down_hf")
_EXPERTS = tuple(
    replace(each, either=True) if each.role in _IN_FOLDERS else each for each in EXPERTS
)
"""Published ones lie as [columns,rows], those that transformers 5 saves as [rows,columns]."""


def build(s: Settings) -> Graph:
    sizes, activation = decoder.read_sizes(s), s.activation("hidden_act", "silu")
    how, sparse = read_attention(s, sizes), decoder.sparse_layers(s, sizes.layers)
    decoder.read_tied(s)
    routing = decoder.read_experts(s, "moe_intermediate_size", activation, renormalise=True)
    ffn = decoder.read_mixed_ffn(s, routing, activation, sparse)
    return decoder.build_decoder(
        sizes,
        lambda layer: how,
        ffn,
    )


FAMILY = Family(
    Table((*TENSORS, *DENSE, *_EXPERTS)),
    build,
    Defaults(hf=_HF, gguf={"rope_theta": 1e4}),
    published={"norm_topk_prob": only(True)},
)
