"""Matrix: stages by traces, each trace against the first; enter opens the pair in Diff."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import ClassVar

from textual import on
from textual.binding import BindingType
from textual.content import Content

from aprtui.compare.matrix import merged
from aprtui.compare.pairs import FAILED, UNMEASURED, PairResult
from aprtui.compare.reference import model_trace
from aprtui.errors import UsageError
from aprtui.formats.layout import prompts_in
from aprtui.formats.tracedir import StageKey
from aprtui.text import clean, count, number
from aprtui.tui.carry import copy
from aprtui.tui.comparing import OtherPrompts
from aprtui.tui.comparing_many import CellsMeasured, Lined, Many, compare_many
from aprtui.tui.following import Follower
from aprtui.tui.jumps import Goal, Jump, stage_goals
from aprtui.tui.keys import bindings
from aprtui.tui.lens import model_of
from aprtui.tui.messages import LoadFailed
from aprtui.tui.screens import diff_text as text
from aprtui.tui.screens.cells import CellsScreen
from aprtui.tui.screens.diff import METRICS
from aprtui.tui.screens.pair_facts import pair_blocks
from aprtui.tui.screens.sides import Sides
from aprtui.tui.session import remember_verdict
from aprtui.tui.widgets.blocks import Block, named, wrapped
from aprtui.tui.widgets.lines import Part, fit, right
from aprtui.tui.widgets.matrix_grid import Cell, Place, Row

__all__ = ["MatrixScreen"]

_RANKS = {"nonfinite": 4e9, "shape": 3e9, "unreadable": 2e9, "differs": 1e9}  # worst first
_NOTES = 3  # of the head


class MatrixScreen(CellsScreen):
    """Given traces, or two folders of prompts; the values are read cell by cell, and again as
    traces grow."""

    places = ("matrix", "many", "sides")
    ways_out = ("many-prompts", "many-again")
    BINDINGS: ClassVar[list[BindingType]] = bindings("many")  # type: ignore[assignment]

    def __init__(self, paths: tuple[Path, ...], model: str = "", at: Jump | None = None) -> None:
        super().__init__()
        self.job = Many(paths, model)
        traces = (each for path in paths for each in prompts_in(path).values() or (path,))
        self.follower = Follower(self, *traces)
        self.metric = METRICS[0]
        self.lined: Lined | None = None
        self.results: dict[Place, PairResult] = {}
        self.firsts: dict[int, StageKey] = {}  # of each column, as far as is known
        self.done = self.other_prompts = False
        self._at = at

    def started(self) -> None:
        self.grid.corner = "stage"
        self.set_title(self.title_of())
        self._start()
        self.follower.follow(self._follow)

    def _start(self) -> None:
        self.lined, self.results, self.done = None, {}, False
        self.set_state("loading", f"Reading {count(len(self.job.paths), 'folder')} …",
                       "q goes back")  # fmt: skip
        self._compare()

    def _compare(self) -> None:
        known = frozenset((column, key) for key, column in self.results)
        work = partial(compare_many, self.job, self.post_message, self.lined, known)
        self.follower.read(work)

    def _follow(self) -> None:
        """What is written to a side that is not whole yet is compared too."""
        traces = [each for s in (self.lined.faced if self.lined else ()) for each in (s.a, s.b)]
        if any(trace.may_grow for trace in traces) and self.follower.changed:
            self._compare()

    # What the worker says.

    @on(LoadFailed)
    def _failed(self, event: LoadFailed) -> None:
        self.other_prompts = isinstance(event, OtherPrompts)
        self.set_state("error", event.what, event.hint or "q goes back")

    @on(Lined)
    def _lined_up(self, event: Lined) -> None:
        fresh = self.lined is None
        self.lined, self.done, self.other_prompts = event, False, event.other_prompts
        self.results = {at: r for at, r in self.results.items() if (at[1], at[0]) in event.kept}
        self._find_firsts()
        if fresh:
            self.set_state("full")
            self.grid.focus()
        self.set_table(_rows(event), [column.label for column in event.columns])
        waiting = Cell("waiting", "·", "dim")
        self.put({
            (pair.key, n): waiting
            for n, column in enumerate(event.columns) for pair in column.pairs
            if (pair.key, n) not in self.results
        })  # fmt: skip

    @on(CellsMeasured)
    def _measured(self, event: CellsMeasured) -> None:
        self.results.update({(result.key, n): result for n, result in event.found})
        self.done = event.done
        before = dict(self.firsts)
        self._find_firsts()
        marked = {(key, n) for firsts in (before, self.firsts) for n, key in firsts.items()}
        self.put(self._drawn(marked.union((result.key, n) for n, result in event.found)))
        if event.done:
            self._keep_verdicts()
            to, self._at = self._at, None
            if to is not None:
                self.turn_to(to)
            elif self.firsts and self.grid.cursor == self.grid.column == 0:
                column = min(self.firsts)
                self.grid.select(self.firsts[column], column)

    def _find_firsts(self) -> None:
        self.firsts = {}
        for n, column in enumerate(self.lined.columns if self.lined else ()):
            keys = (pair.key for pair in column.pairs)
            first = next((key for key in keys if self._fails((key, n))), None)
            if first is not None:
                self.firsts[n] = first

    def _fails(self, place: Place) -> bool:
        return place in self.results and self.results[place].kind in FAILED

    def _keep_verdicts(self) -> None:
        """What was found of each trace, for Home to say."""
        for n, side in enumerate(self.lined.faced if self.lined else ()):
            found = [result for (_, column), result in self.results.items() if column == n]
            failed = sum(result.kind in FAILED for result in found)
            said = f"{count(failed)} of {count(len(found))} beyond" if failed else "within bar"
            first = f", first {self.firsts[n]}" if n in self.firsts else ""
            against = clean(side.a.root.name, 50)
            remember_verdict(side.b.root, side.a.root, f"{said}{first} · against {against}")

    # What is shown.

    def _drawn(self, places: Iterable[Place]) -> dict[Place, Cell]:
        return {at: self._cell(at) for at in places if at in self.results}

    def _cell(self, place: Place) -> Cell:
        result, (key, n) = self.results[place], place
        sign, tone = text.sign_of(result, self.metric, self.firsts.get(n) == key)
        value = None
        if result.metrics is not None and result.kind != "nonfinite":
            value = text.metric_value(result.metrics, self.metric)
        badness = _RANKS.get(result.kind, 0.0)
        badness += min(value, 1e8) if badness and value is not None and value == value else 0.0
        shown = "" if value is None or result.kind == "equal" else number(value, 3)
        side = self._pair_of(n)
        target = Jump("pair", side, key)
        if result.metrics is None and result.kind in UNMEASURED:
            target = Jump("browse", (side[0] if result.path_a else side[1],), key)
        return Cell(result.kind, sign, tone, shown, text.words_of(result), badness, target)

    def _pair_of(self, column: int) -> tuple[Path, Path]:
        assert self.lined is not None
        side = self.lined.faced[column]
        return side.a.root, side.b.root

    def title_of(self) -> str:
        names = [clean(path.name or str(path), 40) for path in self.job.paths]
        remark = " · the prompts differ" if self.other_prompts else ""
        if self.state == "full" and not self.done:
            remark += " · comparing …"
        if self.follower.paused:
            remark += " · paused"
        others = f"{names[1]}, {names[2]}" if len(names) == 3 else count(len(names) - 1, "trace")
        if self.lined is not None and len({s.a.root for s in self.lined.faced}) > 1:
            return f"{names[0]} with {names[-1]} · {count(len(self.lined.faced), 'prompt')}{remark}"
        return f"A {names[0]} with {others}{remark}"

    def head_lines(self) -> list[Content]:
        if self.lined is None:
            return []
        results = self.results.values()
        failed = sum(result.kind in FAILED for result in results)
        unmeasured = sum(result.kind in UNMEASURED for result in results)
        cells = sum(len(column.pairs) for column in self.lined.columns)
        parted = f"{len(self.firsts)} of {len(self.lined.columns)} part"
        lines = [Content.assemble(
            (self.metric, "bold $text-accent"),
            f" · {count(len(results))} of {count(cells)} cells",
            (f" · {count(unmeasured)} unmeasured" if unmeasured else "", "$text-warning"),
            (f" · {count(failed)} beyond bar · {parted}" if failed else "", "bold $text-error"),
            (" · nothing beyond the bars" if self.done and not failed else "", "$text-success"),
        )]  # fmt: skip
        column = self.lined.columns[self.grid.column]
        bars = column.head.bars
        bar = f"bar rel_l2 {bars.rel_l2:.3g}, worst row {bars.worst_row_rel_l2:.3g}: {bars.reason}"
        named = f"{self.grid.column + 1} {clean(column.label, 60)}: {clean(bar, 300)}"
        lines.append(Content.styled(named, "dim"))
        return lines + [
            Content.styled(f"! {clean(note, 200)}", "$text-warning")
            for note in _loud(self.lined)[:_NOTES]
        ]

    def legend_parts(self) -> list[Part]:
        return text.legend(cell.sign for cell in self.grid.cells.values())

    def facts_of(self, place: Place) -> list[Block]:
        if self.lined is None:
            return []
        key, n = place
        column, result, width = self.lined.columns[n], self.results.get(place), self.detail.column
        blocks: list[Block] = [[[("not measured yet", "dim")]]]
        if result is not None:
            blocks = pair_blocks(result, column.head.bars, width)[:1]
        elif all(pair.key != key for pair in column.pairs):
            blocks = [[[("neither side has this stage", "dim")]]]
        across: Block = [[("in every column", "head")]]
        for other, label in enumerate(self.grid.columns):
            cell = self.grid.cells.get((key, other))
            tail = right(cell.text if cell else "", 9)
            across.append([(f"{cell.sign if cell else '':>2} ", cell.tone if cell else ""),
                           (fit(f"{other + 1} {label}", width - 13), ""), (tail, "")])  # fmt: skip
        first = str(self.firsts[n]) if n in self.firsts else "nowhere" if self.done else ""
        b = column.head.b
        said = " · ".join(part for part in (b.status, f"{count(b.files)} files", b.engine) if part)
        facts = named((("parts at", clean(first, width - 12)),))
        return [*blocks, across, facts + wrapped(said, "", width, f"{'B':<11}")]

    # Places.

    @property
    def sides(self) -> Sides | None:
        if self.lined is None or not self.lined.columns:
            return None
        return Sides(*self._pair_of(self.grid.column), self.find_model)

    def find_model(self) -> Path:
        if self.lined is None:
            raise UsageError("nothing was read yet")
        side = self.lined.faced[self.grid.column]
        return model_of(model_trace(side.a, side.b), self.job.model)

    def here(self) -> Jump:
        return Jump("matrix", self.job.paths, self.stage_here)

    def goals(self) -> Iterable[Goal]:
        keys = (row.key for row in self.rows)
        return stage_goals(keys, "matrix", self.job.paths, self.app.jump)

    def turn_to(self, to: Jump) -> None:
        if to.key is not None:
            if all(row.key != to.key for row in self.grid.rows):
                self.answering("filter", "")
            self.grid.select(to.key)

    # Keys.

    def idle_keys(self) -> frozenset[str]:
        ignored = self.job.any_prompt or not self.other_prompts
        idle = {"many-prompts"} if ignored else set[str]()
        if self.grid.column not in self.firsts:
            idle |= {"many-first", "matrix-next", "matrix-previous"}
        return super().idle_keys() | idle

    def action_ignore_tokens(self) -> None:
        if self.other_prompts and not self.job.any_prompt:
            self.job = replace(self.job, any_prompt=True)
            self._start()

    def action_again(self) -> None:
        """Read and measure all again, whatever is known."""
        self._start()

    def action_pause(self) -> None:
        self.follower.paused = not self.follower.paused
        self.tell()

    def action_metric(self, step: int) -> None:
        self.metric = METRICS[(METRICS.index(self.metric) + step) % len(METRICS)]
        self.put(self._drawn(tuple(self.results)))

    def action_copy_path(self) -> None:
        """The file of this column's B, or of A where B has none."""
        place = self.grid.current
        result = self.results.get(place) if place is not None else None
        if result is not None:
            self.say(copy(self.app, result.path_b or result.path_a))

    def action_first(self) -> None:
        """Where this column first parts."""
        if self.grid.column in self.firsts:
            self.grid.select(self.firsts[self.grid.column])

    def action_open_diff(self) -> None:
        """The two captures of this column in Diff."""
        if self.lined is not None:
            self.app.jump(Jump("diff", self._pair_of(self.grid.column)))


def _loud(lined: Lined) -> list[str]:
    """The notes that change what the cells mean, with the trace that each is of."""
    found = dict[str, None]()
    for n, column in enumerate(lined.columns, 1):
        for note in column.head.notes:
            if "incomplete" in note or "reordered" in note:
                of = clean(f"{n} {column.label}", 60).replace("\\", "")
                found[re.sub(r"\bB(?= is)|(?<=of )B\b", of, note)] = None
    return list(found)


def _rows(lined: Lined) -> list[Row]:
    keys = merged([pair.key for pair in column.pairs] for column in lined.columns)
    wide = max((len(str(key.layer)) for key in keys if key.layer is not None), default=0)
    return [
        Row(key, f"{'' if key.layer is None else key.layer:>{wide}} {clean(key.stage, 60)}")
        for key in keys
    ]
