"""One row a family: a tiny configuration of it in transformers. A new family adds its row here."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

__all__ = ["COMMON", "TINY", "Tiny", "mended", "save_tiny"]

COMMON: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
    "initializer_range": 0.2,
}  # fmt: skip


@dataclass(frozen=True)
class Tiny:
    """``config``: the stem of the classes' names; ``settings`` beyond the common ones.

    ``fixtures``: folders of shared/fixtures/families, each a checkpoint and llama.cpp's GGUF of it
    with both programs' logits.
    """

    config: str
    settings: dict[str, Any] = field(default_factory=dict)
    fixtures: tuple[str, ...] = ()
    lengths: tuple[str, ...] = ()  # what else than max_position_embeddings bounds a prompt


_LATENT: dict[str, Any] = {
    "num_key_value_heads": 4, "q_lora_rank": 20, "kv_lora_rank": 24, "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8, "v_head_dim": 16,
}  # fmt: skip

_DELTA: dict[str, Any] = {
    "head_dim": 16, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "linear_key_head_dim": 8, "linear_value_head_dim": 12,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
}  # fmt: skip

TINY: dict[str, Tiny] = {
    "qwen2": Tiny("Qwen2", {
        "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1,
    }),
    "llama": Tiny("Llama", {"head_dim": 12, "attention_bias": True, "mlp_bias": True}),
    "mistral": Tiny("Mistral", {"sliding_window": 4, "head_dim": 16}),
    "mixtral": Tiny("Mixtral", {
        "num_local_experts": 5, "num_experts_per_tok": 2, "head_dim": 16,
    }),
    "qwen3": Tiny("Qwen3", {"head_dim": 16}),
    "qwen3moe": Tiny("Qwen3Moe", {
        "head_dim": 16, "num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 32,
        "norm_topk_prob": True, "mlp_only_layers": [1],
    }),
    "gemma": Tiny("Gemma", {"head_dim": 16}),
    "gemma2": Tiny("Gemma2", {
        "head_dim": 16, "sliding_window": 4, "query_pre_attn_scalar": 20,
        "attn_logit_softcapping": 5.0, "final_logit_softcapping": 4.0,
    }, ("gemma2", "gemma2_q20")),
    "gemma3": Tiny("Gemma3Text", {
        "head_dim": 16, "sliding_window": 4, "query_pre_attn_scalar": 20, "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    }),
    "gemma3n": Tiny("Gemma3nText", {
        "head_dim": 12, "num_hidden_layers": 5, "sliding_window": 4, "laurel_rank": 6,
        "layer_types": [
            "sliding_attention", "full_attention", "sliding_attention", "full_attention",
            "sliding_attention",
        ], "num_kv_shared_layers": 2,
        "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 90,
        "activation_sparsity_pattern": [0.9, 0.6, 0.0, 0.0, 0.0], "altup_num_inputs": 3,
        "final_logit_softcapping": 4.0,
    }, ("gemma3n_text",)),
    "gemma4": Tiny("Gemma4Text", {
        "head_dim": 12, "global_head_dim": 16, "num_hidden_layers": 6, "sliding_window": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 3, "attention_k_eq_v": True,
        "num_global_key_value_heads": 1, "num_kv_shared_layers": 2, "use_double_wide_mlp": True,
        "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 96,
        "final_logit_softcapping": 4.0,
    }, ("gemma4_text", "gemma4_nocap")),
    "gemma4_moe": Tiny("Gemma4Text", {
        "head_dim": 12, "global_head_dim": 16, "num_hidden_layers": 3, "sliding_window": 4,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        "attention_k_eq_v": True, "num_global_key_value_heads": 1, "num_kv_shared_layers": 0,
        "hidden_size_per_layer_input": 0, "enable_moe_block": True, "num_experts": 6,
        "top_k_experts": 3, "moe_intermediate_size": 32,
    }),
    "olmo2": Tiny("Olmo2", {}, ("olmo2",)),
    "qwen2moe": Tiny("Qwen2Moe", {
        "num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 40, "mlp_only_layers": [1], "use_sliding_window": True,
        "sliding_window": 4, "max_window_layers": 3,
    }, ("qwen2_moe",)),
    "phi3": Tiny("Phi3", {
        "hidden_size": 64, "original_max_position_embeddings": 8, "pad_token_id": 0,
        "rope_parameters": {
            "rope_type": "longrope", "rope_theta": 10000.0, "partial_rotary_factor": 0.5,
            "short_factor": [1.0, 1.5, 2.0, 2.5], "long_factor": [1.0, 2.0, 4.0, 8.0],
        },
    }, ("phi3",)),
    "smollm3": Tiny("SmolLM3", {
        "no_rope_layers": [1, 0, 1], "use_sliding_window": True, "sliding_window": 4,
        "pad_token_id": 0, "tie_word_embeddings": False,
    }, ("smollm3",)),
    "seed_oss": Tiny("SeedOss", {"head_dim": 16, "attention_out_bias": True}, ("seed_oss",)),
    "arcee": Tiny("Arcee", {"head_dim": 16}, ("arcee",)),
    "granite": Tiny("Granite", {
        "embedding_multiplier": 3.0, "attention_multiplier": 0.2, "residual_multiplier": 0.6,
        "logits_scaling": 8.0,
    }, ("granite",)),
    "granitemoe": Tiny("GraniteMoe", {
        "embedding_multiplier": 3.0, "attention_multiplier": 0.2, "residual_multiplier": 0.6,
        "logits_scaling": 8.0, "num_local_experts": 6, "num_experts_per_tok": 3,
    }),
    "exaone4": Tiny("Exaone4", {
        "sliding_window": 4, "sliding_window_pattern": 2,
    }, ("exaone4", "exaone4_swa")),
    "cohere2": Tiny("Cohere2", {
        "sliding_window": 4, "sliding_window_pattern": 2, "logit_scale": 0.5,
    }, ("cohere2",)),
    "helium": Tiny("Helium", {"head_dim": 12, "attention_bias": True}),
    "glm": Tiny("Glm", {"head_dim": 16, "pad_token_id": 0}, ("glm", "glm_eps")),
    "glm4": Tiny("Glm4", {"head_dim": 16, "pad_token_id": 0}, ("glm4",)),
    "nemotron": Tiny("Nemotron", {"head_dim": 16}, ("nemotron",)),
    "olmo3": Tiny("Olmo3", {
        "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_hidden_layers": 4,
        "rope_parameters": {
            "full_attention": {"rope_type": "yarn", "rope_theta": 500000.0, "factor": 4.0,
                               "original_max_position_embeddings": 8},
            "sliding_attention": {"rope_type": "default", "rope_theta": 500000.0},
        },
    }),
    "ministral": Tiny("Ministral", {
        "head_dim": 16, "sliding_window": 4,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    }),
    "internlm3": Tiny("InternLM3", {"head_dim": 16}),
    "gpt_oss": Tiny("GptOss", {
        "head_dim": 16, "num_local_experts": 5, "num_experts_per_tok": 2, "sliding_window": 4,
        "swiglu_alpha": 1.3, "swiglu_limit": 0.8, "rope_parameters": {
            "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "truncate": False,
            "original_max_position_embeddings": 32,
        },
    }, ("gpt_oss", "gpt_oss_trunc")),
    "jais2": Tiny("Jais2", {"head_dim": 16}, ("jais2",)),
    "ministral3": Tiny("Ministral3", {
        "head_dim": 16, "sliding_window": 6, "rope_parameters": {
            "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "mscale": 1.0,
            "mscale_all_dim": 0.5, "original_max_position_embeddings": 5,
            "llama_4_scaling_beta": 0.4,
        },
    }, ("ministral3",)),
    "llama4": Tiny("Llama4Text", {
        "head_dim": 16, "num_hidden_layers": 4, "intermediate_size_mlp": 72,
        "num_local_experts": 5, "num_experts_per_tok": 2, "interleave_moe_layer_step": 2,
        "no_rope_layers": [1, 0, 1, 0], "attention_chunk_size": 5, "floor_scale": 4,
        "attn_scale": 0.5,
    }, ("llama4_text",)),
    "olmoe": Tiny("Olmoe", {"num_experts": 6, "num_experts_per_tok": 3}, ("olmoe",)),
    "glm4moe": Tiny("Glm4Moe", {
        "head_dim": 16, "n_routed_experts": 6, "num_experts_per_tok": 2, "n_group": 3,
        "topk_group": 2, "moe_intermediate_size": 32, "n_shared_experts": 2, "use_qk_norm": True,
        "routed_scaling_factor": 2.5, "attention_bias": True,
    }),
    "dots1": Tiny("Dots1", {
        "n_routed_experts": 6, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1,
        "moe_intermediate_size": 32, "n_shared_experts": 1, "first_k_dense_replace": 1,
        "sliding_window": 4, "max_window_layers": 1,
    }, ("dots1",)),
    "minimax_m2": Tiny("MiniMaxM2", {
        "head_dim": 16, "num_local_experts": 6, "num_experts_per_tok": 3, "rotary_dim": 8,
    }, ("minimax_m2",)),
    "hunyuan": Tiny("HunYuanDenseV1", {"head_dim": 16}, ("hunyuan_v1_dense",)),
    "hunyuan_moe": Tiny("HunYuanMoEV1", {
        "head_dim": 16, "num_experts": 6, "moe_topk": 3,
    }, ("hunyuan_v1_moe",)),
    "ernie4_5": Tiny("Ernie4_5", {"head_dim": 16}, ("ernie4_5",)),
    "ernie4_5_moe": Tiny("Ernie4_5_Moe", {
        "moe_num_experts": 6, "moe_k": 3, "moe_intermediate_size": 32,
    }),
    "phimoe": Tiny("Phimoe", {
        "num_local_experts": 5, "attention_bias": True, "lm_head_bias": True, "sliding_window": 4,
        "router_jitter_noise": 0.3,
    }, ("phimoe",)),
    "exaone_moe": Tiny("ExaoneMoe", {
        "head_dim": 16, "sliding_window": 4, "sliding_window_pattern": 2, "num_experts": 6,
        "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1, "moe_intermediate_size": 32,
        "num_shared_experts": 2,
    }, ("exaone_moe",)),
    "mellum": Tiny("Mellum", {
        "head_dim": 16, "sliding_window": 4, "num_local_experts": 6, "num_experts_per_tok": 3,
        "moe_intermediate_size": 32, "mlp_layer_types": ["dense", "sparse", "sparse"],
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    }, ("mellum",)),
    "afmoe": Tiny("Afmoe", {
        "head_dim": 16, "num_hidden_layers": 4, "sliding_window": 4, "num_experts": 6,
        "num_experts_per_tok": 3, "moe_intermediate_size": 32, "num_shared_experts": 2,
        "route_scale": 1.7, "mup_enabled": True, "global_attn_every_n_layers": 3,
    }, ("afmoe",)),
    "laguna": Tiny("Laguna", {
        "head_dim": 16, "sliding_window": 4, "num_attention_heads_per_layer": [4, 2, 6],
        "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        "num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 40, "moe_routed_scaling_factor": 2.5,
        "moe_router_logit_softcapping": 2.0, "attention_bias": True,
    }, ("laguna",)),
    "mimo": Tiny("MiMoV2Flash", {
        "head_dim": 24, "v_head_dim": 16, "sliding_window": 4, "n_routed_experts": 6,
        "num_experts_per_tok": 2, "n_group": 3, "topk_group": 2, "moe_intermediate_size": 32,
        "routed_scaling_factor": 1.5, "attention_bias": True, "num_attention_heads": 8,
        "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
    }, ("mimo_v2_flash",)),
    "apertus": Tiny("Apertus", {"rope_parameters": {
        "rope_type": "llama3", "rope_theta": 12000000.0, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
    }}, ("apertus",)),
    "gpt2": Tiny("GPT2", {"scale_attn_by_inverse_layer_idx": True}, ("gpt2",)),
    "gpt_bigcode": Tiny("GPTBigCode", {}, ("gpt_bigcode",)),
    "gpt_neox": Tiny("GPTNeoX", {"hidden_size": 64}, ("gpt_neox",)),
    "gptj": Tiny("GPTJ", {"rotary_dim": 8}),
    "phi": Tiny("Phi", {"hidden_size": 64, "qk_layernorm": True}, ("phi",)),
    "starcoder2": Tiny("Starcoder2", {"sliding_window": 4}),
    "stablelm": Tiny("StableLm", {"hidden_size": 64, "use_qkv_bias": True}, ("stablelm",)),
    "falcon": Tiny("Falcon", {
        "new_decoder_architecture": True, "num_kv_heads": 2, "bias": True,
    }, ("falcon",)),
    "opt": Tiny("OPT", {"ffn_dim": 80, "word_embed_proj_dim": 48}),
    "bloom": Tiny("Bloom", {"num_attention_heads": 6}, ("bloom",)),
    "mpt": Tiny("Mpt", {"attn_config": {
        "clip_qkv": 0.8, "softmax_scale": 0.3,
    }}, ("mpt",), ("max_seq_len",)),
    "cohere": Tiny("Cohere", {"use_qk_norm": True, "logit_scale": 0.5}, ("cohere",)),
    "olmo": Tiny("Olmo", {"clip_qkv": 0.8}, ("olmo",)),
    "persimmon": Tiny("Persimmon", {"hidden_size": 64}),
    "exaone": Tiny("Exaone", {"head_dim": 16}),
    "deepseek_v2": Tiny("DeepseekV2", {
        **_LATENT, "n_routed_experts": 6, "n_shared_experts": 2, "num_experts_per_tok": 2,
        "n_group": 3, "topk_group": 2, "topk_method": "group_limited_greedy",
        "moe_intermediate_size": 32, "first_k_dense_replace": 1, "attention_bias": True,
        "routed_scaling_factor": 1.5, "q_lora_rank": None,
    }, ("deepseek_v2", "deepseek_v2_groups")),
    "deepseek_v3": Tiny("DeepseekV3", {
        **_LATENT, "n_routed_experts": 6, "num_experts_per_tok": 2, "n_group": 3, "topk_group": 2,
        "moe_intermediate_size": 32, "first_k_dense_replace": 1, "num_mtp_layers": 0,
        "attention_bias": True, "rope_parameters": {
            "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "mscale": 1.0,
            "mscale_all_dim": 0.5, "original_max_position_embeddings": 32,
        },
    }, ("deepseek_v3", "deepseek_v3_nofunc")),
    "glm4_moe_lite": Tiny("Glm4MoeLite", {
        **_LATENT, "n_routed_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
    }, ("glm4_moe_lite",)),
    "lfm2": Tiny("Lfm2", {
        "conv_bias": True, "block_multiple_of": 16, "block_ffn_dim_multiplier": 1.2,
        "layer_types": ["conv", "full_attention", "conv"],
    }, ("lfm2",)),
    "lfm2_moe": Tiny("Lfm2Moe", {
        "num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 32,
        "num_dense_layers": 1, "routed_scaling_factor": 1.5,
        "layer_types": ["conv", "full_attention", "conv"],
    }, ("lfm2_moe",)),
    "mamba2": Tiny("Mamba2", {
        "num_heads": 8, "head_dim": 12, "state_size": 16, "n_groups": 2, "use_bias": True,
        "time_step_limit": (0.1, 1.5),
    }, ("mamba2",)),
    "granitemoehybrid": Tiny("GraniteMoeHybrid", {
        "embedding_multiplier": 3.0, "attention_multiplier": 0.2, "residual_multiplier": 0.6,
        "logits_scaling": 8.0, "num_local_experts": 6, "num_experts_per_tok": 3,
        "shared_intermediate_size": 40, "mamba_n_heads": 8, "mamba_n_groups": 2,
        "mamba_d_state": 16, "position_embedding_type": "rope", "mamba_proj_bias": True,
        "layer_types": ["mamba", "attention", "mamba"],
    }, ("granitemoehybrid",)),
    "bamba": Tiny("Bamba", {
        "hidden_size": 64, "attn_layer_indices": [1], "mamba_n_heads": 8, "mamba_n_groups": 2,
        "mamba_d_state": 16, "mamba_d_head": 16, "attention_bias": True,
    }, ("bamba_full", "bamba")),
    "zamba2": Tiny("Zamba2", {
        "num_hidden_layers": 5, "layers_block_type": [
            "linear_attention", "hybrid", "linear_attention", "hybrid", "hybrid",
        ], "num_mem_blocks": 2, "use_shared_attention_adapter": True, "adapter_rank": 6,
        "use_mem_rope": True, "add_bias_linear": True, "n_mamba_heads": 8, "mamba_ngroups": 2,
        "mamba_d_state": 16, "num_key_value_heads": 4, "time_step_min": 0.02,
        "initializer_range": 0.1,
    }),
    "falcon_h1": Tiny("FalconH1", {
        "head_dim": 16, "mamba_d_ssm": 64, "mamba_n_heads": 8, "mamba_n_groups": 2,
        "mamba_d_state": 16, "mamba_norm_before_gate": False, "mamba_rms_norm": True,
        "time_step_limit": (0.1, 1.5), "lm_head_multiplier": 0.5, "embedding_multiplier": 3.0,
        "mlp_multipliers": [0.7, 1.6], "key_multiplier": 0.4, "attention_in_multiplier": 1.2,
        "attention_out_multiplier": 0.8, "ssm_multipliers": [0.6, 1.3, 0.9, 1.4, 0.5],
        "ssm_in_multiplier": 0.9, "ssm_out_multiplier": 1.7, "projectors_bias": True,
    }, ("falcon_h1",)),
    "nemotron_h": Tiny("NemotronH", {
        "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp",
                              "linear_attention", "moe"],
        "head_dim": 16, "mamba_num_heads": 8, "mamba_head_dim": 12, "n_groups": 2,
        "ssm_state_size": 16, "use_bias": True, "time_step_min": 0.4, "n_routed_experts": 6,
        "num_experts_per_tok": 3, "moe_intermediate_size": 32, "n_group": 2, "topk_group": 2,
        "moe_shared_expert_intermediate_size": 40, "routed_scaling_factor": 1.5,
    }, ("nemotron_h",)),
    "mamba": Tiny("Mamba", {
        "state_size": 12, "time_step_rank": 6, "use_bias": True, "conv_kernel": 3,
    }, ("mamba",)),
    "falcon_mamba": Tiny("FalconMamba", {"state_size": 12, "expand": 3}, ("falcon_mamba",)),
    "jamba": Tiny("Jamba", {
        "num_experts": 6, "num_experts_per_tok": 3, "attn_layer_period": 3, "attn_layer_offset": 1,
        "expert_layer_offset": 0, "mamba_d_state": 12, "mamba_proj_bias": True, "pad_token_id": 0,
    }, ("jamba",)),
    "qwen3_next": Tiny("Qwen3Next", {
        **_DELTA, "num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 40, "mlp_only_layers": [1],
    }, ("qwen3_next",)),
    "qwen3_5": Tiny("Qwen3_5Text", {**_DELTA}, ("qwen3_5_text",)),
    "qwen3_5_moe": Tiny("Qwen3_5MoeText", {
        **_DELTA, "num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 40,
    }, ("qwen3_5_moe_text",)),
    "deepseek_v32": Tiny("DeepseekV32", {
        **_LATENT, "n_routed_experts": 6, "num_experts_per_tok": 2, "n_group": 3, "topk_group": 2,
        "moe_intermediate_size": 32, "first_k_dense_replace": 1, "attention_bias": True,
        "index_topk": 5, "index_head_dim": 12, "index_n_heads": 24,
    }, ("deepseek_v32",)),
    "glm_moe_dsa": Tiny("GlmMoeDsa", {
        **_LATENT, "n_routed_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
        "first_k_dense_replace": 1, "index_topk": 5, "index_head_dim": 12, "index_n_heads": 24,
        "indexer_types": ["full", "shared", "full"],
    }, ("glm_moe_dsa",)),
    "kimi_linear": Tiny("KimiLinear", {
        **_LATENT, "num_experts": 6, "num_experts_per_token": 2, "num_shared_experts": 2,
        "num_expert_group": 3, "topk_group": 2, "moe_intermediate_size": 32, "linear_head_dim": 8,
        "linear_num_heads": 4, "linear_conv_kernel_dim": 3, "rms_norm_eps": 1e-6,
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        "pad_token_id": 0,
    }, (), ("model_max_length",)),
    "minicpm3": Tiny("MiniCPM3", {**_LATENT, "dim_model_base": 24}, ("minicpm3",)),
}  # fmt: skip
TINY |= {
    "opt-behind": Tiny("OPT", {
        "ffn_dim": 80, "word_embed_proj_dim": 32, "do_layer_norm_before": False,
    }),
    "falcon-alibi": Tiny("Falcon", {
        "alibi": True, "multi_query": False, "parallel_attn": False, "bias": True,
        "num_attention_heads": 6,
    }),
    "stablelm-heads": Tiny("StableLm", {
        "hidden_size": 64, "qk_layernorm": True, "use_parallel_residual": True,
    }),
    "nemotron_h-latent": Tiny("NemotronH", {
        **TINY["nemotron_h"].settings, "moe_latent_size": 20,
    }),
}  # fmt: skip
"""And models of a family that have other operations than its row."""


_NOISY = ("bias", "router.scale", "per_expert_scale", "layer_scalar")


def save_tiny(tiny: Tiny, folder: Path) -> Any:
    """A model with seeded random weights, saved as safetensors; norms, biases and what begins as
    zeros away from 1 and 0.

    Returns it.
    """
    transformers: Any = importlib.import_module("transformers")
    config = getattr(transformers, f"{tiny.config}Config")(**{**COMMON, **tiny.settings})
    torch.manual_seed(7)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    model = mended(model.to(torch.float32).eval())
    with torch.no_grad():
        for key, value in (*model.named_parameters(), *model.named_buffers()):
            noisy = "norm" in key or key.endswith(_NOISY) or not value.any()
            if value.is_floating_point() and noisy:
                value.add_(torch.randn_like(value) * 0.2)
    model.save_pretrained(folder)
    return model


def mended(model: Any) -> Any:
    """The model without what transformers 5.24 computes otherwise than the model means: its eager
    attention of falcon adds ALiBi to the scores, and the mask that follows holds it once more (its
    SDPA adds the mask alone)."""
    if model.config.model_type == "falcon" and model.config.alibi:
        for layer in model.transformer.h:
            attention = layer.self_attention
            attention.forward = partial(_once, attention.forward)
    return model


def _once(forward: Any, *given: Any, alibi: torch.Tensor, **named: Any) -> Any:
    return forward(*given, alibi=alibi * 0, **named)
