"""OLMo 2: norms only after the branches, and a QK norm over the whole width of Q and of K."""

from __future__ import annotations

from dataclasses import replace

from aprtui.families import decoder
from aprtui.families.decoder import Frame
from aprtui.families.family import Family
from aprtui.families.rope import read_rope
from aprtui.families.settings import Defaults, Settings
from aprtui.families.tensors import (
    ATTENTION,
    DENSE,
    OUTPUT_BIAS,
    POST_NORMS,
    QK_NORM,
    QKV_BIAS,
    WHOLE,
    Table,
)
from aprtui.graph import Graph

__all__ = ["FAMILY"]

_HF = {
    "vocab_size": 50_304, "hidden_size": 4096, "intermediate_size": 11_008, "num_layers": 32,
    "num_heads": 32, "num_kv_heads": None, "hidden_act": "silu", "max_positions": 2048,
    "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "rope_theta": 1e4,
    "attention_bias": False,
}  # fmt: skip


def build(s: Settings) -> Graph:
    sizes = decoder.read_sizes(s)
    ffn, activation = decoder.read_ffn(s), s.activation("hidden_act", "silu")
    table, biases = read_rope(s, sizes.head_dim), decoder.read_biases(s)
    mask = decoder.mask_of(decoder.read_causal(s), None)
    norms = replace(sizes.norm(), whole=True)
    decoder.read_tied(s)
    how = decoder.attention_of(s, sizes, table=table, mask=mask, norms=norms, **biases)
    return decoder.build_decoder(
        sizes,
        lambda layer: how,
        lambda b, x: b.gated_mlp(x, ffn, activation),
        Frame(before=False, after=True),
    )


FAMILY = Family(
    Table((*WHOLE, *POST_NORMS, *ATTENTION, *QKV_BIAS, *OUTPUT_BIAS, *QK_NORM, *DENSE)),
    build,
    Defaults(
        hf=_HF,
        gguf={"rope_theta": 1e4, "tie_word_embeddings": False},
        apr={"rope_theta": 1e4, "rms_norm_eps": 1e-5},
    ),
)
