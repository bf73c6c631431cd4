"""The room of a comparison: its stages as grid or list, a chart of them, one of them in words."""

from __future__ import annotations

from collections.abc import Sequence

from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.message import Message
from textual.widgets import Static

from aprtui.formats.tracedir import StageKey
from aprtui.graph.vocabulary import short_name
from aprtui.tui.widgets.blocks import BlockPane
from aprtui.tui.widgets.drift_chart import DriftChart
from aprtui.tui.widgets.pair_preview import LEAST_LINES, PairPreview
from aprtui.tui.widgets.stage_grid import StageGrid
from aprtui.tui.widgets.stage_names import in_columns
from aprtui.tui.widgets.stage_rows import StageRows

__all__ = ["StageRoom"]

CHART_LINES = (9, 18)  # least and most of the chart, its frame among them
FACTS_LINES = 10  # of the facts below the grid, their frame among them
FACTS_BELOW_LIST = 7
WIDE = 100  # columns from which on the facts stand beside the grid


class StageRoom(Horizontal):
    """The grid takes the lines it needs; the chart, the names of its columns and the preview what
    is left; the facts stand beside them, or below where it is narrow."""

    class Changed(Message):
        """It is larger or smaller now."""

    def __init__(self, rows: StageRows) -> None:
        super().__init__(id="compared")
        self.grid, self.rows = StageGrid(id="grid"), rows
        self.chart = DriftChart(id="chart")
        self.names = Static("", id="names", markup=False)
        self.preview = PairPreview(id="pairpreview")
        self.detail = BlockPane(id="pairdetail")
        self._beside = Vertical(id="overview")

    def compose(self) -> ComposeResult:
        with self._beside:
            yield self.grid
            yield self.rows
            yield self.chart
            yield self.names
            yield self.preview
        yield self.detail

    def on_resize(self) -> None:
        self.post_message(self.Changed())

    @property
    def stacked(self) -> bool:
        """Whether the facts stand below."""
        return self.screen.size.width < WIDE

    @property
    def facts_below(self) -> int:
        """The lines that facts below the grid take."""
        return FACTS_LINES if self.stacked else 0

    def share_out(self, shown: Sequence[StageKey], *, listed: bool, zoomed: bool) -> None:
        """Who gets which lines."""
        room, lines = self.size.height, self.grid.lines
        self.grid.display, self.rows.display = not listed, listed
        self.detail.display = not zoomed
        left = 0 if listed or self.stacked else room - lines - 1
        least, most = CHART_LINES
        self.chart.display = left >= least
        self.chart.styles.height = min(left, most)
        heads = dict.fromkeys(key.stage for key in shown if key.layer is not None)
        names = in_columns([name for name in heads if short_name(name) != name],
                           self.grid.size.width)  # fmt: skip
        room_for_names = left > most + len(names) and self.grid.abbreviated
        self.names.display = self.chart.display and room_for_names
        self.names.update(Content("\n").join(names))
        below_names = left - most - self.names.display * (len(names) + 1)
        self.preview.display = self.chart.display and below_names >= LEAST_LINES
        self.grid.styles.height = lines + 1 if self.chart.display else "1fr"
        alone = listed or zoomed or not self.stacked
        below = min(lines, max(room - FACTS_LINES, 1))
        self._beside.styles.height = "1fr" if alone else below
        self.detail.styles.height = FACTS_BELOW_LIST if self.stacked and listed else "1fr"
