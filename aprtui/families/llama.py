"""Llama, and what is computed as one: GGUF files of mistral and mixtral bear its name too."""

from __future__ import annotations

from aprtui.families import decoder
from aprtui.families.family import Family
from aprtui.families.rope import read_rope
from aprtui.families.settings import Defaults, Settings
from aprtui.families.tensors import (
    ATTENTION,
    DENSE,
    EXPERTS,
    MLP_BIAS,
    OUTPUT_BIAS,
    PRE_NORMS,
    QKV_BIAS,
    WHOLE,
    Table,
)
from aprtui.graph import Graph

__all__ = ["FAMILY", "build_with_windows"]

_HF = {
    "vocab_size": 32_000, "hidden_size": 4096, "intermediate_size": 11_008, "num_layers": 32,
    "num_heads": 32, "num_kv_heads": None, "head_dim": None, "hidden_act": "silu",
    "max_positions": 2048, "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "rope_theta": 1e4,
    "attention_bias": False, "mlp_bias": False,
}  # fmt: skip


def build_with_windows(
    s: Settings, sizes: decoder.Sizes, windows: list[int | None], *, biased: bool = False
) -> Graph:
    """The graph with a window for each layer; the FFN is made of experts where there are any.
    ``biased``: the products of an FFN have biases."""
    activation = s.activation("hidden_act", "silu")
    s.must_be("mlp_bias", (biased, False), "the FFN's products have biases")
    table = read_rope(s, sizes.head_dim)
    causal = decoder.read_causal(s)
    biases = decoder.read_biases(s)
    decoder.read_tied(s)
    if s.shape("router") is not None:
        routing = decoder.read_experts(s, "intermediate_size", activation, renormalise=True)
    else:
        ffn = decoder.read_ffn(s)
        s.must_be("num_experts", (0,), "experts are stated and the file holds none")
        s.must_be("num_experts_per_tok", (0,), "experts are stated and the file holds none")
    return decoder.build_decoder(
        sizes,
        lambda layer: decoder.attention_of(
            s, sizes, table=table, mask=decoder.mask_of(causal, windows[layer]), **biases
        ),
        (lambda b, x: b.experts(x, routing))
        if s.shape("router") is not None
        else (lambda b, x: b.gated_mlp(x, ffn, activation, biased=biased)),
    )


def build(s: Settings) -> Graph:
    sizes = decoder.read_sizes(s)
    biased = decoder.read_mlp_bias(s)
    graph = build_with_windows(s, sizes, [None] * sizes.layers, biased=biased)
    _warn_lost_scaling(s)
    return graph


def _warn_lost_scaling(s: Settings) -> None:
    """Say when an .apr file looks like Llama 3.1, whose RoPE scaling its metadata cannot hold."""
    long = s.values["rope_theta"] == 500_000.0 and s.values["max_positions"] > 8192
    if s.file.format == "apr" and long and not (s.has("rope_scaling") or s.freqs):
        s.note(
            "this looks like Llama 3.1 or later, whose RoPE scaling .apr cannot hold; "
            "if the source had it: --set rope_scaling=llama3:8:1:4:8192"
        )


FAMILY = Family(
    Table((*WHOLE, *PRE_NORMS, *ATTENTION, *QKV_BIAS, *OUTPUT_BIAS, *DENSE, *EXPERTS, *MLP_BIAS)),
    build,
    Defaults(
        hf=_HF,
        gguf={"rope_theta": 1e4},
        apr={"rope_theta": 1e4, "rms_norm_eps": 1e-5},
    ),
    adjacent_in_gguf=True,
)
