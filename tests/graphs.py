"""Graphs of models that need no file: a family's own, from the keys of a config.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aprtui.families.keys import stated_keys
from aprtui.families.registry import load_family
from aprtui.families.settings import Settings
from aprtui.formats.modelfile import ModelFile
from aprtui.graph import Graph

__all__ = ["QWEN_7B", "graph_of"]

QWEN_7B: dict[str, Any] = {
    "hidden_size": 3584, "intermediate_size": 18_944, "num_hidden_layers": 28,
    "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152_064,
    "rope_theta": 1e6, "rms_norm_eps": 1e-6,
}  # fmt: skip
"""Qwen2.5-Coder-7B's sizes."""


def graph_of(family: str, config: dict[str, Any]) -> Graph:
    """The graph of a checkpoint folder with these keys, its tensors unseen."""
    path = Path("model")
    file = ModelFile(path, "safetensors", "", config, {}, (), 0, "")
    found = load_family(family)
    stated = stated_keys(file, config, found.aliases)
    settings = Settings(file, family, stated, found.defaults, lambda role: None)
    return found.build(settings)
