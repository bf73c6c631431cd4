"""DeepSeek-V2: latent attention, experts chosen by softmax, in groups or not."""

from __future__ import annotations

from aprtui.families import deepseek_v3
from aprtui.families.family import Family
from aprtui.families.settings import Defaults, Settings
from aprtui.graph import Graph

__all__ = ["FAMILY"]

_HF = {
    "vocab_size": 102_400, "hidden_size": 4096, "intermediate_size": 11_008, "num_layers": 32,
    "num_heads": 32, "num_kv_heads": None, "hidden_act": "silu", "max_positions": 2048,
    "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "rope_theta": 1e4,
    "attention_bias": False, "moe_intermediate_size": 1407, "n_shared_experts": 2,
    "n_routed_experts": 64, "routed_scaling_factor": 1.0, "first_k_dense_replace": 0,
    "topk_method": "greedy", "kv_lora_rank": 512, "q_lora_rank": 1536, "qk_rope_head_dim": 64,
    "v_head_dim": 128, "qk_nope_head_dim": 128,
}  # fmt: skip


def build(s: Settings) -> Graph:
    s.must_be("scoring_func", ("softmax",), "the router scores otherwise")
    s.must_be("mlp_bias", (False,), "the FFN's products have biases")
    s.take("norm_topk_prob", None)  # transformers reads it nowhere: weights are shares of all
    return deepseek_v3.build_with(s, deepseek_v3.softmax_ffn)


FAMILY = Family(deepseek_v3.TABLE, build, Defaults(hf=_HF), adjacent=True)
