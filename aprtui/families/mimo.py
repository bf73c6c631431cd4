"""MiMo-V2-Flash: values of another size than keys, scaled; in the layers with a window twice the
key/value heads, attention sinks and another RoPE base; glm4moe's experts without shared ones."""

from __future__ import annotations

from dataclasses import replace

from aprtui.families import decoder, routers
from aprtui.families.decoder import FULL, SLIDING, Sizes
from aprtui.families.family import Family
from aprtui.families.rope import read_nested_rope, read_rope
from aprtui.families.settings import Defaults, Settings
from aprtui.families.tensors import (
    ATTENTION,
    CORRECTION_BIAS,
    DENSE,
    EXPERTS,
    PRE_NORMS,
    QKV_BIAS,
    SINKS,
    WHOLE,
    Table,
)
from aprtui.graph import Graph
from aprtui.graph.blocks import Attention, Routing
from aprtui.graph.rope import RopeTable

__all__ = ["FAMILY"]

_HF = {
    "vocab_size": 152_576, "hidden_size": 4096, "intermediate_size": 16_384, "num_layers": 48,
    "num_heads": 64, "num_kv_heads": 4, "head_dim": 192, "v_head_dim": 128,
    "hidden_act": "silu", "max_positions": 131_072, "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False, "attention_bias": False, "sliding_window": 129,
    "moe_intermediate_size": 2048, "num_experts_per_tok": 8, "n_routed_experts": 256,
    "n_group": 1, "topk_group": 1, "norm_topk_prob": True, "routed_scaling_factor": 1.0,
    "attention_value_scale": 0.707,
}  # fmt: skip
_GGUF = {"rope_theta": 1e4, "rope_theta_local": 1e4, "nextn_predict_layers": 0,
         "attention_value_scale": 1.0, "tie_word_embeddings": False}  # fmt: skip
_SHARE = 0.334  # of the channels that turn
_TURNS = {kind: {"rope_theta": base, "partial_rotary_factor": _SHARE}
          for kind, base in {FULL: 5e6, SLIDING: 1e4}.items()}  # fmt: skip
_PERIOD = 6  # of layers without a window, and the first


def _windows(s: Settings, layers: int) -> list[int | None]:
    if s.file.format == "gguf":
        if not isinstance(s.take("sliding_window_pattern"), list):
            raise s.fail("sliding_window_pattern does not say of each layer whether it slides")
        return decoder.windows_by_pattern(s, layers, 1)
    window, before = decoder.read_window(s), s.integer("sliding_window_size", None)
    due = [SLIDING if layer and (layer + 1) % _PERIOD else FULL for layer in range(layers)]
    # Published folders count the keys before the query's own.
    window = window if before is None else before + 1
    return decoder.say_windows(s, window, decoder.layer_types(s, due))


def _by_layer(s: Settings, sizes: list[Sizes], windows: list[int | None]) -> list[Sizes]:
    """In a folder the layers with a window have twice the key/value heads; GGUF says each's."""
    twice = [2 if window and s.file.format != "gguf" else 1 for window in windows]
    made = [replace(each, kv_heads=each.kv_heads * by)
            for each, by in zip(sizes, twice, strict=True)]  # fmt: skip
    decoder.check_heads(s, sizes[0].heads, max(each.kv_heads for each in made))
    s.say("num_kv_heads", [each.kv_heads for each in made])
    return made


def _tables(s: Settings, head_dim: int) -> dict[str, RopeTable]:
    if s.file.format != "gguf":
        return read_nested_rope(s, head_dim, _TURNS, partial=True, unsaid=_SHARE)
    full = read_rope(s, head_dim, partial=True)
    if full != RopeTable(full.dims, full.theta, full.pairs):
        raise s.fail("RoPE is scaled, which is not computed here for mimo2 GGUFs")
    return {FULL: full, SLIDING: replace(full, theta=s.number("rope_theta_local"))}


def _routing(s: Settings, activation: str) -> Routing:
    s.must_be("scoring_func", ("sigmoid",), "the router does not score by a sigmoid")
    s.must_be("topk_method", ("noaux_tc",), "the router chooses otherwise")
    s.must_be("n_shared_experts", (None, 0), "the layers have shared experts")
    routers.refuse_weights(s)
    renormalise = s.file.format == "gguf" or s.flag("norm_topk_prob")
    routing = decoder.read_experts(
        s, "moe_intermediate_size", activation, renormalise=renormalise,
        names=("n_routed_experts", "num_experts_per_tok"),
    )  # fmt: skip
    scale = "routed_scaling_factor"
    routing = routers.read_sigmoid(s, routing, scale, renormalise=renormalise, null=1.0)
    return routers.read_groups(s, routing)


def _published(
    s: Settings, tables: dict[str, RopeTable], sizes: list[Sizes], values: int,
    windows: list[int | None], sparse: list[bool],
) -> None:  # fmt: skip
    """Keys of published folders that transformers reads nowhere: they must say what it computes."""
    first, slid = sizes[0], next((n for n, window in enumerate(windows) if window), 0)
    for key, value in {
        "rope_theta": tables[FULL].theta, "swa_rope_theta": tables[SLIDING].theta,
        "layernorm_epsilon": first.eps, "swa_head_dim": first.head_dim, "swa_v_head_dim": values,
        "swa_num_attention_heads": first.heads, 
        "swa_num_key_value_heads": sizes[slid].kv_heads,
        "hybrid_layer_pattern": [int(window is not None) for window in windows],
        "moe_layer_freq": [int(each) for each in sparse],
        "add_swa_attention_sink_bias": True, "add_full_attention_sink_bias": False,
    }.items():  # fmt: skip
        same = (value, int(value)) if isinstance(value, float) else (value,)
        s.must_be(key, same, f"the model computes with {value}")
    share = s.take("partial_rotary_factor", None)
    if share is not None and int(first.head_dim * share) != tables[FULL].dims:
        raise s.fail(f"partial_rotary_factor {share} is not that of rope_parameters")


def build(s: Settings) -> Graph:
    sizes, activation = decoder.read_sizes_by_layer(s), s.activation("hidden_act", "silu")
    layers, head_dim, in_folder = len(sizes), sizes[0].head_dim, s.file.format != "gguf"
    values = s.integer("v_head_dim" if in_folder else "value_dim", head_dim)
    windows, tables = _windows(s, layers), _tables(s, head_dim)
    sizes, causal = _by_layer(s, sizes, windows), decoder.read_causal(s)
    biased, scale = decoder.read_biases(s)["qkv_bias"], s.number("attention_value_scale", null=1.0)
    routed = "blk.{}.ffn_gate_inp.weight".format
    due = [n > 0 if in_folder else routed(n) in s.file.tensors for n in range(layers)]
    sparse = routers.read_mlp_types(s, due)
    routing, ffn = _routing(s, activation), decoder.read_ffn(s)
    _published(s, tables, sizes, values, windows, sparse)
    decoder.read_tied(s)

    def attention(layer: int) -> Attention:
        slides = windows[layer] is not None
        return decoder.attention_of(
            s, sizes[layer], table=tables[SLIDING if slides else FULL], sinks=slides,
            mask=decoder.mask_of(causal, windows[layer]), qkv_bias=biased,
            value_dim=values, value_scale=scale,
        )  # fmt: skip

    return decoder.build_decoder(
        sizes[0],
        attention,
        lambda b, x: (
            b.experts(x, routing) if sparse[b.layer or 0] else b.gated_mlp(x, ffn, activation)
        ),
    )


_PARTS = (*WHOLE, *PRE_NORMS, *ATTENTION, *QKV_BIAS, *SINKS)
FAMILY = Family(
    Table((*_PARTS, *DENSE, *EXPERTS, *CORRECTION_BIAS)),
    build,
    Defaults(hf=_HF, gguf=_GGUF),
)
