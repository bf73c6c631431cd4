"""Results of a sweep: models, prompts and engines as a matrix, live while the sweep runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from textual import on
from textual.binding import BindingType
from textual.content import Content
from textual.message import Message

from aprtui.errors import AprtuiError
from aprtui.formats.tracedir import StageKey, key_of
from aprtui.sweep.matrix import VERDICTS, Matrix, Table
from aprtui.sweep.results import Results, open_results
from aprtui.text import clean
from aprtui.tui.following import Follower
from aprtui.tui.jumps import Jump
from aprtui.tui.keys import bindings
from aprtui.tui.messages import LoadFailed
from aprtui.tui.screens.cells import CellsScreen
from aprtui.tui.widgets.blocks import Block, named, wrapped
from aprtui.tui.widgets.lines import Part
from aprtui.tui.widgets.matrix_grid import Cell, Place, Row

if TYPE_CHECKING:
    from aprtui.sweep.matrix import Cell as Found

__all__ = ["ResultsScreen"]

# Rows by these axes, the others across; a goes round.
LAYOUTS = (("model", "prompt"), ("model",), ("prompt",), ("engine",), ("prompt", "engine"))
_SIGNS: dict[str, Part] = {
    "failed": ("#", "bad"), "culprits": ("*", "bad"), "differs": ("!", "bad"),
    "unmeasured": ("?", "warn"), "pending": ("·", "dim"), "explained": ("~", "good"),
    "same": ("=", "good"), "reference": ("A", "dim"),
}  # fmt: skip
_WRONG = ("failed", "culprits", "differs", "unmeasured")
_CHANGED = "»"


AWAY_S = 5.0  # between two looks at results behind a URL, while their sweep runs


@dataclass
class MatrixRead(Message):
    """The results as they stand now."""

    results: Results
    matrix: Matrix


@dataclass
class Fetched(Message):
    """What a cell opens was copied; or why it could not be."""

    target: Jump | None
    wrong: str = ""


class ResultsScreen(CellsScreen):
    """What changed since the run before stands first; enter opens the pair of a cell."""

    places: ClassVar[tuple[str, ...]] = ("matrix", "results")
    BINDINGS: ClassVar[list[BindingType]] = bindings("results")  # type: ignore[assignment]

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.results: Results | None = None
        self.follower = Follower(self, path)
        self.matrix: Matrix | None = None
        self.layout_ = 0
        self._looked = 0.0
        self.found: dict[Place, Found] = {}

    def started(self) -> None:
        self.set_title(self.title_of())
        self._read()
        self.follower.follow(self._follow)

    def _read(self) -> None:
        self._looked = time.monotonic()
        post: Callable[[Message], object] = self.post_message
        self.follower.read(partial(_read, self.path, self.results, post))

    def _follow(self) -> None:
        """A sweep that goes on puts its matrix anew; behind a URL only asking tells."""
        away = self.results is not None and self.results.away
        going = self.matrix is not None and not self.matrix.done
        if away and going and time.monotonic() - self._looked > AWAY_S:
            self.follower.forget()
        if self.follower.changed:
            self._read()

    @on(LoadFailed)
    def _failed(self, event: LoadFailed) -> None:
        if self.matrix is not None:  # what was read stands
            self.say(f"! {event.what}")
        else:
            self.set_state("error", event.what, event.hint or "q goes back")

    @on(MatrixRead)
    def _take(self, event: MatrixRead) -> None:
        self.results, self.matrix = event.results, event.matrix
        if not event.matrix.cells:
            self.set_state("empty", "The sweep has no cell.", "q goes back")
            return
        if self.state != "full":
            self.set_state("full")
            self.grid.focus()
        self._lay_out()

    def _lay_out(self) -> None:
        if self.matrix is None:
            return
        axes = LAYOUTS[self.layout_]
        table = self.matrix.table(axes)
        self.grid.corner = " / ".join(axes)
        self.found = dict(_places(table))
        rows = [Row(StageKey(None, label), label) for label in table.rows]
        self.set_table(rows, table.columns)
        self.put({place: self._cell(cell) for place, cell in self.found.items()})

    def _cell(self, found: Found) -> Cell:
        sign, tone = _SIGNS[found.verdict]
        worst = len(VERDICTS) - VERDICTS.index(found.verdict)
        words = f"{found.culprit} {found.mistake}" + (" changed" if found.changed else "")
        return Cell(
            found.verdict,
            f"{_CHANGED}{sign}" if found.changed else sign,
            tone,
            found.culprit or found.verdict,
            words,
            float(worst if found.verdict in _WRONG else 0),
            None if self.results is None or self.results.away else target(self.results, found),
        )

    def open_cell(self, place: Place, cell: Cell) -> None:
        found, results = self.found[place], self.results
        if cell.target is not None or results is None or found.capture is None:
            super().open_cell(place, cell)
            return
        self.say(
            f"copying {clean(' / '.join(found.place), 80)} from {clean(results.store.where)} …"
        )
        post: Callable[[Message], object] = self.post_message
        work = partial(_fetch, results, found, post)
        self.run_worker(work, thread=True, exclusive=True, group="fetch")

    @on(Fetched)
    def _fetched(self, event: Fetched) -> None:
        self.say(event.wrong)
        if event.target is not None and self.is_current:
            self.app.jump(event.target)

    # What stands around the cells.

    def title_of(self) -> str:
        going = "" if self.matrix is None or self.matrix.done else " · running or stopped"
        name = self.path.name or str(self.path)
        if self.results is not None and self.results.away:
            name = self.results.store.where
        return f"{clean(name, 60)} · a sweep{going}"

    def head_lines(self) -> list[Content]:
        if self.matrix is None:
            return []
        bad = self.matrix.exit_code
        tone = "bold $text-error" if bad else "bold $text-success"
        lines = [Content.styled(self.matrix.headline, tone)]
        if self.matrix.against:
            lines.append(Content.styled(f"held against {self.matrix.against}", "dim"))
        notes = self.matrix.notes[:3]
        return lines + [Content.styled(f"! {note}", "$text-warning") for note in notes]

    def legend_parts(self) -> list[Part]:
        there = {cell.verdict for cell in self.grid.cells.values()}
        parts: list[Part] = [(" ", "")]
        for verdict in VERDICTS:
            if verdict in there:
                parts += [_SIGNS[verdict], (f" {verdict}  ", "dim")]
        if any(cell.sign.startswith(_CHANGED) for cell in self.grid.cells.values()):
            parts += [(_CHANGED, ""), (" changed  ", "dim")]
        return parts

    def facts_of(self, place: Place) -> list[Block]:
        found, width = self.found.get(place), self.detail.column
        if found is None:
            return [[[("the plan has no such cell", "dim")]]]
        tone = _SIGNS[found.verdict][1]
        said = wrapped(found.error or found.text, "", width, f"{found.verdict}  ")
        said[0][0] = (f"{found.verdict}  ", tone)
        kept = "" if found.capture else "its capture was not kept: nothing to open"
        before = found.before if found.changed else ""
        return [
            said,
            named((("culprit", found.culprit), ("mistake", found.mistake),
                   ("before", before or ""))),
            named((("model", found.model), ("prompt", found.prompt), ("engine", found.engine),
                   ("", kept))),
        ]  # fmt: skip

    @property
    def stage_here(self) -> StageKey | None:
        return None  # a row is no stage

    def find_model(self) -> Path:
        raise NotImplementedError

    # Places and keys.

    def here(self) -> Jump:
        return Jump("results", (self.path,))

    def action_layout(self) -> None:
        """Other axes down and across."""
        self.layout_ = (self.layout_ + 1) % len(LAYOUTS)
        self._lay_out()

    def action_pause(self) -> None:
        self.follower.paused = not self.follower.paused
        self.say("paused: space goes on following" if self.follower.paused else "")


def _read(path: Path, opened: Results | None, post: Callable[[Message], object]) -> None:
    results = opened or open_results(path)
    post(MatrixRead(results, results.matrix()))


def target(results: Results, found: Found) -> Jump | None:
    """The pair of a cell, at its culprit; of one capture alone that. Raises AprtuiError."""
    if found.capture is None:
        return None
    capture = results.capture(found.capture)
    key = key_of(f"{found.culprit}.bin") if found.culprit else None
    if found.reference is None or found.reference == found.capture:
        return Jump("browse", (capture,), key)
    sides = results.capture(found.reference), capture
    return Jump("diff" if key is None else "pair", sides, key)


def _fetch(results: Results, found: Found, post: Callable[[Message], object]) -> None:
    try:
        post(Fetched(target(results, found)))
    except AprtuiError as error:
        post(Fetched(None, f"! {clean(str(error), 300)}"))


def _places(table: Table) -> Iterable[tuple[Place, Found]]:
    for label, cells in zip(table.rows, table.cells, strict=True):
        for column, cell in enumerate(cells):
            if cell is not None:
                yield (StageKey(None, label), column), cell
