"""Home: models and traces below the current folder, the newest first."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from textual import on
from textual.binding import BindingType
from textual.widget import Widget
from textual.worker import get_current_worker

from aprtui.errors import AprtuiError
from aprtui.formats.perop import is_per_op_side
from aprtui.formats.tracedir import EVENTS, MANIFEST, holds_trace
from aprtui.text import clean, count, duration, size
from aprtui.tui.keys import bindings
from aprtui.tui.messages import Found, LoadFailed, Place
from aprtui.tui.running import running_pid
from aprtui.tui.screens.base import BaseScreen
from aprtui.tui.session import left_running
from aprtui.tui.source import MODEL_SUFFIXES, kind_of
from aprtui.tui.widgets.lines import Part, RowList, fit, right

__all__ = ["HomeScreen", "places_below"]

MAX_DEPTH = 4
MAX_FOLDERS = 4000
MAX_PLACES = 500
EMPTY = (
    "o opens another folder or file, r looks again; "
    "aprtui demo makes a small model and two traces and opens them"
)
SORTS = ("newest", "name")
_SKIPPED = frozenset({"node_modules", "__pycache__", "site-packages"})


def places_below(root: Path) -> Iterator[Place]:
    """Models and traces under ``root``, MAX_DEPTH folders deep; hidden folders are passed over.

    What lies in one of them belongs to it, but what lies in ``root`` is shown whatever that is.
    """
    queue = [(root, 0)]
    looked = 0
    while queue and looked < MAX_FOLDERS:
        folder, depth = queue.pop(0)
        looked += 1
        try:
            with os.scandir(folder) as scan:
                entries = sorted(scan, key=lambda entry: entry.name)
        except OSError:
            continue
        names = {entry.name for entry in entries}
        sides = [side for side in ("cpu", "gpu") if side in names and is_per_op_side(folder / side)]
        if len(sides) == 2 or is_per_op_side(folder):
            what = "per-op, cpu and gpu" if len(sides) == 2 else "per-op"
            yield Place(str(folder), "trace", what, folder.stat().st_mtime)
            continue
        if names & {MANIFEST, EVENTS} or any(_is_layer(entry) for entry in entries):
            yield _trace_place(folder, names, entries)
            if depth:
                continue
        models = [entry for entry in entries if entry.name.endswith(MODEL_SUFFIXES)]
        if "config.json" in names and any(e.name.endswith(".safetensors") for e in models):
            total = sum(entry.stat().st_size for entry in models)
            yield Place(str(folder), "model", size(total), folder.stat().st_mtime)
            if depth:
                continue
            models = []  # one place, the folder
        for entry in models:
            if entry.is_file():
                stat = entry.stat()
                yield Place(entry.path, "model", size(stat.st_size), stat.st_mtime)
        if depth < MAX_DEPTH:
            queue += [
                (Path(entry.path), depth + 1)
                for entry in entries
                if entry.is_dir(follow_symlinks=False)
                and not entry.name.startswith(".")
                and entry.name not in _SKIPPED
                and not _is_layer(entry)
            ]


def left_places() -> Iterator[Place]:
    """Traces that were left running and still run, wherever they are."""
    for folder in left_running():
        if running_pid(folder) is not None:
            yield Place(str(folder), "trace", "running", folder.stat().st_mtime)


def _is_layer(entry: os.DirEntry[str]) -> bool:
    return entry.name.startswith("layer-") and entry.name[6:].isdigit() and entry.is_dir()


def _trace_place(folder: Path, names: set[str], entries: list[os.DirEntry[str]]) -> Place:
    layers = sum(_is_layer(entry) for entry in entries)
    remark = count(layers, "layer")  # whether every file is there, only opening it tells
    if MANIFEST not in names:
        writing = EVENTS in names and running_pid(folder) is not None
        ended = ", unfinished" if EVENTS in names else ", foreign"
        remark += ", running" if writing else ended
    return Place(str(folder), "trace", remark, folder.stat().st_mtime)


@dataclass
class _Shown:
    place: Place
    name: str

    @property
    def kind(self) -> str:
        return f"{self.place.kind} {self.place.remark}"


class PlaceList(RowList):
    """Kind, name, remark and age of each place."""

    def __init__(self) -> None:
        super().__init__(id="places")
        self._all: list[_Shown] = []
        self.rows: list[_Shown] = []
        self.filter, self.sort = "", SORTS[0]

    def set_places(self, places: Iterable[Place], root: Path) -> None:
        self._all = [
            _Shown(place, clean(os.path.relpath(place.path, root), 200))
            for place in sorted(places, key=lambda p: (not p.remark.endswith("running"), -p.mtime))
        ]
        self.set_filter(self.filter)

    def set_filter(self, text: str) -> None:
        self.filter = text.lower()
        self.rows = [row for row in self._all if self.filter in f"{row.name} {row.kind}".lower()]
        if self.sort == "name":
            self.rows.sort(key=lambda row: row.name)
        self.rows_changed()

    @property
    def current(self) -> Place | None:
        return self.rows[self.cursor].place if self.rows else None

    def row_count(self) -> int:
        return len(self.rows)

    def head_parts(self, width: int) -> list[Part]:
        return [
            (
                " kind   " + fit("name", max(width - 40, 10)) + fit("what", 22) + right("age", 9),
                "head",
            )
        ]

    def row_parts(self, row: int, width: int) -> list[Part]:
        entry = self.rows[row]
        model = entry.place.kind == "model"
        running = entry.place.remark.endswith("running")
        age = duration(max(time.time() - entry.place.mtime, 0)) if entry.place.mtime else ""
        return [
            (f" {entry.place.kind:<7}", "accent" if model else "good"),
            (fit(entry.name, max(width - 41, 10)) + " ", ""),
            (fit(entry.place.remark, 22), "accent" if running else "dim"),
            (right(_coarse(age), 9) + " ", "dim"),
        ]  # fmt: skip


def _coarse(age: str) -> str:
    parts = age.split(" ")
    return " ".join(parts[:2])


class HomeScreen(BaseScreen):
    """A list; Enter opens what the cursor is on."""

    mode = "home"
    places = ("home",)
    lead = "move"
    BINDINGS: ClassVar[list[BindingType]] = bindings("home")  # type: ignore[assignment]

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.list = PlaceList()
        self._found: list[Place] = []
        self._looking, self._more = True, False

    def body(self) -> Iterable[Widget]:
        self.list.add_class("frame")
        yield self.list

    def started(self) -> None:
        self.action_rescan()

    def action_rescan(self) -> None:
        self._found, self._looking = [], True
        self.set_state("loading", "Looking for models and traces …", "q goes back")
        self._retitle()
        self.run_worker(self._look, thread=True, exclusive=True, group="look")

    def _retitle(self) -> None:
        listed, total = len(self.list.rows), len(self._found)
        shown = ""
        remark = f" · {count(total)} found" if total else ""
        remark += " and more" if self._more else ""
        if self.list.filter and total:
            text = clean(self.list.filter, 30)
            shown = f"showing {count(listed)} of {count(total)} - filter {text} · "
        looking = " · looking …" if self._looking else ""
        self.set_title(f"{shown}{clean(str(self.folder), 80)}{remark}{looking}")
        order = {"newest": "the newest first", "name": "by name"}[self.list.sort]
        self.list.border_title = f"Models and traces below this folder · {order}"

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
        if not self._found and event.done:
            self.set_state("empty", "No model and no trace below this folder yet.", EMPTY)
        elif self._found:
            self.list.set_places(self._found, self.folder)
            if self.state != "full":
                self.set_state("full")
                self.list.focus()
        self._retitle()

    @on(RowList.Opened, "#places")
    def _open(self, event: RowList.Opened) -> None:
        self._open_path(Path(self.list.rows[event.row].place.path))

    def _open_path(self, path: Path) -> None:
        try:
            opened = kind_of(path)
        except AprtuiError as error:
            self.say(clean(str(error)))
            return
        if opened.kind == "trace" and path.is_dir() and not holds_trace(path):
            self.app.go("home", lambda: HomeScreen(path))  # type: ignore[attr-defined]
        else:
            self.app.open_any(opened)  # type: ignore[attr-defined]

    # Keys.

    def action_open_other(self) -> None:
        """Any folder or file, wherever it is."""
        self.ask("open…", "open", f"{self.folder}/")

    def action_diff_with(self) -> None:
        """The place under the cursor as A, another one as B."""
        place = self.list.current
        if place is not None:
            self.ask("compare it with…", "diff", str(Path(place.path).parent) + "/")

    def answered(self, purpose: str, text: str) -> None:
        place = self.list.current
        if purpose == "open" and text:
            self._open_path(Path(text).expanduser())
        elif purpose == "diff" and text and place is not None:
            both = Path(place.path), Path(text).expanduser()
            open_both = "open_models" if place.kind == "model" else "open_diff"
            getattr(self.app, open_both)(*both)

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

    def step_back(self) -> bool:
        if not self.list.filter:
            return False
        self.answering("filter", "")
        return True
