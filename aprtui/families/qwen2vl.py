"""The text part of Qwen2-VL and Qwen2.5-VL: qwen2; its RoPE by sections has one position a token
where there is only text."""

from __future__ import annotations

from dataclasses import replace

from aprtui.families import qwen2
from aprtui.families.rope import turns_by_axes
from aprtui.families.settings import Defaults, Settings
from aprtui.graph import Graph

__all__ = ["FAMILY"]

_HF = {
    "vocab_size": 152_064, "hidden_size": 8192, "intermediate_size": 29_568, "num_layers": 80,
    "num_heads": 64, "num_kv_heads": 8, "hidden_act": "silu", "max_positions": 32_768,
    "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "rope_theta": 1e6,
    "use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 80,
}  # fmt: skip


def build(s: Settings) -> Graph:
    turns_by_axes(s)
    return qwen2.build(s, {"default": "default", "mrope": "default"})


FAMILY = replace(qwen2.FAMILY, build=build, defaults=Defaults(hf=_HF, gguf={"rope_theta": 1e4}))
