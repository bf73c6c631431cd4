"""GraniteMoE: granite whose FFN is made of experts, weighed by the softmax of the chosen ones."""

from __future__ import annotations

from aprtui.families import decoder, granite
from aprtui.families.family import Family
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

__all__ = ["FAMILY"]

_HF = {**granite.HF, "num_experts": 8, "num_experts_per_tok": 2}
_EXPERTS = (  # the names of published folders, then transformers' own, and llama.cpp's
    *PACKED_EXPERTS,
    layer_tensor(
        "router",
        "block_sparse_moe.router.layer.weight",
        "block_sparse_moe.router.weight",
        "ffn_gate_inp.weight",
    ),
    layer_tensor(
        "experts_gate_up",
        "block_sparse_moe.input_linear.weight",
        "block_sparse_moe.experts.gate_up_proj",
        holds=("expert_gate", "expert_up"),
        packed=True,
    ),
    layer_tensor(
        "experts_down_hf",
        "block_sparse_moe.output_linear.weight",
        "block_sparse_moe.experts.down_proj",
        holds=("expert_down",),
        packed=True,
    ),
)


def build(s: Settings) -> Graph:
    sizes = decoder.read_sizes(s)
    activation = s.activation("hidden_act", "silu")
    how, frame = granite.read_attention(s, sizes, switched=False), granite.read_frame(s)
    decoder.read_tied(s)
    routing = decoder.read_experts(s, "intermediate_size", activation, renormalise=True)
    return decoder.build_decoder(
        sizes, lambda layer: how, lambda b, x: b.experts(x, routing), frame
    )


FAMILY = Family(
    Table((*WHOLE, *PRE_NORMS, *ATTENTION, *QKV_BIAS, *OUTPUT_BIAS, *_EXPERTS)),
    build,
    Defaults(hf=_HF, gguf=granite.GGUF, apr={"rope_theta": 1e4, "rms_norm_eps": 1e-6}),
    adjacent_in_gguf=True,
)
