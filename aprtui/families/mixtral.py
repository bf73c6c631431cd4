"""Mixtral: mistral with an FFN of experts, whose weights sum to one."""

from __future__ import annotations

from aprtui.families import mistral
from aprtui.families.family import Family
from aprtui.families.settings import Defaults
from aprtui.families.tensors import ATTENTION, EXPERTS, PRE_NORMS, WHOLE, Table

__all__ = ["FAMILY"]

_HF = {
    "vocab_size": 32_000, "hidden_size": 4096, "intermediate_size": 14_336, "num_layers": 32,
    "num_heads": 32, "num_kv_heads": 8, "head_dim": None, "hidden_act": "silu",
    "max_positions": 131_072, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
    "rope_theta": 1e6, "sliding_window": None, "num_experts_per_tok": 2, "num_experts": 8,
}  # fmt: skip

FAMILY = Family(
    Table((*WHOLE, *PRE_NORMS, *ATTENTION, *EXPERTS)),
    mistral.build,
    Defaults(
        hf=_HF,
        gguf={"rope_theta": 1e4},
        apr={"rope_theta": 1e6, "rms_norm_eps": 1e-5},
    ),
    adjacent_in_gguf=True,
)
