"""Model: what a file says it is, its tensors by role with sizes, and what is odd about it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from textual import on, work
from textual.binding import BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.message import Message
from textual.widget import Widget
from textual.widgets import Static
from textual.worker import get_current_worker

from aprtui.errors import AprtuiError
from aprtui.formats.modelfile import ModelFile
from aprtui.model.config import ModelConfig
from aprtui.model.open import Model, open_model, read_model_file
from aprtui.text import clean, count, number, size
from aprtui.tui.keys import bindings
from aprtui.tui.messages import LoadFailed
from aprtui.tui.screens.base import BaseScreen
from aprtui.tui.weight_sample import WeightLook, look_at_weight
from aprtui.tui.widgets.lines import RowList
from aprtui.tui.widgets.tensor_list import SORTS, TensorList, TensorRow
from aprtui.tui.widgets.weight_picture import WeightPicture

__all__ = ["ModelScreen", "summary"]


@dataclass
class ModelLoaded(Message):
    """A model file was read; ``model`` is None when its metadata does not suffice (``why``)."""

    file: ModelFile
    model: Model | None
    why: str


@dataclass
class WeightReady(Message):
    """A weight was looked at."""

    look: WeightLook


class ModelScreen(BaseScreen):
    """Summary and notes above, tensors at the left, the tensor or the file at the right."""

    mode = "model"
    places = ("model",)
    lead = "move"
    BINDINGS: ClassVar[list[BindingType]] = bindings("model")  # type: ignore[assignment]

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.model: Model | None = None
        self.file: ModelFile | None = None
        self.summary_text = Static("", id="summary", markup=False)
        self.tensors = TensorList(id="tensors")
        self.detail = Static("", markup=False)
        self.picture = WeightPicture(id="picture")

    def body(self) -> Iterable[Widget]:
        self.tensors.add_class("frame")
        with Vertical():
            yield self.summary_text
            with Horizontal(id="lists"):
                yield self.tensors
                with Vertical(id="detail", classes="frame"):
                    with VerticalScroll(id="facts"):
                        yield self.detail
                    yield self.picture

    def started(self) -> None:
        self.set_title(clean(self.path.name, 80))
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
            self.post_message(ModelLoaded(file, None, str(error)))

    @on(LoadFailed)
    def _failed(self, event: LoadFailed) -> None:
        if self.file is not None:  # a weight that cannot be read: the rest still stands
            self.say(f"{event.what} {event.hint}")
            return
        self.set_title(clean(self.path.name, 80), loud=True)
        self.set_state("error", event.what, event.hint)

    @on(ModelLoaded)
    def _loaded(self, event: ModelLoaded) -> None:
        self.file, self.model = event.file, event.model
        self.summary_text.update(summary(event.file, event.model, event.why))
        self.tensors.set_tensors(tensor_rows(event.file, event.model))
        self.set_state("full")
        self.tensors.focus()
        self._retitle()
        self._show_tensor()

    def _retitle(self) -> None:
        total = len(self.file.tensors) if self.file else 0
        title = f"Tensors {total} · by {self.tensors.sort}"
        if self.tensors.filter:
            title = f"Tensors {len(self.tensors.matching)} of {total} · {self.tensors.filter}"
        self.tensors.border_title = title.replace("[", r"\[")

    @on(RowList.Moved, "#tensors")
    def _moved(self) -> None:
        self._show_tensor()

    def _show_tensor(self) -> None:
        assert self.file is not None
        frame = self.query_one("#detail")
        row = self.tensors.current
        if row is None:
            frame.border_title = clean(self.file.path.name, 50).replace("[", r"\[")
            self.detail.update(file_content(self.file, self.model))
            self.picture.show(None)
            return
        frame.border_title = (row.role or "no role").replace("[", r"\[")
        self.detail.update(tensor_content(row, None))
        self._look_at(row)

    @work(thread=True, exclusive=True, group="weight")
    def _look_at(self, row: TensorRow) -> None:
        try:
            look = look_at_weight(row.entry, self.picture.bins)
        except AprtuiError as error:
            self.post_message(LoadFailed(error.message, error.hint))
            return
        if look is not None and not get_current_worker().is_cancelled:
            self.post_message(WeightReady(look))

    @on(WeightReady)
    def _weight(self, event: WeightReady) -> None:
        row = self.tensors.current
        if row is not None and row.entry is event.look.entry:
            self.detail.update(tensor_content(row, event.look))
            self.picture.show(event.look)

    # Keys.

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
        if not self.tensors.filter:
            return False
        self.answering("filter", "")
        return True

    def action_focus_pane(self) -> None:
        self.screen.focus_next()


def tensor_rows(file: ModelFile, model: Model | None) -> list[TensorRow]:
    """Every tensor of the file, in the order of the file, with its role where it has one."""
    roles: dict[str, tuple[str, int | None]] = {}
    for role, matrix in (model.weights if model else {}).items():
        label = role.name.replace("_", " ")
        if role.expert is not None:
            label += f" of expert {role.expert}"
        roles.setdefault(matrix.entry.name, (label, role.layer))
    rows = []
    for entry in file.tensors.values():
        label, layer = roles.get(entry.name, ("", _layer_in(entry.name)))
        rows.append(TensorRow(label, layer, entry))
    return rows


def _layer_in(name: str) -> int | None:
    """The layer that a tensor's name carries: ``blk.3.`` or ``layers.3.``."""
    parts = name.split(".")
    for before, part in itertools.pairwise(parts):
        if before in ("blk", "layers", "h") and part.isdigit() and len(part) < 6:
            return int(part)
    return None


def config_line(config: ModelConfig) -> str:
    """``qwen2 · 4 layers · hidden 256 · heads 8/2 x 32 · ...``."""
    parts = [
        config.architecture, f"{config.num_layers} layers", f"hidden {config.hidden_size}",
        f"heads {config.num_heads}/{config.num_kv_heads} x {config.head_dim}",
        f"ffn {config.intermediate_size}", f"vocab {count(config.vocab_size)}",
        f"rope {config.rope_theta:g} {config.rope_layout}",
    ]  # fmt: skip
    if config.num_experts:
        parts.append(f"experts {config.num_experts_per_tok} of {config.num_experts}")
    if config.sliding_window:
        parts.append(f"window {config.sliding_window}")
    return " · ".join(clean(part, 60) for part in parts)


def summary(file: ModelFile, model: Model | None, why: str) -> Content:
    """Two lines of what the model is, then what is odd about it."""
    weights = sum(entry.size_bytes for entry in file.tensors.values())
    types: dict[str, int] = {}
    for entry in file.tensors.values():
        types[entry.type] = types.get(entry.type, 0) + entry.size_bytes
    common = sorted(types, key=lambda name: -types[name])
    lines = []
    if model is not None:
        lines.append(Content.styled(config_line(model.config), "bold"))
    else:
        lines.append(Content.styled(f"! {clean(why, 400)}", "bold $text-error"))
    lines.append(
        Content.styled(
            f"{file.format} {clean(file.version, 20)} · {size(file.size_bytes)} in "
            f"{len(file.files)} file{'s' * (len(file.files) != 1)} · {len(file.tensors)} tensors, "
            f"{size(weights)} · "
            + ", ".join(
                f"{name} {100 * types[name] / max(weights, 1):.0f} %" for name in common[:5]
            ),
            "dim",
        )
    )
    notes = model.notes if model is not None else file.notes
    lines += [Content.styled(f"! {clean(note, 300)}", "$text-warning") for note in notes[:5]]
    if len(notes) > 5:
        lines.append(Content.styled(f"  and {len(notes) - 5} more notes", "dim"))
    return Content("\n").join(lines)


def tensor_content(row: TensorRow, look: WeightLook | None) -> Content:
    """Everything the index says of one tensor, and its values in numbers."""
    entry = row.entry
    shape = " x ".join(count(extent) for extent in entry.shape)
    values = 1
    for extent in entry.shape:
        values *= extent
    bits = 8 * entry.size_bytes / max(values, 1)
    aligned = entry.offset & -entry.offset if entry.offset else 4096
    rows = [
        ("name", clean(entry.name, 200)),
        ("type", f"{entry.type}{', blocks run over the flat tensor' if entry.flat else ''}"),
        ("shape", f"{shape} = {count(values)} values"),
        ("bytes", f"{entry.offset:,} .. {entry.offset + entry.size_bytes:,}"),
        ("", f"{size(entry.size_bytes)}, {min(aligned, 4096)}-aligned"),
        ("", f"{bits:.4g} bits a value"),
        ("file", clean(entry.path.name, 100)),
    ]
    if look is not None:
        found = look.statistics
        infinite = found.pos_inf + found.neg_inf
        part = "" if look.looked >= look.count else f", from {count(look.looked)} of them"
        rows[3:3] = [
            ("values", f"min {number(found.min)}  max {number(found.max)}{part}"),
            ("", f"mean {number(found.mean, 3)}  rms {number(found.rms)}"),
            ("", f"NaN {found.nan}  Inf {infinite}  zeros {found.zeros}"),
        ]
    return _table(rows)


def file_content(file: ModelFile, model: Model | None) -> Content:
    """The header's fields, decoded, and the metadata."""
    parts = []
    if file.header:
        parts.append(
            Content("\n").join(
                Content.assemble(
                    (f" {field.offset:>6} ", "dim"), (f"{field.name:<18.18} ", "$text-primary"),
                    clean(field.value, 60), (f"  {field.raw[:8].hex(' ')}", "dim"),
                )
                for field in file.header
            )
        )  # fmt: skip
    rows = [
        (clean(str(key), 40), clean(str(value)[:400], 160))
        for key, value in list(file.metadata.items())[:200]
        if not isinstance(value, dict | list | tuple) or len(str(value)[:401]) <= 400
    ]
    parts.append(_table([("digest", file.digest[:32]), *rows]))
    return Content("\n\n").join(parts)


def _table(rows: list[tuple[str, str]]) -> Content:
    wide = min(max((len(name) for name, _ in rows), default=4), 34) + 1
    return Content("\n").join(
        Content.assemble((f" {name:<{wide}} ", "$text-primary"), value) for name, value in rows
    )
