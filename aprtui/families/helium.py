"""Helium: llama whose pairs of channels are adjacent in Hugging Face's rows too."""

from __future__ import annotations

from aprtui.families import decoder
from aprtui.families.family import Family
from aprtui.families.rope import read_rope
from aprtui.families.settings import Defaults, Settings
from aprtui.families.tensors import ATTENTION, DENSE, PRE_NORMS, QKV_BIAS, WHOLE, Table
from aprtui.graph import Graph

__all__ = ["FAMILY"]

_HF = {
    "vocab_size": 48_000, "hidden_size": 2560, "intermediate_size": 7040, "num_layers": 24,
    "num_heads": 20, "num_kv_heads": 20, "head_dim": 128, "hidden_act": "silu",
    "max_positions": 4096, "rms_norm_eps": 1e-8, "tie_word_embeddings": False, "rope_theta": 1e5,
    "attention_bias": False,
}  # fmt: skip


def build(s: Settings) -> Graph:
    sizes = decoder.read_sizes(s, nulls=())
    ffn, activation = decoder.read_ffn(s), s.activation("hidden_act", "silu")
    s.must_be("mlp_bias", (False,), "the FFN's products have biases")
    table, mask = read_rope(s, sizes.head_dim), decoder.mask_of(decoder.read_causal(s), None)
    biases = {**decoder.read_biases(s), "output_bias": False}
    decoder.read_tied(s)
    how = decoder.attention_of(s, sizes, table=table, mask=mask, **biases)
    return decoder.build_decoder(
        sizes, lambda layer: how, lambda b, x: b.gated_mlp(x, ffn, activation)
    )


FAMILY = Family(
    Table((*WHOLE, *PRE_NORMS, *ATTENTION, *QKV_BIAS, *DENSE)),
    build,
    Defaults(hf=_HF, apr={"rope_theta": 1e5, "rms_norm_eps": 1e-8}),
    adjacent=True,
)
