"""What is known of the row under Home's cursor, and what is in its place once the cursor rests."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

from textual import on, work
from textual.message import Message

from aprtui.tui.aside import aside
from aprtui.tui.messages import Place
from aprtui.tui.places import held_of, model_words
from aprtui.tui.trace_cells import Holdings
from aprtui.tui.widgets.blocks import BlockPane, wrapped
from aprtui.tui.widgets.palette import palette_of
from aprtui.tui.widgets.place_list import PlaceRow, place_facts
from aprtui.tui.widgets.thumbnail import thumbnail

__all__ = ["PlaceAbout"]

REST_S = 0.2  # of the cursor, before a place is looked into: moving on costs nothing
LEAST_LINES = 12  # from which on a place is looked into, beside what it says of itself


@dataclass(frozen=True)
class Inside:
    """What is in a place: in the files of a trace, or a model in words."""

    place: Place | None = None
    holdings: Holdings = field(default_factory=Holdings)
    words: tuple[str, ...] = ()


@dataclass
class LookedInto(Message):
    """What was found in the place under the cursor."""

    inside: Inside


class Waiting(Message):
    """It takes a while to look into the place under the cursor."""


class PlaceAbout(BlockPane):
    """Its frame says of which place it speaks; another one is drawn once, with what is in it."""

    def __init__(self) -> None:
        super().__init__(id="about-place")
        self._row: PlaceRow | None = None
        self._inside = Inside()
        self._asked: Place | None = None

    def follow(self, row: PlaceRow | None) -> None:
        """The cursor stands on another row."""
        self._row = row
        place = self._unseen
        if place is None:
            self.workers.cancel_group(self, "inside")
            self._asked = None
            self._draw()
        elif place != self._asked:
            self._look_into(place)

    def renew(self, row: PlaceRow | None, *, more: bool) -> None:
        """Something else may be known of the row; ``more``: its place holds more by now."""
        self._row = row
        if more:
            self._inside, self._asked = Inside(), None
        self._draw()

    @on(BlockPane.Changed)
    @on(Waiting)
    def _draw(self) -> None:
        row, column, height = self._row, self.column, self.size.height
        self.name_it(row.name if row is not None else "")
        facts = place_facts(row, column) if row is not None else []
        place = self._unseen
        if place is not None and place != self._asked:
            self._look_into(place)
        elif row is not None and row.place == self._inside.place and height >= LEAST_LINES:
            facts[:0] = [wrapped(line, "", column) for line in self._inside.words]
            facts.append(thumbnail(self._inside.holdings, column, height, palette_of(self.app)))
        self.show(facts)

    @property
    def _unseen(self) -> Place | None:
        """The place under the cursor, where there is room to show what is in it."""
        row = self._row
        if row is None or row.place == self._inside.place or row.place.kind == "results":
            return None
        return row.place if self.size.height >= LEAST_LINES else None

    def _look_into(self, place: Place) -> None:
        self._asked = place
        self._look_at_rest(place)

    @work(exclusive=True, group="inside")
    async def _look_at_rest(self, place: Place) -> None:
        """What is in the place that the cursor rests on, however long that takes to read."""
        await asyncio.sleep(REST_S)
        found = aside(lambda: _inside_of(place))
        if not (await asyncio.wait({found}, timeout=REST_S))[0]:
            self.post_message(Waiting())
        self.post_message(LookedInto(await found))

    @on(LookedInto)
    def _looked_into(self, event: LookedInto) -> None:
        event.stop()
        self._inside, self._asked = event.inside, None
        self._draw()


def _inside_of(place: Place) -> Inside:
    """What is in a model or a trace."""
    path = Path(place.path)
    if place.kind == "model":
        return Inside(place, words=model_words(path))
    return Inside(place, Holdings(held=held_of(path)))
