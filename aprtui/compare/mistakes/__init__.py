"""The mistakes that people make, each a small function that makes a stage wrong in its own way."""

from __future__ import annotations

from aprtui.compare.mistakes.naming import CATALOGUE, name_mistake

__all__ = ["CATALOGUE", "name_mistake"]
