"""The Histogram pane: the values' distribution, percentiles, and a line for each position."""

from __future__ import annotations

from dataclasses import dataclass

from textual.strip import Strip

from aprtui.compare.statistics import Histogram
from aprtui.text import count, number
from aprtui.tui.measure import Drawn, Measured, Slice, draw
from aprtui.tui.stage_table import StageTable
from aprtui.tui.widgets.bars import axis_parts, histogram_rows, sparkline
from aprtui.tui.widgets.lines import Lines, Part, fit, right, whole_fields
from aprtui.tui.widgets.stage_pane import StagePane, StageSeen, Work

__all__ = ["RANGES", "HistogramPane"]

RANGES = ("clipped", "symlog", "full")
LEAD = 8


@dataclass(frozen=True, eq=False)
class _Made:
    """The lines of a picture, and all that they depend on."""

    of: tuple[StageTable | None, Drawn | None]
    how: tuple[object, ...]
    lines: list[list[Part]]


class HistogramPane(Lines, StagePane):
    """Draws what it was given; asks for new counts when its width or its range changes."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.measured: Measured | None = None
        self.counted: Drawn | None = None
        self.range = RANGES[0]
        self.logarithmic = False
        self.slice = Slice()
        self._made: _Made | None = None

    @property
    def bins(self) -> int:
        return max(self.size.width - LEAD - 3, 8)

    def show(self, seen: StageSeen) -> None:
        """Another tensor; the slice stays when the tensor has that axis."""
        table = seen.table
        if (
            table is None
            or self.slice.axis >= len(table.shape)
            or (self.slice.axis >= 0 and self.slice.index >= table.shape[self.slice.axis])
        ):
            self.slice = Slice()
        super().show(seen)

    def work(self) -> Work:
        chosen, span, bins = self.slice, self.range, self.bins
        key = (chosen, span, bins)
        return Work(key, lambda table, cancelled: draw(table, chosen, span, bins, cancelled))

    def forget(self) -> None:
        self.measured = self.counted = None
        self.refresh()

    def give(self, measured: Measured | None, made: object) -> None:
        if not isinstance(made, Drawn):
            return
        before = self._made.lines if self._made is not None else []
        self.measured, self.counted, self.drawn = measured, made, self.seen
        self._made = None
        self.refresh_changed(before, self._lines())

    def on_resize(self) -> None:
        self.post_message(self.Wanted())

    def action_range(self) -> None:
        self.range = RANGES[(RANGES.index(self.range) + 1) % len(RANGES)]
        self.post_message(self.Wanted())

    def action_counts(self) -> None:
        self.logarithmic = not self.logarithmic
        self.refresh()

    def idle_keys(self) -> frozenset[str]:
        """A stage of no known shape has no axes to slice by."""
        whole = self.table is None or self.table.folded
        return frozenset({"slice-axis", "slice-next", "slice-previous"} if whole else ())

    def action_slice_axis(self) -> None:
        """All, then each axis of the tensor that is not too long to step through."""
        if self.table is None or self.table.folded:
            return
        axis = self.slice.axis + 1
        self.slice = Slice(axis) if axis < len(self.table.shape) else Slice()
        self.post_message(self.Wanted())

    def action_slice(self, by: int) -> None:
        if self.table is None or self.table.folded:
            return
        axis = max(self.slice.axis, 0)
        index = 0 if self.slice.axis < 0 else self.slice.index + by
        self.slice = Slice(axis, index % max(self.table.shape[axis], 1))
        self.post_message(self.Wanted())

    def slice_name(self) -> str:
        table = self.table
        if table is None or self.slice.axis < 0:
            return "all values"
        axis = table.axes[self.slice.axis]
        text = ""
        if self.slice.axis == 0 and self.slice.index < len(table.texts):
            text = f" {table.texts[self.slice.index]!r}"
        return f"{axis} {self.slice.index} of {table.shape[self.slice.axis]}{text}"

    # Drawing.

    def render_line(self, y: int) -> Strip:
        width = self.size.width
        lines = self._lines()
        return (
            self.strip(lines[y], width) if y < len(lines) else Strip.blank(width, self.rich_style)
        )

    def _lines(self) -> list[list[Part]]:
        """Every line; made once for all that a frame asks for."""
        how = (self.size, self.logarithmic, self.range, self.slice)
        made = self._made
        if (
            made is None
            or made.how != how
            or made.of[0] is not self.table
            or made.of[1] is not self.counted
        ):
            made = self._made = _Made((self.table, self.counted), how, self._make())
        return made.lines

    def _make(self) -> list[list[Part]]:
        width, height = self.size.width, self.size.height
        if self.table is None or self.counted is None:
            return [[("", "")], [("  counting …", "dim")]]
        counts, rows = self.counted.whole, self.counted.rows
        ridge = min(len(rows), max(height - 16, 0)) if height >= 22 else 0
        tall = max(height - 5 - (ridge + 2 if ridge else 0), 3)
        scale = "log counts" if self.logarithmic else "linear counts"
        bins = f"{self.range} range · {scale}"
        lines: list[list[Part]] = [
            [(" " + fit(self.slice_name(), max(width - len(bins) - 3, 8)), "head"),
             (" " + bins, "dim")],
        ]  # fmt: skip
        lead = len(histogram_rows(counts.counts, 1, self.logarithmic)[0][0][0]) - 1
        for row in histogram_rows(counts.counts, tall, self.logarithmic):
            lines.append(row)
        lines.append(axis_parts(counts, lead + 1))
        lines.append(self._outside(counts))
        lines.append(self._percentiles(width))
        if ridge:
            lines.append([("", "")])
            lines += self._ridges(rows[:ridge], len(rows), width)
        return lines

    def _outside(self, counts: Histogram) -> list[Part]:
        parts: list[Part] = [(" ", "")]
        if counts.below or counts.above:
            text = f"{count(counts.below)} below, {count(counts.above)} above the range  "
            parts.append((text, "warn"))
        if counts.nan or counts.inf:
            text = f"{count(counts.nan)} NaN, {count(counts.inf)} Inf not drawn"
            parts.append((text, "bad"))
        return whole_fields(parts, self.size.width)

    def _percentiles(self, width: int) -> list[Part]:
        measured = self.measured
        if measured is None or not measured.statistics.percentiles:
            return []
        known = measured.statistics.percentiles
        for wanted in (tuple(p for p, _ in known), (1, 5, 50, 95, 99), (1, 50, 99), (50,)):
            text = " · ".join(f"p{p:g} {number(v, 3)}" for p, v in known if p in wanted)
            if len(text) < width:
                break
        outliers = [str(o.channel) for o in measured.channels if o.ratio > 6.0][:4]
        if outliers and len(text) < width - 30:
            text += " · outlier channels " + ", ".join(outliers)
        return [(" " + text, "dim")]

    def _ridges(self, rows: tuple[Histogram, ...], total: int, width: int) -> list[list[Part]]:
        table = self.drawn.table if self.drawn is not None else None
        measured = self.measured
        assert table is not None
        head = (
            f"by {table.axes[0]}"
            if len(rows) == total
            else f"by {table.axes[0]}, first {len(rows)}"
        )
        label = min(max((len(table.row_label(n)) for n in range(len(rows))), default=4), 14) + 1
        room = len(rows[0].counts)
        lines: list[list[Part]] = [
            [
                (" " + fit(head, label + room + 2), "head"),
                (right("rms", 9) + right("max |x|", 10), "head"),
            ]
        ]
        for number_, row in enumerate(rows):
            parts: list[Part] = [
                (" " + fit(table.row_label(number_), label), "dim"),
                (sparkline(row.counts, True), "a"), ("  ", ""),
            ]  # fmt: skip
            if measured is not None and number_ < len(measured.rows):
                shape = measured.rows[number_]
                numbers = right(number(shape.rms, 3), 9) + right(number(shape.max_abs, 3), 10)
                place = f" at {table.column_label(shape.column)}"
                used = sum(len(text) for text, _ in parts) + len(numbers)
                parts.append((numbers + (place if used + len(place) <= width else ""), ""))
            lines.append(parts)
        return lines
