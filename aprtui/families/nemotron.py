"""Nemotron (Minitron): LayerNorms with biases, whose weights Hugging Face stores as w where 1 + w
is meant; an FFN without a gate, squared ReLU; half of each head turns."""

from __future__ import annotations

from dataclasses import replace

from aprtui.families import decoder, gemma
from aprtui.families.decoder import Frame
from aprtui.families.family import Family
from aprtui.families.rope import read_rope
from aprtui.families.settings import Defaults, Settings
from aprtui.families.tensors import (
    ATTENTION,
    DENSE,
    NORM_BIASES,
    OUTPUT_BIAS,
    PRE_NORMS,
    QKV_BIAS,
    WHOLE,
    Table,
)
from aprtui.graph import Graph, Role

__all__ = ["FAMILY"]

_HF = {
    "vocab_size": 256_000, "hidden_size": 6144, "intermediate_size": 24_576, "num_layers": 32,
    "num_heads": 48, "num_kv_heads": None, "head_dim": None, "hidden_act": "relu2",
    "max_positions": 4096, "norm_eps": 1e-5, "tie_word_embeddings": False, "rope_theta": 1e4,
    "partial_rotary_factor": 0.5, "attention_bias": False,
}  # fmt: skip


def build(s: Settings) -> Graph:
    if s.file.format == "gguf":
        s.take("rms_norm_eps", None)  # the converter writes both; llama.cpp reads the other
        sizes = decoder.read_sizes(s, "layer_norm_eps")
    else:
        sizes = decoder.read_sizes(s, "norm_eps", nulls=("head_dim",))
        s.number("partial_rotary_factor")  # a null is an error there, not a share of one
    ffn, activation = decoder.read_ffn(s), s.activation("hidden_act", "relu2")
    s.must_be("mlp_bias", (False,), "the FFN's products have biases")
    table = read_rope(s, sizes.head_dim, partial=True)
    mask, biases = decoder.mask_of(decoder.read_causal(s), None), decoder.read_biases(s)
    norm = replace(sizes.norm(gemma.norm_offset(s)), centred=True, bias=Role("bias"))
    decoder.read_tied(s)
    how = decoder.attention_of(s, sizes, table=table, mask=mask, **biases)
    return decoder.build_decoder(
        sizes,
        lambda layer: how,
        lambda b, x: b.plain_mlp(x, ffn, activation),
        Frame(norm=norm),
    )


FAMILY = Family(
    Table((
        *WHOLE, *PRE_NORMS, *NORM_BIASES, *ATTENTION, *QKV_BIAS, *OUTPUT_BIAS, *DENSE[1:],
    )),
    build,
    Defaults(
        hf=_HF,
        gguf={"rope_theta": 1e4},
        apr={"rope_theta": 1e4, "partial_rotary_factor": 0.5, "norm_eps": 1e-5},
    ),
)  # fmt: skip
