"""The metadata of an ``.apr`` file made from another model: canonical keys, truthful values.

Keys: docs/apr-format.md 1.12 and 4.1. What the format has no key for (window, soft-caps, RoPE
scaling) is kept under its Hugging Face name, where our reader finds it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from aprtui import __version__
from aprtui.errors import AprtuiError
from aprtui.families.registry import identify
from aprtui.model.jsontokenizer import json_vocabulary, load_library
from aprtui.model.open import Model
from aprtui.model.pretokenizers import name_of_pattern
from aprtui.model.vocabulary import TokenizerSpec

__all__ = ["apr_metadata"]

_ROPE_TYPE = {"adjacent": 0, "halves": 2}


def apr_metadata(model: Model, name: str) -> tuple[dict[str, Any], list[str]]:
    """The metadata for ``model`` and notes on what could not be carried over."""
    from_gguf = model.file.format == "gguf"
    architectures = model.file.metadata.get("architectures")
    hf = {
        "hf_architecture": architectures[0] if isinstance(architectures, list) else None,
        "hf_model_type": model.file.metadata.get("model_type"),
    }
    entries = {matrix.entry.name: matrix.entry for matrix in model.weights.values()}
    metadata: dict[str, Any] = {
        "model_type": model.architecture,
        "name": name,
        "license": None,
        "data_license": None,
        "data_source": None,
        "version": "1.0.0",
        "source": f"aprtui {__version__} import from {model.file.format}",
        **({"original_format": "gguf"} if from_gguf else {}),
        "total_size": sum(entry.size_bytes for entry in entries.values()),
        "param_count": sum(math.prod(entry.shape) for entry in entries.values()),
        "architecture": model.architecture,
        **{key: value for key, value in hf.items() if not from_gguf and isinstance(value, str)},
        **_dimensions(model),
    }
    notes: list[str] = []
    try:
        metadata |= _tokenizer(model.tokenizer_spec, notes)
    except AprtuiError as error:
        notes.append(f"no tokenizer was carried over: {error.message}")
    return metadata, notes


# Settings by our names, and the keys that hold them in .apr; the reader of a family takes them.
_CANONICAL = (
    "hidden_size", "num_layers", "num_heads", "num_kv_heads", "vocab_size", "intermediate_size",
    "rope_theta", "rms_norm_eps", "head_dim", "num_experts", "num_experts_per_tok",
    "moe_intermediate_size", "shared_expert_intermediate_size", "norm_topk_prob", "sliding_window",
)  # fmt: skip
_HF_NAMED = {
    "score_softcap": "attn_logit_softcapping",
    "logit_softcap": "final_logit_softcapping",
    "rope_theta_local": "rope_local_base_freq",
    "query_pre_attn_scalar": "query_pre_attn_scalar",
}
_CARRIED = (
    "hidden_act", "hidden_activation", "partial_rotary_factor", "original_max_position_embeddings",
    "no_rope_layers", "mlp_only_layers", "decoder_sparse_step",
)  # fmt: skip
"""Keys of a config.json that are carried over as they stand."""


def _dimensions(model: Model) -> dict[str, Any]:
    settings = model.settings
    dimensions: dict[str, Any] = {
        "max_position_embeddings": model.max_positions,
        "rope_type": _ROPE_TYPE[settings["rope_layout"]],
    }
    kept = {key: key for key in _CANONICAL} | _HF_NAMED
    dimensions |= {key: settings.get(name) for name, key in kept.items()}
    if windows := settings.get("window_layers"):
        dimensions["layer_types"] = [
            "sliding_attention" if slides else "full_attention" for slides in windows
        ]
    config = identify(model.file, model.architecture).config
    if model.file.format == "safetensors":
        dimensions |= {key: config.get(key) for key in _CARRIED}
    dimensions["rope_scaling"] = _rope_scaling(model, config)
    return {key: value for key, value in dimensions.items() if value is not None}


def _rope_scaling(model: Model, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """RoPE's scaling as a config.json has it; a linear one of a GGUF too."""
    scaling: Any = config.get("rope_scaling") or config.get("rope_parameters") or {}
    scaling = scaling.get("full_attention", scaling) if isinstance(scaling, Mapping) else {}
    kept = {key: value for key, value in scaling.items() if value is not None}
    kept.pop("rope_theta", None)
    if kept.get("rope_type", kept.get("type", "default")) != "default":
        return kept
    divisor = model.settings["rope_scale"]
    return {"rope_type": "linear", "factor": divisor} if divisor != 1.0 else None


def _tokenizer(spec: TokenizerSpec, notes: list[str]) -> dict[str, Any]:
    if spec.model == "json":
        spec = _from_json(spec, notes)
    kind = {"bpe": "gpt2", "spm": "llama"}.get(spec.model, spec.model)
    keys: dict[str, Any] = {
        "model": kind,
        "model_type": "BPE" if spec.model == "bpe" else kind,
        "pre_type": spec.pre,
        "vocabulary": [token if isinstance(token, str) else "<unk>" for token in spec.vocabulary],
        "vocab_size": len(spec.vocabulary),
        "merges": list(spec.merges) or None,
        "scores": None if spec.scores is None else [float(score) for score in spec.scores],
        "token_type": None if spec.token_types is None else [int(t) for t in spec.token_types],
        "bos_token_id": spec.bos_id,
        "eos_token_id": spec.eos_id,
        "add_bos_token": bool(spec.add_bos),
        "add_space_prefix": spec.add_space_prefix if spec.model == "spm" else None,
    }
    return {f"tokenizer.{key}": value for key, value in keys.items() if value is not None}


def _from_json(spec: TokenizerSpec, notes: list[str]) -> TokenizerSpec:
    """The vocabulary, merges and pre-tokenizer of a tokenizer.json in the terms of ``.apr``."""
    import dataclasses
    import json

    library = load_library(spec)
    document = json.loads(library.to_str())
    found = json_vocabulary(spec, library).spec
    merges = document["model"].get("merges") or ()
    pre = name_of_pattern(_pattern(document.get("pre_tokenizer")))
    if found.model == "bpe" and pre is None:
        notes.append("its pre-tokenizer has no name that .apr could hold: use --tokens with it")
    first = library.encode("").ids[:1]
    add_bos = bool(first) and first[0] == spec.bos_id if spec.add_bos is None else spec.add_bos
    return dataclasses.replace(
        found,
        merges=[merge if isinstance(merge, str) else " ".join(merge) for merge in merges],
        pre=pre,
        add_bos=add_bos,
    )


def _pattern(pre_tokenizer: Any) -> str:
    """The regular expression that a tokenizer.json splits by; GPT-2's where it is built in."""
    steps = pre_tokenizer.get("pretokenizers", [pre_tokenizer]) if pre_tokenizer else []
    for step in steps:
        if step.get("type") == "Split":
            return str(step.get("pattern", {}).get("Regex", ""))
        if step.get("type") == "ByteLevel" and step.get("use_regex", True):
            return "gpt-2"
    return ""
