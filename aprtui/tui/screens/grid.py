"""What drift (Diff) and local error (bisect) share: layout, filter, sort.

The same stages stand as a grid of layers by stages or as a list, the worst first; a filter narrows
both; the cursor is one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from textual import events, on
from textual.containers import Vertical
from textual.content import Content
from textual.widget import Widget
from textual.widgets import Static

from aprtui.compare.bisection import Bisection
from aprtui.compare.pairs import Pair, PairResult
from aprtui.formats.tracedir import StageKey
from aprtui.text import clean, count
from aprtui.tui.bisected import Bisected
from aprtui.tui.carry import copy, export_rows
from aprtui.tui.jumps import Goal, Jump, stage_goals
from aprtui.tui.paths import meant
from aprtui.tui.screens.pair import PairScreen, stage_title
from aprtui.tui.screens.sides import Sides, SidesScreen
from aprtui.tui.stage_filter import matcher
from aprtui.tui.widgets.blocks import Block
from aprtui.tui.widgets.drift_chart import Drift
from aprtui.tui.widgets.lines import Part, PartLine, RowList
from aprtui.tui.widgets.pair_preview import PairPreview
from aprtui.tui.widgets.stage_grid import StageGrid
from aprtui.tui.widgets.stage_room import StageRoom
from aprtui.tui.widgets.stage_rows import StageRows

__all__ = ["GridScreen"]

FRAME_LINES = 3  # title, legend, keys
NEXT = frozenset({"next-divergence", "previous-divergence", "next-culprit", "previous-culprit"})
WIDE = 100  # columns from which on the facts stand beside the grid


class GridScreen(SidesScreen):
    """A verdict above; grid or list, and the stage under the cursor beside it; a legend below.

    ``pairs`` are what is compared, ``results`` what is known of them by now.
    """

    pairs: Mapping[StageKey, Pair]
    results: Mapping[StageKey, PairResult]

    def __init__(self) -> None:
        super().__init__()
        self.head = Static("", id="diffhead", markup=False)
        self.room = StageRoom(StageRows(self.row_head, self.row_parts, id="rows"))
        self.grid, self.rows, self.chart = self.room.grid, self.room.rows, self.room.chart
        self.preview, self.detail = self.room.preview, self.room.detail
        self.legend = PartLine(id="legend")
        self.stages: tuple[StageKey, ...] = ()
        self.shown: tuple[StageKey, ...] = ()
        self.found: Bisected | None = None  # what a replay of every stage found
        self.filter = ""
        self.listed = self.zoomed = False
        self._key: StageKey | None = None
        self._outstanding: set[StageKey] = set()  # of those that are shown
        self._over: SidesScreen | None = None  # a screen of one stage that was opened from here

    def body(self) -> Iterable[Widget]:
        with Vertical():
            yield self.head
            yield self.room
            yield self.legend

    # What a screen says of its stages.

    @property
    def measure(self) -> str:
        """What the chart draws and the list orders by."""
        raise NotImplementedError

    @property
    def limit(self) -> float | None:
        """Its bar, the chart's line, if one holds for all stages."""
        raise NotImplementedError

    def cell_of(self, key: StageKey) -> Part:
        """Its sign in the grid."""
        raise NotImplementedError

    def words_of(self, key: StageKey) -> str:
        """What a filter finds besides its name: its class."""
        raise NotImplementedError

    def ordered(self, keys: Sequence[StageKey]) -> list[StageKey | str]:
        """The stages of the list, worst first, what is unmeasured apart."""
        raise NotImplementedError

    def row_head(self, width: int) -> list[Part]:
        """The head of the list."""
        raise NotImplementedError

    def row_parts(self, key: StageKey, width: int) -> list[Part]:
        """A line of the list."""
        raise NotImplementedError

    def facts_of(self, key: StageKey) -> list[Block]:
        """What stands beside the grid."""
        raise NotImplementedError

    def drifts(self) -> list[Drift]:
        """The columns of the chart, for the stages that are shown."""
        raise NotImplementedError

    def table(self) -> Iterable[Sequence[str]]:
        """The stages that are shown, in that order, as rows of text; the first names the fields."""
        raise NotImplementedError

    def in_short(self, key: StageKey) -> str:
        """The stage in one line, to be pasted somewhere; empty when nothing is known."""
        raise NotImplementedError

    def stands_out(self, key: StageKey) -> bool:
        """Whether n and N stop there."""
        raise NotImplementedError

    def retitle(self) -> None:
        """Say where one is."""
        raise NotImplementedError

    # What is shown.

    @property
    def current(self) -> StageKey | None:
        """The stage under the cursor, in the grid or in the list."""
        return self.rows.current if self.listed else self.grid.current

    def select(self, key: StageKey) -> None:
        """Put the cursor on ``key``, if it is shown."""
        self.grid.select(key)
        self.rows.select(key)
        self.show_stage()

    def set_stages(self, keys: Iterable[StageKey]) -> None:
        """What there is, in order of computation."""
        self.stages = tuple(keys)
        self.sift()

    def sift(self) -> None:
        """Show the stages that the filter leaves, with what is known of them now."""
        matches = matcher(self.filter)
        shown = tuple(key for key in self.stages if matches(key, self.words_of(key)))
        if shown != self.shown or not self.grid.cells:
            here = self.current or self._key
            self.shown = shown
            self.grid.set_stages(shown)
            if here in shown:
                self.grid.select(here)
            self._arrange()
        self.paint()

    def learnt(self, keys: Iterable[StageKey]) -> None:
        """Something new is known of these; a filter may find them now, or no more."""
        if self.filter:
            self.sift()
        else:
            self.paint(keys)

    def paint(self, keys: Iterable[StageKey] | None = None) -> None:
        """Draw these stages anew, or all; only what looks different is sent."""
        painted = self.shown if keys is None else tuple(keys)
        kept = self._outstanding.difference(painted) if keys is not None else set[StageKey]()
        self._outstanding = kept.union(filter(self.stands_out, painted))
        self.grid.put({key: self.cell_of(key) for key in painted})
        self._fill_list()
        self._show_chart()
        self.retitle()
        self.show_stage()

    def _fill_list(self) -> None:
        """The rows of the list, in the order of now; they are not sorted while nobody looks."""
        if self.listed:
            self.rows.set_rows(self.ordered(self.shown))
            self.rows.border_title = f"The worst first, by {self.measure}"

    def show_stage(self) -> None:
        """What is known of the stage under the cursor."""
        key = self.current
        if key is not None:
            self._key = key
            self.detail.name_it(stage_title(key))
            self.detail.show(self.facts_of(key))
        else:
            self.detail.name_it("")
            hint = f"No stage matches {clean(self.filter, 30)}: q shows all." if self.filter else ""
            self.detail.show([[[(hint, "warn")]]])
        self.chart.mark(key)
        if self.preview.display and key is not None:
            self.preview.look_at(self.pairs.get(key), self.results.get(key))
        self.show_keys()

    def idle_keys(self) -> frozenset[str]:
        """What leads to the next that stands out, where there is no other."""
        others = any(key != self.current for key in self._outstanding)
        return super().idle_keys() | (frozenset() if others else NEXT)

    def show_head(self, lines: Sequence[Content]) -> None:
        """The verdict: wrapped where the grid leaves room for it, else a line each."""
        width = max(self.size.width - 2, 20)
        needed = sum(-(-line.cell_length // width) for line in lines)
        room = self.size.height - FRAME_LINES - self.grid.lines
        room -= self.room.facts_below
        if needed > max(room, len(lines)):
            lines = [line.truncate(width, ellipsis=True) for line in lines]
        self.head.update(Content("\n").join(lines))

    # Places.

    @property
    def replayed(self) -> Bisection | None:
        return self.found.value if self.found is not None else None

    @property
    def sides(self) -> Sides:
        raise NotImplementedError

    @property
    def stage_here(self) -> StageKey | None:
        return self.current if self.state == "full" else None

    def here(self) -> Jump:
        return Jump(self.places[0], self.sides.both, self.stage_here)

    def goals(self) -> Iterable[Goal]:
        return stage_goals(self.stages, self.places[0], self.sides.both, self.app.jump)

    def shows(self, to: Jump) -> bool:
        """Either grid has every place of the other, and the pairs."""
        kinds, both = ("diff", "pair", "bisect"), self.here().absolute
        return to.screen in kinds and to.absolute == both

    def turn_to(self, to: Jump) -> None:
        self._over = None
        if to.key is not None:
            if to.key not in self.shown:
                self.answering("filter", "")
            self.select(to.key)
            if to.screen == "pair":
                self.open_values(to.key)

    def open_key(self, key: StageKey) -> None:
        """The detail of one stage, as enter asks for it."""
        self.open_values(key)

    def open_values(self, key: StageKey) -> None:
        """The values of one stage: the pair, or the side that alone has it."""
        raise NotImplementedError

    def open_side(self, result: PairResult) -> None:
        """A pair that cannot be compared: the side that has it, and why."""
        sides = self.sides
        self.app.jump(Jump("browse", (sides.a if result.path_a else sides.b,), result.key))
        self.app.say(result.message or result.kind)

    @on(StageGrid.Opened)
    @on(StageRows.Chosen)
    def _open(self, event: StageGrid.Opened | StageRows.Chosen) -> None:
        self.open_key(event.key)

    @property
    def order(self) -> list[StageKey]:
        """The stages that are shown, as they are shown."""
        listed = [key for key in self.rows.rows if isinstance(key, StageKey)]
        return listed if self.listed else list(self.shown)

    @property
    def narrowed(self) -> str:
        """The title's honest remark while a filter hides stages."""
        if not self.filter:
            return ""
        shown, total = count(len(self.shown)), count(len(self.stages))
        return f"showing {shown} of {total} - filter {clean(self.filter, 30)} · "

    def open_pair(self, pairs: Mapping[StageKey, Pair], results: Mapping[StageKey, PairResult],
                  key: StageKey) -> None:  # fmt: skip
        """Both sides of one stage."""
        findings = self.found.findings if self.found is not None else None
        self.lay_over(PairScreen(pairs, results, key, self.sides, findings))

    def lay_over(self, over: SidesScreen) -> None:
        """Show a screen of one stage; the cursor goes along to where one steps from there."""
        self._over = (
            self._over or over
        )  # a pair that was opened from a culprit's page goes back to it
        self.app.push_screen(over)

    @on(events.ScreenResume)
    def _back(self) -> None:
        if self._over is not None and self._over.stage_here is not None:
            self.select(self._over.stage_here)
        self._over = None

    @on(StageGrid.Moved)
    @on(RowList.Moved, "#rows")
    @on(PairPreview.Wanted)
    def _moved(self) -> None:
        self.show_stage()

    # Room.

    @on(StageRoom.Changed)
    def _arrange(self) -> None:
        self.room.share_out(self.shown, listed=self.listed, zoomed=self.zoomed)
        self.call_after_refresh(self._show_room)

    def _show_room(self) -> None:
        self.retitle()
        self._show_chart()
        self.show_stage()

    def _show_chart(self) -> None:
        if self.chart.display:
            self.chart.border_title = f"{self.measure} along the pass"
            self.chart.show(self.drifts(), self.limit)

    # Keys.

    def action_sort(self) -> None:
        """The grid in order of computation, or the list, worst first."""
        here = self.current
        self.listed = not self.listed
        self._fill_list()
        self._arrange()
        if here is not None:
            self.select(here)
        (self.rows if self.listed else self.grid).focus()
        self.retitle()

    def action_zoom(self) -> None:
        """The grid or the list alone, and back."""
        self.zoomed = not self.zoomed
        self._arrange()

    def action_next(self, step: int) -> None:
        """The next stage that stands out, as they are shown, after the cursor or before it."""
        order, here = self.order, self.current
        start = order.index(here) if here in order else 0
        for offset in range(1, len(order) + 1):
            key = order[(start + step * offset) % len(order)]
            if self.stands_out(key):
                self.select(key)
                return

    def action_copy_value(self) -> None:
        """What is known of the stage under the cursor, in one line."""
        found = self.in_short(self.current) if self.current is not None else ""
        if found:
            self.say(copy(self.app, found))

    def action_export(self) -> None:
        """Write the stages that are shown to a .csv file."""
        self.ask_path(
            "write the stages shown to (.csv)",
            "export",
            str(Path.cwd() / "stages.csv"),
            again=False,
        )

    def answered(self, purpose: str, text: str) -> None:
        super().answered(purpose, text)
        if purpose == "export" and text:
            self.say(export_rows(self.table(), meant(text)))

    def action_filter(self) -> None:
        self.ask("show only some stages: ffn, layer 3, 3..6, differs …", "filter",
                 self.filter)  # fmt: skip

    def answering(self, purpose: str, text: str) -> None:
        if purpose == "filter" and text.strip() != self.filter:
            self.filter = text.strip()
            self.sift()

    def step_back(self) -> bool:
        if not self.filter:
            return False
        self.filter = ""
        self.sift()
        return True
