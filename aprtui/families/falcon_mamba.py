"""Falcon Mamba: Mamba with norms of the steps, b and c, which have no weights."""

from __future__ import annotations

from aprtui.families import mamba
from aprtui.families.family import Family
from aprtui.families.settings import Defaults, Settings
from aprtui.graph import Graph

__all__ = ["FAMILY"]


def build(s: Settings) -> Graph:
    return mamba.build_with(s, "mixer_rms_eps")


FAMILY = Family(
    mamba.TABLE, build, Defaults(hf={**mamba.HF, "mixer_rms_eps": 1e-6}), aliases=mamba.ALIASES
)
