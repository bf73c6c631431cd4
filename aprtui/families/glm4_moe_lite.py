"""GLM-4.7-Flash: DeepSeek-V3 whose layers say which have experts."""

from __future__ import annotations

from aprtui.families import decoder, deepseek_v3, routers
from aprtui.families.classic import pass_over
from aprtui.families.family import Family
from aprtui.families.glm4moe import read_sparse_ffn
from aprtui.families.settings import Defaults, Settings
from aprtui.graph import Graph

__all__ = ["FAMILY"]

_HF = {
    "vocab_size": 154_880, "hidden_size": 2048, "intermediate_size": 10_240, "num_layers": 47,
    "num_heads": 20, "num_kv_heads": 20, "hidden_act": "silu", "max_positions": 202_752,
    "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "rope_theta": 1e4,
    "attention_bias": False, "moe_intermediate_size": 1536, "num_experts_per_tok": 4,
    "n_shared_experts": 1, "n_routed_experts": 64, "routed_scaling_factor": 1.8, "n_group": 1,
    "topk_group": 1, "norm_topk_prob": True, "kv_lora_rank": 512, "q_lora_rank": 768,
    "qk_rope_head_dim": 64, "v_head_dim": 256, "qk_nope_head_dim": 192, "rope_interleave": True,
}  # fmt: skip


def _ffn(s: Settings, layers: int) -> decoder.Mixer:
    sparse = routers.read_mlp_types(s, [layer > 0 for layer in range(layers)])
    dense = sparse.index(True) if True in sparse else layers
    s.must_be("first_k_dense_replace", (dense,), f"mlp_layer_types says {dense}")
    return read_sparse_ffn(s, sparse)


def build(s: Settings) -> Graph:
    adjacent = s.flag("rope_interleave")
    pass_over(s, "num_kv_heads", null=False)
    return deepseek_v3.build_with(s, _ffn, adjacent=adjacent)


FAMILY = Family(deepseek_v3.TABLE, build, Defaults(hf=_HF), adjacent=True)
