"""The lines around every screen: the title above, the keys below, the names of panes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from textual.app import RenderResult
from textual.containers import Vertical
from textual.content import Content
from textual.geometry import Region
from textual.message import Message
from textual.reactive import reactive
from textual.widget import Widget

from aprtui.tui.keys import Key, shown

__all__ = ["KeyLine", "NamedFrame", "PaneTabs", "TitleLine"]


class TitleLine(Widget):
    """Where you are at the left; which modes there are at the right."""

    title: reactive[str] = reactive("")
    loud: reactive[bool] = reactive(False)  # something is wrong with what is shown

    def __init__(self, modes: Sequence[str], here: str) -> None:
        super().__init__()
        self.modes, self.here = tuple(modes), here
        self.open_modes: frozenset[str] = frozenset({here})

    def set_open(self, modes: frozenset[str]) -> None:
        self.open_modes = modes
        self.refresh()

    def render(self) -> RenderResult:
        width = self.size.width
        tabs: list[Content] = []
        for mode in self.modes:
            style = "dim" if mode not in self.open_modes else "$foreground"
            if mode == self.here:
                style = "bold $text-accent"
            tabs += [Content("  "), Content.styled(mode.capitalize(), style)]
        tabs.append(Content.styled("   ? ", "dim"))
        right = Content.assemble(*tabs)
        if width < 100:
            right = Content.styled(f"  {self.here.capitalize()}  ? ", "bold $text-accent")
        left = Content.styled(" " + self.title, "bold $text-warning" if self.loud else "bold")
        left = left.truncate(max(width - right.cell_length, 8), ellipsis=True)
        gap = " " * max(width - left.cell_length - right.cell_length, 0)
        return Content.assemble(left, gap, right)


class KeyLine(Widget):
    """The keys that work here, as many as fit."""

    def __init__(self) -> None:
        super().__init__()
        self.keys: tuple[tuple[str, str], ...] = ()
        self.note = ""

    def show_keys(self, lead: str, keys: Sequence[Key]) -> None:
        """``lead`` names what j and k do here."""
        pairs = [("j k", lead)] if lead else []
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

    def render(self) -> RenderResult:
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
            parts += [Content.styled(key, "bold $text-accent"), Content.styled(f" {label}", "dim")]
        return Content.assemble(*parts)


class NamedFrame(Vertical):
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

    def refresh(self, *regions: Region, **how: Any) -> NamedFrame:
        if self._naming:
            regions = (Region(-1, -1, self.outer_size.width, 1),)
        return super().refresh(*regions, **how)


class PaneTabs(Widget):
    """The names of the panes in one line, the shown one standing out."""

    class Chosen(Message):
        """A name was clicked."""

        def __init__(self, pane: str) -> None:
            super().__init__()
            self.pane = pane

    def __init__(self, panes: Sequence[str]) -> None:
        super().__init__()
        self.panes = tuple(panes)
        self.shown = ""
        self.empty: frozenset[str] = frozenset()  # panes that have nothing to show now

    def show_tabs(self, shown: str, empty: frozenset[str]) -> None:
        if (shown, empty) != (self.shown, self.empty):
            self.shown, self.empty = shown, empty
            self.refresh()

    def labels(self) -> list[str]:
        """What stands for each pane: its name, shortened where not every name fits."""
        for most, end in ((20, " "), (20, ""), (5, ""), (4, "")):
            found = [f" {number} {_short(pane, most)}{end}" for number, pane in self._numbered()]
            if sum(map(len, found)) <= self.size.width:
                return found
        return [
            f" {number} {pane.capitalize()} " if pane == self.shown else f" {number} "
            for number, pane in self._numbered()
        ]

    def _numbered(self) -> list[tuple[int, str]]:
        return list(enumerate(self.panes, 1))

    def render(self) -> RenderResult:
        return Content.assemble(*(
            Content.styled(
                label,
                "reverse bold" if pane == self.shown else "dim" if pane in self.empty else "",
            )
            for pane, label in zip(self.panes, self.labels(), strict=True)
        ))  # fmt: skip

    def on_click(self, event: object) -> None:
        x, left = int(getattr(event, "x", 0)), 0
        for pane, label in zip(self.panes, self.labels(), strict=True):
            left += len(label)
            if x < left:
                self.post_message(self.Chosen(pane))
                return


def _short(name: str, most: int) -> str:
    """``name`` capitalised in at most ``most`` letters, or one more where that is all of it."""
    return name.capitalize() if len(name) <= most + 1 else name.capitalize()[:most]
