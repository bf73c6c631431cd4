"""Qwen3.5 with experts in every layer, beside a shared one that a sigmoid weighs."""

from __future__ import annotations

from aprtui.families import qwen3_5, qwen3_next
from aprtui.families.classic import pass_over
from aprtui.families.family import Family
from aprtui.families.qwen2moe import SHARED
from aprtui.families.settings import Defaults, Settings
from aprtui.families.tensors import EXPERTS, Table
from aprtui.graph import Graph

__all__ = ["FAMILY"]

_HF = {
    **qwen3_5.HF, "hidden_size": 2048, "num_layers": 40, "num_kv_heads": 2,
    "moe_intermediate_size": 512, "shared_expert_intermediate_size": 512,
    "num_experts_per_tok": 8, "num_experts": 256,
}  # fmt: skip


def build(s: Settings) -> Graph:
    pass_over(s, "other.norm_topk_prob")  # it always divides by the sum of the chosen
    return qwen3_next.build_with(s, qwen3_next.sparse_ffn, dealt=True)


FAMILY = Family(
    Table((*qwen3_next.TENSORS, *EXPERTS, *SHARED)),
    build,
    Defaults(hf=_HF, gguf={"rope_theta": 1e4, "norm_topk_prob": True}),
    aliases={"norm_topk_prob": "other.norm_topk_prob"},
    published=qwen3_5.PUBLISHED,
)
