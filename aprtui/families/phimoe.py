"""Phi-3.5-MoE: LayerNorm with biases, biases on attention and logits, experts weighed by
SparseMixer. llama.cpp computes another model of it: RMS norms and a plain softmax router."""

from __future__ import annotations

from dataclasses import replace

from aprtui.families import decoder
from aprtui.families.decoder import Frame
from aprtui.families.family import Family
from aprtui.families.rope import read_rope
from aprtui.families.settings import Defaults, Settings
from aprtui.families.tensors import (
    ATTENTION,
    EXPERTS,
    NORM_BIASES,
    OUTPUT_BIAS,
    PRE_NORMS,
    QKV_BIAS,
    WHOLE,
    Table,
    Tensor,
)
from aprtui.graph import Graph, Role
from aprtui.graph.blocks import Routing
from aprtui.graph.ops import Route

__all__ = ["FAMILY"]

_HF = {
    "vocab_size": 32_064, "hidden_size": 4096, "intermediate_size": 6400, "num_layers": 32,
    "num_heads": 32, "num_kv_heads": 8, "hidden_act": "silu", "max_positions": 131_072,
    "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "rope_theta": 1e6,
    "sliding_window": None, "num_experts_per_tok": 2, "num_experts": 16,
    "router_jitter_noise": 0.01, "attention_bias": False, "lm_head_bias": False,
}  # fmt: skip
_KINDS = {"default": "default", "longrope": "short"}
_BIASES = (
    *NORM_BIASES,
    Tensor("head_bias", ("lm_head.bias", "output.bias")),
)


def _routing(s: Settings, activation: str) -> Routing:
    """Two experts a token; transformers' router takes two whatever is said."""
    routing = decoder.read_experts(s, "intermediate_size", activation, renormalise=True)
    if s.file.format != "safetensors":
        return routing
    if routing.choose.top != 2:
        raise s.fail(f"num_experts_per_tok is {routing.choose.top}, and SparseMixer takes 2")
    jitter = s.number("router_jitter_noise")
    if jitter < 0:
        raise s.fail(f"router_jitter_noise is {jitter}: no expert would stand for choice")
    choose = replace(routing.choose, score="none")
    return replace(routing, choose=choose, route=Route("mixer", False, jitter=jitter))


def build(s: Settings) -> Graph:
    sizes = decoder.read_sizes(s)
    folder = s.file.format == "safetensors"
    routing = _routing(s, s.activation("hidden_act", "silu"))
    kinds = _KINDS if folder else None
    table = read_rope(s, sizes.head_dim, kinds=kinds, factors=True)
    biases = decoder.read_biases(s)
    windows, causal = decoder.all_windows(s, sizes.layers), decoder.read_causal(s)
    decoder.read_tied(s)
    head_bias = s.flag("lm_head_bias") if folder else s.shape("head_bias") is not None
    s.number("input_jitter_noise", 0.0)  # of training
    s.take("original_max_position_embeddings", None)
    if not folder:
        s.note(
            "as in llama.cpp, RMS norms and a softmax router: no key says that the model was "
            "trained with LayerNorm and SparseMixer"
        )
    norm = replace(sizes.norm(), centred=folder, bias=Role("bias"))
    return decoder.build_decoder(
        sizes,
        lambda layer: decoder.attention_of(
            s, sizes, table=table, mask=decoder.mask_of(causal, windows[layer]), **biases
        ),
        lambda b, x: b.experts(x, routing),
        Frame(norm=norm, head_bias=head_bias),
    )


_PARTS = (*WHOLE, *PRE_NORMS, *ATTENTION, *QKV_BIAS, *OUTPUT_BIAS)
FAMILY = Family(
    Table((*_PARTS, *EXPERTS, *_BIASES)),
    build,
    Defaults(hf=_HF, gguf={"rope_theta": 1e4, "tie_word_embeddings": False}),
)
