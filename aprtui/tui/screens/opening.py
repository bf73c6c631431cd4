"""Opening: the first frame, drawn before the folder is looked into and the rest is imported."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from textual import on
from textual.message import Message
from textual.widget import Widget

from aprtui.errors import AprtuiError
from aprtui.text import clean
from aprtui.tui.opened import Opened
from aprtui.tui.screens.base import BaseScreen

__all__ = ["OpeningScreen"]


@dataclass
class Looked(Message):
    """What the folder is; or why it cannot be told."""

    opened: Opened | None
    what: str = ""
    hint: str = ""


class OpeningScreen(BaseScreen):
    """One message, until it is known which screen the folder belongs on."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def body(self) -> Iterable[Widget]:
        return ()

    def started(self) -> None:
        name = clean(self.path.name or str(self.path), 60)
        self.set_title(name)
        self.set_state("loading", f"Reading {name} …")
        self.call_after_refresh(self.run_worker, self._look, thread=True)

    def _look(self) -> None:
        from aprtui.tui.source import kind_of

        try:
            opened = kind_of(self.path)
        except AprtuiError as error:
            self.post_message(Looked(None, error.message, error.hint))
            return
        if opened.kind == "trace":
            import aprtui.tui.screens.browse  # noqa: F401 - here, while the message is shown
        self.post_message(Looked(opened))

    @on(Looked)
    def _looked(self, event: Looked) -> None:
        if event.opened is None:
            self.set_state("error", event.what, event.hint)
        else:
            # By the app, not from here: it ends this screen.
            self.app.call_later(self.app.opened_as, event.opened)
