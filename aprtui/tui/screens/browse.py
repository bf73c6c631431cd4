"""Browse: a trace directory or one stage file; panes follow the tree's cursor without Enter."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from textual import events, on
from textual.binding import BindingType
from textual.containers import Horizontal
from textual.widget import Widget
from textual.worker import get_current_worker

from aprtui.errors import BadFileError, UsageError
from aprtui.formats.tracedir import StageKey, StageRecord, TraceDir
from aprtui.text import clean
from aprtui.tui.carry import export
from aprtui.tui.following import Follower, counted
from aprtui.tui.jumps import Goal, Jump, stage_goals
from aprtui.tui.keys import bindings
from aprtui.tui.lens import model_of
from aprtui.tui.measure import Store, identity
from aprtui.tui.messages import LoadFailed, Surveyed, TraceLoaded
from aprtui.tui.panes import places_of
from aprtui.tui.paths import meant
from aprtui.tui.running import running_pid
from aprtui.tui.screens.measuring import PaneReady, Wish, fulfil, stated, survey
from aprtui.tui.screens.sides import Sides
from aprtui.tui.screens.stage_keys import StageKeysScreen
from aprtui.tui.session import Spot, recall, remember
from aprtui.tui.source import load_trace, name_of, title_of
from aprtui.tui.stage_table import StageTable, describe_shape, table_of
from aprtui.tui.trace_cells import Held
from aprtui.tui.widgets.frame import NamedFrame
from aprtui.tui.widgets.lines import PartLine, RowList
from aprtui.tui.widgets.pane import Pane
from aprtui.tui.widgets.stage_list import StageList
from aprtui.tui.widgets.stage_pane import StagePane, StageSeen
from aprtui.tui.widgets.stats_pane import headline

__all__ = ["BrowseScreen"]

FIRST_PANE = "histogram"
PATIENCE_S = 0.25


class BrowseScreen(StageKeysScreen):
    """The tree at the left, one pane at the right."""

    mode = "browse"
    places = ("browse", "sides")
    ways_out = ("browse-stop",)
    lead = "stage"
    BINDINGS: ClassVar[list[BindingType]] = bindings(  # type: ignore[assignment]
        "browse", *places_of("browse"), "sides"
    )

    def __init__(self, path: Path, select: StageKey | None = None, model: str = "") -> None:
        super().__init__()
        self.path = path
        self.model = model
        self.trace: TraceDir | None = None
        self.pane = FIRST_PANE
        self.follower = Follower(self, path)
        self.pid: int | None = None  # the process that is writing this trace
        self.store = Store()
        self.held: dict[StageKey, Held] = {}  # what is known of the files by now
        self._select = select
        self._key: StageKey | None = None
        self.stages = StageList(id="stages")
        self._seen: StageSeen | None = None
        self.line = PartLine(id="headline")

    def body(self) -> Iterable[Widget]:
        self.stages.add_class("frame")
        self.stages.border_title = "Stages · rms"
        with Horizontal():
            yield self.stages
            yield from self.framed(self.line)

    # Loading and following.

    def started(self) -> None:
        name = name_of(self.path)
        self.set_title(name)
        self.set_state("loading", f"Reading {name} …", "q goes back")
        self.follower.read(self._read)
        self.follower.follow(self._follow)

    def _read(self) -> None:
        trace = load_trace(self.path, self.model, counted(self.path, self.post_message))
        if not get_current_worker().is_cancelled:
            self.post_message(TraceLoaded(trace, running_pid(self.path)))

    def _follow(self) -> None:
        """A trace that grows is read again when its folder or its events changed."""
        if self.pid is not None and running_pid(self.path) is None:
            self.pid = None
            self.follower.forget()
        if (self.trace is None or self.trace.may_grow) and self.follower.changed:
            self.follower.read(self._read)

    @on(LoadFailed)
    def _failed(self, event: LoadFailed) -> None:
        if self.trace is None:
            self.set_state("error", event.what, event.hint)
            self.set_title(name_of(self.path), loud=True)
        else:
            self.say(event.what)

    @on(TraceLoaded)
    def _loaded(self, event: TraceLoaded) -> None:
        first = self.trace is None
        self.trace, self.pid = event.trace, event.pid
        if not event.trace.records:
            self.set_state("empty", "No stage has been written yet.",
                           "This fills as the trace runs.")  # fmt: skip
            self._retitle()
            return
        self.stages.set_records(event.trace.records)
        self._make_room()
        self.set_state("full")
        if first:
            last = recall(self.path)
            self.pane = last.pane if last.pane in self.panes else self.pane
            self.stages.focus()
            select = self._select or last.key
            if select is not None:
                self._go_to(select)
        self._retitle()
        self._show_stage()
        self._survey()

    @on(events.Resize)
    def _make_room(self) -> None:
        """A tree as wide as names that nobody else explains; the panes keep more than half."""
        self.stages.styles.min_width = min(self.stages.wanted_width, self.size.width * 9 // 20)

    def _survey(self) -> None:
        assert self.trace is not None
        known = set(self.stages.rms) | set(self.stages.damage)
        wanted = [record for key, record in self.trace.records.items() if key not in known]
        self.run_worker(
            lambda: survey(wanted, self.post_message), thread=True, exclusive=True, group="survey"
        )

    @on(Surveyed)
    def _surveyed(self, event: Surveyed) -> None:
        new = event.damage.keys() - self.stages.damage.keys()
        self.stages.survey(event.rms, event.damage)
        damaged = Held(math.nan, damaged=True)
        self._learn(event.held | dict.fromkeys(event.damage, damaged))
        self._retitle()
        if self._key in new:  # it was cut short while it was shown
            self._show_stage()

    def _learn(self, held: Mapping[StageKey, Held]) -> None:
        self.held.update(held)
        for pane in self.panes.values():
            if isinstance(pane, StagePane):
                pane.learn(held)

    def _retitle(self) -> None:
        assert self.trace is not None
        title = title_of(self.trace, self.path)
        damaged = len(self.stages.damage)
        if damaged:
            title += f" · {damaged} damaged"
        if self.stages.filter:  # told early: the line may be cut
            shown = f"showing {len(self.stages.matching)} of {len(self.trace.records)}"
            name, dot, rest = title.partition(" · ")
            title = f"{name} · {shown} · filter {self.stages.filter}{dot}{rest}"
        if self.pid is not None:
            title += " · running, x stops it"
        if self.follower.paused:
            title += " · paused"
        self.set_title(title, loud=bool(damaged) or self.trace.status == "incomplete")

    def on_unmount(self) -> None:
        if self.state == "full":
            remember(Spot(self.stages.current, self.pane), self.path)

    # Places.

    def here(self) -> Jump:
        return Jump("browse", (self.path,), self.stage_here)

    def goals(self) -> Iterable[Goal]:
        keys = self.trace.records if self.trace is not None else ()
        return stage_goals(keys, "browse", (self.path,), self.app.jump)

    def turn_to(self, to: Jump) -> None:
        if to.key is not None and self.trace is not None:
            self._go_to(to.key)

    def _go_to(self, key: StageKey) -> None:
        assert self.trace is not None
        if key in self.trace.records:
            if key not in self.stages.matching:
                self.answering("filter", "")
            self.stages.select(key)
        elif key == self._select:
            self.say(f"{clean(str(key))} is not in this trace")

    @property
    def stage_here(self) -> StageKey | None:
        return self._key if self.state == "full" else None

    @property
    def sides(self) -> Sides | None:
        """Of a Diff that is open and has this trace as one of its two."""
        return self.app.sides_with(self.path)

    def find_model(self) -> Path:
        if self.trace is None:
            raise UsageError("the trace is not read yet")
        return model_of(self.trace, self.model)

    def action_pair(self) -> None:
        """This stage of both, where a Diff is open."""
        if self.sides is not None and self._key is not None:
            self.app.jump(Jump("pair", self.sides.both, self._key))

    def idle_keys(self) -> frozenset[str]:
        idle = set[str]() if self.pid is not None else {"browse-stop"}
        if self.trace is None or not self.trace.may_grow:
            idle.add("pause")
        rows = self.trace.rows if self.trace is not None else None
        if rows is None or len({*rows.passes}) < 2:
            idle |= {"values-pass", "values-pass-back"}
        return super().idle_keys() | idle | ({"browse-pair"} if self.sides is None else set())

    # What is shown.

    @property
    def record(self) -> StageRecord | None:
        """The stage under the cursor; on a layer's own row still the last one."""
        self._key = self.stages.current or self._key
        return self.trace.records.get(self._key) if self.trace and self._key else None

    @on(RowList.Moved, "#stages")
    def _moved(self, event: RowList.Moved) -> None:
        event.stop()
        if self.stages.current is not None:  # on a layer's own row the last stage stays
            self._show_stage()

    def _show_stage(self) -> None:
        record = self.record
        if record is None or self.trace is None:
            return
        table: StageTable | None = None
        why = ""
        try:
            table = table_of(record, self.trace.token_texts or ())
        except BadFileError as error:
            why = error.message
            self.stages.survey({}, {record.key: why})
            self._learn({record.key: Held(math.nan, damaged=True)})
            self.line.show([(" ! " + why.partition(": ")[2], "bad")])
        self._seen = StageSeen(record, self.trace, table, why, self.model, self.held)
        self.show_pane()
        frame = self.query_one("#panes", NamedFrame)
        if table is None or not self._draws or not frame.border_title:
            self.name_frame()
        else:  # one redrawing for the name and the picture, unless the picture takes long
            self.set_timer(PATIENCE_S, self.name_frame)
        if record.stats:
            self.line.show(stated(record))
        self._measure()

    @property
    def seen(self) -> StageSeen | None:
        return self._seen

    @property
    def listing(self) -> StageList:
        return self.stages

    @property
    def _draws(self) -> bool:
        """Whether the pane that is shown waits for what is measured."""
        pane = self.shown_pane
        return isinstance(pane, StagePane) and pane.work() is not None

    def name_frame(self) -> None:
        """Put the stage's name over the panes."""
        record = self.record
        if record is None:
            return
        where = "" if record.key.layer is None else f"layer {record.key.layer} · "
        shape, size = describe_shape(record), f"{record.size_bytes:,} B"
        title = f"{where}{record.key.stage} · {shape} · {size}"
        self.query_one("#panes", NamedFrame).name_it(title)

    @on(Pane.Wanted)
    def _measure(self) -> None:
        record, seen, pane = self.record, self._seen, self.shown_pane
        if record is None or seen is None or seen.table is None or self.state != "full":
            return
        work = pane.work() if isinstance(pane, StagePane) else None
        wish = Wish(record.key, identity(record.path), seen.table, self.pane, work)
        self.run_worker(
            lambda: fulfil(wish, self.store, self.post_message),
            thread=True, exclusive=True, group="measure",
        )  # fmt: skip

    @on(PaneReady)
    def _ready(self, event: PaneReady) -> None:
        """A worker measured something; it is drawn when it is still what is shown."""
        event.stop()
        if self._seen is None or event.wish.table is not self._seen.table:
            return
        self.name_frame()
        if event.measured is not None:
            self.line.show(headline(event.measured, self.line.size.width))
            found = event.measured.statistics
            if not found.count:
                return
            broken = found.nan or found.pos_inf or found.neg_inf  # the tree says so, not a number
            key, rms = event.wish.key, math.nan if broken else found.rms
            self.stages.survey({key: rms}, {})
            held = self.held.get(key)
            if held is not None and not held.known and event.measured.exact:
                infinite = found.pos_inf + found.neg_inf
                self._learn({key: replace(held, rms=found.rms, nan=found.nan, inf=infinite)})
        pane = self.panes[event.wish.pane]
        if pane is self.shown_pane and isinstance(pane, StagePane):
            pane.give(event.measured, event.made)

    def set_pane(self, pane: str) -> None:
        super().set_pane(pane)
        self._measure()

    @on(events.DescendantFocus)
    def _focus_moved(self) -> None:
        self.lead = "stage" if self.focused is self.stages else "move"
        self.show_keys()

    def step_back(self) -> bool:
        if super().step_back():
            return True
        if self.stages.filter:
            self.answering("filter", "")
            return True
        return False

    def action_sort(self) -> None:
        self.stages.sort_by_stage(not self.stages.by_stage)
        self.stages.border_title = "By stage · rms" if self.stages.by_stage else "Stages · rms"

    def action_filter(self) -> None:
        self.ask("show stages whose name has…", "filter", self.stages.filter)

    def answering(self, purpose: str, text: str) -> None:
        if purpose == "filter":
            self.stages.set_filter(text)
            self._retitle()
            self._show_stage()

    def answered(self, purpose: str, text: str) -> None:
        super().answered(purpose, text)
        table = self._seen.table if self._seen is not None else None
        if purpose == "export" and text and table is not None:
            self.say(export(table, meant(text)))
        elif purpose == "model" and text:
            self.model = text
            self._show_stage()
        elif purpose == "diff" and text:
            self.app.open_diff(self.path, meant(text))

    def action_next_match(self, step: int) -> None:
        """The same stage in the next layer; with damage about, the next damaged file; among values
        that are looked for, the next of those."""
        if self.among_hits:
            self._values.action_hit(step)
            return
        here, keys = self._key, self.stages.matching
        if here is None or here not in keys:
            return
        wanted = [key for key in keys if key in self.stages.damage] or [
            key for key in keys if key.stage == here.stage
        ]
        order = sorted({*wanted, here}, key=keys.index)
        self.stages.select(order[(order.index(here) + step) % len(order)])

    def action_pause(self) -> None:
        self.follower.paused = not self.follower.paused
        if self.trace is not None:
            self._retitle()
