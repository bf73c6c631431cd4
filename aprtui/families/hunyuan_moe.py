"""Hunyuan with experts (hunyuan.py)."""

from __future__ import annotations

from aprtui.families.hunyuan import MOE as FAMILY

__all__ = ["FAMILY"]
