"""GPT-OSS: attention sinks, a window in every other layer, and experts with biases and a clamp."""

from __future__ import annotations

from dataclasses import replace

from aprtui.families import decoder
from aprtui.families.family import Family
from aprtui.families.rope import read_rope
from aprtui.families.settings import Defaults, Settings
from aprtui.families.tensors import (
    ATTENTION,
    OUTPUT_BIAS,
    PACKED_EXPERTS,
    PRE_NORMS,
    QKV_BIAS,
    SINKS,
    WHOLE,
    Table,
    layer_tensor,
)
from aprtui.graph import Graph
from aprtui.graph.blocks import Routing
from aprtui.graph.ops import Choose, Clamp

__all__ = ["FAMILY"]

_GATE = {"swiglu_alpha": 1.702, "swiglu_limit": 7.0}  # llama.cpp's too, which has no keys for it
_HF = {
    "vocab_size": 201_088, "hidden_size": 2880, "intermediate_size": 2880, "num_layers": 36,
    "num_heads": 64, "num_kv_heads": 8, "head_dim": 64, "max_positions": 131_072,
    "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "rope_theta": 1.5e5,
    "attention_bias": True, "sliding_window": 128, "num_experts": 128, "num_experts_per_tok": 4,
    **_GATE,
}  # fmt: skip
_ROPE = {
    "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
    "original_max_position_embeddings": 4096,
}  # fmt: skip

# A folder in bfloat16 stores a matrix as [in,out] and names it without an ending; of MXFP4 codes
# formats.quantised makes rows. Rows of gate and up take turns in both.
_GATE_UP, _DOWN = ("expert_gate", "expert_up"), ("expert_down",)
_BIASES = tuple(f"{name}_bias" for name in _GATE_UP)
_EXPERTS = (
    layer_tensor("router", "mlp.router.weight", "ffn_gate_inp.weight"),
    layer_tensor("router_bias", "mlp.router.bias", "ffn_gate_inp.bias"),
    layer_tensor("experts_gate_up", "mlp.experts.gate_up_proj",
                 holds=_GATE_UP, packed=True, in_turn=True, transposed=True),
    layer_tensor("experts_gate_up_rows", "mlp.experts.gate_up_proj.weight",
                 holds=_GATE_UP, packed=True, in_turn=True),
    layer_tensor("experts_gate_up_bias", "mlp.experts.gate_up_proj_bias",
                 holds=_BIASES, packed=True, in_turn=True),
    layer_tensor("experts_down_turned", "mlp.experts.down_proj",
                 holds=_DOWN, packed=True, transposed=True),
    layer_tensor("experts_down_bias", "mlp.experts.down_proj_bias", "ffn_down_exps.bias",
                 "mlp.experts.down_proj.bias", holds=("expert_down_bias",), packed=True),
    *PACKED_EXPERTS,
    *(
        layer_tensor(f"experts_{part}_bias", f"ffn_{part}_exps.bias",
                     f"mlp.experts.{part}_proj.bias", holds=(f"expert_{part}_bias",), packed=True)
        for part in ("gate", "up")
    ),
)  # fmt: skip
_TABLE = Table((
    *WHOLE, *ATTENTION, *QKV_BIAS, *OUTPUT_BIAS, *SINKS, *_EXPERTS, PRE_NORMS[0],
    layer_tensor("ffn_norm", "post_attention_layernorm.weight", "post_attention_norm.weight"),
))  # fmt: skip


def _routing(s: Settings) -> Routing:
    """Softmax over the logits of the chosen: what softmax over all and their sum's share is."""
    in_folder = s.file.format == "safetensors"
    size_key = "intermediate_size" if in_folder else "moe_intermediate_size"
    s.must_be("hidden_act", ("silu",), "the experts' gate is another")
    s.take("intermediate_size", None)
    routing = decoder.read_experts(s, size_key, "silu", renormalise=True)
    top = routing.choose.top
    s.must_be("experts_per_token", (top,), f"num_experts_per_tok is {top}")
    clamp = Clamp(s.number("swiglu_alpha"), s.number("swiglu_limit"))
    chosen = Choose(top, routing.choose.experts, "none")
    return replace(routing, choose=chosen, biased=True, clamp=clamp)


def build(s: Settings) -> Graph:
    sizes = decoder.read_sizes(s)
    table = read_rope(s, sizes.head_dim, absent=_ROPE)
    s.take("initial_context_length", None)  # as published; nothing reads it
    windows = decoder.windows_by_pattern(s, sizes.layers, 2, stated=False)
    causal, biases = decoder.read_causal(s), decoder.read_biases(s)
    routing = _routing(s)
    decoder.read_tied(s)
    return decoder.build_decoder(
        sizes,
        lambda layer: decoder.attention_of(
            s, sizes, table=table, mask=decoder.mask_of(causal, windows[layer]), sinks=True,
            **biases,
        ),
        lambda b, x: b.experts(x, routing),
    )  # fmt: skip


FAMILY = Family(
    _TABLE,
    build,
    Defaults(
        hf=_HF,
        gguf={"rope_theta": 1e4, **_GATE},
        apr={"rope_theta": 1.5e5, "rms_norm_eps": 1e-5, **_GATE},
    ),
)
