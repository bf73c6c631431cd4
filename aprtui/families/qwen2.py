"""Qwen2 and Qwen2.5: llama's layers with biases on q, k and v."""

from __future__ import annotations

from aprtui.families import decoder
from aprtui.families.decoder import FULL, SLIDING
from aprtui.families.family import Family
from aprtui.families.rope import read_rope
from aprtui.families.settings import Defaults, Settings
from aprtui.families.tensors import ATTENTION, DENSE, PRE_NORMS, QKV_BIAS, WHOLE, Table
from aprtui.graph import Graph

__all__ = ["FAMILY", "windows_above"]

_HF = {
    "vocab_size": 151_936, "hidden_size": 4096, "intermediate_size": 22_016, "num_layers": 32,
    "num_heads": 32, "num_kv_heads": 32, "hidden_act": "silu", "max_positions": 32_768,
    "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "rope_theta": 1e4,
    "use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28,
}  # fmt: skip


def windows_above(s: Settings, sizes: decoder.Sizes) -> list[int | None]:
    """The windows of layers: those from ``max_window_layers`` on slide where any does."""
    if s.file.format == "safetensors":
        slides = s.flag("use_sliding_window")
        window, first = decoder.read_window(s), s.integer("max_window_layers")
        window = window if slides else None
    else:
        window, first = decoder.read_window(s), 0
    default = [
        SLIDING if window is not None and layer >= first else FULL for layer in range(sizes.layers)
    ]
    return decoder.say_windows(s, window, decoder.layer_types(s, default))


def build(s: Settings) -> Graph:
    sizes = decoder.read_sizes(s)
    ffn, activation = decoder.read_ffn(s), s.activation("hidden_act", "silu")
    table = read_rope(s, sizes.head_dim)
    windows, causal = windows_above(s, sizes), decoder.read_causal(s)
    decoder.read_tied(s)
    return decoder.build_decoder(
        sizes,
        lambda layer: decoder.attention_of(
            s, sizes, table=table, mask=decoder.mask_of(causal, windows[layer]), qkv_bias=True
        ),
        lambda b, x: b.gated_mlp(x, ffn, activation),
    )


FAMILY = Family(
    Table((*WHOLE, *PRE_NORMS, *ATTENTION, *QKV_BIAS, *DENSE)),
    build,
    Defaults(
        hf=_HF,
        gguf={"rope_theta": 1e4},
        apr={"rope_theta": 1e6, "rms_norm_eps": 1e-6},
    ),
)
