"""Help: the key table, searchable, the keys of the screen below first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Input

from aprtui.tui.keys import KEYS, PLACES, Key, remapped, shown
from aprtui.tui.stage_filter import finder
from aprtui.tui.widgets.lines import Part, RowList, fit

__all__ = ["HelpScreen"]


WITH_IDS = 84  # columns from which on each line ends in the id that a config names
NONE = "No key has that in its name, id or description."


class KeyList(RowList):
    """Keys by place."""

    def __init__(self, places: tuple[str, ...], other: Mapping[str, str]) -> None:
        super().__init__(id="keys")
        self.places = places
        self.table = remapped(KEYS, other)
        self.rows: list[Key | str] = []
        self.search("")

    def search(self, text: str) -> None:
        """Only keys whose name, place or description has ``text`` in it."""
        found = finder(text)
        first = [*self.places, "move", "anywhere"]
        order = [*dict.fromkeys([*first, *PLACES])]
        self.rows = []
        for place in order:
            keys = [key for key in self.table if key.where == place and found(_text(key))]
            if keys:
                self.rows += [PLACES[place], *keys]
        self.rows = self.rows or [NONE]
        self.cursor = 0
        self.rows_changed()

    def row_count(self) -> int:
        return len(self.rows)

    def row_parts(self, row: int, width: int) -> list[Part]:
        entry = self.rows[row]
        if isinstance(entry, str):
            return [(f" {entry}", "head")]
        names = "  ".join(shown(name) for name in entry.keys)
        id_cells = 20 if width >= WITH_IDS else 0
        return [(f"   {fit(names, 14)} ", "accent"),
                (fit(entry.description, width - 19 - id_cells) + " ", ""),
                (fit(entry.id, id_cells), "dim")]  # fmt: skip


def _text(key: Key) -> str:
    words = (*(shown(name) for name in key.keys), key.id, key.label, key.description)
    return " ".join((*words, PLACES[key.where])).lower()


class HelpScreen(ModalScreen[None]):
    """Type to search; Esc, Enter or ``?`` closes it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "close", "close"),
        Binding("down", "down", "down", priority=True),
        Binding("up", "up", "up", priority=True),
        Binding("pagedown", "page(1)", "page", priority=True),
        Binding("pageup", "page(-1)", "page", priority=True),
    ]

    def __init__(self, places: tuple[str, ...], other: Mapping[str, str]) -> None:
        super().__init__()
        self.keys_list = KeyList(places, other)

    def compose(self) -> ComposeResult:
        with Vertical(id="help", classes="frame") as frame:
            frame.border_title = "Keys"
            frame.border_subtitle = "type to search · ↑ ↓ · esc or ? closes"
            yield Input(placeholder="search", compact=True, id="search")
            yield self.keys_list

    def on_mount(self) -> None:
        self.query_one("#search").focus()

    @on(Input.Changed)
    def _search(self, event: Input.Changed) -> None:
        if event.value == "?":
            self.dismiss()
            return
        self.keys_list.search(event.value)

    @on(RowList.Moved)
    @on(Input.Changed)
    def _name_key(self) -> None:
        """The id of the key under the cursor: what a config calls it."""
        entry = self.keys_list.rows[self.keys_list.cursor]
        name = f" · {entry.id} in config.toml" if isinstance(entry, Key) else ""
        self.query_one("#help").border_title = f"Keys{name}"

    @on(Input.Submitted)
    def action_close(self) -> None:
        self.dismiss()

    def action_down(self) -> None:
        self.keys_list.action_down()

    def action_up(self) -> None:
        self.keys_list.action_up()

    def action_page(self, step: int) -> None:
        self.keys_list.move_to(self.keys_list.cursor + step * self.keys_list.page)
