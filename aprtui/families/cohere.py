"""Cohere (Command R, R+): both branches read one LayerNorm, adjacent pairs turn; each head of R+
has a norm with a weight of its own."""

from __future__ import annotations

from dataclasses import replace

from aprtui.families import classic, decoder
from aprtui.families.decoder import Frame
from aprtui.families.family import Family
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
    "vocab_size": 256_000, "hidden_size": 8192, "intermediate_size": 22_528, "num_layers": 40,
    "num_heads": 64, "num_kv_heads": None, "hidden_act": "silu", "max_positions": 8192,
    "layer_norm_eps": 1e-5, "tie_word_embeddings": True, "rope_theta": 5e5,
    "attention_bias": False, "logit_scale": 0.0625, "use_qk_norm": False,
}  # fmt: skip


def build(s: Settings) -> Graph:
    sizes = decoder.read_sizes(s, "layer_norm_eps")
    ffn, activation = decoder.read_ffn(s), s.activation("hidden_act", "silu")
    table, biases = read_rope(s, sizes.head_dim), decoder.read_biases(s)
    mask = decoder.mask_of(decoder.read_causal(s), None)
    norm = classic.layer_norm(sizes, biased=False)
    normed = s.flag("use_qk_norm") if classic.in_folder(s) else s.shape("q_norm") is not None
    decoder.read_tied(s)
    how = decoder.attention_of(
        s, sizes, table=table, mask=mask, norms=replace(norm, each=True) if normed else None,
        **biases,
    )  # fmt: skip
    return decoder.build_decoder(
        sizes,
        lambda layer: how,
        lambda b, x: b.gated_mlp(x, ffn, activation),
        Frame(norm=norm, parallel=True, logit_scale=s.number("logit_scale")),
    )


FAMILY = Family(
    Table((*WHOLE, PRE_NORMS[0], *ATTENTION, *QKV_BIAS, *OUTPUT_BIAS, *QK_NORM, *DENSE)),
    build,
    Defaults(hf=_HF, gguf={"rope_theta": 1e4, "logit_scale": 1.0}),
    adjacent=True,
)
