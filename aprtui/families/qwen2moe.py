"""Qwen2-MoE: qwen2 whose FFN is made of experts beside one that every token goes through, weighed
by a sigmoid, in all layers or some."""

from __future__ import annotations

from dataclasses import replace

from aprtui.families import decoder
from aprtui.families.decoder import FULL, SLIDING
from aprtui.families.family import Family
from aprtui.families.rope import read_rope
from aprtui.families.settings import Defaults, Settings
from aprtui.families.tensors import (
    ATTENTION,
    DENSE,
    EXPERTS,
    PRE_NORMS,
    QKV_BIAS,
    SHARED_EXPERT,
    WHOLE,
    Table,
    layer_tensor,
)
from aprtui.graph import Graph

__all__ = ["FAMILY", "SHARED"]

_HF = {
    "vocab_size": 151_936, "hidden_size": 2048, "intermediate_size": 5632, "num_layers": 24,
    "num_heads": 16, "num_kv_heads": 16, "hidden_act": "silu", "max_positions": 32_768,
    "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "rope_theta": 1e4,
    "use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28,
    "decoder_sparse_step": 1, "moe_intermediate_size": 1408, "num_experts_per_tok": 4,
    "shared_expert_intermediate_size": 5632, "num_experts": 60, "norm_topk_prob": False,
    "mlp_only_layers": None, "qkv_bias": True,
}  # fmt: skip
SHARED = (
    *SHARED_EXPERT,
    layer_tensor("shared_gate", "mlp.shared_expert_gate.weight", "ffn_gate_inp_shexp.weight"),
)


def _windows(s: Settings, layers: int) -> list[int | None]:
    """Every other layer's window, of those before ``max_window_layers``."""
    if s.file.format != "safetensors":
        return decoder.all_windows(s, layers)
    slides = s.flag("use_sliding_window")
    window, first = decoder.read_window(s), s.integer("max_window_layers")
    default = [
        SLIDING if slides and layer % 2 == 0 and layer < first else FULL for layer in range(layers)
    ]
    return decoder.say_windows(s, window if slides else None, decoder.layer_types(s, default))


def build(s: Settings) -> Graph:
    sizes = decoder.read_sizes(s)
    activation = s.activation("hidden_act", "silu")
    table, causal = read_rope(s, sizes.head_dim), decoder.read_causal(s)
    windows, sparse = _windows(s, sizes.layers), decoder.sparse_layers(s, sizes.layers)
    biased = s.flag("qkv_bias") if s.file.format == "safetensors" else True
    decoder.read_tied(s)
    routing = decoder.read_experts(
        s, "moe_intermediate_size", activation, renormalise=s.flag("norm_topk_prob")
    )
    routing = replace(routing, shared_size=s.integer("shared_expert_intermediate_size"))
    ffn = decoder.read_mixed_ffn(s, routing, activation, sparse)
    return decoder.build_decoder(
        sizes,
        lambda layer: decoder.attention_of(
            s, sizes, table=table, mask=decoder.mask_of(causal, windows[layer]), qkv_bias=biased
        ),
        ffn,
    )


FAMILY = Family(
    Table((*WHOLE, *PRE_NORMS, *ATTENTION, *QKV_BIAS, *DENSE, *EXPERTS, *SHARED)),
    build,
    Defaults(
        hf=_HF,
        gguf={"rope_theta": 1e4, "norm_topk_prob": False, "tie_word_embeddings": False},
        apr={"rope_theta": 1e4, "rms_norm_eps": 1e-6, "norm_topk_prob": False},
    ),
)
