"""AFMoE (Arcee's Trinity): norms around both branches, a gate on the attention's output, windows in
the layers that turn, and glm4moe's experts."""

from __future__ import annotations

import math

from aprtui.families import decoder, routers
from aprtui.families.decoder import FULL, SLIDING, Frame
from aprtui.families.family import Family
from aprtui.families.rope import read_rope
from aprtui.families.settings import Defaults, Settings
from aprtui.families.tensors import (
    ATTENTION,
    ATTENTION_GATE,
    CORRECTION_BIAS,
    DENSE,
    EXPERTS,
    OUTPUT_BIAS,
    QK_NORM,
    QKV_BIAS,
    SHARED_EXPERT,
    WHOLE,
    Table,
    layer_tensor,
)
from aprtui.graph import Graph
from aprtui.graph.blocks import Attention, Routing
from aprtui.graph.ops import Sigmoid

__all__ = ["FAMILY"]

_HF = {
    "vocab_size": 200_192, "hidden_size": 2048, "intermediate_size": 6144, "num_layers": 32,
    "num_heads": 16, "num_kv_heads": None, "head_dim": 128, "hidden_act": "silu",
    "max_positions": 16_384, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
    "rope_theta": 1e4, "attention_bias": False, "sliding_window": 1024,
    "global_attn_every_n_layers": 4, "num_dense_layers": 1, "moe_intermediate_size": 1408,
    "num_experts": 64, "num_experts_per_tok": 6, "num_shared_experts": 2, "route_scale": 1.0,
    "mup_enabled": False,
}  # fmt: skip
_PERIOD = 4  # of llama.cpp's layers without a window, which it does not turn either
_NORMS = (
    layer_tensor("attn_norm", "input_layernorm.weight", "attn_norm.weight"),
    layer_tensor("attn_post_norm", "post_attention_layernorm.weight", "post_attention_norm.weight"),
    layer_tensor("ffn_norm", "pre_mlp_layernorm.weight", "ffn_norm.weight"),
    layer_tensor("ffn_post_norm", "post_mlp_layernorm.weight", "post_ffw_norm.weight"),
)


def _windows(s: Settings, layers: int) -> tuple[list[int | None], list[bool]]:
    """Each layer's window, and which are turned: those that have one, in GGUF three of four."""
    if s.file.format == "gguf":
        windows = decoder.windows_by_pattern(s, layers, _PERIOD)
        turned = [bool((layer + 1) % _PERIOD) for layer in range(layers)]
        s.say("rope_layers", tuple(turned))
        return windows, turned
    period = s.integer("global_attn_every_n_layers")
    if period < 1 and not s.has("layer_types"):
        raise s.fail(f"global_attn_every_n_layers is {period}")
    due = [SLIDING if (layer + 1) % max(period, 1) else FULL for layer in range(layers)]
    kinds = decoder.layer_types(s, due)
    turned = [kind == SLIDING for kind in kinds]
    s.say("rope_layers", tuple(turned))
    return decoder.say_windows(s, decoder.read_window(s), kinds), turned


def _routing(s: Settings, activation: str) -> Routing:
    s.must_be("score_func", ("sigmoid",), "the router does not score by a sigmoid")
    s.must_be("route_norm", (True,), "the experts' weights are not divided by their sum")
    for key in ("n_group", "topk_group", "num_expert_groups", "num_limited_groups"):
        s.must_be(key, (None, 1), "the experts are chosen from groups")
    normed = s.file.format == "safetensors"  # GGUF says so, or they are not
    routing = decoder.read_experts(s, "moe_intermediate_size", activation, renormalise=normed)
    routing = routers.read_sigmoid(s, routing, "route_scale", renormalise=normed)
    return routers.read_shared(s, routing, "num_shared_experts")


def build(s: Settings) -> Graph:
    sizes, activation = decoder.read_sizes(s), s.activation("hidden_act", "silu")
    table, biases = read_rope(s, sizes.head_dim), decoder.read_biases(s)
    (windows, turned), causal = _windows(s, sizes.layers), decoder.read_causal(s)
    sparse = routers.read_dense_first(s, sizes.layers, "num_dense_layers")
    routing, ffn = _routing(s, activation), decoder.read_ffn(s)
    scaled = s.file.format == "gguf" or s.flag("mup_enabled")
    decoder.read_tied(s)

    def attention(layer: int) -> Attention:
        return decoder.attention_of(
            s, sizes, table=table if turned[layer] else None, norms=sizes.norm(),
            mask=decoder.mask_of(causal, windows[layer]), gate=Sigmoid, **biases,
        )  # fmt: skip

    return decoder.build_decoder(
        sizes,
        attention,
        lambda b, x: (
            b.experts(x, routing) if sparse[b.layer or 0] else b.gated_mlp(x, ffn, activation)
        ),
        Frame(after=True, embedding_scale=math.sqrt(sizes.hidden) if scaled else 1.0),
    )


_PARTS = (*WHOLE, *_NORMS, *ATTENTION, *QKV_BIAS, *OUTPUT_BIAS, *QK_NORM, *ATTENTION_GATE)
FAMILY = Family(
    Table((*_PARTS, *DENSE, *EXPERTS, *SHARED_EXPERT, *CORRECTION_BIAS)),
    build,
    Defaults(hf=_HF, gguf={"rope_theta": 1e4, "sliding_window": 0, "expert_gating_func": 2}),
)
