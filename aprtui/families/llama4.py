"""Llama 4: chunks in the layers that turn, queries at a temperature in those that do not, experts
whose weight multiplies their input beside one that every token goes through."""

from __future__ import annotations

from dataclasses import replace

from aprtui.families import decoder
from aprtui.families.decoder import FULL
from aprtui.families.family import Family
from aprtui.families.rope import read_rope
from aprtui.families.settings import Defaults, Settings
from aprtui.families.tensors import (
    ATTENTION,
    OUTPUT_BIAS,
    PACKED_EXPERTS,
    PRE_NORMS,
    QKV_BIAS,
    WHOLE,
    Table,
    layer_tensor,
)
from aprtui.graph import Graph
from aprtui.graph.blocks import Routing
from aprtui.graph.ops import Choose, Mask, Route, Temperature

__all__ = ["FAMILY"]

# No key of a GGUF says these: llama.cpp has them in its code.
_FIXED = {
    "use_qk_norm": True, "no_rope_layer_interval": 4, "attention_chunk_size": 8192,
    "attn_temperature_tuning": True, "floor_scale": 8192, "attn_scale": 0.1,
}  # fmt: skip
_HF = {
    "vocab_size": 202_048, "hidden_size": 5120, "intermediate_size": 8192, "num_layers": 48,
    "num_heads": 40, "num_kv_heads": 8, "head_dim": 128, "hidden_act": "silu",
    "max_positions": 131_072, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
    "rope_theta": 5e5, "attention_bias": False, "intermediate_size_mlp": 16_384,
    "num_experts": 16, "num_experts_per_tok": 1, "interleave_moe_layer_step": 1, **_FIXED,
}  # fmt: skip
_NORMLESS = 128  # experts of the model that llama.cpp knows to have no QK norm
_CHUNKED = "chunked_attention"
_PARTS = ("gate", "up", "down")
_FFN = (
    layer_tensor("router", "feed_forward.router.weight", "ffn_gate_inp.weight"),
    layer_tensor("experts_gate_up", "feed_forward.experts.gate_up_proj",
                 holds=("expert_gate", "expert_up"), packed=True, transposed=True),
    layer_tensor("experts_down_turned", "feed_forward.experts.down_proj",
                 holds=("expert_down",), packed=True, transposed=True),
    *PACKED_EXPERTS,
    *(layer_tensor(f"expert_{part}", f"feed_forward.experts.{{expert}}.{part}_proj.weight")
      for part in _PARTS),
    *(layer_tensor(f"shared_expert_{part}", f"feed_forward.shared_expert.{part}_proj.weight",
                   f"ffn_{part}_shexp.weight") for part in _PARTS),
    *(layer_tensor(part, f"feed_forward.{part}_proj.weight", f"ffn_{part}.weight")
      for part in _PARTS),
)  # fmt: skip


def _turned(s: Settings, layers: int) -> list[bool]:
    """Which layers are turned by their positions."""
    interval = s.integer("no_rope_layer_interval")
    if interval < 1:
        raise s.fail(f"no_rope_layer_interval is {interval}")
    flags = s.take("no_rope_layers", None) or None
    if flags is not None:
        flags = s.per_layer("no_rope_layers", (int,))
    turned = [bool(flags[n] if flags else (n + 1) % interval) for n in range(layers)]
    s.say("rope_layers", tuple(turned))
    return turned


def _masks(s: Settings, turned: list[bool]) -> list[Mask]:
    """Layers that turn see their own chunk, the others all before them."""
    chunk = s.integer("attention_chunk_size", null=None)
    window = None if s.file.format == "safetensors" else chunk
    s.must_be("attention.chunk_size", (chunk,), "llama.cpp's chunks are of another size")
    s.must_be("sliding_window", (window,), "its attention is of another kind")
    default = [_CHUNKED if rope and chunk is not None else FULL for rope in turned]
    kinds = s.per_layer("layer_types", (str,), None) or default
    if set(kinds) - {FULL, _CHUNKED}:
        raise s.fail(f"layer_types has {min(set(kinds) - {FULL, _CHUNKED})!r:.60}")
    causal = decoder.read_causal(s)
    if _CHUNKED in kinds and (not chunk or chunk < 1 or not causal):
        raise s.fail(f"layers of chunks with attention_chunk_size {chunk}, causal {causal}")
    return [Mask(causal, chunk=chunk if kind == _CHUNKED else None) for kind in kinds]


def _sparse(s: Settings, layers: int) -> list[bool]:
    """Which layers have experts."""
    step, listed = s.integer("interleave_moe_layer_step"), s.take("moe_layers", None)
    if listed is None and step < 1:
        raise s.fail(f"interleave_moe_layer_step is {step}")
    if listed is not None and not (
        isinstance(listed, list) and all(type(each) is int for each in listed)
    ):
        raise s.fail(f"moe_layers is {listed!r:.60}")
    sparse = [n in listed if listed is not None else (n + 1) % step == 0 for n in range(layers)]
    s.say("sparse_layers", tuple(sparse))
    return sparse


def _routing(s: Settings, activation: str) -> Routing:
    """The sigmoid of the logits of those that are chosen by them."""
    in_folder = s.file.format == "safetensors"
    size_key = "intermediate_size" if in_folder else "moe_intermediate_size"
    routing = decoder.read_experts(s, size_key, activation, renormalise=False)
    return replace(
        routing,
        choose=Choose(routing.choose.top, routing.choose.experts, "none"),
        route=Route("sigmoid", renormalise=False),
        shared_size=routing.size, shared_gate=False, on_input=True,
    )  # fmt: skip


def build(s: Settings) -> Graph:
    sizes, activation = decoder.read_sizes(s), s.activation("hidden_act", "silu")
    s.must_be("for_llm_compressor", (False,), "its modules are others")
    table, biases = read_rope(s, sizes.head_dim), decoder.read_biases(s)
    turned, sparse = _turned(s, sizes.layers), _sparse(s, sizes.layers)
    masks, routing = _masks(s, turned), _routing(s, activation)
    in_folder = s.file.format == "safetensors"
    ffn = s.integer("intermediate_size_mlp" if in_folder else "intermediate_size")
    s.say("intermediate_size", ffn)
    normed = s.flag("use_qk_norm") and (in_folder or routing.choose.experts != _NORMLESS)
    warm = Temperature(s.number("attn_scale"), s.number("floor_scale"), first=1)
    tuned = s.flag("attn_temperature_tuning")
    decoder.read_tied(s)
    return decoder.build_decoder(
        sizes,
        lambda layer: decoder.attention_of(
            s, sizes, table=table if turned[layer] else None, mask=masks[layer],
            norms=sizes.norm() if normed and turned[layer] else None,
            norm_after_rope=True, norm_weights=False,
            temperature=warm if tuned and not turned[layer] else None, **biases,
        ),
        lambda b, x: b.experts(x, routing) if sparse[b.layer or 0]
        else b.gated_mlp(x, ffn, activation),
    )  # fmt: skip


FAMILY = Family(
    Table((*WHOLE, *PRE_NORMS, *ATTENTION, *QKV_BIAS, *OUTPUT_BIAS, *_FFN)),
    build,
    Defaults(hf=_HF, gguf={"rope_theta": 1e4, **_FIXED}, apr={"rope_theta": 5e5, **_FIXED}),
    adjacent=True,
)
