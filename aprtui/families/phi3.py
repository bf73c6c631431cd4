"""Phi-3 and Phi-4: q, k, v and gate, up are fused; RoPE over some channels, or longrope."""

from __future__ import annotations

from aprtui.families import decoder
from aprtui.families.family import Family
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


def _windows(s: Settings, layers: int) -> list[int | None]:
    """The window of every layer; llama.cpp reads the key and computes without it."""
    if s.file.format == "gguf":
        if window := decoder.read_window(s):
            s.note(f"sliding_window {window} is not computed, as in llama.cpp")
        return decoder.all_windows(s, layers, None)
    return decoder.all_windows(s, layers)


def build(s: Settings) -> Graph:
    sizes = decoder.read_sizes(s)
    ffn, activation = decoder.read_ffn(s), s.activation("hidden_act", "silu")
    table = read_rope(s, sizes.head_dim, partial=True, kinds=_KINDS)
    windows, causal = _windows(s, sizes.layers), decoder.read_causal(s)
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
)
