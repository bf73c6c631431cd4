"""The Lens pane: layers by positions, in each cell the token that the model would say there.

A cell's ground is as bright as the probability of its token is high, or that of the chosen token
(``t`` chooses the one under the cursor), whose rank and probability are told of every cell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.segment import Segment
from rich.style import Style
from textual import events, on, work
from textual.geometry import Region
from textual.message import Message
from textual.strip import Strip
from textual.worker import get_current_worker

from aprtui.compare.reference import named_adapter
from aprtui.errors import AprtuiError
from aprtui.formats.tracedir import StageRecord, TraceDir
from aprtui.graph.vocabulary import facts_of, order_of
from aprtui.text import clean, count, told_token
from aprtui.tui.lens import LENS, Guess, Lens, ask_lens, model_of
from aprtui.tui.measure import Store, identity
from aprtui.tui.widgets.cell_cursor import CellCursor, scrolled
from aprtui.tui.widgets.lines import Part, fit, right, whole_fields
from aprtui.tui.widgets.palette import LEVELS, palette_of
from aprtui.tui.widgets.pane import Nothing
from aprtui.tui.widgets.stage_pane import StagePane, StageSeen

__all__ = ["LensPane", "lens_rows"]

CELL = 9  # a token of eight cells, and a blank
LABEL = 7


@dataclass
class Asked(Message):
    """The model is there: the engine may be asked about these files."""

    model: Path
    adapter: Path | None
    files: tuple[Path, ...]
    token: int | None


@dataclass
class Told(Message):
    """The lens of a file, or why there is none."""

    path: Path | None
    token: int | None
    lens: Lens | None
    why: str = ""
    hint: str = ""


def lens_rows(trace: TraceDir) -> list[StageRecord]:
    """A file a layer, the last of the residual stream in it; what comes before and behind them."""
    residual = [key for key in trace.records if facts_of(key.stage).lens]
    chosen: dict[int | str | None, StageRecord] = {}
    for key in sorted(residual, key=order_of):
        if not trace.records[key].parts:
            first = facts_of(key.stage).scope == "first"
            chosen["first" if first else key.layer] = trace.records[key]
    return list(chosen.values())


class LensPane(CellCursor, StagePane):
    """Cells are read by the engine, layer by layer; the cursor moves over layers and positions."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.command: Sequence[str] = LENS
        self.store = Store(4000)
        self.chosen: Guess | None = None
        self.first_row = self.first_column = 0
        self.rows: list[StageRecord] = []
        self.note: tuple[str, str] = ("", "")
        self._trace: TraceDir | None = None
        self._listed: tuple[TraceDir, list[StageRecord]] | None = None
        self._placed = False

    def nothing(self, seen: StageSeen) -> Nothing | None:
        if self._rows_of(seen.trace):
            return None
        return Nothing("No residual stream is in the trace: nothing to read tokens from.",
                       "post_ffn_residual, or final_norm, shows them")  # fmt: skip

    def _rows_of(self, trace: TraceDir) -> list[StageRecord]:
        """Found once: a trace may have ten thousand stages, and each move asks."""
        if self._listed is None or self._listed[0] is not trace:
            self._listed = (trace, lens_rows(trace))
        return self._listed[1]

    def show(self, seen: StageSeen) -> None:
        """The grid of this trace; the cursor goes to the layer that is seen."""
        again = self._trace is seen.trace and self.seen is not None
        again = again and self.seen is not None and self.seen.model == seen.model
        self.seen, self._trace = seen, seen.trace
        if not again:
            self.rows = self._rows_of(seen.trace)
            self._placed = False
        layers = [record.key.layer for record in self.rows]
        if seen.record.key.layer in layers:
            self.row = len(layers) - 1 - layers[::-1].index(seen.record.key.layer)
        self._ask_for_missing()
        self._place()
        self.refresh()

    # What the engine says.

    def _known(self, path: Path, token: int | None) -> Lens | None:
        model = self.seen.model if self.seen is not None else ""
        found = self.store.get((identity(path), token, model))
        return found if isinstance(found, Lens) else None

    def _told_of(self, path: Path) -> Lens | None:
        """What is known of a file with the token that is followed."""
        return self._known(path, self.chosen.id if self.chosen is not None else None)

    def lens(self, row: int) -> Lens | None:
        """What is known of a row by now: of the token that is followed, as long as nothing is said
        of it, only what each position would say."""
        path = self.rows[row].path
        return self._told_of(path) or self._known(path, None)

    def _ask_for_missing(self) -> None:
        missing = [row.path for row in self.rows if self._told_of(row.path) is None]
        if missing and self._trace is not None and self.seen is not None:
            self.note = ("reading tokens …", "")
            token = self.chosen.id if self.chosen is not None else None
            self._find(self._trace, self.seen.model, tuple(missing), token)

    @work(thread=True, exclusive=True, group="grid-model")
    def _find(
        self, trace: TraceDir, given: str, files: tuple[Path, ...], token: int | None
    ) -> None:
        try:
            model = model_of(trace, given)
            answer: Message = Asked(model, named_adapter(trace, model), files, token)
        except AprtuiError as error:
            answer = Told(None, token, None, error.message, error.hint)
        if not get_current_worker().is_cancelled:
            self.post_message(answer)

    @on(Asked)
    def _ask(self, event: Asked) -> None:
        event.stop()
        self._compute(event)

    @work(exclusive=True, group="grid-lens")
    async def _compute(self, asked: Asked) -> None:
        def tell(path: Path, lens: Lens | None, why: str, hint: str) -> None:
            self.post_message(Told(path, asked.token, lens, why, hint))

        await ask_lens(self.command, asked.model, asked.adapter, asked.files, tell, asked.token)

    @on(Told)
    def _told(self, event: Told) -> None:
        event.stop()
        if event.lens is not None and event.path is not None and self.seen is not None:
            self.store.put((identity(event.path), event.token, self.seen.model), event.lens)
        self.note = (event.why, event.hint)
        self._place()
        self.refresh()

    # Where the cursor is.

    @property
    def columns(self) -> int:
        return max((len(self._positions(row)) for row in range(len(self.rows))), default=0)

    def _positions(self, row: int) -> range:
        lens = self.lens(row)
        return range(0) if lens is None else range(lens.first, lens.first + len(lens.rows))

    def _at(self, row: int, column: int) -> int | None:
        """Which row of the layer's lens stands in that column; the last ones stand at the right."""
        lens = self.lens(row)
        at = column - (self.columns - len(lens.rows)) if lens is not None else -1
        return at if lens is not None and 0 <= at < len(lens.rows) else None

    def _place(self) -> None:
        """At first the last position, where the answer is made."""
        if not self._placed and self.columns:
            self._placed = True
            self.column = self.columns - 1
        self._clamp()

    @property
    def page_rows(self) -> int:
        return max(self.size.height - 4, 1)

    @property
    def page_columns(self) -> int:
        return max((self.size.width - LABEL) // CELL, 1)

    def _clamp(self) -> None:
        rows, columns = len(self.rows), self.columns
        self.row = max(0, min(self.row, rows - 1))
        self.column = max(0, min(self.column, columns - 1))
        self.first_row = scrolled(self.first_row, self.row, self.page_rows, rows)
        self.first_column = scrolled(self.first_column, self.column, self.page_columns, columns)

    def move_to(self, row: int, column: int) -> None:
        before = (self.row, self.column, self.first_row, self.first_column)
        self.row, self.column = row, column
        self._clamp()
        if before[2:] != (self.first_row, self.first_column):
            self.refresh()
            return
        for at_row, at_column in (before[:2], (self.row, self.column)):
            y = 1 + at_row - self.first_row
            x = LABEL + CELL * (at_column - self.first_column)
            for region in (Region(x, y, CELL, 1), Region(0, y, LABEL, 1), Region(x, 0, CELL, 1)):
                self.refresh(region)
        self.refresh(Region(0, self.size.height - 2, self.size.width, 2))

    def action_open(self) -> None:
        """The stage behind the row, in Values."""
        at = self._at(self.row, self.column) if self.rows else None
        if at is not None:
            record, lens = self.rows[self.row], self.lens(self.row)
            width = record.shape[-1] if record.shape else 0
            first = lens.first if lens is not None else 0
            self.post_message(self.ValueWanted(record.key, (first + at) * width))

    def on_click(self, event: events.Click) -> None:
        place = event.get_content_offset(self)
        if place is not None and place.x >= LABEL and 0 < place.y <= self.page_rows:
            row, column = place.y - 1, (place.x - LABEL) // CELL
            self.move_to(self.first_row + row, self.first_column + column)

    def on_resize(self) -> None:
        self._clamp()
        self.refresh()

    def on_focus(self) -> None:
        self.refresh()

    def on_blur(self) -> None:
        self.refresh()

    # Choosing a token.

    @property
    def guess(self) -> Guess | None:
        """The likeliest token under the cursor."""
        at = self._at(self.row, self.column) if self.rows else None
        lens = self.lens(self.row) if at is not None else None
        return lens.rows[at][0] if lens is not None and at is not None and lens.rows[at] else None

    def action_choose(self) -> None:
        """Follow the token under the cursor through all layers; once more: none."""
        guess = self.guess
        if self.chosen is not None and (guess is None or guess.id == self.chosen.id):
            self.chosen = None
        elif guess is not None:
            self.chosen = guess
        self._ask_for_missing()
        self.refresh()

    def copied(self) -> str:
        guess = self.guess
        return repr(guess.text) if guess is not None and self.has_focus else ""

    # Drawing.

    def render_line(self, y: int) -> Strip:
        width, height = self.size.width, self.size.height
        if not self.columns:
            what, hint = self.note
            lines: list[list[Part]] = [[], [(f"  {what}", "warn" if hint else "dim")],
                                       [(f"  {hint}", "dim")]]  # fmt: skip
            return self.strip(lines[y] if y < len(lines) else [], width)
        if y == 0:
            return self.strip(self._head(), width)
        if y >= height - 2:
            parts = self._of_cell() if y == height - 2 else self._of_chosen()
            return self.strip(whole_fields(parts, width), width)
        row = self.first_row + y - 1
        if row >= len(self.rows) or y > self.page_rows:
            return Strip.blank(width, self.line_style(""))
        tone = "accent" if row == self.row and self.has_focus else "head"
        segments = [Segment(right(self._row_name(row), LABEL - 1) + " ", self.line_style(tone))]
        last = min(self.first_column + self.page_columns, self.columns)
        segments += [self._cell(row, column) for column in range(self.first_column, last)]
        return Strip(segments).simplify().adjust_cell_length(width, self.line_style(""))

    def _row_name(self, row: int) -> str:
        key = self.rows[row].key
        if facts_of(key.stage).scope == "first":
            return "emb"
        return "end" if key.layer is None else str(key.layer)

    def _position(self, column: int) -> int:
        """The row of the trace that a column stands for."""
        for row in range(len(self.rows) - 1, -1, -1):
            lens, at = self.lens(row), self._at(row, column)
            if lens is not None and at is not None:
                numbers = self.rows[row].row_numbers()
                place = lens.first + at
                return numbers[place] if numbers is not None and place < len(numbers) else place
        return column

    def _text(self, position: int) -> str:
        texts = (self._trace.token_texts if self._trace is not None else None) or ()
        return clean(texts[position], 20) if position < len(texts) else ""

    def _head(self) -> list[Part]:
        parts: list[Part] = [(" " * LABEL, "")]
        last = min(self.first_column + self.page_columns, self.columns)
        for column in range(self.first_column, last):
            position = self._position(column)
            name = f"{position} {self._text(position).strip()}"
            here = column == self.column and self.has_focus
            parts.append((fit(name, CELL - 1) + " ", "accent" if here else "dim"))
        return parts

    def _cell(self, row: int, column: int) -> Segment:
        lens, at = self.lens(row), self._at(row, column)
        if lens is None or at is None:
            return Segment(fit("…" if lens is None else "", CELL), self.line_style("dim"))
        here = (row, column) == (self.row, self.column) and self.has_focus
        if not lens.rows[at]:
            return Segment(fit("NaN", CELL), self.line_style("cursor" if here else "bad"))
        guess = lens.rows[at][0]
        probability = guess.probability
        if self.chosen is not None:
            asked = lens.asked[at] if at < len(lens.asked) else None
            probability = asked[1] if asked is not None else 0.0
        text = fit(guess.text or f"id {guess.id}", CELL - 1) + " "
        return Segment(text, self.line_style("cursor") if here else self._ground(probability))

    def _ground(self, probability: float) -> Style:
        """Letters on a ground as bright as the probability is high."""
        palette = palette_of(self.app)
        if not palette.depth.blends:
            tones = ("dim", "", "accent", "good")
            return self.line_style(tones[min(int(probability * 4), 3)])
        level = min(round(probability**0.5 * (LEVELS - 1)), LEVELS - 1)
        if level == 0:
            return self.line_style("dim")
        bright = (level > (LEVELS - 1) / 2) == palette.dark
        ink = "#000000" if bright else "#ffffff"
        return Style(color=ink, bgcolor=palette.colour(level, False))

    def _of_cell(self) -> list[Part]:
        """The cell under the cursor: its likeliest tokens."""
        lens, at = self.lens(self.row), self._at(self.row, self.column)
        key, position = self.rows[self.row].key, self._position(self.column)
        where = "" if key.layer is None else f"layer {key.layer} "
        parts: list[Part] = [
            (f" {where}{clean(key.stage, 30)}  ", "head"),
            (f"{position} {self._text(position)!r} →  ", "dim"),
        ]  # fmt: skip
        if lens is None or at is None:
            return parts
        came = self._came(position)
        for guess in lens.rows[at]:
            name = repr(guess.text) if guess.text else f"id {guess.id}"
            parts.append((f"{name} {100 * guess.probability:.1f} %  ",
                          "good" if guess.id == came else ""))  # fmt: skip
        return parts

    def _came(self, position: int) -> int | None:
        """The token that really came next."""
        ids = (self._trace.token_ids if self._trace is not None else None) or ()
        return ids[position + 1] if position + 1 < len(ids) else None

    def _of_chosen(self) -> list[Part]:
        what, _ = self.note
        if what:
            return [(f" {what}", "warn" if self.note[1] else "dim")]
        lens, at = self.lens(self.row), self._at(self.row, self.column)
        if self.chosen is None:
            return [(" t follows the token under the cursor: its rank and probability everywhere",
                     "dim")]  # fmt: skip
        name = told_token(self.chosen.text, self.chosen.id)
        asked = lens.asked[at] if lens and at is not None and at < len(lens.asked) else None
        if asked is None:
            return [(f" {name} is followed  ", "accent")]
        rank, probability = asked
        return [(f" {name} is followed  ", "accent"), (f"here rank {count(rank)}  ", ""),
                (f"{100 * probability:.3g} %  ", ""), ("t ends it", "dim")]  # fmt: skip
