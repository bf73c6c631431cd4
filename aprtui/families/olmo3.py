"""OLMo 3: olmo2 with a window in three of four layers, which have a RoPE table of their own. GGUF
files of it bear olmo2's name."""

from __future__ import annotations

from aprtui.families import decoder, olmo2
from aprtui.families.family import Family
from aprtui.families.rope import read_rope_by_layer_type
from aprtui.families.settings import Defaults, Settings
from aprtui.graph import Graph

__all__ = ["FAMILY"]

_THETA = 5e5
_HF = {
    "vocab_size": 50_304, "hidden_size": 4096, "intermediate_size": 11_008, "num_layers": 32,
    "num_heads": 32, "num_kv_heads": None, "hidden_act": "silu", "max_positions": 2048,
    "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "rope_theta": _THETA,
    "rope_theta_local": _THETA, "attention_bias": False, "sliding_window": 4096,
}  # fmt: skip


def build(s: Settings) -> Graph:
    sizes = decoder.read_sizes(s)
    s.must_be("rope_theta_local", (_THETA,), "layers with a window turn by another base")
    tables = read_rope_by_layer_type(s, sizes.head_dim, _THETA)
    windows = decoder.windows_by_pattern(s, sizes.layers, 4, stated=False)
    return olmo2.build_with(s, sizes, tables, windows)


FAMILY = Family(
    olmo2.FAMILY.tensors,
    build,
    Defaults(
        hf=_HF,
        apr={"rope_theta": _THETA, "rope_theta_local": _THETA, "rms_norm_eps": 1e-6,
             "sliding_window": 4096},
    ),
)  # fmt: skip
