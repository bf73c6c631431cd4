"""The question before a screen with a running trace closes: stop it, or leave it running."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Static

from aprtui.tui.keys import bindings, keys_at, remapped, shown

__all__ = ["LeaveScreen"]


class LeaveScreen(ModalScreen[str]):
    """Answers "stop", "leave", or "" to stay."""

    BINDINGS: ClassVar[list[BindingType]] = bindings("leave")  # type: ignore[assignment]

    def __init__(self, directory: str) -> None:
        super().__init__()
        self.directory = directory

    def compose(self) -> ComposeResult:
        config = getattr(self.app, "config", None)
        lines = [
            Content.styled(f"A trace is running, into {self.directory}", "bold"),
            Content(""),
        ]
        for key in remapped(keys_at("leave"), config.keys if config else {}):
            lines.append(
                Content.assemble(
                    (f"  {' '.join(shown(name) for name in key.keys[:2]):<8}", "bold $text-accent"),
                    key.description,
                )
            )
        with Vertical(id="leave"):
            yield Static(Content("\n").join(lines), markup=False)

    def action_answer(self, answer: str) -> None:
        self.dismiss(answer)
