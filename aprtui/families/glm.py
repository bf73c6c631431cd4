"""GLM-4 of 2024 (llama.cpp: chatglm): half of each head turns, in adjacent pairs; gate and up are
fused."""

from __future__ import annotations

from aprtui.families import decoder
from aprtui.families.decoder import Frame
from aprtui.families.family import Family
from aprtui.families.rope import read_rope
from aprtui.families.settings import Defaults, Settings
from aprtui.families.tensors import (
    ATTENTION,
    DENSE,
    PRE_NORMS,
    QKV_BIAS,
    WHOLE,
    Table,
    layer_tensor,
)
from aprtui.graph import Graph

__all__ = ["DEFAULTS", "FAMILY", "TENSORS", "build_framed"]

DEFAULTS = Defaults(
    hf={
        "vocab_size": 151_552, "hidden_size": 4096, "intermediate_size": 13_696, "num_layers": 40,
        "num_heads": 32, "num_kv_heads": 2, "head_dim": 128, "hidden_act": "silu",
        "max_positions": 131_072, "rms_norm_eps": 1.5625e-7, "tie_word_embeddings": False,
        "rope_theta": 1e4, "partial_rotary_factor": 0.5, "attention_bias": True,
    },
    gguf={"rope_theta": 1e4},
    apr={"rope_theta": 1e4, "partial_rotary_factor": 0.5, "rms_norm_eps": 1.5625e-7},
)  # fmt: skip
TENSORS = (
    *WHOLE,
    *PRE_NORMS,
    *ATTENTION,
    *QKV_BIAS,
    layer_tensor(  # llama.cpp's ffn_up is both
        "gate_up", "mlp.gate_up_proj.weight", "ffn_up.weight", holds=("gate", "up")
    ),
    DENSE[2],
)


def build_framed(s: Settings, frame: Frame) -> Graph:
    """The graph with norms before the branches, and after them where ``frame`` says so."""
    sizes = decoder.read_sizes(s, nulls=())
    ffn, activation = decoder.read_ffn(s), s.activation("hidden_act", "silu")
    table = read_rope(s, sizes.head_dim, partial=True)
    mask = decoder.mask_of(decoder.read_causal(s), None)
    biases = {**decoder.read_biases(s), "output_bias": False}
    decoder.read_tied(s)
    how = decoder.attention_of(s, sizes, table=table, mask=mask, **biases)
    return decoder.build_decoder(
        sizes, lambda layer: how, lambda b, x: b.gated_mlp(x, ffn, activation), frame
    )


def build(s: Settings) -> Graph:
    return build_framed(s, Frame())


FAMILY = Family(Table(TENSORS), build, DEFAULTS, adjacent=True)
