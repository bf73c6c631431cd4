"""Cohere 2 (Command R7B, A): both branches read one LayerNorm, adjacent pairs of channels turn, and
the layers without a window are not turned at all."""

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
    PRE_NORMS,
    QKV_BIAS,
    WHOLE,
    Table,
)
from aprtui.graph import Graph

__all__ = ["FAMILY"]

_HF = {
    "vocab_size": 256_000, "hidden_size": 8192, "intermediate_size": 22_528, "num_layers": 40,
    "num_heads": 64, "num_kv_heads": None, "hidden_act": "silu", "max_positions": 8192,
    "layer_norm_eps": 1e-5, "tie_word_embeddings": True, "rope_theta": 1e4,
    "attention_bias": False, "logit_scale": 0.0625, "sliding_window": 4096,
}  # fmt: skip
_PERIOD = 4  # the last of so many layers has no window
_AS_PUBLISHED = {
    "rotary_pct": 1.0, "position_embedding_type": "rope_gptj", "use_parallel_block": True,
    "use_gated_activation": True, "use_embedding_sharing": True, "use_parallel_embedding": False,
    "order_of_interleaved_layers": "local_attn_first", "layer_switch": _PERIOD,
}  # fmt: skip
"""Keys of published folders that say what every model of the family has; nothing reads them."""


def build(s: Settings) -> Graph:
    sizes = decoder.read_sizes(s, "layer_norm_eps")
    ffn, activation = decoder.read_ffn(s), s.activation("hidden_act", "silu")
    for key, value in _AS_PUBLISHED.items():
        s.must_be(key, (value,), "no published model has it")
    table, biases = read_rope(s, sizes.head_dim), decoder.read_biases(s)
    causal = decoder.read_causal(s)
    windows = decoder.windows_by_pattern(s, sizes.layers, _PERIOD)
    s.say("rope_layers", tuple(window is not None for window in windows))
    norm = replace(sizes.norm(), centred=True)
    decoder.read_tied(s)
    return decoder.build_decoder(
        sizes,
        lambda layer: decoder.attention_of(
            s,
            sizes,
            table=table if windows[layer] is not None else None,
            mask=decoder.mask_of(causal, windows[layer]),
            **biases,
        ),
        lambda b, x: b.gated_mlp(x, ffn, activation),
        Frame(norm=norm, parallel=True, logit_scale=s.number("logit_scale")),
    )


FAMILY = Family(
    Table((*WHOLE, PRE_NORMS[0], *ATTENTION, *QKV_BIAS, *OUTPUT_BIAS, *DENSE)),
    build,
    Defaults(hf=_HF, gguf={"rope_theta": 1e4}, apr={"rope_theta": 5e4, "layer_norm_eps": 1e-5}),
    adjacent=True,
)
