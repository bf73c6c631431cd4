"""Ministral (8B of 2024): mistral whose layers may differ in their window."""

from __future__ import annotations

from aprtui.families import decoder, llama, mistral
from aprtui.families.decoder import FULL, SLIDING
from aprtui.families.family import Family
from aprtui.families.settings import Defaults, Settings
from aprtui.graph import Graph

__all__ = ["FAMILY"]


def build(s: Settings) -> Graph:
    sizes = decoder.read_sizes(s, nulls=())
    window = decoder.read_window(s)
    default = [FULL if window is None else SLIDING] * sizes.layers
    windows = decoder.say_windows(s, window, decoder.layer_types(s, default))
    return llama.build_with_windows(s, sizes, windows)


FAMILY = Family(
    mistral.FAMILY.tensors,
    build,
    Defaults(hf=mistral.FAMILY.defaults.hf, apr=mistral.FAMILY.defaults.apr),
)
