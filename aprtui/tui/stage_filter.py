"""What a person types to see only some rows, the same everywhere: names, layers, classes."""

from __future__ import annotations

import re
from collections.abc import Callable

from aprtui.formats.layout import StageKey

__all__ = ["finder", "matcher"]

_LAYERS = re.compile(r"(?:layer-?)?(\d+)(?:\.\.(\d+))?")


def matcher(text: str) -> Callable[[StageKey, str], bool]:
    """Whether a stage, with more words about it, has every word of ``text`` in it.

    The words may stand in any order. A number is a layer, that one and not those whose number
    begins with it; ``3..6`` and ``layer-3`` are layers too, as the command line writes them (the
    end is not included).
    """
    words = text.lower().split()

    def matches(key: StageKey, more: str) -> bool:
        return all(_has(key, more, word) for word in words)

    return matches


def finder(text: str) -> Callable[[str], bool]:
    """The same for what has no layers: whether a line has every word of ``text`` in it."""
    words = text.lower().split()
    return lambda line: all(word in line.lower() for word in words)


def _has(key: StageKey, more: str, word: str) -> bool:
    layers = _LAYERS.fullmatch(word)
    if layers is None:
        return word in f"{key} {more}".lower()
    first = int(layers[1])
    end = int(layers[2]) if layers[2] else first + 1
    return key.layer is not None and first <= key.layer < end
