"""Models, traces and sweeps' results as a list, and what is known of the one under the cursor."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from aprtui.text import clean, count, duration, size
from aprtui.tui.messages import Known, Place
from aprtui.tui.stage_filter import finder
from aprtui.tui.widgets.blocks import Block, named, wrapped
from aprtui.tui.widgets.frame import Named
from aprtui.tui.widgets.lines import Part, RowList, fit, right

__all__ = ["SORTS", "PlaceList", "PlaceRow", "place_facts"]

SORTS = ("newest", "name")
TONES = {"running": "accent", "stopped": "warn", "unfinished": "warn", "damaged": "bad"}
WIDE = 100
_KINDS = {"results": "sweep"}  # what fits the column


@dataclass(frozen=True)
class PlaceRow:
    """A place, its name from the folder that is looked through, what is known of it."""

    place: Place
    name: str
    known: Known | None = None

    @property
    def state(self) -> str:
        return self.known.state if self.known is not None else ""

    @property
    def words(self) -> str:
        """What a filter finds."""
        said = self.known
        more = f"{said.prompt} {said.engine} {said.model} {said.dtype}" if said else ""
        return f"{self.name} {self.place.kind} {self.place.remark} {self.state} {more}".lower()


class PlaceList(RowList, Named):
    """One line a place; running traces first."""

    def __init__(self) -> None:
        super().__init__(id="places")
        self._all: list[PlaceRow] = []
        self.rows: list[PlaceRow] = []
        self.marked: list[str] = []
        self.filter, self.sort = "", SORTS[0]

    def set_places(self, places: Iterable[Place], root: Path) -> None:
        before = {row.place.path: row for row in self._all}
        self._all = [
            PlaceRow(
                place,
                clean(os.path.relpath(place.path, root), 200),
                before[place.path].known if place.path in before else None,
            )
            for place in places
        ]
        self.set_filter(self.filter)

    def learn(self, known: Mapping[str, Known]) -> None:
        """Some traces were looked at; what is as it was is not drawn again."""
        if all(known.get(row.place.path, row.known) == row.known for row in self._all):
            return
        self._all = [replace(row, known=known.get(row.place.path, row.known)) for row in self._all]
        self.set_filter(self.filter)

    def set_filter(self, text: str) -> None:
        here = self.current
        self.filter = text.strip()
        found = finder(self.filter)
        self.rows = [row for row in self._all if found(row.words)]
        if self.sort == "name":
            self.rows.sort(key=lambda row: row.name)
        else:
            self.rows.sort(key=lambda row: (row.state != "running", -row.place.mtime))
        paths = [row.place.path for row in self.rows]
        if here is not None and here.place.path in paths:
            self.cursor = paths.index(here.place.path)
        self.rows_changed()

    @property
    def current(self) -> PlaceRow | None:
        return self.rows[self.cursor] if self.cursor < len(self.rows) else None

    @property
    def unsettled(self) -> list[str]:
        """Paths of the traces that may stand otherwise in a moment."""
        may_change = ("running", "stopped", "unfinished")
        return [row.place.path for row in self._all if row.state in may_change]

    def mark(self) -> None:
        """Mark the row, or take its mark away; then the next row."""
        if self.current is not None:
            path = self.current.place.path
            self.marked = [each for each in self.marked if each != path] + (
                [] if path in self.marked else [path]
            )
            self.action_down()
            self.refresh()

    # What RowList asks.

    def row_count(self) -> int:
        return len(self.rows)

    def head_parts(self, width: int) -> list[Part]:
        texts = ("   kind", "name", "model", "prompt", "dtype", "engine", "state", "size",
                 "last verdict", "age")  # fmt: skip
        return [("".join(self._cells(width, texts)), "head")]

    def row_parts(self, row: int, width: int) -> list[Part]:
        entry = self.rows[row]
        known = entry.known or Known("")
        age = duration(max(time.time() - entry.place.mtime, 0)) if entry.place.mtime else ""
        model = entry.place.kind == "model"
        trace = entry.place.kind == "trace"
        bytes_ = entry.place.remark if model else ""
        if trace and entry.known is not None:
            bytes_ = size(known.size_bytes)
        mark = "*" if entry.place.path in self.marked else " "
        kind = _KINDS.get(entry.place.kind, entry.place.kind)
        texts = self._cells(width, (
            f" {mark} {kind}", entry.name, known.model, known.prompt, known.dtype,
            known.engine, entry.state or ("" if model else entry.place.remark), bytes_,
            known.verdict, " ".join(age.split(" ")[:2]),
        ))  # fmt: skip
        if not trace:  # its name takes the columns that a trace alone fills
            room = sum(map(len, texts[1:6]))
            texts[1:6] = [fit(entry.name, room - 1) + " ", "", "", "", ""]
        tones = ["accent" if model else "good", "", "dim", "dim", "dim", "dim",
                 TONES.get(entry.state, "dim"), "dim", "", "dim"]  # fmt: skip
        tones[8] = _judged(known)
        return [*zip(texts, tones, strict=True)]

    def _cells(self, width: int, texts: tuple[str, ...]) -> list[str]:
        """The texts in their columns; the narrow list leaves out what the preview says."""
        kind, name, model, prompt, dtype, engine, state, bytes_, verdict, age = texts
        room = width - 10 - 11 - 10 - 10
        if width < WIDE:
            named_, judged = room - room * 2 // 5, room * 2 // 5
            shares = (named_, 0, 0, 0, 0, judged)
        else:
            room -= 9 + 9
            each = room // 4
            shares = (room - 3 * each, each, each, 9, 9, each)
        cells = [fit(kind, 9) + " "]
        for text, share in zip((name, model, prompt, dtype, engine), shares, strict=False):
            cells.append(fit(text, share - 1) + " " if share else "")
        cells += [fit(state, 10) + " ", right(bytes_, 9) + " ",
                  fit(verdict, shares[5] - 1) + " ", right(age, 9) + " "]  # fmt: skip
        return cells


def _judged(known: Known) -> str:
    return "good" if known.right else "bad"


def place_facts(row: PlaceRow, width: int) -> list[Block]:
    """All that is known of a place, in whole sentences."""
    known, path = row.known, clean(row.place.path, 300)
    if known is None:
        size_of = named(((row.place.kind, row.place.remark),))
        return [size_of, [[("path", "head")], *wrapped(path, "", width)]]
    if row.place.kind == "results":
        said = wrapped(known.note or known.verdict, "bad" if known.note else _judged(known), width)
        return [
            named((("state", known.state),)),
            said,
            [[("path", "head")], *wrapped(path, "", width)],
        ]
    of = f" of {count(known.expected)}" if known.expected else ""
    ran = " · ".join(part for part in (known.engine, known.device, known.dtype) if part)
    what = " · ".join(part for part in (known.model, known.architecture) if part)
    prompt = f'"{known.prompt}"' if known.prompt else ""
    tokens = count(known.tokens, "token") if known.tokens else ""
    facts = named((
        ("state", f"{known.state} · {count(known.files)}{of} files"),
        ("model", what), ("ran by", ran), ("prompt", tokens),
    ))  # fmt: skip
    blocks = [facts + wrapped(prompt, "", width, " " * 11)[:3] if prompt else facts]
    if known.verdict:
        verdict = wrapped(known.verdict, _judged(known), width)
        blocks.append([[("last verdict", "head")], *verdict])
    if known.note:
        blocks.append(wrapped(known.note, "bad", width))
    blocks.append(named((("size", size(known.size_bytes)), ("made", known.created))))
    blocks.append([[("path", "head")], *wrapped(path, "", width)])
    return blocks
