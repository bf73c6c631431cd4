"""The places that were marked, a line each: go to one, or forget it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Static

from aprtui.errors import AprtuiError
from aprtui.report.bookmarks import Bookmark, remove
from aprtui.text import clean
from aprtui.tui.keys import bindings, keys_at, remapped, shown
from aprtui.tui.widgets.lines import Part, RowList, fit

__all__ = ["BookmarksScreen"]


class MarkedList(RowList):
    """The newest first."""

    key = ""  # that marks a place

    def __init__(self, marked: Sequence[Bookmark]) -> None:
        super().__init__(id="marked")
        self.rows = [*reversed(marked)]

    def row_count(self) -> int:
        return max(len(self.rows), 1)

    def head_parts(self, width: int) -> list[Part]:
        place, note, of = self._columns(width)
        return [(" " + fit("where", place) + fit("note", note) + fit("of", of), "head")]

    def row_parts(self, row: int, width: int) -> list[Part]:
        if not self.rows:
            said = f" Nothing is marked yet: {self.key} on any screen marks the place with a note."
            return [(said, "dim")]
        entry = self.rows[row]
        place, note, of = self._columns(width)
        where = " and ".join(clean(Path(each).name, 60) for each in entry.paths)
        return [(" " + fit(entry.what, place - 1) + " ", "accent"),
                (fit(entry.note or "no note", note - 1) + " ", "" if entry.note else "dim"),
                (fit(f"{where} · {entry.screen} · {entry.made}", of), "dim")]  # fmt: skip

    def _columns(self, width: int) -> tuple[int, int, int]:
        place = min(28, width // 4)
        note = (width - place) * 3 // 5
        return place, note, width - place - note - 1


class BookmarksScreen(ModalScreen[Bookmark]):
    """Answers the one to go to, or None."""

    BINDINGS: ClassVar[list[BindingType]] = bindings("bookmarks")  # type: ignore[assignment]

    def __init__(self, marked: Sequence[Bookmark]) -> None:
        super().__init__()
        self.list = MarkedList(marked)

    def compose(self) -> ComposeResult:
        config = getattr(self.app, "config", None)
        other = config.keys if config else {}
        keys = remapped(keys_at("bookmarks"), other)
        marks = next(key for key in remapped(keys_at("anywhere"), other) if key.id == "bookmark")
        self.list.key = shown(marks.keys[0])
        told = [Content.assemble((f" {shown(key.keys[0])}", "bold $text-accent"),
                                 (f" {key.label} ", "dim")) for key in keys]  # fmt: skip
        with Vertical(id="bookmarks", classes="frame") as frame:
            frame.border_title = "Bookmarks · they go into the report"
            yield self.list
            yield Static("", id="whole-note", markup=False)
            yield Static(Content("·").join(told), markup=False)

    def on_mount(self) -> None:
        self.list.focus()
        self._tell()

    @on(RowList.Moved)
    def _tell(self) -> None:
        """The note in full."""
        note = self.list.rows[self.list.cursor].note if self.list.rows else ""
        self.query_one("#whole-note", Static).update(note)

    @on(RowList.Opened)
    def action_go(self) -> None:
        if self.list.rows:
            self.dismiss(self.list.rows[self.list.cursor])

    def action_forget(self) -> None:
        if not self.list.rows:
            return
        try:
            remove(self.list.rows[self.list.cursor])
        except AprtuiError as error:
            self.query_one("#whole-note", Static).update(f"! {clean(str(error), 300)}")
            return
        del self.list.rows[self.list.cursor]
        self.list.rows_changed()
        self._tell()

    def action_close(self) -> None:
        self.dismiss(None)
