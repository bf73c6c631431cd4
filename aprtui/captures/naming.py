"""Names of a dump found by patterns: ``{L}`` is a layer's number, ``*`` anything between two dots.

A slash in a pattern is a bar in a name too: archives and file systems hold no slash.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from aprtui.errors import UsageError
from aprtui.text import clean

__all__ = ["Names"]

_LAYER = "{L}"


class Names:
    """The names of one pass, asked for by pattern and layer."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = {name.replace("|", "/"): name for name in names}
        self._found: dict[str, dict[int | None, list[str]]] = {}

    def one(self, patterns: Iterable[str], layer: int | None) -> str | None:
        """The one name that any of the patterns fits; None where there is none.

        Raises UsageError where several do.
        """
        found = dict.fromkeys(name for each in patterns for name in self.all(each, layer))
        if len(found) > 1:
            shown = " and ".join(clean(name, 80) for name in list(found)[:2])
            raise UsageError(
                f"the map fits twice: {shown} would be the same tensor",
                hint="a map of your own says which: --map FILE.toml",
            )
        return next(iter(found), None)

    def all(self, pattern: str, layer: int | None) -> list[str]:
        """Every name that a pattern fits, of one layer or (None) as it stands."""
        if "*" not in pattern and (layer is not None or _LAYER not in pattern):
            name = self._names.get(pattern.replace(_LAYER, str(layer)).replace("|", "/"))
            return [] if name is None else [name]
        by_layer = self._by_layer(pattern)
        if _LAYER not in pattern:
            return by_layer.get(None, [])
        if layer is None:
            return [name for names in by_layer.values() for name in names]
        return by_layer.get(layer, [])

    def fits(self, pattern: str) -> bool:
        """Whether any name fits, of whichever layer."""
        return bool(self._by_layer(pattern))

    def layers(self, pattern: str) -> set[int]:
        """The layers whose names fit."""
        return {layer for layer in self._by_layer(pattern) if layer is not None}

    def _by_layer(self, pattern: str) -> dict[int | None, list[str]]:
        found = self._found.get(pattern)
        if found is None:
            found = self._found[pattern] = {}
            wanted = _compiled(pattern)
            for name, own in self._names.items():
                if match := wanted.fullmatch(name):
                    number = match.groupdict().get("layer")
                    found.setdefault(None if number is None else int(number), []).append(own)
        return found


def _compiled(pattern: str) -> re.Pattern[str]:
    text = re.escape(pattern.replace("|", "/")).replace(r"\*", "[^./]*")
    return re.compile(text.replace(re.escape(_LAYER), "(?P<layer>[0-9]{1,6})", 1))
