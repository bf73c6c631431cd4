"""Diff: two captures as one grid of layers by stages, coloured and signed by a metric."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import ClassVar

from textual import on
from textual.binding import BindingType
from textual.content import Content
from textual.message import Message

from aprtui.compare.bars import Bars
from aprtui.compare.pairs import FAILED, UNMEASURED, Pair, PairResult
from aprtui.compare.reference import model_trace
from aprtui.errors import AprtuiError, UsageError
from aprtui.formats.rows import Rows
from aprtui.formats.tracedir import StageKey, TraceDir
from aprtui.graph.vocabulary import facts_of
from aprtui.text import clean, count
from aprtui.tui.bisected import Bisected
from aprtui.tui.carry import copy
from aprtui.tui.comparing import (
    Compared,
    Compares,
    NothingThere,
    OtherPrompts,
    Paired,
    compare,
    top_of,
)
from aprtui.tui.following import Follower
from aprtui.tui.jumps import Jump
from aprtui.tui.keys import bindings
from aprtui.tui.lens import model_of
from aprtui.tui.messages import LoadFailed
from aprtui.tui.paths import meant
from aprtui.tui.reporting import Reporting
from aprtui.tui.screens import diff_text as text
from aprtui.tui.screens.bisect import BisectScreen
from aprtui.tui.screens.grid import GridScreen
from aprtui.tui.screens.pair_facts import finding_block, layers_block, pair_blocks, top_block
from aprtui.tui.screens.sides import Sides
from aprtui.tui.session import Spot, recall, remember, remember_verdict
from aprtui.tui.source import name_of, names_of
from aprtui.tui.stage_table import pass_words
from aprtui.tui.widgets.blocks import Block
from aprtui.tui.widgets.drift_chart import Drift
from aprtui.tui.widgets.lines import Part

__all__ = ["METRICS", "DiffScreen"]

METRICS = ("rel_l2", "max_abs", "rms", "cosine")


@dataclass
class ModelFound(Message):
    """The model that B's manifest names, unchanged since; None when there is none."""

    model: Path | None


class DiffScreen(GridScreen):
    """The grid at the left; what the pair under the cursor says at the right (or below)."""

    mode = "diff"
    places = ("diff", "sides")
    ways_out = ("diff-diff", "other-prompts")
    lead = "move"
    BINDINGS: ClassVar[list[BindingType]] = bindings("diff", "sides")  # type: ignore[assignment]

    def __init__(self, a: Path, b: Path, model: str = "", at: Jump | None = None) -> None:
        super().__init__()
        self.job = Compares(a, b, model)
        self.model = model  # that computed B, as far as a person said
        self.follower = Follower(self, a, b)
        self.metric = METRICS[0]
        self.paired: Paired | None = None
        self.pairs: dict[StageKey, Pair] = {}
        self.results: dict[StageKey, PairResult] = {}
        self.bars: Bars | None = None
        self.notes: tuple[str, ...] = ()
        self.same: tuple[str, ...] = ()
        self.done = False
        self.other_prompts = False
        self.traces: tuple[TraceDir, ...] = ()
        self.first: PairResult | None = None  # that fails, in order of computation
        self._last: Spot | None = None  # where the cursor goes once all is compared
        self._in_passes: Rows | None = None
        self._at = at  # the place that a jump asks for, once all is compared

    def started(self) -> None:
        self._last = recall(self.job.a, self.job.b)
        if self._last.metric in METRICS:
            self.metric = self._last.metric
        self.retitle()
        self._start()
        self.follower.follow(self._follow)

    def _start(self) -> None:
        self.paired, self.results, self.first, self.done = None, {}, None, False
        self.set_state("loading", "Reading both traces …", "q goes back")
        self._compare()

    def _compare(self) -> None:
        known = frozenset(self.results)
        self.follower.read(partial(compare, self.job, self.post_message, self.paired, known))

    def _follow(self) -> None:
        """What is written to a side that is not whole yet is compared too."""
        read = self.paired
        if (read is None or any(trace.may_grow for trace in read.traces)) and self.follower.changed:
            self._compare()

    # What the worker says.

    @on(LoadFailed)
    def _failed(self, event: LoadFailed) -> None:
        self.paired = None
        self.other_prompts = isinstance(event, OtherPrompts)
        self.set_state("error", event.what, event.hint or "d compares A with another trace")
        self.retitle()

    @on(NothingThere)
    def _nothing(self) -> None:
        self.paired = None
        hint = "This fills as they grow. d compares A with another trace, q goes back"
        self.set_state("empty", "Neither trace holds a stage yet.", hint)

    @on(Compared)
    def _compared(self, event: Compared) -> None:
        anew = event.paired is not self.paired
        if anew:
            self._take(event.paired)
        self.results.update((result.key, result) for result in event.results)
        self.done = event.done
        before = self.first
        self.first = next((r for k in self.pairs if (r := self.results.get(k)) and _fails(r)), None)
        marked = [each.key for each in (before, self.first) if each is not None]
        if tuple(self.pairs) != self.stages:
            self.set_stages(self.pairs)
        elif anew:
            self.learnt([*(self.pairs.keys() - event.paired.kept), *marked])
        else:
            self.learnt([*(result.key for result in event.results), *marked])
        if event.done and self.job.of_pass is None:
            self._keep_verdict()
        if event.done and self._last is not None:
            first = self.first.key if self.first is not None else None
            key = self._last.key if self._last.key in self.pairs else first
            self._last = None
            if key is not None:
                self.select(key)
        if event.done and self._at is not None:
            to, self._at = self._at, None
            self.turn_to(to)

    def _keep_verdict(self) -> None:
        """What was found, for Home to say of B."""
        failed = sum(_fails(result) for result in self.results.values())
        found = f"{count(failed)} of {count(len(self.pairs))} beyond" if failed else "within bar"
        first = f", first {self.first.key}" if self.first is not None else ""
        said = f"{found}{first} · against {name_of(self.job.a)}"
        remember_verdict(self.job.b, self.job.a, said)

    def _take(self, paired: Paired) -> None:
        """Both sides were read, for the first time or again."""
        self.paired = paired
        self._in_passes = paired.rows
        self.results = {key: r for key, r in self.results.items() if key in paired.kept}
        self.pairs = {pair.key: pair for pair in paired.pairs}
        self.bars, self.notes, self.traces = paired.bars, paired.notes, paired.traces
        self.same, self.other_prompts = paired.same, paired.other_prompts
        if self.state != "full":
            self.set_state("full")
            if not self._prompt.display:
                (self.rows if self.listed else self.grid).focus()

    def on_unmount(self) -> None:
        if self.done:
            remember(Spot(self.current, metric=self.metric), self.job.a, self.job.b)

    # What is shown.

    def cell_of(self, key: StageKey) -> Part:
        first = self.first is not None and key == self.first.key
        sign, style = text.sign_of(self.results.get(key), self.metric, first)
        finding = self.found.findings.get(key) if self.found is not None else None
        return (f"*{sign[-1]}", "bad") if finding and finding.kind == "culprit" else (sign, style)

    def words_of(self, key: StageKey) -> str:
        return text.words_of(self.results.get(key))

    @property
    def limit(self) -> float | None:
        return self.bars.rel_l2 if self.bars and self.metric == METRICS[0] else None

    @property
    def measure(self) -> str:
        return "1 - cosine" if self.metric == "cosine" else self.metric

    def ordered(self, keys: Sequence[StageKey]) -> list[StageKey | str]:
        return text.worst_first(keys, self.results, self.metric)

    def row_head(self, width: int) -> list[Part]:
        return text.row_head(self.metric, width)

    def row_parts(self, key: StageKey, width: int) -> list[Part]:
        return text.row_of(key, self.results.get(key), self.metric, self.cell_of(key), width)

    def table(self) -> Iterable[Sequence[str]]:
        yield text.TABLE_HEAD
        for key in self.order:
            yield text.table_row(key, self.results.get(key))

    def in_short(self, key: StageKey) -> str:
        result = self.results.get(key)
        return text.in_short(key, result) if result is not None else ""

    def drifts(self) -> list[Drift]:
        return [text.drift_of(key, self.results.get(key), self.metric) for key in self.shown]

    def stands_out(self, key: StageKey) -> bool:
        return key in self.results and _fails(self.results[key])

    def facts_of(self, key: StageKey) -> list[Block]:
        result, width = self.results.get(key), self.detail.column
        if result is None:
            return [[[("not measured yet", "dim")]]]
        verdict, *rest = pair_blocks(result, self.bars, width)
        blocks = [verdict, *rest]
        finding = self.found.findings.get(key) if self.found is not None else None
        if finding is not None:
            tone = "bad" if finding.kind == "culprit" else "good"
            blocks.insert(1, finding_block(finding, tone, width))
        if facts_of(key.stage).logits:
            pair = self.pairs[key]
            blocks.insert(1, top_block(top_of(pair.a), top_of(pair.b), result))
        used = sum(len(block) + 1 for block in blocks)
        alike = (each for each in self.pairs if each.stage == key.stage)
        drifts = [text.drift_of(k, self.results.get(k), self.metric) for k in alike]
        room = self.detail.size.height - used
        return [*blocks, layers_block(key, drifts, width, room, self.metric)]

    def retitle(self) -> None:
        names = names_of(self.job.a, self.job.b)
        remark = " · the prompts differ" if self.other_prompts else ""
        if self._in_passes is not None and self.job.of_pass is not None:
            remark += f" · only {pass_words(self._in_passes, self.job.of_pass)}"
        if self.same and not self.filter:
            remark += f" · {', '.join(self.same)}"
        if self.state == "full" and not self.done:
            remark += " · comparing …"
        if self.follower.paused:
            remark += " · paused"
        self.set_title(f"{self.narrowed}A {names[0]}   B {names[1]}{remark}",
                       loud=self.other_prompts)  # fmt: skip
        self.legend.show(text.legend(sign for sign, _ in self.grid.cells.values()))
        if self.bars is not None:
            self._show_head(self.bars)

    def _show_head(self, bars: Bars) -> None:
        first = self.first
        measured = sum(result.metrics is not None for result in self.results.values())
        unmeasured = sum(result.kind in UNMEASURED for result in self.results.values())
        failed = sum(_fails(result) for result in self.results.values())
        passed = (" · nothing beyond the bar", "$text-success")
        if bars.may_hide(result.kind for result in self.results.values()):
            passed = (" · nothing beyond a loose bar: b replays each stage", "$text-warning")
        verdict = Content.assemble(
            "drift · " if self.size.width >= 100 else "",
            (self.metric, "bold $text-accent"),
            f" · {count(measured)} of {count(len(self.pairs))} pairs",
            (f" · {unmeasured} unmeasured" if unmeasured else "", "$text-warning"),
            (f" · {failed} beyond bar" if failed else "", "bold $text-error"),
            passed if self.done and not first else "",
            (f" · first {first.key}" if first else "", "bold"),
        )  # fmt: skip
        why = f"bar rel_l2 {bars.rel_l2:.3g}, worst row {bars.worst_row_rel_l2:.3g}: {bars.reason}"
        lines = [verdict, Content.styled(clean(why, 300), "dim")]
        lines += [Content.styled(f"! {clean(note, 200)}", "$text-warning") for note in self.notes]
        if self.found is not None:
            lines.append(self.found.verdict_line("v shows them"))
        self.show_head(lines)

    # Keys.

    def action_ignore_tokens(self) -> None:
        """Compare after all, where different prompts stood in the way."""
        if self.other_prompts and not self.job.any_prompt:
            self.job = replace(self.job, any_prompt=True)
            self._start()

    def action_again(self) -> None:
        """Read and measure both sides again, whatever is known."""
        self._last = Spot(self.current or self._key)
        self._start()

    def action_pass(self, step: int) -> None:
        """Only the rows of the next pass; behind the last, and before the first, all of them."""
        if self._in_passes is None:
            return
        ways = [None, *dict.fromkeys(self._in_passes.passes)]
        self.job = replace(
            self.job, of_pass=ways[(ways.index(self.job.of_pass) + step) % len(ways)]
        )
        self.action_again()

    def action_pause(self) -> None:
        self.follower.paused = not self.follower.paused
        self.retitle()

    def action_copy_path(self) -> None:
        """The file of B under the cursor, or of A where B has none."""
        result = self.results.get(self.current) if self.current is not None else None
        if result is not None:
            self.say(copy(self.app, result.path_b or result.path_a))

    def action_metric(self, step: int) -> None:
        self.metric = METRICS[(METRICS.index(self.metric) + step) % len(METRICS)]
        if self.state == "full":
            self.paint()

    def action_first(self) -> None:
        if self.first is not None:
            self.select(self.first.key)

    def action_bisect(self) -> None:
        """Replay every stage of B with its model; ask for that when no manifest names it."""
        self.say("looking for the model that computed B …")
        self.run_worker(self._find_model, thread=True, exclusive=True, group="model")

    def _find_model(self) -> None:
        model: Path | None = None
        # None named, another one since, or no model at all: then a person is asked.
        with contextlib.suppress(AprtuiError):
            model = self.find_model()
        self.post_message(ModelFound(model))

    def find_model(self) -> Path:
        if len(self.traces) != 2:
            raise UsageError("two stage files do not say which model computed them")
        return model_of(model_trace(*self.traces), self.model)

    @property
    def reporting(self) -> Reporting | None:
        if len(self.traces) != 2 or not self.done:
            return None
        results = tuple(self.results[key] for key in self.pairs if key in self.results)
        return Reporting(*self.traces, results, None, self.job.any_prompt)

    @property
    def sides(self) -> Sides:
        return Sides(self.job.a, self.job.b, self.find_model)

    def idle_keys(self) -> frozenset[str]:
        idle = set[str]()
        if not self.other_prompts or self.job.any_prompt:
            idle.add("other-prompts")
        if self._in_passes is None:
            idle |= {"diff-pass", "diff-pass-back"}
        if self.found is None:
            idle.add("local-error")
        if self.first is None or self.first.key == self.current:
            idle.add("first-divergence")
        return super().idle_keys() | idle

    @on(ModelFound)
    def _model_found(self, event: ModelFound) -> None:
        self.say("")
        if not self.is_current:
            return
        if event.model is not None:
            self.answered("model", str(event.model))
        else:
            self.ask_path("the model that computed B (.gguf, .apr, .safetensors)", "model",
                     self.model)  # fmt: skip

    def action_diff_with(self) -> None:
        self.ask_path("compare A with…", "diff", str(self.job.b.absolute().parent) + "/")

    def answered(self, purpose: str, text: str) -> None:
        super().answered(purpose, text)
        if purpose == "diff" and text:
            self.app.open_diff(self.job.a, meant(text))
        if purpose == "model" and text:
            self.model = text
            self.found = None
            self._open_bisect()

    def _open_bisect(self) -> None:
        model = Path(self.model).expanduser()
        screen = BisectScreen(
            self.job.a, self.job.b, model, self.pairs, self.results, self.found, at=self.current
        )

        def come_back(found: object) -> None:
            if isinstance(found, Bisected):
                self.model = str(screen.model)
                self._keep(found)
            elif screen.state == "error" and self.found is None:
                self.model = ""  # b asks again
            if screen.current is not None:
                self.select(screen.current)

        self.app.push_screen(screen, come_back)

    def _keep(self, found: Bisected) -> None:
        """The result of a bisection."""
        self.found = found
        self.paint()

    def action_local_error(self) -> None:
        """The grid of local errors, where a bisection was run."""
        if self.found is None:
            self.say("b finds local errors: it replays each stage of B from its own inputs")
        else:
            self._open_bisect()

    def open_values(self, key: StageKey) -> None:
        result = self.results.get(key)
        if result is None:
            self.say("not measured yet")
        elif result.metrics is None:
            self.open_side(result)
        else:
            self.open_pair(self.pairs, self.results, key)


def _fails(result: PairResult) -> bool:
    return result.kind in FAILED
