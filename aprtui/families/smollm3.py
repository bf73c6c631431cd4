"""SmolLM3: llama without RoPE in every fourth layer."""

from __future__ import annotations

from aprtui.families import decoder
from aprtui.families.decoder import FULL, SLIDING
from aprtui.families.family import Family
from aprtui.families.keys import anything
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
    "vocab_size": 128_256, "hidden_size": 2048, "intermediate_size": 11_008, "num_layers": 36,
    "num_heads": 16, "num_kv_heads": 4, "hidden_act": "silu", "max_positions": 32_768,
    "rms_norm_eps": 1e-6, "tie_word_embeddings": True, "rope_theta": 2e6, "attention_bias": False,
    "use_sliding_window": False, "sliding_window": None, "no_rope_layer_interval": 4,
}  # fmt: skip
_INTERVAL = 4  # of layers without RoPE in llama.cpp, which has no key for it


def _turned(s: Settings, layers: int) -> list[bool]:
    """Which layers are turned by their positions."""
    interval = _INTERVAL
    if s.file.format == "safetensors":
        interval = s.integer("no_rope_layer_interval")
    flags = s.per_layer("no_rope_layers", (int,), None)
    if flags is None and interval < 1:
        raise s.fail(f"no_rope_layer_interval is {interval}")
    turned = [bool((layer + 1) % interval) for layer in range(layers)] if flags is None else [
        bool(flag) for flag in flags
    ]  # fmt: skip
    s.say("rope_layers", tuple(turned))
    return turned


def _windows(s: Settings, turned: list[bool]) -> list[int | None]:
    """Layers without RoPE slide where any does."""
    if s.file.format != "safetensors":
        return decoder.all_windows(s, len(turned), None)
    slides, window = s.flag("use_sliding_window"), decoder.read_window(s)
    window = window if slides else None
    default = [FULL if rope or window is None else SLIDING for rope in turned]
    return decoder.say_windows(s, window, decoder.layer_types(s, default))


def build(s: Settings) -> Graph:
    sizes = decoder.read_sizes(s)
    ffn, activation = decoder.read_ffn(s), s.activation("hidden_act", "silu")
    s.must_be("mlp_bias", (False,), "the FFN's products have biases")
    table, biases = read_rope(s, sizes.head_dim), decoder.read_biases(s)
    turned, causal = _turned(s, sizes.layers), decoder.read_causal(s)
    windows = _windows(s, turned)
    decoder.read_tied(s)
    return decoder.build_decoder(
        sizes,
        lambda layer: decoder.attention_of(
            s,
            sizes,
            table=table if turned[layer] else None,
            mask=decoder.mask_of(causal, windows[layer]),
            **biases,
        ),
        lambda b, x: b.gated_mlp(x, ffn, activation),
    )


FAMILY = Family(
    Table((*WHOLE, *PRE_NORMS, *ATTENTION, *QKV_BIAS, *OUTPUT_BIAS, *DENSE)),
    build,
    Defaults(
        hf=_HF,
        gguf={"rope_theta": 1e4},
        apr={"rope_theta": 2e6, "rms_norm_eps": 1e-6},
    ),
    adjacent_in_gguf=True,
    published={"max_window_layers": anything},
)
