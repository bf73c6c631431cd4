"""Configuration keys: what each format calls them, which change nothing, what the others change."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from aprtui.errors import BadFileError
from aprtui.formats.modelfile import ModelFile
from aprtui.formats.quantised.declared import QUANTISATION_KEYS
from aprtui.text import clean

__all__ = [
    "BOUNDS", "Stated", "anything", "inert", "only", "our_name", "stated_keys", "what_it_changes",
]  # fmt: skip


class Stated(NamedTuple):
    """A key as the file has it: its own name there, and the value."""

    key: str
    value: Any


_GGUF = {
    "block_count": "num_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
    "attention.head_count": "num_heads",
    "attention.head_count_kv": "num_kv_heads",
    "attention.key_length": "head_dim",
    "attention.value_length": "value_dim",
    "attention.value_scale": "attention_value_scale",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.layer_norm_epsilon": "layer_norm_eps",
    "attention.sliding_window": "sliding_window",
    "attention.sliding_window_pattern": "sliding_window_pattern",
    "attention.causal": "is_causal",
    "attention.shared_kv_layers": "num_kv_shared_layers",
    "embedding_length_per_layer_input": "hidden_size_per_layer_input",
    "activation_sparsity_scale": "activation_sparsity_scale",
    "altup.active_idx": "altup_active_idx",
    "altup.num_inputs": "altup_num_inputs",
    "attn_logit_softcapping": "score_softcap",
    "final_logit_softcapping": "logit_softcap",
    "attention.scale": "attention_multiplier",
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "logit_scale": "logit_scale",
    "rope.freq_base": "rope_theta",
    "rope.freq_base_swa": "rope_theta_local",
    "rope.dimension_count": "rope_dim",
    "rope.dimension_count_swa": "rope_dim_local",
    "context_length": "max_positions",
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    **{
        name: name
        for name in (
            "expert_gating_func",
            "expert_group_count",
            "expert_group_used_count",
            "expert_shared_count",
            "expert_weights_norm",
            "expert_weights_scale",
            "full_attention_interval",
            "interleave_moe_layer_step",
            "leading_dense_block_count",
            "moe_latent_size",
            "n_deepstack_layers",
            "nextn_predict_layers",
        )
    },
}

_HF = {
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "num_key_value_heads": "num_kv_heads",
    "max_position_embeddings": "max_positions",
    "attn_logit_softcapping": "score_softcap",
    "final_logit_softcapping": "logit_softcap",
    "rope_local_base_freq": "rope_theta_local",
    "num_local_experts": "num_experts",
}

_OURS_ALONE = frozenset(_HF.values()) - {"num_experts"}  # names that no config.json has

BOUNDS: dict[str, tuple[float, float]] = {  # docs/apr-format.md 1.12
    "num_layers": (1, 256),
    "hidden_size": (1, 65_536),
    "num_heads": (1, 256),
    "num_kv_heads": (1, 256),
    "num_attention_heads_per_layer": (1, 256),
    "head_dim": (1, 65_536),
    "global_head_dim": (1, 65_536),
    "num_global_key_value_heads": (1, 256),
    "hidden_size_per_layer_input": (0, 65_536),
    "vocab_size_per_layer_input": (1, 1_000_000),
    "num_kv_shared_layers": (0, 256),
    "altup_num_inputs": (2, 64),
    "altup_active_idx": (0, 63),
    "laurel_rank": (1, 65_536),
    "value_dim": (1, 65_536),
    "v_head_dim": (1, 65_536),
    "intermediate_size": (1, 262_144),
    "moe_intermediate_size": (1, 262_144),
    "shared_expert_intermediate_size": (1, 262_144),
    "vocab_size": (1, 1_000_000),
    "num_experts": (1, 65_536),
    "num_experts_per_tok": (1, 65_536),
    "n_routed_experts": (1, 65_536),
    "max_positions": (0, 1 << 40),
    "original_max_position_embeddings": (1, 1 << 40),
    "sliding_window": (0, 1 << 40),
    "rope_theta": (1.0, 1e12),
    "rope_theta_local": (1.0, 1e12),
    "rms_norm_eps": (1e-12, 0.01),
    "layer_norm_eps": (1e-12, 0.01),
    "norm_eps": (1e-12, 0.01),
    "mixer_rms_eps": (1e-12, 0.01),
    "score_softcap": (1e-6, 1e9),
    "logit_softcap": (1e-6, 1e9),
    "attn_scale": (1e-9, 1e9),
    "floor_scale": (1, 1 << 40),
    "swiglu_alpha": (1e-6, 1e9),
    "swiglu_limit": (1e-6, 1e9),
    "query_pre_attn_scalar": (1e-6, 1e9),
    "logits_scaling": (1e-6, 1e9),
    "logit_scale": (1e-6, 1e9),
    "route_scale": (1e-6, 1e9),
    "moe_norm_min": (1e-30, 1.0),
    "adapter_rank": (1, 65_536),
    "word_embed_proj_dim": (1, 65_536),
    "moe_latent_size": (1, 65_536),
    "num_mem_blocks": (1, 256),
    "routed_scaling_factor": (1e-6, 1e9),
    "moe_routed_scaling_factor": (1e-6, 1e9),
    "attention_value_scale": (1e-6, 1e9),
}

_NO_MATTER = re.compile(
    r".*(_dropout|_pdrop|dropout_p|dropout_prob|layerdrop|_token_id|_token_ids|_token_index)"
    r"|(bos|eos|pad|sep)_.*"
    r"|(_|attn_implementation|auto_map|architectures|model_type|name_or_path|transformers[_.]).*"
    r"|initializer_.*|init_.*|output_(attentions|hidden_states|router_logits)|.*dtype|.*_loss_coef"
    r"|classifier_.*|problem_type|id2label|label2id|num_labels|task_specific_params|custom_pipelines"
    r"|finetuning_task|return_dict|torchscript|use_cache|pretraining_tp|(router|input)_jitter_noise"
    r"|use_bfloat16|unsloth_.*|tokenizer_class|prefix|language|((model_)?max|min)_length|cache_.*"
    r"|time_step_(min|max|floor|rank|scale|init_scheme)|rescale_prenorm_residual|residual_in_fp32"
    r"|do_sample|temperature|top_[kp]|typical_p|num_beams.*|num_return_sequences|repetition_penalty"
    r"|diversity_penalty|length_penalty|no_repeat_ngram_size|encoder_no_repeat_ngram_size"
    r"|bad_words_ids|early_stopping|forced_.*|suppress_tokens|begin_suppress_tokens"
    r"|remove_invalid_values|exponential_decay_length_penalty|return_dict_in_generate|output_scores"
    r"|vision_config|summary_.*|dropout|tf_legacy_loss|use_flash_attn|flash_attn|torch_compile"
    r"|use_mtp|num_mtp_modules|mtp_(transformer_layers|num_hidden_layers|use_dedicated_embeddings)"
    r"|num_nextn_predict_layers|use_grouped_mm|load_balance_coeff|.*xavier_init|.*_init_scale"
    r"|moe_(capacity|use_aux_free|drop_tokens|random_routing_dropped_token)|model_name"
    r"|num_logits_to_keep"
)
"""Keys of config.json that change no number of a forward pass."""

_OFF: dict[str, tuple[Any, ...]] = {
    "add_cross_attention": (False, None),
    "attention_bias": (False, None),
    "chunk_size_feed_forward": (0, None),
    "cross_attention_hidden_size": (None,),
    "is_decoder": (False, True, None),
    "is_encoder_decoder": (False, None),
    "is_llama_config": (True,),
    "layer_scale": (None, 1.0),
    "mlp_bias": (False, None),
    "per_layer_config": (None, {}),
    "pruned_heads": (None, {}),
    "qkv_bias": (False, None),
    "rope_interleaved": (False,),
    "rope_scaling_factor": (1, 1.0),
    "sliding_window": (None,),
    "tie_encoder_decoder": (False, None),
    "use_mrope": (False, None),
    "use_qk_norm": (False, None),
    "use_sliding_window": (False, None),
}
"""Values at which a key that a family does not read changes nothing."""

_APR_PROVENANCE = frozenset({
    "architecture", "author", "chat_format", "chat_template", "created_at", "data_license",
    "data_source", "description", "hf_architecture", "hf_model_type", "license", "model_type",
    "name", "original_format", "param_count", "quantization", "sharding", "source",
    "source_metadata", "special_tokens", "tensor_shapes", "tied_embeddings", "total_size",
    "version",
})  # fmt: skip
_GGUF_INERT = frozenset({"rope.scaling.finetuned", "vocab_size", "tensor_data_layout"})
_GGUF_OTHER_PARTS = re.compile(
    r"(vision|audio|mm)\..+|image_token_(index|id)|vision_(start|end)_token_id|spatial_merge_size"
)
"""Keys of a GGUF of ollama's that describe its towers for images and sounds."""
_GGUF_OFF: dict[str, tuple[Any, ...]] = {
    "expert_count": (0,),
    "expert_group_count": (0, 1),
    "expert_group_used_count": (0, 1),
    "expert_shared_count": (0,),
    "expert_shared_feed_forward_length": (0,),
    "expert_used_count": (0,),
    "expert_weights_scale": (1.0,),
    "leading_dense_block_count": (0,),
    "nextn_predict_layers": (0,),
    "pooling_type": (0, 1, 2, 3),  # of the last hidden states, behind the pass
}
"""Values at which a key of a GGUF that a family does not read changes nothing."""

_CHANGES = {
    "attention_bias": "adds biases to the attention's products",
    "attention_multiplier": "scales the attention scores",
    "attention_out_bias": "adds a bias to the output projection",
    "embedding_multiplier": "scales the embedding",
    "first_k_dense_replace": "makes the first layers dense",
    "head_dim": "is the width of a head",
    "hidden_act": "is the activation",
    "hidden_activation": "is the activation",
    "is_causal": "lets tokens see those that follow",
    "layer_types": "says which layers slide",
    "logits_scaling": "divides the logits",
    "mlp_bias": "adds biases to the FFN's products",
    "n_shared_experts": "adds shared experts",
    "no_rope_layers": "leaves out RoPE in some layers",
    "num_experts": "makes the FFN of experts",
    "partial_rotary_factor": "rotates only some channels",
    "pooling_type": "makes one score of the last hidden state",
    "qkv_bias": "adds biases to q, k and v",
    "residual_multiplier": "scales each branch",
    "rope_scaling": "scales the angles of RoPE",
    "score_softcap": "caps the attention scores",
    "logit_softcap": "caps the logits",
    "sliding_window": "hides keys further back",
    "use_bidirectional_attention": "lets tokens see those that follow",
    "use_qk_norm": "normalises q and k",
    "use_sliding_window": "hides keys further back",
}


def our_name(key: str) -> str:
    """Our name of a Hugging Face key."""
    return _HF.get(key, key)


def what_it_changes(name: str) -> str:
    """What an unread key would change, as a clause; "" where that is not known."""
    return _CHANGES.get(name) or _CHANGES.get(name.partition(".")[2], "")


def inert(file_format: str, stated: Stated) -> bool:
    """Whether a key that a family does not read changes nothing."""
    key, value = stated
    if file_format == "gguf":
        name = key.partition(".")[2]
        if name in _GGUF_INERT or _GGUF_OTHER_PARTS.fullmatch(name) is not None:
            return True
        return only(*_GGUF_OFF.get(name, ()))(value)
    if file_format == "apr" and (key in _APR_PROVENANCE or value is None):
        return True
    if _NO_MATTER.fullmatch(key) is not None:
        return True
    if key in QUANTISATION_KEYS:  # formats.quantised has read it, or refused the file
        return True
    return only(*_OFF.get(key, ()))(value)


def only(*values: Any) -> Callable[[Any], bool]:
    """What is true of these values alone."""
    return lambda value: any(type(value) is type(each) and value == each for each in values)


def anything(value: Any) -> bool:
    """What is true of any value: of a key that says nothing of the numbers."""
    return True


def stated_keys(
    file: ModelFile, config: Mapping[str, Any], aliases: Mapping[str, str]
) -> dict[str, Stated]:
    """The model's keys under our names. ``config``: the part of a config.json that is the model's;
    ``aliases``: the family's own names there, and ours for them.

    Raises BadFileError where two spellings of one key disagree.
    """
    if file.format == "gguf":
        prefix = f"{file.metadata.get('general.architecture')}."
        return {
            _gguf_name(key.removeprefix(prefix), key): Stated(key, _plain(value))
            for key, value in file.metadata.items()
            if key.startswith(prefix)
        }
    if file.format == "apr":
        return _apr_keys(file)
    found: dict[str, Stated] = {}
    for key, value in config.items():
        name = f"config.{key}" if key in _OURS_ALONE else our_name(key)
        name = aliases.get(key, name)
        if name in found and found[name].value != value:
            raise BadFileError(
                file.path,
                f"{clean(key)} is {clean(repr(value), 60)} and {clean(found[name].key)} is "
                f"{clean(repr(found[name].value), 60)}, which are two names of one thing",
            )
        found[name] = Stated(key, value)
    return found


def _gguf_name(key: str, whole: str) -> str:
    """Our name of a GGUF key; llama.cpp's own where we have none, which holds a dot."""
    return _GGUF.get(key, key if "." in key or key == "vocab_size" else whole)


def _apr_keys(file: ModelFile) -> dict[str, Stated]:
    """Keys of an .apr: null is absent (docs/apr-format.md D22), dotted doubles fill gaps."""
    found: dict[str, Stated] = {}
    for key, value in file.metadata.items():
        if value is None or key.startswith("tokenizer."):
            continue
        if not key.startswith("model."):
            found[our_name(key)] = Stated(key, value)
    for key, value in file.metadata.items():
        if value is not None and key.startswith("model."):
            found.setdefault(our_name(key[6:]), Stated(key, value))
    return found


def _plain(value: Any) -> Any:
    """A GGUF value with its arrays as lists."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    return value if isinstance(value, str | int | float) else list(value)
