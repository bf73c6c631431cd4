"""Arcee (AFM): llama whose FFN has no gate, and squares its ReLU."""

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
)
from aprtui.graph import Graph

__all__ = ["FAMILY"]

_HF = {
    "vocab_size": 32_000, "hidden_size": 2560, "intermediate_size": 18_432, "num_layers": 32,
    "num_heads": 32, "num_kv_heads": None, "head_dim": None, "hidden_act": "relu2",
    "max_positions": 4096, "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "rope_theta": 1e4,
    "attention_bias": False,
}  # fmt: skip


def build(s: Settings) -> Graph:
    sizes = decoder.read_sizes(s)
    ffn, activation = decoder.read_ffn(s), s.activation("hidden_act", "relu2")
    s.must_be("mlp_bias", (False,), "the FFN's products have biases")
    table, mask = read_rope(s, sizes.head_dim), decoder.mask_of(decoder.read_causal(s), None)
    biases = decoder.read_biases(s)
    decoder.read_tied(s)
    how = decoder.attention_of(s, sizes, table=table, mask=mask, **biases)
    return decoder.build_decoder(
        sizes, lambda layer: how, lambda b, x: b.plain_mlp(x, ffn, activation)
    )


FAMILY = Family(
    Table((*WHOLE, *PRE_NORMS, *ATTENTION, *QKV_BIAS, *OUTPUT_BIAS, *DENSE[1:])),
    build,
    Defaults(hf=_HF, gguf={"rope_theta": 1e4}, apr={"rope_theta": 1e4, "rms_norm_eps": 1e-5}),
    adjacent_in_gguf=True,
)
