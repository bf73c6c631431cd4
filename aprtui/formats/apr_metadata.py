"""The metadata of an ``.apr`` file: aliases merged into canonical keys, every bound checked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aprtui.errors import BadFileError
from aprtui.formats.strict_json import parse_object
from aprtui.text import clean

__all__ = ["ALIASES", "MAX_METADATA_BYTES", "NULLABLE", "read_metadata"]

MAX_METADATA_BYTES = 64 << 20
MAX_VOCABULARY = 1_000_000
MAX_TOKEN_BYTES = 64 << 10
MAX_MERGES = 2_000_000

# The only keys that a writer may set to null: apr writes them so when unset.
NULLABLE = ("license", "data_source", "data_license")

ALIASES: dict[str, tuple[str, ...]] = {
    "hidden_size": ("hidden_dim", "d_model", "n_embd"),
    "num_layers": ("n_layers", "num_hidden_layers", "n_layer"),
    "num_heads": ("n_heads", "num_attention_heads", "n_head"),
    "num_kv_heads": ("n_kv_heads", "num_key_value_heads"),
    "vocab_size": ("n_vocab",),
    "intermediate_size": ("ffn_dim", "intermediate_dim", "n_inner"),
    "max_position_embeddings": ("max_seq_len", "context_length", "n_ctx"),
    "rms_norm_eps": ("layer_norm_eps", "norm_eps"),
    "moe_intermediate_size": ("expert_intermediate_size",),
}
# Keys that apr's importer repeats under "model."; they fill gaps and nothing else.
_DOTTED = (
    *("architecture", "hidden_size", "num_layers", "num_heads", "num_kv_heads", "vocab_size"),
    *("intermediate_size", "max_position_embeddings", "rope_theta", "rms_norm_eps", "rope_type"),
)
# Bounds of docs/apr-format.md 1.12 (upstream's where it has one).
_WHOLE: dict[str, tuple[int, int]] = {
    "hidden_size": (1, 65_536),
    "num_layers": (1, 256),
    "num_heads": (1, 256),
    "num_kv_heads": (1, 256),
    "vocab_size": (1, 1_000_000),
    "intermediate_size": (1, 262_144),
    "max_position_embeddings": (0, 2_097_152),
    "rope_type": (0, 255),
    "head_dim": (1, 65_536),
    "num_experts": (0, 65_536),
    "num_experts_per_tok": (0, 65_536),
    "moe_intermediate_size": (0, 262_144),
    "tokenizer.vocab_size": (0, 1_000_000),
}
_REAL: dict[str, tuple[float, float]] = {
    "rope_theta": (1.0, 1e8),
    "rms_norm_eps": (1e-10, 0.01),
}
_TEXT = (
    *("model_type", "architecture", "hf_architecture", "hf_model_type", "original_format"),
    *("chat_template", "tokenizer.model", "tokenizer.model_type", "tokenizer.pre_type"),
    "tokenizer.chat_template",
)
_SWITCHES = ("tied_embeddings", "norm_topk_prob", "tokenizer.add_bos_token")
_SPECIAL_IDS = (
    "tokenizer.bos_token_id",
    "tokenizer.eos_token_id",
    "tokenizer.padding_token_id",
)


def read_metadata(path: Path, raw: bytes) -> tuple[dict[str, Any], list[str]]:
    """The metadata under canonical keys, without nulls, and notes on what is odd about it.

    Keys without a canonical name are kept as they are. Raises BadFileError for a type or bound
    that does not hold, a key and its alias that disagree, and a trainer's checkpoint.
    """
    parsed = {
        key: value
        for key, value in parse_object(path, raw, "its metadata").items()
        if value is not None
    }
    if parsed.get("format") == "entrenar-checkpoint":
        raise BadFileError(
            path,
            "a training checkpoint of entrenar, whose matrices may lie transposed",
            hint="export the trained model and open that",
        )
    metadata, notes = _canonical(path, parsed)
    for key in _DOTTED:
        value = parsed.get(f"model.{key}")
        if value is not None and key not in metadata:
            metadata[key] = value
            notes.append(f"{key} is taken from model.{key}")
    _check_types(path, metadata)
    notes += _check_tokenizer(path, metadata)
    return metadata, notes


def _canonical(path: Path, parsed: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    canonical_of = {alias: name for name, aliases in ALIASES.items() for alias in aliases}
    metadata: dict[str, Any] = {}
    source: dict[str, str] = {}
    notes = []
    for key, value in parsed.items():
        name = canonical_of.get(key, key)
        if name not in metadata:
            metadata[name], source[name] = value, key
        elif metadata[name] == value:
            notes.append(f"{source[name]} and {key} say the same; apr then drops all metadata")
        else:
            raise BadFileError(
                path,
                f"its metadata contradicts itself: {source[name]} is "
                f"{clean(repr(metadata[name]), 40)}, {key} is {clean(repr(value), 40)}",
            )
    return metadata, notes


def _check_types(path: Path, metadata: Mapping[str, Any]) -> None:
    for key, (least, most) in _WHOLE.items():
        if key in metadata:
            _whole(path, key, metadata[key], least, most)
    for key, (low, high) in _REAL.items():
        value = metadata.get(key, low)
        if type(value) not in (int, float) or not low <= value <= high:
            raise _wrong(path, key, value, f"a number from {low:g} to {high:g}")
    for keys, kind, name in ((_TEXT, str, "text"), (_SWITCHES, bool, "true or false")):
        for key in keys:
            if key in metadata and not isinstance(metadata[key], kind):
                raise _wrong(path, key, metadata[key], name)


def _whole(path: Path, key: str, value: Any, least: int, most: int) -> None:
    if type(value) is not int or not least <= value <= most:
        raise _wrong(path, key, value, f"a whole number from {least:,} to {most:,}")


def _wrong(path: Path, key: str, value: Any, wanted: str) -> BadFileError:
    return BadFileError(
        path, f"its metadata says {key} = {clean(repr(value), 40)}; it must be {wanted}"
    )


def _check_tokenizer(path: Path, metadata: Mapping[str, Any]) -> list[str]:
    """Notes on a tokenizer whose parts fit one another and the limits; else BadFileError."""
    tokens = _list_of(path, metadata, "tokenizer.vocabulary", (str,), MAX_VOCABULARY)
    _list_of(path, metadata, "tokenizer.merges", (str,), MAX_MERGES)
    types = _list_of(path, metadata, "tokenizer.token_type", (int,), MAX_VOCABULARY)
    scores = _list_of(path, metadata, "tokenizer.scores", (int, float), MAX_VOCABULARY)
    if tokens is None:
        return []
    for number, token in enumerate(tokens):
        if 4 * len(token) > MAX_TOKEN_BYTES < len(token.encode("utf-8", "surrogatepass")):
            raise BadFileError(path, f"token {number:,} of its vocabulary is over 64 KiB long")
    for key, values in (("token_type", types), ("scores", scores)):
        if values and len(values) != len(tokens):
            raise BadFileError(
                path,
                f"its tokenizer.{key} holds {len(values):,} entries, "
                f"the vocabulary {len(tokens):,}",
            )
    for key in _SPECIAL_IDS:
        if key in metadata:
            _whole(path, key, metadata[key], 0, len(tokens) - 1)
    rows = metadata.get("vocab_size", len(tokens))
    if len(tokens) > rows:
        return [f"its vocabulary of {len(tokens):,} tokens is longer than vocab_size {rows:,}"]
    return []


def _list_of(
    path: Path, metadata: Mapping[str, Any], key: str, kinds: tuple[type, ...], most: int
) -> list[Any] | None:
    values = metadata.get(key)
    if values is None:
        return None
    if not isinstance(values, list) or len(values) > most:
        raise BadFileError(path, f"its {key} is not a list of at most {most:,} entries")
    for number, value in enumerate(values):
        if type(value) not in kinds:
            raise BadFileError(path, f"entry {number:,} of its {key} is {clean(repr(value), 40)}")
    return values
