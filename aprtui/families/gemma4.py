"""Gemma 4: heads of another size in the layers without a window, keys and values that the last
layers read of earlier ones, normalised values, an embedding of each layer's own, and a factor on a
layer's output."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from aprtui.families import decoder, gemma
from aprtui.families.classic import in_folder
from aprtui.families.decoder import FULL, SLIDING, Sizes
from aprtui.families.family import Family
from aprtui.families.gemma4_experts import TENSORS as EXPERTS
from aprtui.families.gemma4_experts import place_beside, read_beside
from aprtui.families.per_layer import TENSORS as PER_LAYER
from aprtui.families.per_layer import read_per_layer, read_sources
from aprtui.families.rope import read_nested_rope, read_rope
from aprtui.families.settings import Defaults, Settings
from aprtui.families.tensors import (
    ATTENTION,
    DENSE,
    OUTPUT_BIAS,
    POST_NORMS,
    QK_NORM,
    QKV_BIAS,
    SANDWICH_NORMS,
    WHOLE,
    Table,
    Tensor,
)
from aprtui.formats.tracedir import StageKey
from aprtui.graph import Graph, Role
from aprtui.graph.blocks import Attention, Builder, Routing
from aprtui.graph.per_layer import PerLayer, place_gated, place_inputs
from aprtui.graph.rope import RopeTable
from aprtui.text import clean

__all__ = ["FAMILY"]

_HF = {
    "vocab_size": 262_144, "hidden_size": 2304, "intermediate_size": 9216, "num_layers": 30,
    "num_heads": 8, "num_kv_heads": 4, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh",
    "max_positions": 131_072, "rms_norm_eps": 1e-6, "tie_word_embeddings": True,
    "attention_bias": False, "sliding_window": 512, "logit_softcap": None,
    "vocab_size_per_layer_input": 262_144, "hidden_size_per_layer_input": 256,
    "attention_k_eq_v": False, "num_kv_shared_layers": 0, "use_double_wide_mlp": False,
    "global_head_dim": 512, "num_global_key_value_heads": None, "enable_moe_block": False,
    "num_experts": None, "top_k_experts": None, "moe_intermediate_size": None,
}  # fmt: skip
_ROPE: dict[str, dict[str, Any]] = {
    SLIDING: {"rope_theta": 1e4},
    FULL: {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6},
}
_PERIOD = 6  # of layers, the last of which has no window
_BY_KIND = {"head_dim", "num_key_value_heads"}


@dataclass(frozen=True)
class _Kind:
    """What the layers of one kind have of their own."""

    head_dim: int
    kv_heads: int


def _types(s: Settings, layers: int) -> list[str]:
    if not in_folder(s):
        flags = s.take("sliding_window_pattern")
        if not isinstance(flags, list) or len(flags) < layers:
            raise s.fail("sliding_window_pattern is no list of a flag a layer")
        return [SLIDING if flag else FULL for flag in flags[:layers]]
    plain = [FULL if (layer + 1) % _PERIOD == 0 else SLIDING for layer in range(layers)]
    types = decoder.layer_types(s, plain)
    if types[-1] != FULL:
        s.note("layer_types ends with a layer that slides: transformers gives it no window")
    return [*types[:-1], FULL]


def _kinds(s: Settings, types: list[str], same: bool) -> dict[str, _Kind]:
    """``same``: values are keys in the layers without a window."""
    if not in_folder(s):
        heads = s.integers("num_kv_heads", len(types))
        sizes = {FULL: s.integer("head_dim"), SLIDING: s.integer("attention.key_length_swa")}
        for kind, name in {FULL: "value_dim", SLIDING: "attention.value_length_swa"}.items():
            s.must_be(name, (sizes[kind],), "values are of another size")
        by_kind = {kind: {n for n, t in zip(heads, types, strict=True) if t == kind}
                   for kind in sizes}  # fmt: skip
        if any(len(found) > 1 for found in by_kind.values()):
            raise s.fail("num_kv_heads differs among layers of one kind")
        return {kind: _Kind(sizes[kind], max(by_kind[kind], default=1)) for kind in sizes}
    local = _Kind(s.integer("head_dim"), s.integer("num_kv_heads"))
    if s.has("per_layer_config"):
        s.take("global_head_dim"), s.take("num_global_key_value_heads")
        return {SLIDING: local, FULL: _overridden(s, types, local)}
    whole = s.integer("num_global_key_value_heads", null=local.kv_heads)
    head_dim = s.integer("global_head_dim")
    return {SLIDING: local, FULL: _Kind(head_dim, whole if same else local.kv_heads)}


def _overridden(s: Settings, types: list[str], local: _Kind) -> _Kind:
    """The kind of the layers without a window, as ``per_layer_config`` says it of each."""
    said = s.take("per_layer_config")
    found = set()
    for layer, kind in enumerate(types):
        own = said.get(str(layer), {}) if isinstance(said, dict) else None
        if not isinstance(own, dict) or not set(own) <= _BY_KIND or (own and kind == SLIDING):
            raise s.fail(f"per_layer_config cannot be read: {clean(repr(said), 80)}")
        if kind == FULL:
            found.add((own.get("head_dim", local.head_dim),
                       own.get("num_key_value_heads", local.kv_heads)))  # fmt: skip
    one = next(iter(found), ())
    if len(found) != 1 or not all(type(n) is int and 0 < n <= 65_536 for n in one):
        raise s.fail("per_layer_config differs among the layers without a window")
    return _Kind(*one)


def _tables(s: Settings, kinds: dict[str, _Kind]) -> dict[str, RopeTable]:
    if not in_folder(s):
        full = read_rope(s, kinds[FULL].head_dim)
        if full.magnitude != 1 or full.position_divisor != 1:
            raise s.fail("RoPE scaling, which gemma4 has not")
        dims = s.integer("rope_dim_local", kinds[SLIDING].head_dim)
        if dims != kinds[SLIDING].head_dim:
            raise s.fail(f"RoPE over {dims} of {kinds[SLIDING].head_dim} channels")
        return {FULL: full, SLIDING: RopeTable(dims, s.number("rope_theta_local"))}
    return read_nested_rope(s, {kind: its.head_dim for kind, its in kinds.items()}, _ROPE)


def _same_values(s: Settings, types: list[str], first_shared: int) -> bool:
    """Whether layers without a window have no values of their own, but the keys as they are
    projected."""
    if in_folder(s):
        return s.flag("attention_k_eq_v")
    names = set(s.file.tensors)
    own = {f"blk.{layer}.attn_v.weight" in names or f"blk.{layer}.attn_qkv.weight" in names
           for layer, kind in enumerate(types[:first_shared]) if kind == FULL}  # fmt: skip
    if len(own) > 1:
        raise s.fail("some layers without a window have values of their own, and some have not")
    return False in own


def _widths(s: Settings, sources: list[int | None]) -> list[int]:
    """F of each layer's FFN."""
    if not in_folder(s):
        return s.integers("intermediate_size", len(sources))
    size, double = s.integer("intermediate_size"), s.flag("use_double_wide_mlp")
    return [size * (2 if double and source is not None else 1) for source in sources]


def _scales(s: Settings, layers: int) -> list[float]:
    """The factor on each layer's output."""
    found = [s.constants.get(Role("layer_scale", layer), (1.0,)) for layer in range(layers)]
    if not all(len(each) == 1 and math.isfinite(each[0]) for each in found):
        raise s.fail("a layer's factor (layer_scalar) is not one number")
    return [s.say("layer_scales", tuple(each[0] for each in found))[n] for n in range(layers)]


def build(s: Settings) -> Graph:
    layers = decoder.read_layers(s)
    types, s_folder = _types(s, layers), in_folder(s)
    sources = read_sources(s, types, s.integer("num_kv_shared_layers"))
    same = _same_values(s, types, sources.count(None))
    kinds = _kinds(s, types, same)
    own = kinds[SLIDING if s_folder else FULL]
    sizes = decoder.read_sizes(s, head_dim=own.head_dim, kv_heads=own.kv_heads)
    for kind in kinds.values():
        decoder.check_heads(s, sizes.heads, kind.kv_heads)
    activation, tables = s.activation("hidden_activation", "gelu_tanh"), _tables(s, kinds)
    gemma.other_activation(s, "hidden_act", activation)
    s.must_be("use_bidirectional_attention", (None, "vision"), "tokens see those that follow")
    routing = read_beside(s, activation)
    windows = decoder.say_windows(s, decoder.read_window(s), types)
    biases, causal = decoder.read_biases(s), decoder.read_causal(s)
    if s_folder and s.take("hidden_size_per_layer_input") is None:
        raise s.fail("hidden_size_per_layer_input is null, which is no value of it")
    extra = read_per_layer(s, sizes, sizes.norm(), activation)

    def attention(layer: int) -> Attention:
        kind = kinds[types[layer]]
        its = replace(sizes, head_dim=kind.head_dim, kv_heads=kind.kv_heads)
        return decoder.attention_of(
            s, its, table=tables[types[layer]], mask=decoder.mask_of(causal, windows[layer]),
            scale=1.0, norms=sizes.norm(), value_norm=sizes.norm(), shares=sources[layer],
            keys_as_values=same and types[layer] == FULL, **biases,
        )  # fmt: skip

    for name in ("head_dim", "value_dim"):  # GGUF's are those of the layers without a window
        s.say(name, kinds[SLIDING].head_dim)
    s.say("global_head_dim", kinds[FULL].head_dim)
    cap = s.number("logit_softcap", null=None)
    decoder.read_tied(s)
    return _placed(
        s, sizes, [attention(layer) for layer in range(layers)],
        [(size, activation) for size in _widths(s, sources)], extra, cap, routing,
    )  # fmt: skip


def _placed(
    s: Settings, sizes: Sizes, attentions: list[Attention], ffns: list[tuple[int, str]],
    extra: PerLayer | None, cap: float | None, routing: Routing | None,
) -> Graph:  # fmt: skip
    b, norm = Builder(sizes.hidden), sizes.norm()
    hidden = b.embedding(sizes.vocab, gemma.embedding_scale(s, sizes))
    inputs = place_inputs(b, hidden, extra) if extra is not None else hidden
    for layer, scale in enumerate(_scales(s, sizes.layers)):
        b.layer = layer
        size, activation = ffns[layer]

        def ffn(x: StageKey, size: int = size, activation: str = activation) -> StageKey:
            if routing is not None:
                return place_beside(
                    b, x, b.gated_mlp(x, size, activation, "shared_ffn"), norm, routing
                )
            return b.gated_mlp(x, size, activation)

        mix = partial(b.attention, how=attentions[layer])
        hidden = b.branch(hidden, "attn", norm, mix, after=True)
        if extra is None:
            hidden = b.branch(hidden, "ffn", norm, ffn, after=True, total=scale)
            continue
        hidden = b.branch(hidden, "ffn", norm, ffn, after=True, stage="ffn_residual")
        gated = place_gated(b, hidden, inputs, extra)
        hidden = b.residual("post_ffn_residual", hidden, gated, total=scale)
    b.head(hidden, norm, sizes.vocab, cap)
    return b.graph()


_FACTOR = Tensor(
    "layer_scale",
    ("layers.{layer}.layer_scalar", "blk.{layer}.layer_output_scale.weight"),
    constant=True,
)
FAMILY = Family(
    Table((
        *WHOLE, *SANDWICH_NORMS, *POST_NORMS, *ATTENTION, *QKV_BIAS, *OUTPUT_BIAS, *QK_NORM, *DENSE,
        *PER_LAYER, _FACTOR, *EXPERTS,
    )),
    build,
    Defaults(
        hf=_HF,
        gguf={
            "rope_theta": 1e4, "rope_theta_local": 1e4, "logit_softcap": 30.0,
            "num_kv_shared_layers": 0,
        },
    ),
)  # fmt: skip
