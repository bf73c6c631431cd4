"""The line at the foot that a question is answered in; a path is completed in it."""

from __future__ import annotations

from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.message import Message
from textual.widgets import Input

from aprtui.tui.paths import PathSuggester, completed

__all__ = ["Prompt"]


class Prompt(Input):
    """``of_path``: what is asked for is one; Tab goes on as far as there is one way."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("tab", "complete", "complete")]

    class Ways(Message):
        """A path can go on in these ways."""

        def __init__(self, names: list[str]) -> None:
            super().__init__()
            self.names = names

    def __init__(self) -> None:
        super().__init__(id="prompt", compact=True)
        self.of_path = False

    def begin(self, value: str, *, of_path: bool) -> None:
        """Another question."""
        self.of_path = of_path
        self.suggester = PathSuggester() if of_path else None
        self.value = value
        self.cursor_position = len(value)

    def action_complete(self) -> None:
        if not self.of_path:
            return
        found, names = completed(self.value)
        grown, self.value = found != self.value, found
        self.cursor_position = len(found)
        if not grown and len(names) != 1:
            self.post_message(self.Ways(names))
