"""From what a file says to a ModelConfig: keys of each format, published defaults, checks.

Sources: specs/numerics.md 3 (families), specs/stages.md 3 (row order), specs/apr-format.md 1.12.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from aprtui.errors import AprtuiError, BadFileError, UsageError
from aprtui.formats.modelfile import ModelFile
from aprtui.model.config import FAMILIES, ModelConfig
from aprtui.model.config_keys import config_keys
from aprtui.model.rope import rope_divisors, rope_overrides
from aprtui.text import clean, nearest

__all__ = ["Shapes", "architecture_of", "has_gguf_rows", "read_config"]

Shapes = Callable[[str], tuple[int, ...] | None]
"""The row-major shape of the tensor that plays a role (of layer 0 where it is a layer's)."""

_REQUIRED = ("num_layers", "hidden_size", "num_heads")
_EPS = {"llama": 1e-5, "mistral": 1e-5, "mixtral": 1e-5}
_THETA = {"qwen2": 1e6, "qwen3": 1e6, "qwen3moe": 1e6, "gemma3": 1e6, "mixtral": 1e6}
_ADJACENT = ("llama", "mistral", "mixtral")  # llama.cpp permutes their q/k rows when it converts
_GEMMAS = ("gemma", "gemma2", "gemma3")
_BOUNDS = {  # specs/apr-format.md 1.12
    "num_layers": (1, 256),
    "hidden_size": (1, 65_536),
    "num_heads": (1, 256),
    "num_kv_heads": (1, 256),
    "head_dim": (2, 65_536),
    "intermediate_size": (1, 262_144),
    "vocab_size": (1, 1_000_000),
    "rope_theta": (1.0, 1e9),
    "rms_norm_eps": (1e-12, 0.01),
}
_ALIASES = {
    "qwen3_moe": "qwen3moe",
    "gemma3_text": "gemma3",
    "mixtral": "mixtral",
    "qwen2.5": "qwen2",
}


@dataclass
class _Reading:
    """One file's keys under our names, and the notes made while settling them."""

    file: ModelFile
    raw: dict[str, Any]
    notes: list[str]
    overridden: frozenset[str]

    def fail(self, message: str, hint: str = "") -> AprtuiError:
        """The error to raise: the file's fault, or that of a ``--set`` that the message names."""
        for key in self.overridden & set(message.split()):
            return UsageError(f"--set {key}: {message}")
        return BadFileError(self.file.path, message, hint=hint)

    def integer(self, key: str, default: int | None = None) -> int | None:
        value = self.raw.get(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value):
            raise self.fail(f"{key} is {clean(repr(value), 60)}, not a whole number")
        return int(value)

    def number(self, key: str) -> float | None:
        value = self.raw.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.fail(f"{key} is {clean(repr(value), 60)}, not a number")
        if not math.isfinite(value):
            raise self.fail(f"{key} is {value}")
        return float(value)

    def need(self, key: str) -> int:
        value = self.integer(key)
        if value is None:
            raise self.fail(
                f"the file does not say {key}", hint=f"add --set {key}=VALUE if you know it"
            )
        return value


def architecture_of(file: ModelFile) -> str:
    """The family, in our spelling. Raises BadFileError that names an unknown one and lists ours."""
    meta = file.metadata
    if file.format == "gguf":
        named = meta.get("general.architecture")
    elif file.format == "apr":
        named = (meta.get("architecture") or meta.get("model.architecture")
                 or meta.get("hf_model_type") or meta.get("model_type"))  # fmt: skip
    else:
        named = meta.get("model_type")
        if named in ("gemma3", "gemma3_text"):
            named = "gemma3"
    if not isinstance(named, str) or not named:
        raise BadFileError(
            file.path,
            "the file does not say its architecture",
            hint="a .safetensors model needs its config.json beside it"
            if file.format == "safetensors"
            else "add --set architecture=NAME",
        )
    family = _ALIASES.get(named.lower(), named.lower())
    if family not in FAMILIES:
        raise BadFileError(
            file.path,
            f"architecture '{clean(named)}' cannot be traced",
            hint=f"these can: {', '.join(FAMILIES)}",
        )
    return family


def has_gguf_rows(file: ModelFile, gguf_names: bool) -> bool:
    """Whether q/k rows and gemma norms are as llama.cpp's converter leaves them (stages.md 3)."""
    if file.format == "gguf" or gguf_names:
        return True
    meta = file.metadata
    return (
        file.format == "apr"
        and meta.get("original_format") == "gguf"
        and ("model.architecture" in meta or "hf_model_type" not in meta)
    )


def read_config(
    file: ModelFile,
    architecture: str,
    shapes: Shapes,
    *,
    gguf_names: bool,
    freqs: tuple[float, ...],
    overrides: Mapping[str, str],
) -> tuple[ModelConfig, list[str]]:
    """The model's configuration and notes on what was not stated or not true.

    ``freqs`` are the values of a rope_freqs tensor, where the file has one. ``overrides`` come from
    ``--set``. Raises BadFileError for a missing or contradictory key, UsageError for a bad one
    in ``--set``.
    """
    raw = config_keys(file)
    notes: list[str] = []
    overrides = dict(overrides)
    raw.update({key: _parse(key, text) for key, text in overrides.items()})
    reading = _Reading(file, raw, notes, frozenset(overrides))
    for key in _REQUIRED:
        reading.need(key)
    values: dict[str, Any] = {"architecture": architecture}
    _dimensions(reading, values, architecture, shapes)
    _check_bounds(reading, values)  # before anything is counted by them
    _experts(reading, values, architecture, shapes)
    _family(reading, values, architecture, gguf_rows=has_gguf_rows(file, gguf_names))
    _window(reading, values, architecture)
    values["tied_head"] = shapes("head") is None
    values["qkv_bias"] = shapes("q_bias") is not None or shapes("qkv_bias") is not None
    values["output_bias"] = shapes("o_bias") is not None
    values["qk_norm"] = shapes("q_norm") is not None
    values["post_norms"] = architecture in ("gemma2", "gemma3")
    rope = rope_overrides(file, raw, values["head_dim"], values["rope_theta"], notes)
    values.update(rope)
    if freqs:
        values["rope_divisors"] = rope_divisors(file, freqs, values["head_dim"])
    for key in overrides:
        if key in _FIELDS and key not in ("architecture", "window_layers", "rope_divisors"):
            values[key] = _field_value(key, raw[key])
    _check(reading, values)
    return ModelConfig(**values), notes


_FIELDS = {field.name: field.type for field in dataclasses.fields(ModelConfig)}
_OTHER_OVERRIDES = (
    "rope_scaling",
    "moe_intermediate_size",
    "query_pre_attn_scalar",
    "unknown_tensors",
)


def _parse(key: str, text: str) -> Any:
    valid = (*_FIELDS, *_OTHER_OVERRIDES)
    if key not in valid:
        near = nearest(key, valid)
        raise UsageError(
            f"--set {clean(key)}: no such key",
            hint=f"did you mean {near}?" if near else f"valid: {', '.join(valid)}",
        )
    lowered = text.strip().lower()
    if lowered in ("true", "false"):
        return lowered == "true"
    for kind in (int, float):
        try:
            return kind(lowered)
        except ValueError:
            continue
    return text.strip()


def _field_value(key: str, value: Any) -> Any:
    kind = str(_FIELDS[key])
    if value == "none" and "None" in kind:
        return None
    if kind.startswith("str"):
        if key == "rope_layout" and value not in ("halves", "adjacent"):
            raise UsageError(f"--set rope_layout={value}", hint="halves or adjacent")
        if key == "activation" and value not in ("silu", "gelu_tanh"):
            raise UsageError(f"--set activation={value}", hint="silu or gelu_tanh")
        return str(value)
    wants_bool = kind.startswith("bool")
    if wants_bool != isinstance(value, bool) or isinstance(value, str):
        raise UsageError(f"--set {key}={clean(str(value))}: not a {kind.split(' ')[0]}")
    if kind.startswith("int") and value != int(value):
        raise UsageError(f"--set {key}={value}: not a whole number")
    return value


def _positive(reading: _Reading, **dimensions: int) -> None:
    """Raises BadFileError for a dimension that nothing can be divided by."""
    for name, value in dimensions.items():
        if value < 1:
            raise reading.fail(f"{name} is {value}, and has to be 1 at least")


def _dimensions(reading: _Reading, values: dict[str, Any], family: str, shapes: Shapes) -> None:
    values["num_layers"] = reading.need("num_layers")
    values["hidden_size"] = reading.need("hidden_size")
    heads = values["num_heads"] = reading.need("num_heads")
    _positive(reading, hidden_size=values["hidden_size"], num_heads=heads)
    kv_heads = reading.integer("num_kv_heads")
    rows = {part: (shapes(part) or (None,))[0] for part in ("q", "k")}
    stated = reading.integer("head_dim")
    if stated is None:
        norm = shapes("q_norm")
        if norm is not None:
            stated = norm[-1]
        elif rows["q"] is not None and rows["q"] % max(heads, 1) == 0:
            stated = rows["q"] // heads
        else:
            stated = values["hidden_size"] // max(heads, 1)
        if heads and stated * heads != values["hidden_size"]:
            reading.notes.append(f"head_dim {stated} is not stated; it follows from the q rows")
    values["head_dim"] = stated
    _positive(reading, head_dim=stated)
    if kv_heads is None:
        kv_heads = rows["k"] // stated if rows["k"] else heads
        if kv_heads != heads:
            reading.notes.append(
                f"num_kv_heads {kv_heads} is not stated; it follows from the k rows"
            )
    values["num_kv_heads"] = kv_heads
    _positive(reading, num_kv_heads=kv_heads)
    embedding = shapes("embedding")
    values["vocab_size"] = embedding[0] if embedding else reading.need("vocab_size")
    said = reading.integer("vocab_size")
    if said is not None and said != values["vocab_size"]:
        raise reading.fail(
            f"vocab_size is {said:,} and the embedding has {values['vocab_size']:,} rows"
        )
    value_dim = reading.integer("value_dim")
    if value_dim is not None and value_dim != stated:
        raise reading.fail(f"value heads of {value_dim} channels beside key heads of {stated}")
    rope_dim = reading.integer("rope_dim")
    if rope_dim is not None and rope_dim != stated:
        raise reading.fail(f"RoPE over {rope_dim} of {stated} channels, which no family here has")
    eps = reading.number("rms_norm_eps")
    if eps is None:
        eps = _EPS.get(family, 1e-6)
        reading.notes.append(f"rms_norm_eps is not stated; {family}'s default {eps:g} is used")
    values["rms_norm_eps"] = eps
    values["max_positions"] = reading.integer("max_positions", 0)


def _experts(reading: _Reading, values: dict[str, Any], family: str, shapes: Shapes) -> None:
    router = shapes("router")
    if router is None:
        gate = shapes("gate")
        said = reading.integer("intermediate_size")
        values["intermediate_size"] = gate[0] if gate and said is None else said
        if values["intermediate_size"] is None:
            reading.need("intermediate_size")
        return
    values["num_experts"] = router[0]
    said = reading.integer("num_experts")
    if said is not None and said != router[0]:
        raise reading.fail(f"num_experts is {said} and the router has {router[0]} rows")
    values["num_experts_per_tok"] = reading.need("num_experts_per_tok")
    if not 1 <= values["num_experts_per_tok"] <= router[0]:
        raise reading.fail(
            f"num_experts_per_tok is {values['num_experts_per_tok']} of {router[0]} experts"
        )
    gate = shapes("expert_gate")
    if gate is None:
        raise reading.fail("the model has a router and no experts' gate tensors")
    values["intermediate_size"] = gate[-2]
    renormalise = reading.raw.get("norm_topk_prob")
    if renormalise is None and reading.file.format != "gguf" and family == "qwen3moe":
        reading.notes.append("norm_topk_prob is not stated; qwen3moe's true is used")
    values["norm_topk_prob"] = True if renormalise is None else bool(renormalise)


def _family(reading: _Reading, values: dict[str, Any], family: str, *, gguf_rows: bool) -> None:
    theta = reading.number("rope_theta")
    parameters = reading.raw.get("rope_parameters")
    if theta is None and isinstance(parameters, dict):
        whole = parameters.get("full_attention", parameters)
        local = parameters.get("sliding_attention")
        theta = whole.get("rope_theta") if isinstance(whole, dict) else whole
        if theta is not None and type(theta) not in (int, float):
            raise reading.fail("its rope_parameters cannot be read")
        if isinstance(local, dict) and "rope_theta" in local:
            reading.raw.setdefault("rope_theta_local", local["rope_theta"])
    if theta is None:
        theta = _THETA.get(family, 1e4)
        reading.notes.append(f"rope_theta is not stated; {family}'s default {theta:g} is used")
    values["rope_theta"] = float(theta)
    layout = "adjacent" if gguf_rows and family in _ADJACENT else "halves"
    values["rope_layout"] = layout
    said = reading.raw.get("rope_type")
    if reading.file.format == "apr" and said in (0, 2):
        claimed = "adjacent" if said == 0 else "halves"
        if claimed != layout:
            reading.notes.append(
                f"rope_type says {said} ({claimed} pairs); these {family} rows need {layout}"
            )
    if family in _GEMMAS:
        values["activation"] = "gelu_tanh"
        values["embedding_scale"] = values["hidden_size"] ** 0.5
        values["norm_offset"] = 0.0 if gguf_rows else 1.0
        scalar = reading.number("query_pre_attn_scalar")
        largest = {"gemma2": 46, "gemma3": 62}.get(family)
        if scalar is None and values["num_layers"] == largest:
            scalar = values["hidden_size"] / values["num_heads"]  # the published 27B models
            reading.notes.append(f"query_pre_attn_scalar is not stated; {scalar:g} as published")
        if scalar is not None:
            if not scalar > 0:
                raise reading.fail(f"query_pre_attn_scalar is {scalar:g}, and has to be above 0")
            values["score_scale"] = float(scalar) ** -0.5
    if family == "gemma2":
        for key, default in (("score_softcap", 50.0), ("logit_softcap", 30.0)):
            value = reading.number(key)
            if value is None:
                reading.notes.append(f"{key} is not stated; gemma2's default {default:g} is used")
            values[key] = default if value is None else value
    elif family == "gemma3":
        values["score_softcap"] = reading.number("score_softcap") or None
        values["logit_softcap"] = reading.number("logit_softcap") or None


def _window(reading: _Reading, values: dict[str, Any], family: str) -> None:
    window = reading.integer("sliding_window")
    layers = values["num_layers"]
    types = reading.raw.get("layer_types")
    if family == "gemma2":
        slides = tuple(layer % 2 == 0 for layer in range(layers))
    elif family == "gemma3":
        pattern = reading.integer("sliding_window_pattern", 6) or 6
        slides = tuple((layer + 1) % pattern != 0 for layer in range(layers))
        values["rope_theta_local"] = reading.number("rope_theta_local") or 1e4
    elif family == "mistral" or (family == "mixtral" and window):
        slides = ()
    elif family in ("qwen2", "qwen3", "qwen3moe") and reading.raw.get("use_sliding_window") is True:
        first = reading.integer("max_window_layers", 0) or 0
        slides = tuple(layer >= first for layer in range(layers))
    else:
        return
    if family in ("gemma2", "gemma3") and window is None:
        small = family == "gemma3" and layers <= 26
        window = 4096 if family == "gemma2" else 512 if small else 1024
        reading.notes.append(f"sliding_window is not stated; {family}'s published {window} is used")
    if isinstance(types, list | tuple) and len(types) == layers:
        slides = tuple(kind == "sliding_attention" for kind in types)
    if window and window > 0:
        values["sliding_window"], values["window_layers"] = window, slides


def _check_bounds(reading: _Reading, values: dict[str, Any]) -> None:
    """Raises BadFileError where one of the values that are known is outside its bounds."""
    for key, (low, high) in _BOUNDS.items():
        if key in values and not low <= values[key] <= high:
            shown = clean(f"{values[key]:,}", 40)
            raise reading.fail(f"{key} is {shown}, outside {low:,}..{high:,}")


def _check(reading: _Reading, values: dict[str, Any]) -> None:
    _check_bounds(reading, values)
    heads, kv_heads = values["num_heads"], values["num_kv_heads"]
    if heads % kv_heads:
        raise reading.fail(f"{heads} query heads cannot share {kv_heads} key/value heads")
    if values["head_dim"] % 2:
        raise reading.fail(f"head_dim {values['head_dim']} is odd: RoPE needs pairs")
