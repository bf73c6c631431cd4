"""LFM2 with experts behind the first layers, chosen by sigmoids and a bias."""

from __future__ import annotations

from dataclasses import replace

from aprtui.families import decoder, lfm2, routers
from aprtui.families.classic import in_folder
from aprtui.families.family import Family
from aprtui.families.settings import Defaults, Settings
from aprtui.families.tensors import CORRECTION_BIAS, DENSE, EXPERTS, Table, layer_tensor
from aprtui.graph import Graph

__all__ = ["FAMILY"]

_OWN = ("block_multiple_of", "block_ffn_dim_multiplier", "block_auto_adjust_ff_dim",
        "full_attn_idxs")  # fmt: skip
_HF = {
    **{key: value for key, value in lfm2.HF.items() if key not in _OWN},
    "hidden_size": 2048, "intermediate_size": 7168, "moe_intermediate_size": 1792,
    "num_dense_layers": 2, "num_experts_per_tok": 4, "num_experts": 32, "use_expert_bias": True,
    "routed_scaling_factor": 1.0, "norm_topk_prob": True,
}  # fmt: skip
_SUM = 1e-6  # what transformers adds to the sum that divides
_PARTS = {"gate": "w1", "up": "w3", "down": "w2"}
_TENSORS = (
    layer_tensor("router", "feed_forward.gate.weight"),
    layer_tensor("correction_bias", "feed_forward.expert_bias"),
    *(
        layer_tensor(f"expert_{part}", f"feed_forward.experts.{{expert}}.{name}.weight")
        for part, name in _PARTS.items()
    ),
    layer_tensor("experts_fused", "feed_forward.experts.gate_up_proj",
                 holds=("expert_gate", "expert_up"), packed=True),
    layer_tensor("experts_last", "feed_forward.experts.down_proj",
                 holds=("expert_down",), packed=True),
)  # fmt: skip


def _ffn(s: Settings, layers: int) -> decoder.Mixer:
    first = s.integer("num_dense_layers" if in_folder(s) else "leading_dense_block_count", 0)
    renormalise = not in_folder(s) or s.flag("norm_topk_prob")
    routing = decoder.read_experts(s, "moe_intermediate_size", "silu", renormalise=renormalise)
    scale = "routed_scaling_factor"
    routers.refuse_weights(s)
    routing = routers.read_sigmoid(s, routing, scale, renormalise=renormalise, eps=_SUM)
    if in_folder(s):
        routing = replace(routing, corrected=s.flag("use_expert_bias"))
    size = decoder.read_ffn(s)
    s.say("sparse_layers", tuple(layer >= first for layer in range(layers)))
    return lambda b, x: (
        b.experts(x, routing) if (b.layer or 0) >= first else b.gated_mlp(x, size, "silu")
    )


def build(s: Settings) -> Graph:
    return lfm2.build_with(s, _ffn)


FAMILY = Family(
    Table((*lfm2.TENSORS, *DENSE, *_TENSORS, *EXPERTS, *CORRECTION_BIAS)),
    build,
    Defaults(hf=_HF, gguf={"rope_theta": 1e4}),
    aliases=lfm2.ALIASES,
    published=lfm2.PUBLISHED,
)
