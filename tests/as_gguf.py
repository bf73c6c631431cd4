"""A folder as llama.cpp's converter writes it, for families of which the shared fixtures hold none:
tensors named by the gguf package, keys by the converter's source."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file

from tests.gguf_keys import add_key

__all__ = ["ARCHITECTURES", "write_gguf"]

Array = npt.NDArray[Any]

ARCHITECTURES = {
    "gemma": "GEMMA", "granitemoe": "GRANITE_MOE", "olmo3": "OLMO2", "glm4moe": "GLM4_MOE",
    "ernie4_5_moe": "ERNIE4_5_MOE", "starcoder2": "STARCODER2", "exaone": "EXAONE",
    "kimi_linear": "KIMI_LINEAR",
    "stablelm-heads": "STABLELM",
}  # fmt: skip
"""gguf's name of what the converter makes of each family's folder."""

_COMMON = {
    "num_hidden_layers": "block_count", "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length", "max_position_embeddings": "context_length",
    "num_attention_heads": "attention.head_count", "vocab_size": "vocab_size",
    "num_key_value_heads": "attention.head_count_kv", "head_dim": "attention.key_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "norm_epsilon": "attention.layer_norm_epsilon",
    "layer_norm_eps": "attention.layer_norm_epsilon", "num_local_experts": "expert_count",
    "n_routed_experts": "expert_count", "moe_num_experts": "expert_count",
    "num_experts_per_tok": "expert_used_count", "moe_k": "expert_used_count",
    "moe_intermediate_size": "expert_feed_forward_length", "n_group": "expert_group_count",
    "topk_group": "expert_group_used_count", "n_shared_experts": "expert_shared_count",
    "moe_num_shared_experts": "expert_shared_count", "norm_topk_prob": "expert_weights_norm",
    "routed_scaling_factor": "expert_weights_scale", "sliding_window": "attention.sliding_window",
    "first_k_dense_replace": "leading_dense_block_count",
    "moe_layer_start_index": "leading_dense_block_count",
    "moe_layer_interval": "interleave_moe_layer_step", "attention_multiplier": "attention.scale",
    "embedding_multiplier": "embedding_scale", "residual_multiplier": "residual_scale",
    "logits_scaling": "logit_scale", "model_max_length": "context_length",
    "num_experts": "expert_count", "num_experts_per_token": "expert_used_count",
    "q_lora_rank": "attention.q_lora_rank", "num_expert_group": "expert_group_count",
    "num_shared_experts": "expert_shared_count",
}  # fmt: skip
_EXPERT = re.compile(
    r"model\.layers\.(\d+)\.(?:mlp|block_sparse_moe)\.experts\.(\d+)\.(\w+?)(?:_proj)?\.weight"
)
_PERMUTED = ("granitemoe",)  # q and k rows so that RoPE's pairs are adjacent


def write_gguf(folder: Path, family: str, path: Path, *, drafting: bool = False) -> None:
    """``drafting``: with a layer behind the others that drafts tokens, made of the last one's."""
    config = json.loads((folder / "config.json").read_text())
    arch = getattr(gguf.MODEL_ARCH, ARCHITECTURES[family])
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[arch])
    keys = _keys(family, config)
    if drafting:
        keys |= {"block_count": config["num_hidden_layers"] + 1, "nextn_predict_layers": 1}
    for key, value in keys.items():
        add_key(writer, f"{gguf.MODEL_ARCH_NAMES[arch]}.{key}", value)
    writer.add_tokenizer_model("none")
    names = gguf.get_tensor_name_map(arch, config["num_hidden_layers"])
    stored = _tensors(family, config, load_file(folder / "model.safetensors"))
    made = {
        names.get_name(name, try_suffixes=(".weight", ".bias")) or name: values.astype(np.float32)
        for name, values in stored.items()
    }
    for name, values in (made | (_draft(config, made) if drafting else {})).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _draft(config: dict[str, Any], made: dict[str, Array]) -> dict[str, Array]:
    layers, hidden = config["num_hidden_layers"], config["hidden_size"]
    last, own = f"blk.{layers - 1}.", f"blk.{layers}."
    found = {name.replace(last, own): v for name, v in made.items() if name.startswith(last)}
    joined = np.ones((hidden, 2 * hidden), np.float32)
    norms = dict.fromkeys((f"{own}nextn.{n}norm.weight" for n in "eh"), joined[0, :hidden])
    return {**found, **norms, f"{own}nextn.eh_proj.weight": joined}


def _of_kimi(config: dict[str, Any]) -> dict[str, Any]:
    """The keys of a delta rule and of latents without RoPE."""
    key = config["qk_nope_head_dim"] + config["qk_rope_head_dim"]
    whole = [int(kind == "full_attention") for kind in config["layer_types"]]
    return {
        "attention.head_count_kv": whole,
        "ssm.conv_kernel": config["linear_conv_kernel_dim"],
        "kda.head_dim": config["linear_head_dim"],
        "attention.kv_lora_rank": config["kv_lora_rank"],
        "rope.dimension_count": config["qk_rope_head_dim"],
        "attention.key_length": config["kv_lora_rank"] + config["qk_rope_head_dim"],
        "attention.key_length_mla": key, "attention.value_length_mla": config["v_head_dim"],
        "leading_dense_block_count": config["mlp_layer_types"].count("dense"),
        "expert_gating_func": 2,
    }  # fmt: skip


def _keys(family: str, config: dict[str, Any]) -> dict[str, Any]:
    found = {ours: config[key] for key, ours in _COMMON.items() if config.get(key) is not None}
    if family == "kimi_linear":
        return found | _of_kimi(config)
    rope = config["rope_parameters"]
    whole = rope.get("full_attention", rope)
    found["rope.freq_base"] = float(whole["rope_theta"])
    if whole["rope_type"] == "yarn":
        found |= {
            "rope.scaling.type": "yarn", "rope.scaling.factor": float(whole["factor"]),
            "rope.scaling.original_context_length": whole["original_max_position_embeddings"],
        }  # fmt: skip
    size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    found["rope.dimension_count"] = int(size * whole.get("partial_rotary_factor", 1.0))
    if "head_dim" in config:
        found["attention.value_length"] = size
    if "layer_types" in config:
        kinds = [kind == "sliding_attention" for kind in config["layer_types"]]
        found["attention.sliding_window_pattern"] = kinds
    if family == "glm4moe":
        found["expert_gating_func"] = 2
    if family == "ernie4_5_moe":
        shared = config["moe_num_shared_experts"] * config["moe_intermediate_size"]
        found["expert_shared_feed_forward_length"] = shared
    return found


def _tensors(family: str, config: dict[str, Any], stored: dict[str, Array]) -> dict[str, Array]:
    """The tensors under names that gguf's table knows, or under llama.cpp's own."""
    made: dict[str, Array] = {}
    experts: dict[tuple[str, str], dict[int, Array]] = {}
    held: dict[str, dict[int, Array]] = {}  # norms of each head, which are one tensor there
    for name, values in stored.items():
        found = _EXPERT.fullmatch(name)
        layer = name.split(".")[2] if ".layers." in name else ""
        if found is not None:
            part = {"w1": "gate", "w3": "up", "w2": "down"}.get(found[3], found[3])
            experts.setdefault((found[1], part), {})[int(found[2])] = values
        elif (of_head := re.fullmatch(r"(.+_layernorm)\.norms\.(\d+)\.weight", name)) is not None:
            held.setdefault(f"{of_head[1]}.weight", {})[int(of_head[2])] = values
        elif name.endswith("e_score_correction_bias"):
            made[f"blk.{layer}.exp_probs_b.bias"] = values.reshape(-1)
        elif name.endswith("input_linear.weight"):
            halves = np.split(values, 2, axis=1)
            for part, half in zip(("gate", "up"), halves, strict=True):
                made[f"blk.{layer}.ffn_{part}_exps.weight"] = half
        elif name.endswith("kv_b_proj.weight"):  # in two, for queries that meet the latent
            by_head = values.reshape(config["num_attention_heads"], -1, values.shape[1])
            k_b, v_b = np.split(by_head, [config["qk_nope_head_dim"]], axis=1)
            made[f"blk.{layer}.attn_k_b.weight"] = k_b.swapaxes(1, 2).copy()
            made[f"blk.{layer}.attn_v_b.weight"] = v_b
        elif re.search(r"block_sparse_moe\.\w+_proj\.", name):  # a dense FFN, in published folders
            made[name.replace("block_sparse_moe", "mlp")] = values
        elif name.endswith("A_log"):
            made[name] = -np.exp(values)
        elif name.endswith(".dt_bias"):
            made[f"blk.{layer}.ssm_dt.bias"] = values
        elif "_conv1d." in name:
            made[name] = values.reshape(1, values.shape[0], 1, -1)
        elif family == "gemma" and name.endswith("norm.weight"):
            made[name] = values + 1
        elif family in _PERMUTED and re.search(r"\.[qk]_proj\.", name):
            heads = "num_attention_heads" if ".q_proj" in name else "num_key_value_heads"
            pairs = values.reshape(config[heads], 2, -1, values.shape[1]).swapaxes(1, 2)
            made[name] = pairs.reshape(values.shape)
        else:
            made[name] = values
    for (layer, part), by_expert in experts.items():
        stacked = np.stack([by_expert[number] for number in sorted(by_expert)])
        made[f"blk.{layer}.ffn_{part}_exps.weight"] = stacked
    for name, heads_of in held.items():
        made[name] = np.stack([heads_of[number] for number in sorted(heads_of)])
    return made
