"""Phi-3 and Phi-4: q, k, v and gate, up are fused; RoPE over some channels, or longrope."""

from __future__ import annotations

from aprtui.families import decoder
from aprtui.families.family import Family
from aprtui.families.keys import only
from aprtui.families.rope import read_rope
from aprtui.families.settings import Defaults, Settings
from aprtui.families.tensors import ATTENTION, DENSE, PRE_NORMS, WHOLE, Table, layer_tensor
from aprtui.graph import Graph

__all__ = ["FAMILY"]

_HF = {
    "vocab_size": 32_064, "hidden_size": 3072, "intermediate_size": 8192, "num_layers": 32,
    "num_heads": 32, "num_kv_heads": None, "hidden_act": "silu", "max_positions": 4096,
    "original_max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
    "rope_theta": 1e4, "sliding_window": None,
}  # fmt: skip
_KINDS = {"default": "default", **dict.fromkeys(("longrope", "su", "yarn"), "longrope")}
_FUSED = layer_tensor(  # llama.cpp's ffn_up is both
    "gate_up", "mlp.gate_up_proj.weight", "ffn_up.weight", holds=("gate", "up")
)


def build(s: Settings) -> Graph:
    sizes = decoder.read_sizes(s)
    ffn, activation = decoder.read_ffn(s), s.activation("hidden_act", "silu")
    table = read_rope(s, sizes.head_dim, partial=True, kinds=_KINDS, factors=True)
    windows, causal = decoder.windows_but_in_gguf(s, sizes.layers), decoder.read_causal(s)
    decoder.read_tied(s)
    return decoder.build_decoder(
        sizes,
        lambda layer: decoder.attention_of(
            s, sizes, table=table, mask=decoder.mask_of(causal, windows[layer])
        ),
        lambda b, x: b.gated_mlp(x, ffn, activation),
    )


FAMILY = Family(
    Table((*WHOLE, *PRE_NORMS, *ATTENTION, _FUSED, DENSE[2])),
    build,
    Defaults(
        hf=_HF,
        gguf={"rope_theta": 1e4, "sliding_window": 0},
        apr={"rope_theta": 1e4, "rms_norm_eps": 1e-5, "sliding_window": None},
    ),
    published={
        "full_attn_mod": only(1), "interpolate_factor": only(1), "lm_head_bias": only(False),
    },
)  # fmt: skip
