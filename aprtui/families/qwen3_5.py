"""Qwen3.5: Qwen3-Next with a dense FFN; in its GGUFs the value heads go round the key heads."""

from __future__ import annotations

from aprtui.families import decoder, qwen3_next
from aprtui.families.family import Family
from aprtui.families.keys import only
from aprtui.families.settings import Defaults, Settings
from aprtui.families.tensors import DENSE, Table
from aprtui.graph import Graph

__all__ = ["FAMILY", "HF", "PUBLISHED"]

_EXPERTS = (
    "decoder_sparse_step", "moe_intermediate_size", "shared_expert_intermediate_size",
    "num_experts_per_tok", "num_experts", "norm_topk_prob", "mlp_only_layers",
)  # fmt: skip
HF = {
    **{key: value for key, value in qwen3_next.HF.items() if key not in _EXPERTS},
    "vocab_size": 248_320, "hidden_size": 4096, "intermediate_size": 12_288, "num_layers": 32,
    "num_kv_heads": 4,
}  # fmt: skip


def _ffn(s: Settings, layers: int) -> decoder.Mixer:
    size, activation = decoder.read_ffn(s), s.values["activation"]
    return lambda b, x: b.gated_mlp(x, size, activation)


def build(s: Settings) -> Graph:
    return qwen3_next.build_with(s, _ffn, dealt=True)


PUBLISHED = {"attn_output_gate": only(True), "output_gate_type": only("swish")}
FAMILY = Family(
    Table((*qwen3_next.TENSORS, *DENSE)),
    build,
    Defaults(hf=HF, gguf={"rope_theta": 1e4}),
    published={**PUBLISHED, "mlp_only_layers": only([])},
)
