"""Diff: two captures as one grid of layers by stages, coloured and signed by a metric."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from textual import on
from textual.binding import BindingType
from textual.content import Content
from textual.message import Message
from textual.worker import get_current_worker

from aprtui.compare.bars import Bars, choose_bars
from aprtui.compare.metrics import Cancelled
from aprtui.compare.pairs import (
    FAILED,
    UNMEASURED,
    Pair,
    PairResult,
    check_tokens,
    compare_pair,
    pair_up,
    rope_note,
)
from aprtui.compare.reference import model_trace
from aprtui.errors import AprtuiError, UsageError
from aprtui.formats.tracedir import StageKey, TraceDir
from aprtui.text import clean, count
from aprtui.tui.keys import bindings
from aprtui.tui.lens import model_of
from aprtui.tui.messages import LoadFailed
from aprtui.tui.screens.bisect import Bisected, BisectScreen
from aprtui.tui.screens.diff_text import legend, pair_content, sign_of
from aprtui.tui.screens.grid import GridScreen
from aprtui.tui.screens.pair import PairScreen
from aprtui.tui.session import Spot, recall, remember
from aprtui.tui.source import load_trace, stage_file
from aprtui.tui.widgets.stage_grid import StageGrid

__all__ = ["METRICS", "DiffScreen"]

METRICS = ("rel_l2", "max_abs", "rms", "cosine")
BATCH = 24


@dataclass
class Paired(Message):
    """Both sides are read: what will be compared, and by which bars."""

    pairs: tuple[Pair, ...]
    bars: Bars
    notes: tuple[str, ...]


@dataclass
class Compared(Message):
    """Some pairs were measured."""

    results: tuple[PairResult, ...]
    done: bool


@dataclass
class ModelFound(Message):
    """The model that B's manifest names, unchanged since; None when there is none."""

    model: Path | None


class DiffScreen(GridScreen):
    """The grid at the left; what the pair under the cursor says at the right (or below)."""

    mode = "diff"
    places = ("diff",)
    lead = "move"
    BINDINGS: ClassVar[list[BindingType]] = bindings("diff")  # type: ignore[assignment]

    def __init__(self, a: Path, b: Path, model: str = "") -> None:
        super().__init__()
        self.a, self.b, self.model = a, b, model
        self.metric = METRICS[0]
        self.pairs: dict[StageKey, Pair] = {}
        self.results: dict[StageKey, PairResult] = {}
        self.bars: Bars | None = None
        self.notes: tuple[str, ...] = ()
        self.done = False
        self.any_prompt = False  # compare even captures of different prompts
        self.other_prompts = False  # that is what is compared
        self._trace_a: TraceDir | None = None
        self._trace_b: TraceDir | None = None
        self._last = Spot()
        self.found: Bisected | None = None

    def started(self) -> None:
        self._last = recall(self.a, self.b)
        if self._last.metric in METRICS:
            self.metric = self._last.metric
        self._retitle()
        self.legend.update(legend())
        self._start()

    def _start(self) -> None:
        self.run_worker(self._compare, thread=True, exclusive=True, group="diff")

    # Comparing.

    def _compare(self) -> None:
        worker = get_current_worker()
        try:
            pairs, bars, notes = self._read()
        except AprtuiError as error:
            self.post_message(LoadFailed(error.message, error.hint))
            return
        self.post_message(Paired(pairs, bars, notes))
        batch: list[PairResult] = []
        try:
            for pair in pairs:
                batch.append(compare_pair(pair, bars, cancelled=lambda: worker.is_cancelled))
                if len(batch) >= BATCH:
                    self.post_message(Compared(tuple(batch), False))
                    batch = []
        except Cancelled:
            return
        self.post_message(Compared(tuple(batch), True))

    def _read(self) -> tuple[tuple[Pair, ...], Bars, tuple[str, ...]]:
        if self.a.is_file() and self.b.is_file():
            left, right = stage_file(self.a), stage_file(self.b)
            one = [
                TraceDir(side.path.parent, "file", {side.key: side}, None, None)
                for side in (left, right)
            ]
            return (Pair(left.key, left, right),), choose_bars(one[0], one[1]), ()
        a, b = (load_trace(path, self.model) for path in (self.a, self.b))
        notes = [note for note in (rope_note(a, b),) if note]
        for name, trace in (("A", a), ("B", b)):
            if trace.status == "incomplete":
                notes.append(f"{name} is incomplete")
        try:
            check_tokens(a, b)
        except UsageError as error:
            self.other_prompts = True
            if not self.any_prompt:
                raise UsageError(
                    error.message,
                    hint="i compares them all the same, as aprtui diff --ignore-tokens does; "
                    "or trace both with the same --tokens",
                ) from error
            notes.insert(0, error.message)
        self._trace_a, self._trace_b = a, b
        return pair_up(a, b), choose_bars(a, b), tuple(notes)

    @on(LoadFailed)
    def _failed(self, event: LoadFailed) -> None:
        self.set_state("error", event.what, event.hint)
        self._retitle()

    def action_ignore_tokens(self) -> None:
        """Compare after all, where different prompts stood in the way."""
        if self.other_prompts and not self.any_prompt:
            self.any_prompt = True
            self.set_state("loading", "Reading …")
            self._start()

    @on(Paired)
    def _paired(self, event: Paired) -> None:
        self.pairs = {pair.key: pair for pair in event.pairs}
        self.bars, self.notes = event.bars, event.notes
        self.grid.set_stages(self.pairs)
        self.set_state("full")
        self.grid.focus()
        self._show()

    @on(Compared)
    def _compared(self, event: Compared) -> None:
        for result in event.results:
            self.results[result.key] = result
        self.done = self.done or event.done
        self._paint()
        if event.done and self._last.key in self.pairs:
            self.grid.select(self._last.key)
        elif event.done and self.first is not None:
            self.grid.select(self.first.key)
        self._show()

    def on_unmount(self) -> None:
        if self.done:
            remember(Spot(self.grid.current, metric=self.metric), self.a, self.b)

    # What is shown.

    @property
    def first(self) -> PairResult | None:
        """The first pair, in order of computation, that fails."""
        return next((self.results[key] for key in self.pairs if self._fails(key)), None)

    def _fails(self, key: StageKey) -> bool:
        return key in self.results and self.results[key].kind in FAILED

    def _paint(self) -> None:
        first = self.first
        self.grid.put(
            {
                key: sign_of(result, self.metric, first is not None and key == first.key)
                for key, result in self.results.items()
            }
        )

    def _show(self) -> None:
        self._retitle()
        first, bars = self.first, self.bars
        assert bars is not None
        measured = sum(result.metrics is not None for result in self.results.values())
        unmeasured = sum(result.kind in UNMEASURED for result in self.results.values())
        failed = sum(self._fails(key) for key in self.results)
        parts = [
            Content.assemble(
                (self.metric, "bold $text-accent"), f" · {count(measured)} of "
                f"{count(len(self.pairs))} pairs",
                (f" · {unmeasured} unmeasured" if unmeasured else "", "$text-warning"),
                (f" · {failed} beyond bar" if failed else "", "bold $text-error"),
                ("" if first or not self.done else " · nothing beyond the bar", "$text-success"),
                (f" · first {first.key}" if first else "", "bold"),
            ),
            Content.styled(f"bar rel_l2 {bars.rel_l2:g}: {clean(bars.reason, 200)}", "dim"),
        ]  # fmt: skip
        parts += [Content.styled(f"! {clean(note, 200)}", "$text-warning") for note in self.notes]
        width = max(self.size.width - 2, 20)
        self.head.update(Content("\n").join(part.truncate(width, ellipsis=True) for part in parts))
        self._show_pair()

    @on(StageGrid.Moved)
    def _show_pair(self) -> None:
        key = self.grid.current
        if key is None:
            self.detail.border_title = ""
            self.detail.update("")
            return
        self.detail.border_title = str(key)
        result = self.results.get(key)
        waiting = Content.styled("not measured yet", "dim")
        self.detail.update(waiting if result is None else pair_content(result))

    def _retitle(self) -> None:
        names = (clean(path.name, 50) for path in (self.a, self.b))
        if self.a.name == self.b.name:
            names = (clean("/".join(path.absolute().parts[-2:]), 60) for path in (self.a, self.b))
        a, b = names
        remark = " · the prompts differ" if self.other_prompts else ""
        if self.pairs and not self.done:
            remark += " · comparing …"
        self.set_title(f"A {a}   B {b}{remark}", loud=self.other_prompts)

    # Keys.

    def action_metric(self, step: int) -> None:
        self.metric = METRICS[(METRICS.index(self.metric) + step) % len(METRICS)]
        self._paint()
        self._show()

    def action_first(self) -> None:
        if self.first is not None:
            self.grid.select(self.first.key)

    def action_next(self, step: int) -> None:
        """The next pair that fails, after the cursor or before it."""
        order = list(self.pairs)
        here = self.grid.current
        start = order.index(here) if here in self.pairs else 0
        for offset in range(1, len(order) + 1):
            key = order[(start + step * offset) % len(order)]
            if self._fails(key):
                self.grid.select(key)
                return

    def action_bisect(self) -> None:
        """Replay every stage of B with its model; ask for that when no manifest names it."""
        self.say("looking for the model that computed B …")
        self.run_worker(self._find_model, thread=True, exclusive=True, group="model")

    def _find_model(self) -> None:
        model: Path | None = None
        # None named, another one since, or no model at all: then a person is asked.
        with contextlib.suppress(AprtuiError):
            if self._trace_b is not None:
                model = model_of(model_trace(self._trace_a, self._trace_b), self.model)
        self.post_message(ModelFound(model))

    @on(ModelFound)
    def _model_found(self, event: ModelFound) -> None:
        self.say("")
        if not self.is_current:
            return
        if event.model is not None:
            self.answered("model", str(event.model))
        else:
            self.ask("the model that computed B (.gguf, .apr, .safetensors)", "model", self.model)

    def action_diff_with(self) -> None:
        self.ask("compare A with…", "diff", str(self.b.absolute().parent) + "/")

    def answered(self, purpose: str, text: str) -> None:
        if purpose == "diff" and text:
            self.app.open_diff(self.a, Path(text).expanduser())  # type: ignore[attr-defined]
        if purpose == "model" and text:
            self.model = text
            self.app.push_screen(
                BisectScreen(self.a, self.b, Path(text).expanduser(), self.pairs, self.results),
                self._keep,
            )

    def _keep(self, found: object) -> None:
        if isinstance(found, Bisected):
            self.found = found

    def action_local_error(self) -> None:
        """The grid of local errors, where a bisection was run."""
        if self.found is None:
            self.say("b finds local errors: it replays each stage of B from its own inputs")
        else:
            self.app.push_screen(
                BisectScreen(self.a, self.b, Path(self.model), self.pairs, self.results, self.found)
            )

    @on(StageGrid.Opened)
    def _open(self, event: StageGrid.Opened) -> None:
        keys = [key for key, result in self.results.items() if result.metrics is not None]
        if event.key not in keys:
            result = self.results.get(event.key)
            self.say(result.message or result.kind if result else "not measured yet")
            return
        self.app.push_screen(PairScreen(self.pairs, self.results, event.key))
