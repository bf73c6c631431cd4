"""A stage in the room that a small model leaves: its numbers, its histogram, its heatmap."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rich.segment import Segment
from textual.message import Message
from textual.strip import Strip

from aprtui.formats.tracedir import StageRecord
from aprtui.tui.heat import Ask, Heat, heat_of, painted
from aprtui.tui.measure import Drawn, Measured, Slice, draw, measure
from aprtui.tui.stage_table import StageTable, describe_shape, table_of
from aprtui.tui.widgets.bars import axis_parts, histogram_rows
from aprtui.tui.widgets.frame import Named
from aprtui.tui.widgets.lines import Lines, Part, fit, whole_fields
from aprtui.tui.widgets.palette import palette_of
from aprtui.tui.widgets.stats_pane import headline

__all__ = ["LEAST_LINES", "Preview", "StagePreview", "preview_of"]

LEAST_LINES = 8  # with less room there is none
MOST_VALUES = 1 << 24  # of a larger stage nothing is made unasked
_LABEL = 12
_WIDE = 90  # columns from which on the heatmap stands beside the histogram


@dataclass(frozen=True, eq=False)
class Preview:
    """One stage, measured for a room of some size."""

    record: StageRecord
    table: StageTable
    measured: Measured
    drawn: Drawn
    heat: Heat | None


def preview_of(
    record: StageRecord, texts: tuple[str, ...], bins: int, ask: Ask | None,
    cancelled: Callable[[], bool],
) -> Preview | None:  # fmt: skip
    """What is drawn of a stage; None of one too large to be read unasked, or without values.

    Raises BadFileError for a damaged file, metrics.Cancelled.
    """
    if not 0 < record.count <= MOST_VALUES:
        return None
    table = table_of(record, texts)
    drawn = draw(table, Slice(), "clipped", bins, cancelled)
    heat = heat_of(table.values, table.columns, ask, cancelled) if ask is not None else None
    return Preview(record, table, measure(table, cancelled), drawn, heat)


class StagePreview(Lines, Named, can_focus=False):
    """Draws what it is given; asks for it anew when there is more or less room."""

    class Wanted(Message):
        """Its size is another one now."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id, classes="frame")
        self.preview: Preview | None = None

    @property
    def _half(self) -> int:
        """The columns of the histogram."""
        return self.size.width * 9 // 20 if self.size.width >= _WIDE else self.size.width

    @property
    def bins(self) -> int:
        return max(self._half - 10, 8)

    @property
    def ask(self) -> Ask | None:
        """The heatmap that fits beside the histogram."""
        if self.size.width < _WIDE:
            return None
        columns = self.size.width - self._half - _LABEL - 2
        return Ask(max(self.size.height - 2, 1), columns, palette_of(self.app))

    def give(self, preview: Preview | None) -> None:
        self.preview = preview
        if preview is None:
            self.name_it("")
        else:
            key = preview.record.key
            where = "" if key.layer is None else f"layer {key.layer} · "
            self.name_it(f"{where}{key.stage} · {describe_shape(preview.record)}")
        self.refresh()

    def on_resize(self) -> None:
        self.post_message(self.Wanted())

    def render_line(self, y: int) -> Strip:
        preview, width = self.preview, self.size.width
        if preview is None:
            text = " the stage under the cursor, once its file is there" if y == 0 else ""
            return self.strip([(text, "dim")], width)
        if y == 0:
            return self.strip(whole_fields(headline(preview.measured, width), width), width)
        left = self.strip(self._bars(preview, y - 1), self._half)
        if preview.heat is None or width < _WIDE:
            return left.adjust_cell_length(width, self.line_style(""))
        right = Strip(self._cells(preview, preview.heat, y - 2))
        return Strip.join([left, right]).adjust_cell_length(width, self.line_style(""))

    def _bars(self, preview: Preview, y: int) -> list[Part]:
        counts, tall = preview.drawn.whole, max(self.size.height - 2, 1)
        if y < tall:
            return histogram_rows(counts.counts, tall, False)[y]
        lead = len(histogram_rows(counts.counts, 1, False)[0][0][0])
        return axis_parts(counts, lead)

    def _cells(self, preview: Preview, heat: Heat, line: int) -> list[Segment]:
        """A line of the heatmap; above it what the columns are."""
        table = preview.table
        if line == -1:
            axis = table.axes[-1] if table.axes else "value"
            text = f"{' ' * _LABEL}{table.columns:,} {axis} →"
            return [Segment(text, self.line_style("dim"))]
        if not 0 <= line < heat.lines:
            return []
        row = heat.rows_at(line)[0]
        first = heat.line_of(row) == line
        name = table.row_label(int(heat.reduced.row_edges[row])) if first else ""
        label = Segment(fit(name, _LABEL - 1) + " ", self.line_style("dim"))
        return [label, *painted(heat, line, self.line_style)]
