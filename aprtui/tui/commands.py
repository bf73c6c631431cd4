"""The palette: places to go to (a stage, a tensor, a file), themes, every key's action."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from textual.binding import Binding, BindingType
from textual.command import (
    CommandInput,
    CommandList,
    CommandPalette,
    DiscoveryHit,
    Hit,
    Hits,
    Provider,
)
from textual.content import Content

from aprtui.text import clean
from aprtui.tui.jumps import Goal
from aprtui.tui.keys import Key, keys_at, shown
from aprtui.tui.paths import meant, paths_after
from aprtui.tui.stage_filter import matcher

if TYPE_CHECKING:
    from aprtui.tui.app import AprtuiApp

__all__ = ["GoPalette", "KeyCommands"]

MOST = 40  # places of one kind that are listed
SHORTEST = 2  # letters that begin to name a place
_NUMBERS = re.compile(r":?[-\d][-\d,]*")  # the screen says what is wrong with one


class GoPalette(CommandPalette):
    """Tab completes what is typed to the line that stands out."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("tab", "complete", "complete", priority=True)]

    def action_complete(self) -> None:
        found, typed = self.query_one(CommandList), self.query_one(CommandInput)
        for option in found.options[found.highlighted or 0 :]:
            text = getattr(getattr(option, "hit", None), "text", None)
            if text and text != typed.value:
                typed.value, typed.cursor_position = text, len(text)
                return


class KeyCommands(Provider):
    """Where one can go from the screen that is open, and its actions from the key table."""

    app: AprtuiApp  # type: ignore[assignment]

    def _keys(self) -> list[Key]:
        places = getattr(self.screen, "active_places", lambda: ())()
        idle: frozenset[str] = getattr(self.screen, "idle_keys", frozenset)()
        keys = (*keys_at(*places), *keys_at("anywhere"))  # what is special here first
        return [k for k in keys if "command_palette" not in k.action and k.id not in idle]

    def _label(self, key: Key) -> str:
        return f"{key.description}  ({shown(key.keys[0])})"

    async def discover(self) -> Hits:
        for key in self._keys():
            yield DiscoveryHit(self._label(key), partial(self._do, key))

    async def search(self, query: str) -> Hits:
        go = getattr(self.screen, "jump", None)
        if go is not None and _NUMBERS.fullmatch(query.replace(" ", "")):
            place = query.replace(" ", "")
            yield Hit(2.0, f"go to {clean(place, 40)}", partial(go, place))
        for number, goal in enumerate(self._goals(query)):
            yield Hit(1000.0 - number, Content(goal.label), goal.go, text=goal.typed)
        matcher_ = self.matcher(query)
        for key in self._keys():
            score = matcher_.match(self._label(key))
            if score > 0:
                yield Hit(score, matcher_.highlight(self._label(key)), partial(self._do, key))

    def _goals(self, query: str) -> Iterator[Goal]:
        """The places that the query means: the ones on this screen first."""
        if query.startswith(("/", "~", ".")):
            yield from self._files(query)
        elif len(query.strip()) >= SHORTEST:
            yield from self._named(query)

    def _named(self, query: str) -> Iterator[Goal]:
        """Stages, tensors and folders on the screens that are open, and themes."""
        matches, words = matcher(query), query.lower().split()
        for each in self.app.goals():
            found = [goal for goal in each if goal.meant(matches, words)]
            # A name that is typed whole comes before those that only have it in them.
            found.sort(key=lambda goal: not set(words) <= set(goal.typed.lower().split()))
            yield from found[:MOST]
        for theme in self.app.available_themes:
            name = f"theme {theme}"
            if words[0][:2] == "th" and all(word in name for word in words):
                yield Goal(name, name, partial(self.app.choose_theme, theme))

    def _files(self, query: str) -> Iterator[Goal]:
        """What lies where the path that is typed so far leads to."""
        if query.endswith("/"):  # the folder itself
            yield Goal(clean(query), query, partial(self.app.open_path, meant(query)))
        for typed in paths_after(query):
            yield Goal(clean(typed), typed, partial(self.app.open_path, meant(typed)))

    async def _do(self, key: Key) -> None:
        space = self.app if key.where == "anywhere" else self.screen
        await self.app.run_action(key.call, space)
