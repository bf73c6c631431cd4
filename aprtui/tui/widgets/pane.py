"""What every pane is: a widget that is given what the cursor stands on, and shows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from textual.message import Message
from textual.widget import Widget

__all__ = ["Nothing", "Pane"]

Seen = TypeVar("Seen")


@dataclass(frozen=True)
class Nothing:
    """Why a pane has nothing to show here, and what to do; clean. ``bad``: something is wrong."""

    what: str
    hint: str = ""
    bad: bool = False


class Pane(Widget, Generic[Seen]):
    """One of a screen's panes: a row of ``panes.PANES`` names it, and its screen does the rest.

    The screen shows it at its number and its tab, offers the keys of its place in the table of
    keys while it is the one that is shown, and runs their actions on it: ``action_range`` is the
    pane's own. ``Seen`` is the screen's frozen value of what the cursor stands on.
    """

    class Wanted(Message):
        """What it draws is to be made again: its size, or what it is asked for, changed."""

    class Renamed(Message):
        """Its title is another one now."""

    class Said(Message):
        """A passing remark for the foot of the screen."""

        def __init__(self, text: str) -> None:
            super().__init__()
            self.text = text

    def nothing(self, seen: Seen) -> Nothing | None:
        """Why there is nothing to show of it; None where there is. Asked while it is not shown."""
        return None

    def show(self, seen: Seen) -> None:
        """Something else is under the cursor; called on the pane that is shown alone."""
        raise NotImplementedError

    def target(self) -> Widget:
        """What Tab focuses."""
        return self

    def copied(self) -> str:
        """What the key that copies takes from here; empty: what the screen copies by itself."""
        return ""

    def idle_keys(self) -> frozenset[str]:
        """Ids of its keys that have nothing to do now: they are not offered."""
        return frozenset()
