"""Mistral: llama with a window in every layer (v0.1) or in none."""

from __future__ import annotations

from aprtui.families import decoder, llama
from aprtui.families.family import Family
from aprtui.families.settings import Defaults, Settings
from aprtui.families.tensors import ATTENTION, DENSE, PRE_NORMS, WHOLE, Table
from aprtui.graph import Graph

__all__ = ["FAMILY", "build"]

_HF = {
    "vocab_size": 32_000, "hidden_size": 4096, "intermediate_size": 14_336, "num_layers": 32,
    "num_heads": 32, "num_kv_heads": 8, "head_dim": None, "hidden_act": "silu",
    "max_positions": 131_072, "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
    "rope_theta": 1e4, "sliding_window": 4096,
}  # fmt: skip


def build(s: Settings) -> Graph:
    sizes = decoder.read_sizes(s)
    return llama.build_with_windows(s, sizes, decoder.all_windows(s, sizes.layers))


FAMILY = Family(
    Table((*WHOLE, *PRE_NORMS, *ATTENTION, *DENSE)),
    build,
    Defaults(
        hf=_HF,
        gguf={"rope_theta": 1e4},
        apr={"rope_theta": 1e4, "rms_norm_eps": 1e-5},
    ),
    adjacent_in_gguf=True,
)
