"""Granite: llama with multipliers of the embedding, the scores, the branches and the logits."""

from __future__ import annotations

from aprtui.families import decoder
from aprtui.families.decoder import Frame
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
from aprtui.graph.blocks import Attention

__all__ = ["FAMILY", "GGUF", "HF", "read_attention", "read_frame"]

HF = {
    "vocab_size": 32_000, "hidden_size": 4096, "intermediate_size": 11_008, "num_layers": 32,
    "num_heads": 32, "num_kv_heads": None, "hidden_act": "silu", "max_positions": 2048,
    "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "rope_theta": 1e4,
    "attention_bias": False, "embedding_multiplier": 1.0, "logits_scaling": 1.0,
    "residual_multiplier": 1.0, "attention_multiplier": 1.0,
}  # fmt: skip
GGUF = {
    "rope_theta": 1e4, "embedding_multiplier": 0.0, "residual_multiplier": 0.0,
    "attention_multiplier": 0.0,
}  # fmt: skip
"""llama.cpp's: 0 is none there."""


def read_frame(s: Settings) -> Frame:
    """The multipliers of the embedding and the branches, the divisor of the logits."""
    embedding, branch = s.number("embedding_multiplier"), s.number("residual_multiplier")
    if s.file.format == "gguf":
        embedding, branch = embedding or 1.0, branch or 1.0
        divisor = s.number("logit_scale")
    else:
        divisor = s.number("logits_scaling")
    return Frame(embedding_scale=embedding, branch_scale=branch, logit_scale=1.0 / divisor)


def read_attention(
    s: Settings, sizes: decoder.Sizes, *, partial: bool = False, switched: bool = True
) -> Attention:
    """Scores are multiplied as the file says, a part of each head may turn where ``partial``; GGUF
    says by ``rope.scaling.finetuned`` that nothing is turned, of a family so ``switched``."""
    table, mask = (
        read_rope(s, sizes.head_dim, partial=partial),
        decoder.mask_of(decoder.read_causal(s), None),
    )
    biases, scale = decoder.read_biases(s), s.number("attention_multiplier")
    silent = s.file.format != "gguf" or not switched
    turned = silent or s.flag("rope.scaling.finetuned", True)
    if s.file.format == "gguf" and not scale:
        scale = sizes.head_dim**-0.5
    return decoder.attention_of(
        s, sizes, table=table if turned else None, mask=mask, scale=scale, **biases
    )


def build(s: Settings) -> Graph:
    sizes = decoder.read_sizes(s)
    ffn, activation = decoder.read_ffn(s), s.activation("hidden_act", "silu")
    s.must_be("mlp_bias", (False,), "the FFN's products have biases")
    how, frame = read_attention(s, sizes), read_frame(s)
    decoder.read_tied(s)
    return decoder.build_decoder(
        sizes, lambda layer: how, lambda b, x: b.gated_mlp(x, ffn, activation), frame
    )


FAMILY = Family(
    Table((*WHOLE, *PRE_NORMS, *ATTENTION, *QKV_BIAS, *OUTPUT_BIAS, *DENSE)),
    build,
    Defaults(hf=HF, gguf=GGUF, apr={"rope_theta": 1e4, "rms_norm_eps": 1e-5}),
    adjacent_in_gguf=True,
)
