"""Laguna (Poolside): a softplus gate on the attention's output, another number of query heads and
another RoPE in the layers with a window, and afmoe's experts."""

from __future__ import annotations

from dataclasses import replace

from aprtui.families import decoder, routers
from aprtui.families.decoder import FULL, SLIDING, Sizes
from aprtui.families.family import Family
from aprtui.families.rope import read_nested_rope, read_rope
from aprtui.families.settings import Defaults, Settings
from aprtui.families.tensors import (
    ATTENTION,
    ATTENTION_GATE,
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
from aprtui.graph.blocks import Attention, Routing
from aprtui.graph.ops import Softplus
from aprtui.graph.rope import RopeTable

__all__ = ["FAMILY"]

_HF = {
    "vocab_size": 100_352, "hidden_size": 2048, "intermediate_size": 8192, "num_layers": 40,
    "num_heads": 48, "num_kv_heads": 8, "head_dim": 128, "hidden_act": "silu",
    "max_positions": 131_072, "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
    "attention_bias": False, "sliding_window": 512, "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512, "num_experts_per_tok": 8, "num_experts": 256,
    "gating": True, "num_attention_heads_per_layer": None, "moe_routed_scaling_factor": 1.0,
    "moe_router_logit_softcapping": 0.0,
}  # fmt: skip
_TURNS = {FULL: {"rope_theta": 5e5, "partial_rotary_factor": 0.5}, SLIDING: {"rope_theta": 1e4}}
_PERIOD = 4  # of llama.cpp's layers without a window, the first of them


def _sizes(s: Settings) -> list[Sizes]:
    """The sizes of each layer."""
    sizes = decoder.read_sizes_by_layer(s)
    s.must_be("value_dim", (sizes[0].head_dim,), "values are of another size")
    name = "num_attention_heads_per_layer"
    if s.file.format == "gguf" or s.take(name) is None:
        return sizes
    heads = s.integers(name, len(sizes))
    for of_query in heads:
        decoder.check_heads(s, of_query, sizes[0].kv_heads)
    s.say("num_heads", heads)
    return [replace(each, heads=count) for each, count in zip(sizes, heads, strict=True)]


def _windows(s: Settings, layers: int) -> list[int | None]:
    if s.file.format == "gguf":
        return decoder.windows_by_pattern(s, layers, _PERIOD, dense_first=True)
    return decoder.say_windows(s, decoder.read_window(s), decoder.layer_types(s, [FULL] * layers))


def _tables(s: Settings, head_dim: int) -> dict[str, RopeTable]:
    """The scaling is that of the layers without a window alone."""
    if s.file.format != "gguf":
        s.must_be("partial_rotary_factor", (None,), "its object says it of each kind of layer")
        return read_nested_rope(s, head_dim, _TURNS, partial=True)
    full = read_rope(s, head_dim, partial=True)
    turned = s.integer("rope_dim_local", full.dims)
    if not 2 <= turned <= head_dim or turned % 2:
        raise s.fail(f"RoPE over {turned} of {head_dim} channels")
    return {FULL: full, SLIDING: RopeTable(turned, s.number("rope_theta_local", full.theta))}


def _gate_heads(s: Settings, heads: int) -> bool:
    """Whether the gate weighs a head as a whole."""
    if s.file.format != "gguf":
        gating = s.take("gating")
        return gating is True or gating == "per-head"
    rows = s.shape("attn_gate")
    return rows is not None and rows[0] == heads


def _routing(s: Settings, activation: str) -> Routing:
    s.must_be("moe_apply_router_weight_on_input", (False,), "the weights multiply the inputs")
    normed = s.file.format == "safetensors" or s.flag("expert_weights_norm")
    routing = decoder.read_experts(s, "moe_intermediate_size", activation, renormalise=normed)
    routing = routers.read_sigmoid(
        s, routing, "moe_routed_scaling_factor", renormalise=normed, eps=0.0
    )
    s.must_be("expert_shared_count", (1,), "there are several shared experts")
    size = s.integer("shared_expert_intermediate_size")
    name = "moe_router_logit_softcapping"
    if type(s.take(name, 0.0)) is int:
        raise s.fail(f"{name} is a whole number, which transformers refuses")
    cap = s.number(name, 0.0)
    return replace(routing, shared_size=size, shared_gate=False, cap=cap if cap > 0 else None)


def build(s: Settings) -> Graph:
    by_layer, activation = _sizes(s), s.activation("hidden_act", "silu")
    sizes = by_layer[0]
    windows, tables = _windows(s, sizes.layers), _tables(s, sizes.head_dim)
    causal, biases = decoder.read_causal(s), decoder.read_biases(s)
    gate_heads, routing = _gate_heads(s, sizes.heads), _routing(s, activation)
    sparse = (
        routers.read_dense_first(s, sizes.layers)
        if s.file.format == "gguf"
        else routers.read_mlp_types(s, [layer > 0 for layer in range(sizes.layers)])
    )
    ffn = decoder.read_ffn(s)
    decoder.read_tied(s)

    def attention(layer: int) -> Attention:
        kind = FULL if windows[layer] is None else SLIDING
        return decoder.attention_of(
            s, by_layer[layer], table=tables[kind], norms=sizes.norm(), gate=Softplus,
            gate_heads=gate_heads, mask=decoder.mask_of(causal, windows[layer]), **biases,
        )  # fmt: skip

    return decoder.build_decoder(
        sizes,
        attention,
        lambda b, x: (
            b.experts(x, routing) if sparse[b.layer or 0] else b.gated_mlp(x, ffn, activation)
        ),
    )


_PARTS = (*WHOLE, *PRE_NORMS, *ATTENTION, *QKV_BIAS, *OUTPUT_BIAS, *QK_NORM, *ATTENTION_GATE)
FAMILY = Family(
    Table((*_PARTS, *DENSE, *EXPERTS, *SHARED_EXPERT, *CORRECTION_BIAS)),
    build,
    Defaults(hf=_HF, gguf={"rope_theta": 1e4, "sliding_window": 0, "expert_gating_func": 2}),
)
