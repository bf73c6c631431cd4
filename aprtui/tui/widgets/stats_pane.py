"""The Stats pane: a tensor in numbers, its largest channels and its rows as bars."""

from __future__ import annotations

from collections.abc import Sequence

from textual.strip import Strip

from aprtui.text import count, number
from aprtui.tui.measure import Measured
from aprtui.tui.widgets.bars import bar
from aprtui.tui.widgets.lines import Lines, Part, fit, right
from aprtui.tui.widgets.stage_pane import StagePane

__all__ = ["StatsPane", "headline"]

OUTLIER = 6.0  # times the median channel's rms


def headline(measured: Measured, width: int) -> list[Part]:
    """The one line that stands above every pane."""
    s = measured.statistics
    if not s.count:
        return [(" no values", "dim")]
    words = [("min", s.min), ("max", s.max), ("mean", s.mean), ("std", s.std), ("rms", s.rms)]
    counts = [("NaN", s.nan), ("Inf", s.pos_inf + s.neg_inf), ("zeros", s.zeros)]
    if width < 80:
        words, counts = [words[0], words[1], words[4]], counts[:2]
    values = [part for name, value in words for part in
              ((f"{name} ", "head"), (f"{number(value)}  ", ""))]  # fmt: skip
    counted: list[Part] = []
    for name, found in counts:
        loud = "bad" if found and name != "zeros" else ""
        counted += [(f"{name} ", loud or "head"), (f"{count(found)}  ", loud)]
    bad = s.nan or s.pos_inf or s.neg_inf  # what is wrong is said first: the line may be cut
    parts = counted + values if bad else values + counted
    return [(" ", ""), *([] if measured.exact else [("sample  ", "warn")]), *parts]


class StatsPane(Lines, StagePane):
    """Numbers at the left, channels at the right, rows below."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.measured: Measured | None = None

    def give(self, measured: Measured | None, made: object) -> None:
        if measured is not None:
            before = self._lines()
            self.measured, self.drawn = measured, self.seen
            self.refresh_changed(before, self._lines())

    def forget(self) -> None:
        self.measured = None
        self.refresh()

    def render_line(self, y: int) -> Strip:
        lines = self._lines()
        width = self.size.width
        return (
            self.strip(lines[y], width) if y < len(lines) else Strip.blank(width, self.rich_style)
        )

    def _lines(self) -> list[list[Part]]:
        if self.measured is None:
            return [[("", "")], [("  counting …", "dim")]]
        width, height = self.size.width, self.size.height
        numbers = self._numbers(self.measured)
        channels = self._channels(self.measured, min(height - 1, 24))
        if width < 70:
            told = len(numbers) - len(self.measured.statistics.percentiles)
            both = beside(numbers[:told], numbers[told:], width // 2)
            return [*both, [("", "")], *channels[: max(height - len(both) - 1, 3)]]
        lines = beside(numbers, channels, 34)
        rows = self._rows(self.measured, max(height - len(lines) - 2, 0), width)
        return [*lines, [("", "")], *rows] if rows else lines

    def _numbers(self, measured: Measured) -> list[list[Part]]:
        s = measured.statistics
        rows = [
            ("values" if measured.exact else "sampled", count(s.count),
             "" if measured.exact else "warn"),
            ("min", number(s.min, 6), ""),
            ("max", number(s.max, 6), ""), ("mean", number(s.mean, 6), ""),
            ("std", number(s.std, 6), ""), ("rms", number(s.rms, 6), ""),
            ("zeros", _share(s.zeros, s.count), ""),
            ("denormals", count(s.denormals), "warn" if s.denormals else ""),
            ("NaN", count(s.nan), "bad" if s.nan else ""),
            ("+Inf", count(s.pos_inf), "bad" if s.pos_inf else ""),
            ("-Inf", count(s.neg_inf), "bad" if s.neg_inf else ""),
        ]  # fmt: skip
        wide, room = (11, 18) if self.size.width >= 70 else (9, 16)
        rows += [(f"p{p:g}", number(v, 6), "") for p, v in s.percentiles]
        return [
            [(f" {fit(name, wide)}", "head"), (right(text, room), tone)]
            for name, text, tone in rows
        ]

    def _channels(self, measured: Measured, most: int) -> list[list[Part]]:
        table = self.drawn.table if self.drawn is not None else None
        assert table is not None
        if not measured.channels:
            return [[("no channels: one row of values", "dim")]]
        what = "keys" if table.axes[-1] == "key" else "channels"
        outliers = sum(entry.ratio > OUTLIER for entry in measured.channels)
        lines: list[list[Part]] = [
            [(f"largest {what}", "head"), (f"   {outliers} above {OUTLIER:g}x the median", "dim")]
        ]
        largest = measured.channels[0].rms or 1.0
        for entry in measured.channels[: most - 1]:
            loud = entry.ratio > OUTLIER
            lines.append(
                [(right(table.column_label(entry.channel), 7) + " ", "dim"),
                 (bar(entry.rms / largest, 20), "warn" if loud else "a"),
                 (right(number(entry.rms, 3), 9), ""),
                 (f"  {entry.ratio:.1f}x", "warn" if loud else "dim")]
            )  # fmt: skip
        return lines

    def _rows(self, measured: Measured, most: int, width: int) -> list[list[Part]]:
        table = self.drawn.table if self.drawn is not None else None
        assert table is not None
        if not measured.rows or most < 3:
            return []
        head = f" rms by {table.axes[0]}"
        if len(measured.rows) > most - 1:
            head += f", first {most - 1} of {table.rows}"
        lines: list[list[Part]] = [[(head, "head")]]
        largest = max(row.rms for row in measured.rows) or 1.0
        for number_, row in enumerate(measured.rows[: most - 1]):
            lines.append(
                [(" " + fit(table.row_label(number_), 14), "dim"),
                 (bar(row.rms / largest, max(width - 52, 10)), "a"),
                 (right(number(row.rms, 3), 9), ""),
                 (f"  max {number(row.max_abs, 3)} at {table.column_label(row.column)}", "dim")]
            )  # fmt: skip
        return lines


def _share(part: int, whole: int) -> str:
    return f"{count(part)}  {100 * part / max(whole, 1):.2f} %"


def beside(
    left: Sequence[list[Part]], right_: Sequence[list[Part]], width: int
) -> list[list[Part]]:
    """Two columns of lines, the left one ``width`` cells wide."""
    lines = []
    for number_ in range(max(len(left), len(right_))):
        first = list(left[number_]) if number_ < len(left) else []
        used = sum(len(text) for text, _ in first)
        second = list(right_[number_]) if number_ < len(right_) else []
        lines.append([*first, (" " * max(width - used, 0), ""), *second])
    return lines
