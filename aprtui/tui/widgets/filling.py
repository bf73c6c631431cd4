"""A trace's grid, coloured by what its files hold; below it the stage of the cursor.

Where a small model leaves room, that stage's numbers, histogram and heatmap fill it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from textual import events, on, work
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.message import Message
from textual.widgets import Static
from textual.worker import get_current_worker

from aprtui.compare.metrics import Cancelled
from aprtui.engine.events import StageWritten
from aprtui.errors import BadFileError
from aprtui.formats.tracedir import StageKey, StageRecord, relative_path
from aprtui.graph.vocabulary import order_of
from aprtui.tui.heat import Ask
from aprtui.tui.trace_cells import Held, Holdings, Look, look_for, rms_of
from aprtui.tui.widgets.lines import Part, PartLine
from aprtui.tui.widgets.palette import palette_of
from aprtui.tui.widgets.preview import LEAST_LINES, Preview, StagePreview, preview_of
from aprtui.tui.widgets.stage_grid import CELL, StageGrid
from aprtui.tui.widgets.stage_names import explained, in_columns

__all__ = ["Filling"]

SIDE_COLUMNS = 100  # from so many columns on there is room beside the grid


@dataclass
class Previewed(Message):
    """A stage was looked at; None: it is too large to be looked at unasked."""

    key: StageKey
    preview: Preview | None


class Filling(Vertical):
    """``grid`` with what has landed in it so far; ``side`` is whatever else is told beside it."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.grid = StageGrid(id="grid")
        self.side = Static("", id="side", markup=False)
        self.holdings = Holdings()
        self.preview = StagePreview(id="preview")
        self._names = Static("", id="stagenames", markup=False)  # before it runs
        self._planned: list[str] = []  # the stages that these name
        self._told = PartLine(id="cellline")
        self._legend = PartLine(id="celllegend")
        self._records: dict[StageKey, StageRecord] = {}
        self._texts: tuple[str, ...] = ()
        self._runs = False
        self._chosen: Look | None = None  # None: to be chosen, as it was not painted yet
        self._judged: dict[StageKey, Part] = {}  # what a comparison says: over what a file holds

    def compose(self) -> ComposeResult:
        with Horizontal(id="gridrow"):
            yield self.grid
            yield self.side
        yield self._told
        yield self._legend
        yield self.preview
        yield self._names

    def on_mount(self) -> None:
        self.set_running(False)

    # What has landed.

    def begin(self, stages: Iterable[StageKey], texts: tuple[str, ...]) -> None:
        """Nothing has landed yet of these; ``texts`` are the tokens'."""
        self.holdings.held.clear()
        self._records.clear()
        self._judged.clear()
        self._texts = texts
        self.preview.give(None)
        self.grid.set_stages(stages)

    def plan(self, stages: Iterable[StageKey]) -> None:
        """What a trace is going to write, and what each of its stages is."""
        keys = list(stages)
        self.grid.set_stages(keys)
        self._planned = [*dict.fromkeys(key.stage for key in sorted(keys, key=order_of))]
        self._make_room()

    def has(self, key: StageKey) -> bool:
        """Whether the stage's file is there."""
        return key in self._records

    def landed(self, event: StageWritten, folder: Path) -> Part:
        """Note what a file holds; how its cell looks."""
        key = StageKey(event.layer, event.stage)
        self.holdings.held[key] = Held(
            rms_of(event.rms), event.nan, event.inf, event.bytes, event.shape
        )
        self._records[key] = StageRecord(
            key, folder / relative_path(key), event.bytes, event.shape or None,
            event.axes or None, event.positions, shape_source="events",
        )  # fmt: skip
        return self._cell(key)

    def judge(self, cells: Mapping[StageKey, Part]) -> None:
        """Signs of stages that were compared, in place of what their files hold."""
        self._judged.update(cells)
        self.grid.put({key: cell for key, cell in cells.items() if key in self.grid.cells})

    def _cell(self, key: StageKey) -> Part:
        return self._judged.get(key) or self.holdings.cell(key, self.look)

    def hold(self, records: Mapping[StageKey, StageRecord], held: Mapping[StageKey, Held]) -> None:
        """Files that lie there, and what is known of them by now."""
        self._records.update(records)
        self.holdings.held.update(held)
        self._paint()

    @property
    def look(self) -> Look:
        """How the cells are drawn: chosen anew whenever all of them are."""
        if self._chosen is None:
            self._chosen = look_for(palette_of(self.app), self._lines, self._share)
        return self._chosen

    @property
    def _share(self) -> float:
        """How much of the grid is seen at once, about."""
        across = CELL * max(len(self.grid.heads), 1)
        down = min(self.size.height / self.grid.lines, 1.0)
        return down * min(self.size.width / across, 1.0) if self.size.height else 1.0

    def _lines(self, look: Look) -> Iterable[list[Part]]:
        """The grid's cells, about as it draws them."""
        by_layer: dict[int | None, list[Part]] = {}
        for key in sorted(self.holdings.held, key=order_of):
            sign, style = self.holdings.cell(key, look)
            by_layer.setdefault(key.layer, []).append((f" {sign}  ", style))
        return by_layer.values()

    def recolour(self) -> None:
        """The colours mean something else now."""
        self.holdings.next_way()
        self._paint()

    def _paint(self) -> None:
        self._chosen = None
        self.grid.put({key: self._cell(key) for key in self.holdings.held})
        self.show_cell()

    def notify_style_update(self) -> None:
        super().notify_style_update()
        if self._records:  # another theme may have other colours, or none
            self._paint()

    # Room.

    def set_running(self, runs: bool) -> None:
        """``runs``: a trace runs or ran here; else the grid only shows the plan."""
        self._runs = runs
        self._told.display = self._legend.display = runs
        self._make_room()

    @on(events.Resize)
    def _resized(self) -> None:
        self._make_room()
        if self._records:
            self._paint()

    def _make_room(self) -> None:
        self.side.display = self._runs and self.size.width >= SIDE_COLUMNS
        free = self.size.height - self.grid.lines - 3
        self.preview.display = self._runs and free >= LEAST_LINES
        self._names.display = not self._runs and self._name_stages(free + 2)
        below = self.preview.display or self._names.display
        lines = self.grid.lines + 1 if below else "1fr"
        self.query_one("#gridrow").styles.height = lines
        self.show_cell()

    def _name_stages(self, room: int) -> bool:
        """Say what the plan's stages are, or name them, as ``room`` lines hold; whether they do."""
        lines = [explained(name) for name in self._planned]
        if len(lines) > room:
            lettered = [name for name in self._planned if name in self.grid.heads]
            lines = in_columns(lettered, self.size.width)
        self._names.update(Content("\n").join(lines))
        return 0 < len(lines) <= room

    # The stage under the cursor.

    @on(StageGrid.Moved)
    @on(StagePreview.Wanted)
    def show_cell(self) -> None:
        """Say and draw what is known of the stage under the cursor."""
        key = self.grid.current
        if not self._runs or key is None:
            return
        self._told.show(self.holdings.told(key))
        self._legend.show(self.holdings.legend(self.look))
        shown = self.preview.preview
        record = self._records.get(key)
        if record is None or not self.preview.display:
            self.workers.cancel_group(self, "preview")
            if shown is not None:
                self.preview.give(None)
        else:
            self._look(record, self.preview.bins, self.preview.ask)

    @work(thread=True, exclusive=True, group="preview")
    def _look(self, record: StageRecord, bins: int, ask: Ask | None) -> None:
        worker = get_current_worker()
        try:
            made = preview_of(record, self._texts, bins, ask, lambda: bool(worker.is_cancelled))
        except (Cancelled, BadFileError):
            return  # another stage by now; or its folder is gone, which Browse explains
        self.post_message(Previewed(record.key, made))

    @on(Previewed)
    def _looked(self, event: Previewed) -> None:
        event.stop()
        if event.key == self.grid.current:
            self.preview.give(event.preview)
