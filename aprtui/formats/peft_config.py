"""``adapter_config.json``: what decides an adapter's numbers, every key accounted for."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aprtui.errors import BadFileError
from aprtui.formats.strict_json import read_object
from aprtui.text import clean

__all__ = ["PeftConfig", "read_peft_config"]

_MAX_BYTES = 4 << 20
_INERT = frozenset({
    "task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path",
    "revision", "inference_mode", "target_modules", "exclude_modules", "lora_dropout", "bias",
    "modules_to_save", "layers_to_transform", "layers_pattern", "megatron_core", "loftq_config",
    "eva_config", "corda_config", "lora_ga_config", "qalora_group_size", "runtime_config",
    "ensure_weight_tying", "fan_in_fan_out", "use_rslora", "use_dora", "lora_alpha", "r",
    "rank_pattern", "alpha_pattern", "init_lora_weights",
})  # fmt: skip
"""Keys that are read here, or that decide how an adapter is trained and saved alone."""
_MOVES_THE_BASE = "init_lora_weights"
_LEAVES_THE_BASE = (True, False, None, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True)
class PeftConfig:
    """``r`` and ``alpha`` with their exceptions by module, and which formula scales."""

    r: int
    alpha: float
    rank_pattern: Mapping[str, float]
    alpha_pattern: Mapping[str, float]
    use_rslora: bool
    use_dora: bool
    notes: tuple[str, ...] = ()

    @property
    def ranks(self) -> frozenset[int]:
        """Those that a module's factors may have."""
        return frozenset({self.r, *map(int, self.rank_pattern.values())})

    def scale(self, module: str, rank: int) -> float:
        """What the product of the factors is multiplied with: alpha / r, or alpha / sqrt(r)."""
        alpha = float(_matched(self.alpha_pattern, module, self.alpha))
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)


def _matched(pattern: Mapping[str, float], module: str, otherwise: float) -> float:
    """The value of the first key that a module's name ends with, or that it is (``^``)."""
    for key, value in pattern.items():
        name = key.removeprefix("^").replace("\\.", ".")
        if module == name or (not key.startswith("^") and module.endswith(f".{name}")):
            return value
    return otherwise


_PLAIN_KEY = re.compile(r"\^?(?:[\w-]|\\?\.)+")
"""Keys of alpha_pattern that are read: names. peft takes any regular expression, which a file that
is not trusted could make run for ever."""


def read_peft_config(path: Path) -> PeftConfig:
    """Raises BadFileError for a method that is not LoRA, and for a key that would change numbers
    in a way that is not computed here."""
    if not path.is_file():
        raise BadFileError(
            path, "is not there: an adapter's rank and scale stand in it",
            hint="put the adapter's own adapter_config.json beside its weights",
        )  # fmt: skip
    keys = read_object(path, "the adapter's configuration", _MAX_BYTES)
    method = keys.get("peft_type")
    if method != "LORA":
        raise BadFileError(
            path, f"an adapter of peft's method {clean(str(method), 40)}; aprtui computes LORA",
            hint="peft's merge_and_unload makes one checkpoint of the model and it, if it can",
        )  # fmt: skip
    for key, value in keys.items():
        if key not in _INERT and value not in (None, False, {}, [], ""):
            raise BadFileError(
                path, f"{clean(key, 60)} is {clean(repr(value), 60)}, which is not computed here",
                hint="peft's merge_and_unload makes one checkpoint of the model and the adapter",
            )  # fmt: skip
    if keys.get(_MOVES_THE_BASE) not in _LEAVES_THE_BASE:
        raise BadFileError(
            path,
            f"{_MOVES_THE_BASE} is {clean(repr(keys[_MOVES_THE_BASE]), 40)}: peft changes the "
            "model's own weights as it loads such an adapter",
            hint="save_pretrained with path_initial_model_for_weight_conversion saves a plain one",
        )
    notes: tuple[str, ...] = ()
    if keys.get("fan_in_fan_out") is True:
        notes = ("the adapter says fan_in_fan_out, which peft leaves out of Linear layers, too",)
    return PeftConfig(
        int(_number(path, keys, "r")), _number(path, keys, "lora_alpha"),
        _pattern(path, keys, "rank_pattern"), _pattern(path, keys, "alpha_pattern"),
        keys.get("use_rslora") is True, keys.get("use_dora") is True, notes,
    )  # fmt: skip


def _number(path: Path, keys: Mapping[str, Any], key: str) -> float:
    value = keys.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1 << 20:
        raise BadFileError(path, f"{key} is {clean(repr(value), 40)}, no number above 0")
    return value


def _pattern(path: Path, keys: Mapping[str, Any], key: str) -> dict[str, float]:
    found = keys.get(key) or {}
    if not isinstance(found, dict):
        raise BadFileError(path, f"{key} is no object of modules")
    for module in found:
        _number(path, found, module)
        if key == "alpha_pattern" and not _PLAIN_KEY.fullmatch(module):
            raise BadFileError(
                path, f"its {key} has {clean(module, 60)}, a regular expression; names are read",
                hint="peft's merge_and_unload makes one checkpoint of the model and the adapter",
            )  # fmt: skip
    return found
