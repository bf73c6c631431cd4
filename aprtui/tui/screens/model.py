"""Model: what a file says it is, its tensors by role with sizes, and what is odd about it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

from textual import on, work
from textual.binding import BindingType
from textual.containers import Horizontal, Vertical
from textual.message import Message
from textual.widget import Widget
from textual.widgets import Static

from aprtui.errors import AprtuiError, UsageError
from aprtui.formats.modelfile import ModelFile
from aprtui.formats.tracedir import StageKey
from aprtui.model.open import Model, open_model, read_model_file
from aprtui.text import clean, size
from aprtui.tui.carry import copy
from aprtui.tui.jumps import Goal, Jump
from aprtui.tui.keys import bindings
from aprtui.tui.messages import LoadFailed
from aprtui.tui.model_facts import TensorRow, layer_facts, tensor_rows
from aprtui.tui.panes import places_of
from aprtui.tui.paths import meant
from aprtui.tui.screens.model_text import summary
from aprtui.tui.screens.paned import PanedScreen
from aprtui.tui.weight_values import place_of
from aprtui.tui.widgets.facts import Fact
from aprtui.tui.widgets.frame import NamedFrame
from aprtui.tui.widgets.lines import RowList
from aprtui.tui.widgets.model_pane import ModelPane, ModelSeen
from aprtui.tui.widgets.pane import Pane
from aprtui.tui.widgets.tensor_list import SORTS, TensorList
from aprtui.tui.widgets.value_grid import ValueGrid
from aprtui.tui.widgets.weight_map_pane import WeightMapPane
from aprtui.tui.widgets.weight_pane import WeightPane

__all__ = ["ModelScreen"]


@dataclass
class ModelLoaded(Message):
    """A model file was read; ``model`` is None when its metadata does not suffice (``why``)."""

    file: ModelFile
    model: Model | None
    why: str


@dataclass
class Verified(Message):
    """The whole file was read; ``wrong`` says what does not hold."""

    wrong: str = ""


class ModelScreen(PanedScreen):
    """Summary and notes above, tensors at the left, the tensor or the file at the right."""

    mode = "model"
    places = ("model",)
    lead = "move"
    passing = True
    BINDINGS: ClassVar[list[BindingType]] = bindings(  # type: ignore[assignment]
        "model", *places_of("model")
    )

    def __init__(self, path: Path, at: Jump | None = None) -> None:
        super().__init__()
        self.path = path
        self._at = at  # the place that a jump asks for
        self.model: Model | None = None
        self.file: ModelFile | None = None
        self.why = ""  # the metadata does not suffice
        self._seen: ModelSeen | None = None
        self.summary_text = Static("", id="summary", markup=False)
        self.tensors = TensorList(id="tensors")

    def body(self) -> Iterable[Widget]:
        self.tensors.add_class("frame")
        with Vertical():
            yield self.summary_text
            with Horizontal(id="lists"):
                yield self.tensors
                yield from self.framed()

    def started(self) -> None:
        name = clean(self.path.name, 80)
        self.set_title(name)
        self.set_state("loading", f"Reading {name} …", "q goes back")
        self.run_worker(self._read, thread=True, exclusive=True, group="load")

    def _read(self) -> None:
        try:
            file = read_model_file(self.path)
        except AprtuiError as error:
            self.post_message(LoadFailed(error.message, error.hint))
            return
        try:
            self.post_message(ModelLoaded(file, open_model(self.path), ""))
        except AprtuiError as error:
            why = str(error).removeprefix(f"{clean(str(self.path))}: ")
            self.post_message(ModelLoaded(file, None, why))

    @on(LoadFailed)
    def _failed(self, event: LoadFailed) -> None:
        self.set_title(clean(self.path.name, 80), loud=True)
        hint = event.hint or "a copy that was cut short is copied again; q goes back"
        self.set_state("error", event.what, hint)

    @on(ModelLoaded)
    def _loaded(self, event: ModelLoaded) -> None:
        self.file, self.model, self.why = event.file, event.model, event.why
        if not event.file.tensors:
            self.set_state("empty", "This file holds no tensors.", "q goes back")
            return
        self.summary_text.update(summary(event.file, event.model, event.why))
        self.tensors.set_tensors(tensor_rows(event.file, event.model))
        self.set_state("full")
        self.tensors.focus()
        self._retitle()
        self._show_tensor()
        if self._at is not None:
            self.turn_to(self._at)

    # Places.

    def here(self) -> Jump:
        row = self.tensors.current if self.state == "full" else None
        return Jump("model", (self.path,), tensor=row.entry.name if row is not None else "")

    def goals(self) -> Iterable[Goal]:
        """Every tensor, by its role or by its name."""
        for row in self.tensors.tensors:
            name, where = clean(row.entry.name, 80), "" if row.layer is None else f"{row.layer} "
            to = Jump("model", (self.path,), tensor=row.entry.name)
            label = f"layer {where}{row.label}" if where else row.label
            yield Goal(f"{label} · {name}" if row.label else name, name,
                       partial(self.app.jump, to),
                       StageKey(row.layer, row.label), name)  # fmt: skip

    def turn_to(self, to: Jump) -> None:
        """The tensor of that name, or the first of those that a stage reads."""
        found = [row for row in self.tensors.tensors if _is_meant(row, to)]
        if found:
            self.tensors.select(found[0])
            self._retitle()
        if to.key is not None and self.file is not None:
            reads = ", ".join(row.label for row in found[:6]) or "no weight of its own"
            self.say(f"{clean(str(to.key))} reads {reads}")

    def idle_keys(self) -> frozenset[str]:
        idle = super().idle_keys()
        return idle if self._read_by() is not None else idle | {"model-browse"}

    def _read_by(self) -> Jump | None:
        """The first stage that reads the tensor here, in a trace of this model that is open."""
        row, trace = self.tensors.current, self.app.trace_of(self.path)
        if row is None or not row.used_by or trace is None:
            return None
        return Jump("browse", (trace,), StageKey(row.layer, row.used_by[0]))

    def action_browse(self) -> None:
        """What the tensor does: the stage that reads it."""
        to = self._read_by()
        if to is not None:
            self.app.jump(to)
        else:
            self.say("no trace of this model is open that has a stage which reads it")

    def _retitle(self) -> None:
        total = len(self.file.tensors) if self.file else 0
        title = f"Tensors {total} · by {self.tensors.sort}"
        if self.tensors.filter:
            title = f"Tensors {len(self.tensors.matching)} of {total} · {self.tensors.filter}"
        self.tensors.name_it(title)

    # The pane at the right.

    @on(RowList.Moved, "#tensors")
    def _moved(self) -> None:
        self._show_tensor()

    @on(Pane.Wanted)
    def _show_tensor(self) -> None:
        if self.file is None or self.state != "full":
            return
        row, layer = self.tensors.current, self.tensors.current_layer
        told: tuple[Fact, ...] = ()
        if row is None and self.tensors.row_count():
            rows = self.tensors.matching
            told = tuple(layer_facts(layer, rows, self.tensors.total_bytes))
        self._seen = ModelSeen(self.path, self.file, self.model, self.why, row, layer, told)
        self.show_pane()
        self.name_frame()

    @property
    def seen(self) -> ModelSeen | None:
        return self._seen

    @property
    def listing(self) -> TensorList:
        return self.tensors

    def name_frame(self) -> None:
        pane = self.shown_pane
        if self._seen is not None and isinstance(pane, ModelPane):
            self.query_one("#panes", NamedFrame).name_it(pane.title(self._seen))

    def set_pane(self, pane: str) -> None:
        super().set_pane(pane)
        self.name_frame()

    def jump(self, text: str) -> None:
        """To ``row,column`` in the Values pane; what the palette does with numbers."""
        row = self.tensors.current
        if row is None:
            self.say("choose a tensor")
            return
        try:
            self._show_value(ModelPane.ValueWanted(place_of(row.entry, text)))
        except UsageError as error:
            self.say(error.message)

    @on(ModelPane.ValueWanted)
    def _show_value(self, event: ModelPane.ValueWanted) -> None:
        """The value behind a cell of the map, in Values."""
        event.stop()
        self.set_pane("values")
        values = self.shown_pane
        assert isinstance(values, WeightPane)
        values.go(event.block)
        values.grid.focus()

    @on(ValueGrid.Opened)
    def _show_picture(self, event: ValueGrid.Opened) -> None:
        """From a value to its cell of the map."""
        event.stop()
        why = self.lacks("map")
        if why is not None:
            self.say(f"no map: {why.what}")
            return
        self.set_pane("map")
        pane = self.shown_pane
        assert isinstance(pane, WeightMapPane)
        pane.go_to(event.grid.row, event.grid.column)
        pane.focus()

    @work(thread=True, exclusive=True, group="verify")
    def _verify(self) -> None:
        try:
            read_model_file(self.path, verify=True)
        except AprtuiError as error:
            self.post_message(Verified(error.message))
        else:
            self.post_message(Verified())

    @on(Verified)
    def _verified(self, event: Verified) -> None:
        assert self.file is not None
        if event.wrong:
            self.say(f"! {event.wrong}")
        elif self.file.format != "apr":
            self.say(f"{self.file.format} files hold no checksum: header and index were read again")
        elif any("no checksum at its end" in note for note in self.file.notes):
            self.say("the header's checksum is right; the file has none at its end")
        else:
            self.say("the checksums of header and file are right")

    # Keys.

    def action_verify(self) -> None:
        if self.file is not None:
            self.say(f"reading {size(self.file.size_bytes)} …")
            self._verify()

    def action_copy_value(self) -> None:
        row, of_pane = self.tensors.current, self.shown_pane.copied()
        if of_pane:
            self.say(copy(self.app, of_pane))
        elif row is not None:
            self.say(copy(self.app, row.entry.name))

    def action_copy_path(self) -> None:
        self.say(copy(self.app, str(self.path.absolute())))

    def action_trace(self) -> None:
        self.app.open_trace(self.path)

    def action_diff_with(self) -> None:
        self.ask_path("compare with the model…", "diff", str(self.path.absolute().parent) + "/")

    def answered(self, purpose: str, text: str) -> None:
        if purpose == "diff" and text:
            other = meant(text)
            self.app.open_models(self.path, other)

    def action_sort(self) -> None:
        self.tensors.sort = SORTS[(SORTS.index(self.tensors.sort) + 1) % len(SORTS)]
        self.tensors.rebuild()
        self._retitle()
        self._show_tensor()

    def action_filter(self) -> None:
        self.ask("show tensors whose name has…", "filter", self.tensors.filter)

    def answering(self, purpose: str, text: str) -> None:
        if purpose != "filter":
            return
        self.tensors.filter = text.strip()
        self.tensors.rebuild()
        self._retitle()
        self._show_tensor()

    def step_back(self) -> bool:
        if super().step_back():
            return True
        if not self.tensors.filter:
            return False
        self.answering("filter", "")
        return True


def _is_meant(row: TensorRow, to: Jump) -> bool:
    """Whether a jump goes to that tensor: by its name, or as what a stage reads."""
    if to.key is None:
        return clean(row.entry.name) == clean(to.tensor)
    return to.key.stage in row.used_by and row.layer in (to.key.layer, None)
