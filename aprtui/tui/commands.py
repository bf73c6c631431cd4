"""The command palette: every key's action by name, and a place to go to among values."""

from __future__ import annotations

import re
from functools import partial

from textual.command import DiscoveryHit, Hit, Hits, Provider

from aprtui.text import clean
from aprtui.tui.keys import Key, keys_at, shown

__all__ = ["KeyCommands"]

_PLACE = re.compile(r":?[-\d][-\d,]*")  # the screen says what is wrong with one


class KeyCommands(Provider):
    """Actions of the screen that is open, from the key table."""

    def _keys(self) -> list[Key]:
        places = getattr(self.screen, "active_places", lambda: ())()
        keys = (*keys_at(*places), *keys_at("anywhere"))  # what is special here first
        return [key for key in keys if "command_palette" not in key.action]

    def _label(self, key: Key) -> str:
        return f"{key.description}  ({shown(key.keys[0])})"

    async def discover(self) -> Hits:
        for key in self._keys():
            yield DiscoveryHit(self._label(key), partial(self._do, key))

    async def search(self, query: str) -> Hits:
        go = getattr(self.screen, "jump", None)
        if go is not None and _PLACE.fullmatch(query.replace(" ", "")):
            place = query.replace(" ", "")
            yield Hit(2.0, f"go to {clean(place, 40)}", partial(go, place))
        matcher = self.matcher(query)
        for key in self._keys():
            score = matcher.match(self._label(key))
            if score > 0:
                yield Hit(score, matcher.highlight(self._label(key)), partial(self._do, key))

    async def _do(self, key: Key) -> None:
        space = self.app if key.where == "anywhere" else self.screen
        await self.app.run_action(key.action, space)
