"""MiniCPM: granite's multipliers on embedding, branches and logits; of GGUFs alone."""

from __future__ import annotations

import math

from aprtui.families import decoder, granite
from aprtui.families.family import Family
from aprtui.families.settings import Defaults, Settings
from aprtui.families.tensors import (
    ATTENTION,
    DENSE,
    MLP_BIAS,
    OUTPUT_BIAS,
    PRE_NORMS,
    QKV_BIAS,
    WHOLE,
    Table,
)
from aprtui.graph import Graph

__all__ = ["FAMILY"]

_EMBEDDING, _DEPTH, _BASE = 12.0, 1.4, 256  # llama.cpp's, of files before it had keys for them


def build(s: Settings) -> Graph:
    sizes = decoder.read_sizes(s)
    s.assume("embedding_multiplier", _EMBEDDING)
    s.assume("residual_multiplier", _DEPTH / math.sqrt(sizes.layers))
    s.assume("logit_scale", _BASE / sizes.hidden)
    ffn, activation = decoder.read_ffn(s), s.activation("hidden_act", "silu")
    biased = decoder.read_mlp_bias(s)
    how, frame = granite.read_attention(s, sizes), granite.read_frame(s)
    decoder.read_tied(s)
    return decoder.build_decoder(
        sizes,
        lambda layer: how,
        lambda b, x: b.gated_mlp(x, ffn, activation, biased=biased),
        frame,
    )


FAMILY = Family(
    Table((*WHOLE, *PRE_NORMS, *ATTENTION, *QKV_BIAS, *OUTPUT_BIAS, *DENSE, *MLP_BIAS)),
    build,
    Defaults(gguf={"rope_theta": 1e4, "attention_multiplier": 0.0}),
    adjacent_in_gguf=True,
)
