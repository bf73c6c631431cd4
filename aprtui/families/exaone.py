"""EXAONE 3: llama under names of its own."""

from __future__ import annotations

from aprtui.families import llama
from aprtui.families.family import Family
from aprtui.families.settings import Defaults
from aprtui.families.tensors import (
    ATTENTION,
    DENSE,
    OUTPUT_BIAS,
    PRE_NORMS,
    QKV_BIAS,
    WHOLE,
    Table,
    layer_tensor,
)

__all__ = ["FAMILY"]

_HF = {
    "vocab_size": 102_400, "hidden_size": 4096, "intermediate_size": 14_336, "num_layers": 32,
    "num_heads": 32, "num_kv_heads": 8, "head_dim": None, "hidden_act": "silu",
    "max_positions": 4096, "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "rope_theta": 5e5,
    "attention_bias": False, "mlp_bias": False,
}  # fmt: skip
_PUBLISHED = {
    "attn_norm": "ln_1", "ffn_norm": "ln_2", "q": "attn.attention.q_proj",
    "k": "attn.attention.k_proj", "v": "attn.attention.v_proj", "o": "attn.attention.out_proj",
    "gate": "mlp.c_fc_0", "up": "mlp.c_fc_1", "down": "mlp.c_proj",
}  # fmt: skip
"""The modules of published folders, of which transformers makes llama's."""


FAMILY = Family(
    Table((
        *WHOLE, *PRE_NORMS, *ATTENTION, *QKV_BIAS, *OUTPUT_BIAS, *DENSE,
        *(layer_tensor(role, f"{name}.weight") for role, name in _PUBLISHED.items()),
    )),
    llama.build,
    Defaults(hf=_HF, gguf={"rope_theta": 1e4}),
    aliases={
        "num_layers": "num_layers", "layer_norm_epsilon": "rms_norm_eps",
        "activation_function": "hidden_act",
    },
)  # fmt: skip
