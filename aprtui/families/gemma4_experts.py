"""Gemma 4's experts (26B-A4B): they stand beside the FFN of every layer, with norms of their own
and a router that normalises what it reads and weighs each expert by a number of its own."""

from __future__ import annotations

from dataclasses import replace

from aprtui.families import decoder
from aprtui.families.classic import in_folder
from aprtui.families.settings import Settings
from aprtui.families.tensors import layer_tensor
from aprtui.formats.tracedir import StageKey
from aprtui.graph.blocks import Builder, Routing
from aprtui.graph.ops import Combine, Norm

__all__ = ["TENSORS", "place_beside", "read_beside"]

TENSORS = (
    *(
        layer_tensor(role, f"{module}_layernorm_{number}.weight")
        for role, module, number in (
            ("moe_norm", "pre_feedforward", 2), ("moe_post_norm", "post_feedforward", 2),
            ("shared_post_norm", "post_feedforward", 1),
        )
    ),
    layer_tensor("router_norm", "router.scale"),
    layer_tensor("router", "router.proj.weight"),
    layer_tensor("expert_factor", "router.per_expert_scale"),
    layer_tensor("experts_gate_up", "experts.gate_up_proj", holds=("expert_gate", "expert_up"),
                 packed=True),
    layer_tensor("experts_down", "experts.down_proj", holds=("expert_down",), packed=True),
)  # fmt: skip


def read_beside(s: Settings, activation: str) -> Routing | None:
    """The experts beside every layer's FFN; None where there are none."""
    if not in_folder(s) or not s.flag("enable_moe_block"):
        for name in ("num_experts", "top_k_experts", "moe_intermediate_size"):
            s.take(name, None)
        return None
    names = ("num_experts", "top_k_experts")
    routing = decoder.read_experts(
        s, "moe_intermediate_size", activation, renormalise=True, names=names
    )
    return replace(routing, by_expert=True)


def place_beside(
    b: Builder, x: StageKey, dense: StageKey, norm: Norm, routing: Routing
) -> StageKey:
    """The FFN's output plus that of experts, each normalised; they read the hidden that ``x`` is
    the norm of."""
    hidden = StageKey(b.layer, "post_attn_residual")
    asked = b.norm("router_norm", hidden, replace(norm, factor=b.hidden_size**-0.5))
    routed = b.routed(asked, b.norm("moe_norm", hidden, norm), routing)
    routed = b.norm("moe_post_norm", routed, norm)
    return b.put("ffn_out", Combine(), routed, b.norm("shared_post_norm", dense, norm))
