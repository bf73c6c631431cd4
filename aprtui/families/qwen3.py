"""Qwen3: qwen2 with a norm of each query and key head, and without the biases."""

from __future__ import annotations

from aprtui.families import decoder
from aprtui.families.family import Family
from aprtui.families.qwen2 import windows_above
from aprtui.families.rope import read_rope
from aprtui.families.settings import Defaults, Settings
from aprtui.families.tensors import (
    ATTENTION,
    DENSE,
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
    "vocab_size": 151_936, "hidden_size": 4096, "intermediate_size": 22_016, "num_layers": 32,
    "num_heads": 32, "num_kv_heads": 32, "head_dim": 128, "hidden_act": "silu",
    "max_positions": 32_768, "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
    "rope_theta": 1e4, "attention_bias": False, "use_sliding_window": False,
    "sliding_window": 4096, "max_window_layers": 28,
}  # fmt: skip


def build(s: Settings) -> Graph:
    sizes = decoder.read_sizes(s)
    ffn, activation = decoder.read_ffn(s), s.activation("hidden_act", "silu")
    table = read_rope(s, sizes.head_dim)
    windows, causal = windows_above(s, sizes), decoder.read_causal(s)
    biases = decoder.read_biases(s)
    decoder.read_tied(s)
    return decoder.build_decoder(
        sizes,
        lambda layer: decoder.attention_of(
            s, sizes, table=table, mask=decoder.mask_of(causal, windows[layer]),
            norms=sizes.norm(), **biases,
        ),
        lambda b, x: b.gated_mlp(x, ffn, activation),
    )  # fmt: skip


FAMILY = Family(
    Table((*WHOLE, *PRE_NORMS, *ATTENTION, *QKV_BIAS, *OUTPUT_BIAS, *QK_NORM, *DENSE)),
    build,
    Defaults(
        hf=_HF,
        gguf={"rope_theta": 1e4},
        apr={"rope_theta": 1e6, "rms_norm_eps": 1e-6},
    ),
)
