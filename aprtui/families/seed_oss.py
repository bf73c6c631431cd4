"""Seed-OSS: llama with biases on q, k and v, and one of its own for the output projection."""

from __future__ import annotations

from aprtui.families import decoder
from aprtui.families.family import Family
from aprtui.families.rope import read_rope
from aprtui.families.settings import Defaults, Settings
from aprtui.families.tensors import (
    ATTENTION,
    DENSE,
    OUTPUT_BIAS,
    PRE_NORMS,
    QKV_BIAS,
    WHOLE,
    Table,
    layer_tensor,
)
from aprtui.graph import Graph

__all__ = ["FAMILY"]

_HF = {
    "vocab_size": 155_136, "hidden_size": 4096, "intermediate_size": 27_648, "num_layers": 64,
    "num_heads": 80, "num_kv_heads": 8, "head_dim": 128, "hidden_act": "silu",
    "max_positions": 524_288, "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
    "rope_theta": 1e4, "attention_bias": True, "attention_out_bias": False,
}  # fmt: skip
_FFN_NORM = layer_tensor(  # llama.cpp names it after its place, as Hugging Face does
    "ffn_norm", "post_attention_layernorm.weight", "post_attention_norm.weight"
)


def build(s: Settings) -> Graph:
    sizes = decoder.read_sizes(s)
    ffn, activation = decoder.read_ffn(s), s.activation("hidden_act", "silu")
    s.must_be("mlp_bias", (False,), "the FFN's products have biases")
    table, mask = read_rope(s, sizes.head_dim), decoder.mask_of(decoder.read_causal(s), None)
    biases = decoder.read_biases(s)
    if s.file.format == "safetensors":
        biases["output_bias"] = s.flag("attention_out_bias")
    decoder.read_tied(s)
    how = decoder.attention_of(s, sizes, table=table, mask=mask, **biases)
    return decoder.build_decoder(
        sizes, lambda layer: how, lambda b, x: b.gated_mlp(x, ffn, activation)
    )


FAMILY = Family(
    Table((*WHOLE, PRE_NORMS[0], _FFN_NORM, *ATTENTION, *QKV_BIAS, *OUTPUT_BIAS, *DENSE)),
    build,
    Defaults(hf=_HF, gguf={"rope_theta": 1e4}, apr={"rope_theta": 1e7, "rms_norm_eps": 1e-6}),
)
