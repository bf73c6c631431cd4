"""Gemma: GELU, an embedding scaled by sqrt(H), and norm weights that Hugging Face stores as w
where 1 + w is meant (llama.cpp's converter adds the 1)."""

from __future__ import annotations

from aprtui.families import decoder
from aprtui.families.decoder import Frame
from aprtui.families.family import Family
from aprtui.families.rope import read_rope
from aprtui.families.settings import ACTIVATION_NAMES, Defaults, Settings
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

__all__ = ["FAMILY", "embedding_scale", "norm_offset", "other_activation"]

_HF = {
    "vocab_size": 256_000, "hidden_size": 3072, "intermediate_size": 24_576, "num_layers": 28,
    "num_heads": 16, "num_kv_heads": 16, "head_dim": 256, "hidden_act": "gelu_pytorch_tanh",
    "max_positions": 8192, "rms_norm_eps": 1e-6, "tie_word_embeddings": True, "rope_theta": 1e4,
    "attention_bias": False,
}  # fmt: skip


def norm_offset(s: Settings) -> float:
    return float(s.say("norm_offset", 0.0 if s.gguf_rows else 1.0))


def embedding_scale(s: Settings, sizes: decoder.Sizes) -> float:
    return float(s.say("embedding_scale", sizes.hidden**0.5))


def other_activation(s: Settings, name: str, activation: str) -> None:
    """The second key of published configurations, which transformers does not read: it may not
    say another activation than the first."""
    same = [key for key, ours in ACTIVATION_NAMES.items() if ours == activation]
    s.must_be(name, (None, *same, "gelu"), "another activation than the one that counts")


def build(s: Settings) -> Graph:
    sizes = decoder.read_sizes(s)
    ffn, activation = decoder.read_ffn(s), s.activation("hidden_act", "gelu_tanh")
    if activation == "gelu":  # transformers: what published files mean by it is the tanh form
        activation = s.say("activation", "gelu_tanh")
    other_activation(s, "hidden_activation", activation)
    s.must_be("use_bidirectional_attention", (None, False), "tokens see those that follow")
    table, biases = read_rope(s, sizes.head_dim), decoder.read_biases(s)
    mask = decoder.mask_of(decoder.read_causal(s), None)
    how = decoder.attention_of(s, sizes, table=table, mask=mask, **biases)
    frame = Frame(offset=norm_offset(s), embedding_scale=embedding_scale(s, sizes))
    decoder.read_tied(s)
    return decoder.build_decoder(
        sizes, lambda layer: how, lambda b, x: b.gated_mlp(x, ffn, activation), frame
    )


FAMILY = Family(
    Table((*WHOLE, *PRE_NORMS, *ATTENTION, *QKV_BIAS, *OUTPUT_BIAS, *DENSE)),
    build,
    Defaults(
        hf=_HF,
        gguf={"rope_theta": 1e4},
        apr={"rope_theta": 1e4, "rms_norm_eps": 1e-6},
    ),
)
