"""A screen with a list at the left and, at the right, panes at numbers of which one is shown."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from textual import on
from textual.content import Content
from textual.widget import Widget
from textual.widgets import ContentSwitcher, Static

from aprtui.tui.panes import keys_of, made, place_of
from aprtui.tui.screens.base import BaseScreen
from aprtui.tui.widgets.frame import NamedFrame, PaneTabs
from aprtui.tui.widgets.lines import RowList
from aprtui.tui.widgets.pane import Nothing, Pane

__all__ = ["PanedScreen"]


class PanedScreen(BaseScreen):
    """The panes are the rows of ``panes.PANES`` for its mode; all are given ``seen``."""

    def __init__(self) -> None:
        super().__init__()
        self.panes = made(self.mode)
        self.pane = next(iter(self.panes))  # the name of the one that is shown
        self.tabs = PaneTabs(keys_of(self.mode))
        self.note = Static("", id="note", markup=False)  # in place of a pane that has nothing

    # What a screen says.

    @property
    def listing(self) -> RowList:
        """The list at the left."""
        raise NotImplementedError

    @property
    def seen(self) -> Any | None:
        """What the cursor stands on, as the panes are given it; None where that is nothing."""
        raise NotImplementedError

    def name_frame(self) -> None:
        """Put a title over the panes."""
        raise NotImplementedError

    # The panes.

    def framed(self, *above: Widget) -> Iterable[Widget]:
        """The frame at the right."""
        with NamedFrame(id="panes", classes="frame"):
            yield self.tabs
            yield from above
            with ContentSwitcher(initial=self.pane, id="switcher"):
                yield from self.panes.values()
                yield self.note

    @property
    def shown_pane(self) -> Pane[Any]:
        return self.panes[self.pane]

    def lacks(self, pane: str) -> Nothing | None:
        """Why a pane has nothing to show now."""
        return None if self.seen is None else self.panes[pane].nothing(self.seen)

    def show_pane(self) -> None:
        """What the cursor stands on, in the pane that is shown, or why there is nothing of it."""
        why = self.lacks(self.pane)
        if self.seen is not None and why is None:
            self.shown_pane.show(self.seen)
        if why is not None:
            what = Content.styled(f"! {why.what}", "bold $text-error") if why.bad else why.what
            self.note.update(Content.assemble(what, "\n\n", (why.hint, "dim")))
        self.query_one("#switcher", ContentSwitcher).current = "note" if why else self.pane
        self.tabs.show_tabs(self.pane, frozenset(filter(self.lacks, self.panes)))
        self.show_keys()

    def set_pane(self, pane: str) -> None:
        inside = self.focused is self.shown_pane.target()
        self.pane = pane
        self.show_pane()
        if inside and self.lacks(pane) is None:
            self.shown_pane.target().focus()
        elif inside:
            self.listing.focus()

    @on(PaneTabs.Chosen)
    def _chosen(self, event: PaneTabs.Chosen) -> None:
        self.set_pane(event.pane)

    @on(Pane.Renamed)
    def _renamed(self) -> None:
        self.name_frame()

    @on(Pane.Said)
    def _said(self, event: Pane.Said) -> None:
        self.say(event.text)

    # Keys.

    def active_places(self) -> tuple[str, ...]:
        own = () if self.lacks(self.pane) else (place_of(self.mode, self.pane),)
        return (*own, *self.places)

    def idle_keys(self) -> frozenset[str]:
        """Tab, from the list, where the pane has nothing to go to; and what the pane says."""
        nowhere = self.focused is self.listing and self.lacks(self.pane) is not None
        tab = {f"{self.mode}-focus"} if nowhere else set[str]()
        return super().idle_keys() | self.shown_pane.idle_keys() | tab

    def action_pane(self, pane: str) -> None:
        self.set_pane(pane)

    async def action_of_pane(self, pane: str, action: str) -> None:
        """An action of the pane's own."""
        await self.app.run_action(action, self.panes[pane])

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action != "of_pane":
            return super().check_action(action, parameters)
        return parameters[0] == self.pane and self.lacks(self.pane) is None

    def action_focus_pane(self) -> None:
        if self.focused is self.listing and self.lacks(self.pane) is None:
            self.shown_pane.target().focus()
            return
        if self.has_class("zoomed"):
            self.action_zoom()
        self.listing.focus()

    @on(RowList.Opened)
    def _opened(self, event: RowList.Opened) -> None:
        if event.rows is self.listing:
            event.stop()
            self.action_focus_pane()

    def action_zoom(self) -> None:
        self.toggle_class("zoomed")
        (self.shown_pane.target() if self.has_class("zoomed") else self.listing).focus()

    def step_back(self) -> bool:
        if self.has_class("zoomed"):
            self.action_zoom()
            return True
        return False
