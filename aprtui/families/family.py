"""What a family's file declares, as one value that the registry loads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from aprtui.families.settings import Defaults, Settings
from aprtui.families.tensors import Table
from aprtui.graph import Graph

__all__ = ["Family"]


@dataclass(frozen=True)
class Family:
    """``tensors``: the roles and their names; ``defaults``: what a silent file means; ``build``:
    the graph, from settings.

    ``aliases``: keys of config.json under names of the family's own, and ours for them.
    ``published``: keys of published config.json that transformers' model does not read, and what
    is true of a value that says what is computed (``keys.only``) or nothing of it (``anything``).
    ``adjacent_in_gguf``: llama.cpp's converter permutes the q and k rows, so that RoPE's pairs are
    adjacent there. ``adjacent``: they are in every format, as the model was trained so.
    """

    tensors: Table
    build: Callable[[Settings], Graph]
    defaults: Defaults = field(default_factory=Defaults)
    aliases: Mapping[str, str] = field(default_factory=dict)
    published: Mapping[str, Callable[[Any], bool]] = field(default_factory=dict)
    adjacent_in_gguf: bool = False
    adjacent: bool = False
