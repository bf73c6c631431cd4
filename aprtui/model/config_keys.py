"""What each format calls a configuration key: its values under our names."""

from __future__ import annotations

from typing import Any

from aprtui.errors import BadFileError
from aprtui.formats.modelfile import ModelFile

__all__ = ["config_keys"]

_GGUF_KEYS = {
    "block_count": "num_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "expert_feed_forward_length": "moe_intermediate_size",
    "attention.head_count": "num_heads",
    "attention.head_count_kv": "num_kv_heads",
    "attention.key_length": "head_dim",
    "attention.value_length": "value_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "score_softcap",
    "final_logit_softcapping": "logit_softcap",
    "rope.freq_base": "rope_theta",
    "rope.freq_base_swa": "rope_theta_local",
    "rope.dimension_count": "rope_dim",
    "rope.scaling.type": "rope_scaling_type",
    "rope.scaling.factor": "rope_scaling_factor",
    "context_length": "max_positions",
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "vocab_size": "vocab_size",
}

_HF_KEYS = {
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "num_key_value_heads": "num_kv_heads",
    "max_position_embeddings": "max_positions",
    "attn_logit_softcapping": "score_softcap",
    "final_logit_softcapping": "logit_softcap",
    "rope_local_base_freq": "rope_theta_local",
    "num_local_experts": "num_experts",
}


def config_keys(file: ModelFile) -> dict[str, Any]:
    """The file's configuration keys under our names; absent and null keys are left out."""
    meta = file.metadata
    raw: dict[str, Any] = {}
    if file.format == "gguf":
        prefix = f"{meta.get('general.architecture')}."
        for key, name in _GGUF_KEYS.items():
            value = meta.get(prefix + key)
            if value is not None and not isinstance(value, str | int | float):
                value = _one_value(file, prefix + key, list(value))
            raw[name] = value
    elif file.format == "apr":
        for key, value in meta.items():
            if key.startswith("model."):
                raw.setdefault(_HF_KEYS.get(key[6:], key[6:]), value)
        for key, value in meta.items():
            if value is not None and not key.startswith(("model.", "tokenizer.")):
                raw[_HF_KEYS.get(key, key)] = value
    else:
        text = meta.get("text_config")
        source = {**meta, **text} if isinstance(text, dict) else meta
        for key, value in source.items():
            raw[_HF_KEYS.get(key, key)] = value
    return {key: value for key, value in raw.items() if value is not None}


def _one_value(file: ModelFile, key: str, values: list[Any]) -> Any:
    """The one value of a per-layer array; different values per layer are another architecture."""
    if len(set(values)) != 1:
        raise BadFileError(
            file.path, f"{key} differs from layer to layer, which no family here has"
        )
    return values[0]
