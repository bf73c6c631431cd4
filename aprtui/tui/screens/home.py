"""Home: models, traces and sweeps' results below the current folder, the newest first."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import ClassVar

from textual import events, on
from textual.binding import BindingType
from textual.containers import Vertical
from textual.widget import Widget
from textual.worker import get_current_worker

from aprtui.errors import AprtuiError
from aprtui.text import clean, count, size
from aprtui.tui import following
from aprtui.tui.jumps import Goal, Jump
from aprtui.tui.keys import bindings
from aprtui.tui.messages import Found, Known, Learnt, LoadFailed, Place
from aprtui.tui.opened import behind_url
from aprtui.tui.paths import meant
from aprtui.tui.places import (
    delete_trace,
    known_of,
    known_of_results,
    left_places,
    places_below,
    rename_trace,
)
from aprtui.tui.screens.base import BaseScreen
from aprtui.tui.session import last_verdicts
from aprtui.tui.widgets.lines import RowList
from aprtui.tui.widgets.place_about import PlaceAbout
from aprtui.tui.widgets.place_list import SORTS, PlaceList, PlaceRow

__all__ = ["HomeScreen"]

MAX_PLACES = 500
EMPTY = (
    "o opens another folder or file, r looks again; "
    "aprtui demo makes a small model and two traces and opens them"
)
LEARN_S = 0.2  # what is learnt of traces is told five times a second at most
LOW = 30  # lines of a screen below which there is less room for everything
LEAST_ABOUT = (10, 7)  # lines for what is known of a row; of a low screen
LEAST_ROWS, FRAME_LINES = 3, 3  # of the list; its frame and its head


class HomeScreen(BaseScreen):
    """A list, and what is known of the row under the cursor; Enter opens it."""

    mode = "home"
    places = ("home",)
    ways_out = ("home-open", "home-rescan")
    lead = "move"
    BINDINGS: ClassVar[list[BindingType]] = bindings("home")  # type: ignore[assignment]

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.list = PlaceList()
        self.about = PlaceAbout()
        self._found: list[Place] = []
        self._looking, self._more = True, False
        self._quietly = False  # what is shown stays until all was looked through again
        self._asked = False  # by a key, which says what came of it
        self._doomed: PlaceRow | None = None

    def body(self) -> Iterable[Widget]:
        self.list.add_class("frame")
        with Vertical():
            yield self.list
            yield self.about

    def started(self) -> None:
        self._scan()
        self.set_interval(following.FOLLOW_S, self._follow)

    @on(events.ScreenResume)
    def _again(self) -> None:
        """Traces may have been compared, and written, since: look again behind what is shown."""
        if self.state == "full" and not self._looking:
            self._found, self._looking, self._quietly = [], True, True
            self.run_worker(self._look, thread=True, exclusive=True, group="look")

    def _follow(self) -> None:
        """A trace that runs, or that was stopped, may stand otherwise now."""
        unsettled = set(self.list.unsettled)
        if unsettled and self.is_current and not self._looking:
            self._learn([place for place in self._found if place.path in unsettled])

    def _learn(self, places: Sequence[Place]) -> None:
        self.run_worker(partial(self._look_at, places), thread=True, exclusive=True, group="learn")

    def _look_at(self, places: Sequence[Place]) -> None:
        worker, verdicts = get_current_worker(), last_verdicts()
        known: dict[str, Known] = {}
        told = time.monotonic()
        for place in places:
            if worker.is_cancelled:
                return
            path = Path(place.path)
            if _is_trace(place):
                verdict = verdicts.get(str(path.absolute()), "")
                known[place.path] = replace(
                    known_of(path), verdict=verdict, right=verdict.startswith("within")
                )
            elif place.kind == "results":
                known[place.path] = known_of_results(path)
            if time.monotonic() - told > LEARN_S:
                self.post_message(Learnt(known))
                known, told = {}, time.monotonic()
        self.post_message(Learnt(known))

    @on(Learnt)
    def _learnt(self, event: Learnt) -> None:
        seen = self.list.current
        self.list.learn(event.known)
        more = seen is not None and event.known.get(seen.place.path, seen.known) != seen.known
        self._retitle()
        self.about.renew(self.list.current, more=more)
        self.show_keys()

    @on(RowList.Moved, "#places")
    def _moved(self) -> None:
        self.about.follow(self.list.current)
        self.show_keys()

    @on(events.Resize)
    def _make_room(self) -> None:
        """The list takes the lines that it needs; what is known of a row all that is left."""
        least = LEAST_ABOUT[self.size.height < LOW]
        needed = max(self.list.row_count(), LEAST_ROWS) + FRAME_LINES
        self.list.styles.height = max(min(needed, self.size.height - 2 - least), 1)

    def here(self) -> Jump:
        return Jump("home", (self.folder,))

    def goals(self) -> Iterable[Goal]:
        for row in self.list.rows:
            path = Path(row.place.path)
            yield Goal(f"{row.name} · {row.place.kind}", row.name,
                       partial(self.app.open_path, path))  # fmt: skip

    def action_rescan(self) -> None:
        self._scan()
        self._asked = True

    def _scan(self) -> None:
        self._found, self._looking, self._quietly = [], True, False
        self.set_state("loading", "Looking for models and traces …", "q goes back")
        self._retitle()
        self.run_worker(self._look, thread=True, exclusive=True, group="look")

    def _retitle(self) -> None:
        listed, total = len(self.list.rows), len(self._found)
        shown = f"{len(self.list.marked)} marked · " if self.list.marked else ""
        remark = f" · {count(total)} found" if total else ""
        remark += " and more" if self._more else ""
        if self.list.filter and total:
            text = clean(self.list.filter, 30)
            shown += f"showing {count(listed)} of {count(total)} - filter {text} · "
        looking = " · looking …" if self._looking else ""
        self.set_title(f"{shown}{clean(str(self.folder), 80)}{remark}{looking}")
        order = {"newest": "the newest first", "name": "by name"}[self.list.sort]
        self.list.name_it(f"Models and traces below this folder · {order}")

    def _look(self) -> None:
        worker = get_current_worker()
        try:
            os.scandir(self.folder).close()
        except OSError as error:
            why = f"{clean(str(self.folder))} cannot be read: {error.strerror}"
            self.post_message(LoadFailed(why, "o opens another folder or file, r looks again"))
            return
        batch: list[Place] = []
        seen: set[Path] = set()
        for place in itertools.chain(left_places(), places_below(self.folder)):
            if worker.is_cancelled:
                return
            path = Path(place.path).absolute()
            if path in seen:
                continue
            seen.add(path)
            batch.append(place)
            if len(batch) >= 50:
                self.post_message(Found(tuple(batch), False))
                batch = []
            if len(seen) >= MAX_PLACES:
                self.post_message(Found(tuple(batch), True, more=True))
                return
        self.post_message(Found(tuple(batch), True))

    @on(LoadFailed)
    def _failed(self, event: LoadFailed) -> None:
        self._looking = False
        self._retitle()
        self.set_state("error", event.what, event.hint)

    @on(Found)
    def _add(self, event: Found) -> None:
        self._found += event.places
        self._looking, self._more = not event.done, event.more
        if self._quietly and not event.done:
            return
        self._quietly = False
        if not self._found and event.done:
            self.set_state("empty", "No model and no trace below this folder yet.", EMPTY)
        elif self._found:
            self.list.set_places(self._found, self.folder)
            if self.state != "full":
                self.set_state("full")
                self.list.focus()
        if event.done and self._found:
            self._learn(self._found)
        if event.done and self._asked:
            self._asked = False
            self.say(f"looked again: {count(len(self._found))} found")
        self._retitle()
        self._make_room()

    @on(RowList.Opened, "#places")
    def _open(self, event: RowList.Opened) -> None:
        self.app.open_path(Path(self.list.rows[event.row].place.path))

    # Keys.

    def action_open_other(self) -> None:
        """Any folder or file, wherever it is; a sweep's results behind a URL, too."""
        self.ask_path("open…", "open", f"{self.folder}/")

    def idle_keys(self) -> frozenset[str]:
        row = self.list.current
        if row is None:
            of_a_row = {"home-trace", "home-rename", "home-delete", "home-mark", "home-sort"}
            return frozenset(of_a_row | ({"home-diff"} if not self.list.marked else set()))
        if row.place.kind == "model":
            return frozenset({"home-rename", "home-delete"})
        return frozenset({"home-trace"} if _is_trace(row.place) else
                         {"home-trace", "home-rename", "home-delete"})  # fmt: skip

    def action_mark(self) -> None:
        """Mark the row, or take its mark away."""
        self.list.mark()
        self._retitle()

    def action_trace(self) -> None:
        """Plan a trace of the model under the cursor."""
        row = self.list.current
        if row is not None and row.place.kind == "model":
            self.app.open_trace(Path(row.place.path))

    def action_diff_with(self) -> None:
        """The two that are marked, the marked one and this, or this one and another."""
        row, marked = self.list.current, list(self.list.marked)
        if len(marked) == 1 and row is not None and row.place.path not in marked:
            marked.append(row.place.path)
        if len(marked) == 2:
            self._compare(Path(marked[0]), Path(marked[1]))
        elif len(marked) > 2:
            self._compare_many(tuple(map(Path, marked)))
        elif row is not None:
            self.ask_path("compare it with…", "diff", str(Path(row.place.path).parent) + "/")

    def _compare(self, a: Path, b: Path) -> None:
        kinds = {row.place.path: row.place.kind for row in self.list.rows}
        sides = [kinds.get(str(path), kinds.get(str(a))) for path in (a, b)]
        if "results" in sides:
            self.say("results of sweeps are compared by aprtui sweep PLAN --against RESULTS")
            return
        if sides[0] != sides[1]:
            self.say("a model and a trace: mark two models, or two traces")
            return
        open_both = "open_models" if sides[0] == "model" else "open_diff"
        getattr(self.app, open_both)(a, b)

    def _compare_many(self, paths: tuple[Path, ...]) -> None:
        """Traces against the first that was marked."""
        kinds = {row.place.path: row.place.kind for row in self.list.rows}
        if any(kinds.get(str(path), "trace") != "trace" for path in paths):
            self.say(f"{len(paths)} are marked, not all of them traces: a matrix is of traces")
            return
        self.app.open_matrix(paths)

    def action_rename(self) -> None:
        """Ask for another name of the trace's folder."""
        row = self.list.current
        if row is not None and _is_trace(row.place):
            self.ask("name it…", "rename", Path(row.place.path).name)

    def action_delete(self) -> None:
        """Ask whether the trace shall go, saying what would."""
        row = self.list.current
        if row is not None and _is_trace(row.place):
            known = row.known
            what = f", {count(known.files, 'file')}, {size(known.size_bytes)}" if known else ""
            self._doomed = row
            self.ask(f"y and enter delete {row.name}{what}; esc keeps it", "delete", how="")

    def answered(self, purpose: str, text: str) -> None:
        row = self.list.current
        if purpose == "open" and text:
            self.app.open_path(behind_url(text.strip()) or meant(text))
        elif purpose == "diff" and text and row is not None:
            self._compare(Path(row.place.path), meant(text))
        elif purpose == "rename" and text and row is not None:
            self._change(lambda: f"renamed {rename_trace(Path(row.place.path), text).name}")
        elif purpose == "delete" and text.strip().lower() == "y" and self._doomed is not None:
            doomed = Path(self._doomed.place.path)
            self._change(lambda: delete_trace(doomed))

    def _change(self, change: Callable[[], str]) -> None:
        """Change what lies on the disk, say what happened, and look again."""
        try:
            said = change()
        except AprtuiError as error:
            self.say(f"! {error.message}")
            return
        self.list.marked = [path for path in self.list.marked if Path(path).exists()]
        self._scan()
        self.say(clean(said))

    def action_sort(self) -> None:
        """The newest first, or by name."""
        self.list.sort = SORTS[(SORTS.index(self.list.sort) + 1) % len(SORTS)]
        self.list.set_places(self._found, self.folder)
        self._retitle()

    def action_filter(self) -> None:
        self.ask("show only names and kinds that have…", "filter", self.list.filter)

    def answering(self, purpose: str, text: str) -> None:
        if purpose == "filter":
            self.list.set_filter(text)
            self._retitle()
            self.show_keys()

    def step_back(self) -> bool:
        if self.list.marked:
            self.list.marked = []
            self.list.refresh()
            self._retitle()
            return True
        if not self.list.filter:
            return False
        self.answering("filter", "")
        return True


def _is_trace(place: Place) -> bool:
    """Whether it is one trace: a per-op folder holds two, of another program."""
    return place.kind == "trace" and not place.remark.startswith("per-op")
