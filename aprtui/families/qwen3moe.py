"""Qwen3-MoE: qwen3 whose FFN is made of experts, in all layers or some."""

from __future__ import annotations

from aprtui.families import decoder
from aprtui.families.family import Family
from aprtui.families.rope import read_rope
from aprtui.families.settings import Defaults, Settings
from aprtui.families.tensors import (
    ATTENTION,
    DENSE,
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
    "vocab_size": 151_936, "hidden_size": 2048, "intermediate_size": 6144, "num_layers": 24,
    "num_heads": 32, "num_kv_heads": 4, "hidden_act": "silu", "max_positions": 32_768,
    "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "rope_theta": 1e4,
    "attention_bias": False, "use_sliding_window": False, "sliding_window": 4096,
    "decoder_sparse_step": 1, "moe_intermediate_size": 768, "num_experts_per_tok": 8,
    "num_experts": 128, "norm_topk_prob": False, "mlp_only_layers": None,
}  # fmt: skip


def _window(s: Settings) -> int | None:
    """The window of every layer: transformers asks for no layer's kind here."""
    s.take("max_window_layers", None)
    if s.file.format != "safetensors":
        return None
    slides, window = s.flag("use_sliding_window"), decoder.read_window(s)
    return window if slides else None


def build(s: Settings) -> Graph:
    sizes = decoder.read_sizes(s)
    activation = s.activation("hidden_act", "silu")
    table = read_rope(s, sizes.head_dim)
    windows = decoder.all_windows(s, sizes.layers, _window(s))
    causal, biases = decoder.read_causal(s), decoder.read_biases(s)
    decoder.read_tied(s)
    sparse = decoder.sparse_layers(s, sizes.layers)
    routing = decoder.read_experts(
        s, "moe_intermediate_size", activation, renormalise=s.flag("norm_topk_prob")
    )
    ffn = decoder.read_mixed_ffn(s, routing, activation, sparse)
    return decoder.build_decoder(
        sizes,
        lambda layer: decoder.attention_of(
            s, sizes, table=table, mask=decoder.mask_of(causal, windows[layer]),
            norms=sizes.norm(), **biases,
        ),
        ffn,
    )  # fmt: skip


FAMILY = Family(
    Table((*WHOLE, *PRE_NORMS, *ATTENTION, *QKV_BIAS, *OUTPUT_BIAS, *QK_NORM, *DENSE, *EXPERTS)),
    build,
    Defaults(
        hf=_HF,
        gguf={"rope_theta": 1e4, "norm_topk_prob": True},
        apr={"rope_theta": 1e6, "rms_norm_eps": 1e-6, "norm_topk_prob": True},
    ),
)
