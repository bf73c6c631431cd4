"""Model: what a file says it is, its tensors by role with sizes, and what is odd about it."""

from __future__ import annotations

import math
import time
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
from textual.widgets import ContentSwitcher, Static
from textual.worker import get_current_worker

from aprtui.compare.metrics import Cancelled
from aprtui.errors import AprtuiError
from aprtui.formats.modelfile import ModelFile
from aprtui.formats.tracedir import StageKey
from aprtui.model.open import Model, open_model, read_model_file
from aprtui.text import clean, count, size
from aprtui.tui.carry import copy
from aprtui.tui.jumps import Goal, Jump
from aprtui.tui.keys import bindings
from aprtui.tui.measure import Store, identity
from aprtui.tui.messages import LoadFailed
from aprtui.tui.model_facts import (
    TensorRow,
    config_facts,
    header_facts,
    layer_facts,
    metadata_facts,
    tensor_facts,
    tensor_rows,
)
from aprtui.tui.screens.base import BaseScreen
from aprtui.tui.screens.model_text import summary
from aprtui.tui.weight_sample import WeightLook, look_at_all, look_at_weight
from aprtui.tui.weight_values import WeightTable, read_window
from aprtui.tui.widgets.facts import Fact, FactList
from aprtui.tui.widgets.frame import NamedFrame, PaneTabs
from aprtui.tui.widgets.lines import RowList
from aprtui.tui.widgets.tensor_list import SORTS, TensorList
from aprtui.tui.widgets.tensor_pane import TensorPane
from aprtui.tui.widgets.value_grid import ValueGrid
from aprtui.tui.widgets.weight_pane import WeightPane

__all__ = ["ModelScreen"]

PANES = ("tensor", "header", "config", "metadata", "values")
TELL_S = 0.1  # how far a weight is counted is told ten times a second at most


@dataclass
class ModelLoaded(Message):
    """A model file was read; ``model`` is None when its metadata does not suffice (``why``)."""

    file: ModelFile
    model: Model | None
    why: str


@dataclass
class WeightReady(Message):
    """A weight was looked at: at a sample of it, or at every value. None: no decoder for it."""

    row: TensorRow
    look: WeightLook | None


@dataclass
class WeightCounted(Message):
    """So many values of a weight have been counted."""

    row: TensorRow
    done: int

    def can_replace(self, message: Message) -> bool:
        return isinstance(message, WeightCounted)


@dataclass
class WindowRead(Message):
    """A window of a weight's rows, or ``wrong``: why there is none."""

    row: TensorRow
    table: WeightTable | None
    wrong: str = ""


@dataclass
class Verified(Message):
    """The whole file was read; ``wrong`` says what does not hold."""

    wrong: str = ""


class ModelScreen(BaseScreen):
    """Summary and notes above, tensors at the left, the tensor or the file at the right."""

    mode = "model"
    places = ("model",)
    lead = "move"
    BINDINGS: ClassVar[list[BindingType]] = bindings("model")  # type: ignore[assignment]

    def __init__(self, path: Path, at: Jump | None = None) -> None:
        super().__init__()
        self.path = path
        self._at = at  # the place that a jump asks for
        self.model: Model | None = None
        self.file: ModelFile | None = None
        self.pane = "tensor"
        self.store = Store()
        self.summary_text = Static("", id="summary", markup=False)
        self.tensors = TensorList(id="tensors")
        self.tabs = PaneTabs(PANES)
        self.tensor = TensorPane(id="tensor")
        self.facts = {name: FactList(id=name) for name in PANES[1:4]}
        self.values = WeightPane(id="values")

    def body(self) -> Iterable[Widget]:
        self.tensors.add_class("frame")
        with Vertical():
            yield self.summary_text
            with Horizontal(id="lists"):
                yield self.tensors
                with NamedFrame(id="detail", classes="frame"):
                    yield self.tabs
                    with ContentSwitcher(initial="tensor", id="about"):
                        yield self.tensor
                        yield from self.facts.values()
                        yield self.values

    def started(self) -> None:
        name = clean(self.path.name, 80)
        self.set_title(name)
        self.set_state("loading", f"Reading {name} …", "q goes back")
        self.tabs.shown = self.pane
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
        if self.file is not None:  # a weight that cannot be read: the rest still stands
            self.tensor.say(f"! {event.what}. {event.hint}", "bad")
            return
        self.set_title(clean(self.path.name, 80), loud=True)
        hint = event.hint or "a copy that was cut short is copied again; q goes back"
        self.set_state("error", event.what, hint)

    @on(ModelLoaded)
    def _loaded(self, event: ModelLoaded) -> None:
        self.file, self.model = event.file, event.model
        if not event.file.tensors:
            self.set_state("empty", "This file holds no tensors.", "q goes back")
            return
        self.summary_text.update(summary(event.file, event.model, event.why))
        notes = event.model.notes if event.model else event.file.notes
        self.facts["header"].show(header_facts(event.file, notes))
        self.facts["config"].show(
            config_facts(event.model) if event.model else [Fact("none", event.why, "", "bad")]
        )
        self.facts["metadata"].show(metadata_facts(event.file.metadata))
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
                       partial(self.app.jump, to),  # type: ignore[attr-defined]
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
        return frozenset() if self._read_by() is not None else frozenset({"model-browse"})

    def _read_by(self) -> Jump | None:
        """The first stage that reads the tensor here, in a trace of this model that is open."""
        row, trace = self.tensors.current, self.app.trace_of(self.path)  # type: ignore[attr-defined]
        if row is None or not row.used_by or trace is None:
            return None
        return Jump("browse", (trace,), StageKey(row.layer, row.used_by[0]))

    def action_browse(self) -> None:
        """What the tensor does: the stage that reads it."""
        to = self._read_by()
        if to is not None:
            self.app.jump(to)  # type: ignore[attr-defined]
        else:
            self.say("no trace of this model is open that has a stage which reads it")

    def _retitle(self) -> None:
        total = len(self.file.tensors) if self.file else 0
        title = f"Tensors {total} · by {self.tensors.sort}"
        if self.tensors.filter:
            title = f"Tensors {len(self.tensors.matching)} of {total} · {self.tensors.filter}"
        self.tensors.border_title = title.replace("[", r"\[")

    # The pane at the right.

    @on(RowList.Moved, "#tensors")
    def _moved(self) -> None:
        self._show_tensor()

    @on(TensorPane.Wanted)
    def _show_tensor(self) -> None:
        if self.file is None or self.state != "full":
            return
        row, layer = self.tensors.current, self.tensors.current_layer
        if row is not None and 0 in row.entry.shape:
            self.tensor.show(tensor_facts(row), "no values")
        elif row is not None:
            self.tensor.show(tensor_facts(row), "reading values …")
            self._look_at(row, self.tensor.bins)
        else:
            rows = layer_facts(layer, self.tensors.matching, self.tensors.total_bytes)
            self.workers.cancel_group(self, "weight")
            self.tensor.show(rows if self.tensors.row_count() else [])
        self._name_frame()
        self._show_values()
        self.show_keys()

    def _show_values(self) -> None:
        """The values of the tensor under the cursor, where their pane is the one that is seen."""
        row = self.tensors.current
        if self.pane != "values" or self.state != "full":
            return
        shown = self.values.table
        if row is None or not math.prod(row.entry.shape):
            self.values.say("no values" if row is not None else "choose a tensor")
        elif shown is None or shown.entry is not row.entry:
            self.values.say("reading values …")
            self._read_window(row, 0)

    @on(WeightPane.Wanted)
    def _window_wanted(self, event: WeightPane.Wanted) -> None:
        if self.tensors.current is not None:
            self._read_window(self.tensors.current, event.row)

    @work(thread=True, exclusive=True, group="window")
    def _read_window(self, row: TensorRow, at: int) -> None:
        try:
            self.post_message(WindowRead(row, read_window(self.path, row.entry, at)))
        except AprtuiError as error:
            self.post_message(WindowRead(row, None, error.message))

    @on(WindowRead)
    def _window(self, event: WindowRead) -> None:
        if self.tensors.current is not event.row:
            return
        if event.table is None:
            self.values.say(f"! {event.wrong}")
        else:
            self.values.give(event.table)

    def _name_frame(self) -> None:
        """The tensor's name over the pane, and how many of its values the numbers are of."""
        row, layer, look = self.tensors.current, self.tensors.current_layer, self.tensor.look
        if self.pane in self.facts:
            title = clean(self.path.name, 60)
        elif row is None:
            title = f"layer {layer}" if self.tensors.row_count() else ""
        else:
            where = "" if row.layer is None else f"layer {row.layer} · "
            title = where + (row.label or clean(row.entry.name, 40))
            if look is not None and self.pane == "tensor":
                title += " · every value" if look.exact else f" · {count(look.looked)} sampled"
        self.query_one("#detail", NamedFrame).name_it(title)

    @work(thread=True, exclusive=True, group="weight")
    def _look_at(self, row: TensorRow, bins: int) -> None:
        """A sample of the weight first, then all of it; kept while the file is the same."""
        worker = get_current_worker()
        key = (identity(row.entry.path), row.entry.name, bins)
        last = 0.0

        def counted(done: int) -> None:
            nonlocal last
            if time.monotonic() - last >= TELL_S:
                last = time.monotonic()
                self.post_message(WeightCounted(row, done))

        try:
            known = self.store.get(key)
            look = known if isinstance(known, WeightLook) else look_at_weight(row.entry, bins)
            if not worker.is_cancelled:
                self.post_message(WeightReady(row, look))
            if look is not None and not look.exact:
                look = look_at_all(look, lambda: worker.is_cancelled, counted)
                self.post_message(WeightReady(row, look))
            self.store.put(key, look)
        except Cancelled:
            return
        except AprtuiError as error:
            self.post_message(LoadFailed(error.message, error.hint))

    @on(WeightReady)
    def _weight(self, event: WeightReady) -> None:
        if self.tensors.current is not event.row:
            return
        if event.look is None:
            self.tensor.say(f"no decoder for {event.row.entry.type} without the engine")
            return
        self.tensor.give(event.look)
        self._name_frame()

    @on(WeightCounted)
    def _counted(self, event: WeightCounted) -> None:
        if self.tensors.current is event.row:
            values = max(math.prod(event.row.entry.shape), 1)
            self.tensor.say(f"a sample; counting every value, {100 * event.done // values} %")

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

    def action_pane(self, pane: str) -> None:
        self.pane = self.tabs.shown = pane
        inside = isinstance(self.focused, FactList | TensorPane | ValueGrid)
        self.query_one("#about", ContentSwitcher).current = pane
        if inside:
            self._pane_widget().focus()
        self._name_frame()
        self._show_values()

    @on(PaneTabs.Chosen)
    def _chosen(self, event: PaneTabs.Chosen) -> None:
        self.action_pane(event.pane)

    def _pane_widget(self) -> Widget:
        if self.pane in self.facts:
            return self.facts[self.pane]
        return self.values.grid if self.pane == "values" else self.tensor

    @on(RowList.Opened, "#tensors")
    def _opened(self) -> None:
        self._pane_widget().focus()

    def action_focus_pane(self) -> None:
        if self.focused is self.tensors:
            self._pane_widget().focus()
            return
        if self.has_class("zoomed"):
            self.action_zoom()
        self.tensors.focus()

    def action_zoom(self) -> None:
        self.toggle_class("zoomed")
        (self._pane_widget() if self.has_class("zoomed") else self.tensors).focus()

    def action_verify(self) -> None:
        if self.file is not None:
            self.say(f"reading {size(self.file.size_bytes)} …")
            self._verify()

    def action_copy_value(self) -> None:
        row = self.tensors.current
        fact = self.facts[self.pane].current if self.pane in self.facts else None
        if fact is not None and self.focused is self._pane_widget():
            self.say(copy(self.app, fact.value))
        elif self.pane == "values" and self.focused is self.values.grid:
            self.say(copy(self.app, self.values.told))
        elif row is not None:
            self.say(copy(self.app, row.entry.name))

    def action_copy_path(self) -> None:
        self.say(copy(self.app, str(self.path.absolute())))

    def action_trace(self) -> None:
        self.app.open_trace(self.path)  # type: ignore[attr-defined]

    def action_diff_with(self) -> None:
        self.ask("compare with the model…", "diff", str(self.path.absolute().parent) + "/")

    def answered(self, purpose: str, text: str) -> None:
        if purpose == "diff" and text:
            other = Path(text).expanduser()
            self.app.open_models(self.path, other)  # type: ignore[attr-defined]

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
        self.tensors.filter = text.lower()
        self.tensors.rebuild()
        self._retitle()
        self._show_tensor()

    def step_back(self) -> bool:
        if self.has_class("zoomed"):
            self.action_zoom()
            return True
        if not self.tensors.filter:
            return False
        self.answering("filter", "")
        return True


def _is_meant(row: TensorRow, to: Jump) -> bool:
    """Whether a jump goes to that tensor: by its name, or as what a stage reads."""
    if to.key is None:
        return row.entry.name == to.tensor
    return to.key.stage in row.used_by and row.layer in (to.key.layer, None)
