"""The Tokens pane: what each position would say next, if the model ended at this stage."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from pathlib import Path

from textual import on, work
from textual.message import Message
from textual.worker import get_current_worker

from aprtui.compare.reference import named_adapter
from aprtui.errors import AprtuiError
from aprtui.formats.tracedir import StageRecord, TraceDir
from aprtui.graph.vocabulary import STAGES, facts_of, order_of
from aprtui.text import clean, told_token
from aprtui.tui.lens import LENS, Lens, ask_lens, model_of, of_logits
from aprtui.tui.measure import Store, identity
from aprtui.tui.widgets.lines import Part, RowList, fit
from aprtui.tui.widgets.pane import Nothing
from aprtui.tui.widgets.stage_pane import StagePane, StageSeen

__all__ = ["TokensPane"]

LABEL, CELL = 14, 20
MOST_FILES = 400


@dataclass
class Ready(Message):
    """The lens of a file, or why there is none."""

    identity: tuple[str, int, int]
    lens: Lens | None
    why: str = ""
    hint: str = ""


@dataclass
class ModelFound(Message):
    """The model is there and is the trace's: the engine may be asked."""

    model: Path
    record: StageRecord
    trace: TraceDir
    adapter: Path | None


class TokensPane(RowList, StagePane):
    """One line a position; the token that really came next stands out."""

    blurred = ""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.store = Store()
        self.command = LENS
        self.lens: Lens | None = None
        self.note: tuple[str, str] = ("", "")
        self._texts: tuple[str, ...] = ()
        self._ids: tuple[int, ...] = ()
        self._record: StageRecord | None = None
        self._asked: set[object] = set()
        self._given = ""  # the model that was named; empty: the manifest's

    def nothing(self, seen: StageSeen) -> Nothing | None:
        stage = seen.record.key.stage
        facts, why = facts_of(stage), super().nothing(seen)
        if why is not None or facts.lens or facts.logits:
            return why
        *those, last = (each.name for each in STAGES if each.lens or each.logits)
        return Nothing(f"{clean(stage, 60)} is no residual stream: nothing to read tokens from",
                       f"they are read from {', '.join(those)} and {last}")  # fmt: skip

    def show(self, seen: StageSeen) -> None:
        """The tokens of a stage; computed when they are not known yet."""
        record, trace, model = seen.record, seen.trace, seen.model
        self._record = record
        self._texts, self._ids = trace.token_texts or (), trace.token_ids or ()
        self._given = model
        known = self.store.get(self._key(identity(record.path)))
        self.lens = known if isinstance(known, Lens) else None
        self.note = ("", "")
        if self.lens is None:
            self.note = ("reading tokens …", "")
            self._find(record, trace, model)
        self.rows_changed()

    @work(thread=True, exclusive=True, group="lens-model")
    def _find(self, record: StageRecord, trace: TraceDir, given: str) -> None:
        """The model; and of lm_head the tokens at once, with ids alone where there is no model."""
        place = identity(record.path)
        why = AprtuiError("", hint="")
        try:
            model = model_of(trace, given)
        except AprtuiError as error:
            model, why = None, error
        try:
            if facts_of(record.key.stage).logits:
                lens = of_logits(record, model)
                answer: Message = Ready(place, lens)
            elif model is None:
                answer = Ready(place, None, why.message, why.hint)
            else:
                answer = ModelFound(model, record, trace, named_adapter(trace, model))
        except AprtuiError as error:
            answer = Ready(place, None, error.message, error.hint)
        if not get_current_worker().is_cancelled:
            self.post_message(answer)

    @on(ModelFound)
    def _ask(self, event: ModelFound) -> None:
        """Ask the engine for this file first, and for all the others on the way."""
        place = identity(event.record.path)
        if place in self._asked:
            return
        others = [
            record
            for key, record in sorted(event.trace.records.items(), key=lambda kv: order_of(kv[0]))
            if facts_of(key.stage).lens and key != event.record.key and not record.parts
        ]
        wanted = [
            record.path
            for record in (event.record, *others[:MOST_FILES])
            if self.store.get(self._key(identity(record.path))) is None
        ]
        self._asked = {identity(path) for path in wanted}
        self._compute(event.model, event.adapter, wanted)

    @work(exclusive=True, group="lens")
    async def _compute(self, model: Path, adapter: Path | None, files: list[Path]) -> None:
        places = {path: identity(path) for path in files}

        def tell(path: Path, lens: Lens | None, why: str, hint: str) -> None:
            self.post_message(Ready(places[path], lens, why, hint))

        await ask_lens(self.command, model, adapter, files, tell)
        self._asked = set()

    @on(Ready)
    def _ready(self, event: Ready) -> None:
        event.stop()
        if event.lens is not None:
            self.store.put(self._key(event.identity), event.lens)
        if self._record is not None and event.identity == identity(self._record.path):
            self.lens = event.lens
            self.note = (event.why, event.hint)
            self.rows_changed()

    def _key(self, place: object) -> object:
        return ("lens", place, self._given)

    # Drawing.

    def row_count(self) -> int:
        return len(self.lens.rows) if self.lens else len(self._note_lines())

    def _note_lines(self) -> list[Part]:
        """Why there are no tokens, and what to do, wrapped."""
        what, hint = self.note
        width = max(self.size.width - 2, 20)
        lines = [(f" {line}", "warn" if hint else "dim") for line in textwrap.wrap(what, width)]
        return lines + [(f" {line}", "dim") for line in textwrap.wrap(hint, width)]

    def head_parts(self, width: int) -> list[Part] | None:
        if self.lens is None:
            return None
        first = f" · positions from {self.lens.first}" if self.lens.first else ""
        return [(" position" + " " * (LABEL - 9), "head"),
                (f"likeliest next tokens{first}", "head")]  # fmt: skip

    def row_parts(self, row: int, width: int) -> list[Part]:
        if self.lens is None:
            return [self._note_lines()[row]]
        at = self.lens.first + row
        numbers = None if self._record is None else self._record.row_numbers()
        position = numbers[at] if numbers is not None and at < len(numbers) else at
        text = clean(self._texts[position], 40) if position < len(self._texts) else ""
        rows = None if self._record is None else self._record.rows
        place = str(position) if rows is None else rows.label(position)
        parts: list[Part] = [(fit(f" {place} {text}", LABEL - 1) + " ", "dim")]
        came = self._ids[position + 1] if position + 1 < len(self._ids) else None
        guesses = self.lens.rows[row]
        if not guesses:
            return [*parts, ("NaN or infinity: no tokens", "bad")]
        for guess in guesses[: max((width - LABEL) // CELL, 1)]:
            name = told_token(guess.text, guess.id)
            style = "good" if guess.id == came else ""
            parts += [(fit(name, CELL - 9) + " ", style),
                      (f"{100 * guess.probability:5.1f} %" + " ", "dim")]  # fmt: skip
        return parts
