"""The lines around every screen: the title above, the keys below, the names of panes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

from textual import events
from textual.app import RenderResult
from textual.containers import Vertical
from textual.content import Content
from textual.geometry import Region
from textual.message import Message
from textual.reactive import reactive
from textual.widget import Widget

from aprtui.tui.keys import Key, shown

__all__ = ["KeyLine", "Named", "NamedFrame", "PaneTabs", "TitleLine"]


class TitleLine(Widget):
    """Where you are at the left; which modes there are at the right."""

    title: reactive[str] = reactive("")
    loud: reactive[bool] = reactive(False)  # something is wrong with what is shown

    class Chosen(Message):
        """A word at the right was clicked: a mode, or ``?``."""

        def __init__(self, word: str) -> None:
            super().__init__()
            self.word = word

    def __init__(self, modes: Sequence[str], here: str) -> None:
        super().__init__()
        self.modes, self.here = tuple(modes), here
        self.open_modes: frozenset[str] = frozenset({here})
        self._places: list[tuple[int, int, str]] = []  # from, to, the word there

    def set_open(self, modes: frozenset[str]) -> None:
        self.open_modes = modes
        self.refresh()

    def render(self) -> RenderResult:
        width = self.size.width
        words = [*self.modes, " ?"] if width >= 100 else [self.here, "?"]
        tabs: list[Content] = []
        self._places, at = [], width - sum(len(word) + 2 for word in words) - 1
        for word in words:
            style = "dim" if word not in self.open_modes else "$foreground"
            if word == self.here or width < 100:
                style = "bold $text-accent"
            tabs += [Content("  "), Content.styled(word.capitalize(), style)]
            self._places.append((at + 2, at + 2 + len(word), word.strip()))
            at += 2 + len(word)
        right = Content.assemble(*tabs, " ")
        left = Content.styled(" " + self.title, "bold $text-warning" if self.loud else "bold")
        left = left.truncate(max(width - right.cell_length, 8), ellipsis=True)
        gap = " " * max(width - left.cell_length - right.cell_length, 0)
        return Content.assemble(left, gap, right)

    def on_click(self, event: events.Click) -> None:
        for start, end, word in self._places:
            if start <= event.x < end:
                self.post_message(self.Chosen(word))


class KeyLine(Widget):
    """The keys that work here, as many as fit; a click on one presses it."""

    class Pressed(Message):
        """A key was clicked; ``key`` as Textual names it."""

        def __init__(self, key: str) -> None:
            super().__init__()
            self.key = key

    def __init__(self) -> None:
        super().__init__()
        self.keys: tuple[tuple[str, str], ...] = ()
        self.note = ""
        self._names = {"j": "j", "k": "k"}  # a key as it is shown, as Textual names it
        self._places: list[tuple[int, int, str]] = []  # from, to, the keys there as they are shown

    def show_keys(self, lead: str, keys: Sequence[Key]) -> None:
        """``lead`` names what j and k do here."""
        pairs = [("j k", lead)] if lead else []
        self._names |= {shown(key.keys[0]): key.keys[0] for key in keys}
        for key in keys:
            if key.label and pairs and pairs[-1][1] == key.label:  # two of a kind: A B in Browse
                pairs[-1] = (f"{pairs[-1][0]} {shown(key.keys[0])}", key.label)
            elif key.label:
                pairs.append((shown(key.keys[0]), key.label))
        if tuple(pairs) != self.keys:
            self.keys = tuple(pairs)
            self.refresh()

    def say(self, note: str) -> None:
        """A passing remark in place of the keys, until the next key."""
        if note != self.note:
            self.note = note
            self.refresh()

    def on_click(self, event: events.Click) -> None:
        """Of two keys with one word the one that is clicked, on the word the first."""
        for start, end, keys in self._places:
            if start <= event.x < end:
                name, left = keys.split(" ")[0], start
                for each in keys.split(" "):
                    name = each if left <= event.x < left + len(each) else name
                    left += len(each) + 1
                self.post_message(self.Pressed(self._names[name]))

    def render(self) -> RenderResult:
        self._places = []
        if self.note:
            return Content.styled(" " + self.note, "$text-accent").truncate(
                self.size.width, ellipsis=True
            )
        room = self.size.width - 1
        last = self.keys[-2:]  # help and back always fit
        parts: list[Content] = [Content(" ")]
        reserve = sum(len(key) + len(label) + 4 for key, label in last)
        for number, (key, label) in enumerate(self.keys):
            cells = len(key) + len(label) + 4
            if number < len(self.keys) - len(last) and cells > room - reserve:
                continue
            room -= cells
            if number >= len(self.keys) - len(last):
                reserve -= cells
            if len(parts) > 1:
                parts.append(Content.styled(" · ", "dim"))
            at = sum(part.cell_length for part in parts)
            self._places.append((at, at + cells - 3, key))
            parts += [Content.styled(key, "bold $text-accent"), Content.styled(f" {label}", "dim")]
        return Content.assemble(*parts)


class Named(Widget):
    """A frame whose title can change without all that is inside being drawn again."""

    _named, _naming = "", False

    def name_it(self, title: str) -> None:
        """Put ``title``, as it is, into the frame's upper line."""
        escaped = title.replace("[", r"\[")
        if escaped == self._named:
            return
        self._named, self._naming = escaped, True
        self.border_title = escaped
        self._naming = False

    def refresh(self, *regions: Region, **how: Any) -> Self:
        if self._naming:
            regions = (Region(-1, -1, self.outer_size.width, 1),)
        return super().refresh(*regions, **how)


class NamedFrame(Vertical, Named):
    """One around panes."""


class PaneTabs(Widget):
    """The names of the panes in one line, the shown one standing out."""

    class Chosen(Message):
        """A name was clicked."""

        def __init__(self, pane: str) -> None:
            super().__init__()
            self.pane = pane

    def __init__(self, panes: Mapping[str, str]) -> None:
        """``panes`` maps their names to their keys."""
        super().__init__()
        self.panes = dict(panes)
        self.shown = ""
        self.empty: frozenset[str] = frozenset()  # panes that have nothing to show now

    def show_tabs(self, shown: str, empty: frozenset[str]) -> None:
        if (shown, empty) != (self.shown, self.empty):
            self.shown, self.empty = shown, empty
            self.refresh()

    def labels(self) -> dict[str, str]:
        """What stands for each pane: its key and its name. Where not every name fits, those of
        panes that have nothing are left out, then names are shortened."""
        having = [pane for pane in self.panes if pane not in self.empty or pane == self.shown]
        ways = ((20, " ", [*self.panes]), (20, "", [*self.panes]), (20, " ", having),
                (20, "", having), (5, "", having), (4, "", having))  # fmt: skip
        for most, end, panes in ways:
            found = {pane: f" {self.panes[pane]} {_short(pane, most)}{end}" for pane in panes}
            if sum(map(len, found.values())) <= self.size.width:
                return found
        return {
            pane: f" {self.panes[pane]} {pane.capitalize()} "
            if pane == self.shown
            else f" {self.panes[pane]} "
            for pane in having
        }

    def render(self) -> RenderResult:
        return Content.assemble(*(
            Content.styled(
                label,
                "reverse bold" if pane == self.shown else "dim" if pane in self.empty else "",
            )
            for pane, label in self.labels().items()
        ))  # fmt: skip

    def on_click(self, event: object) -> None:
        x, left = int(getattr(event, "x", 0)), 0
        for pane, label in self.labels().items():
            left += len(label)
            if x < left:
                self.post_message(self.Chosen(pane))
                return


def _short(name: str, most: int) -> str:
    """``name`` capitalised in at most ``most`` letters, or one more where that is all of it."""
    return name.capitalize() if len(name) <= most + 1 else name.capitalize()[:most]
