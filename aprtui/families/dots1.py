"""dots.llm1: a QK norm of each head, windows in the last layers, glm4moe's FFN."""

from __future__ import annotations

from aprtui.families import decoder, routers
from aprtui.families.decoder import FULL, SLIDING
from aprtui.families.family import Family
from aprtui.families.glm4moe import read_sparse_ffn
from aprtui.families.keys import only
from aprtui.families.rope import read_rope
from aprtui.families.settings import Defaults, Settings
from aprtui.families.tensors import (
    ATTENTION,
    CORRECTION_BIAS,
    DENSE,
    EXPERTS,
    OUTPUT_BIAS,
    PRE_NORMS,
    QK_NORM,
    QKV_BIAS,
    SHARED_EXPERT,
    WHOLE,
    Table,
)
from aprtui.graph import Graph

__all__ = ["FAMILY"]

_HF = {
    "vocab_size": 152_064, "hidden_size": 4608, "intermediate_size": 10_944, "num_layers": 62,
    "num_heads": 32, "num_kv_heads": 32, "hidden_act": "silu", "max_positions": 2048,
    "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "rope_theta": 1e4,
    "attention_bias": False, "moe_intermediate_size": 1408, "routed_scaling_factor": 1.0,
    "n_group": 1, "topk_group": 1, "first_k_dense_replace": 0, "norm_topk_prob": False,
    "sliding_window": 4096, "max_window_layers": 62, "n_routed_experts": None,
}  # fmt: skip


def _windows(s: Settings, layers: int) -> list[int | None]:
    """The window of the layers from ``max_window_layers`` on; llama.cpp has none."""
    if s.file.format != "safetensors":
        return [None] * layers
    window, first = decoder.read_window(s), s.integer("max_window_layers")
    slides = window is not None
    default = [SLIDING if slides and layer >= first else FULL for layer in range(layers)]
    return decoder.say_windows(s, window, decoder.layer_types(s, default))


def build(s: Settings) -> Graph:
    sizes = decoder.read_sizes(s)
    ffn = read_sparse_ffn(s, routers.read_dense_first(s, sizes.layers))
    table = read_rope(s, sizes.head_dim)
    windows, causal = _windows(s, sizes.layers), decoder.read_causal(s)
    biases = decoder.read_biases(s)
    decoder.read_tied(s)
    return decoder.build_decoder(
        sizes,
        lambda layer: decoder.attention_of(
            s, sizes, table=table, mask=decoder.mask_of(causal, windows[layer]),
            norms=sizes.norm(), **biases,
        ),
        ffn,
    )  # fmt: skip


_PARTS = (*WHOLE, *PRE_NORMS, *ATTENTION, *QKV_BIAS, *OUTPUT_BIAS, *QK_NORM)
FAMILY = Family(
    Table((*_PARTS, *DENSE, *EXPERTS, *SHARED_EXPERT, *CORRECTION_BIAS)),
    build,
    Defaults(hf=_HF, gguf={"rope_theta": 1e4, "tie_word_embeddings": False}),
    aliases={"scoring_func": "other.scoring_func"},
    published={"scoring_func": only("noaux_tc", "sigmoid"), "moe_layer_freq": only(1)},
)
