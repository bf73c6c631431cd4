"""One number of every stage in order of computation: where along the pass it jumps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

from textual.geometry import Region
from textual.strip import Strip

from aprtui.formats.tracedir import StageKey
from aprtui.text import number
from aprtui.tui.widgets.lines import Lines, Part, right

__all__ = ["Drift", "DriftChart"]

LOWEST = -9  # powers of ten: below any rounding of float32
_LABEL = 9
_WIDEST = 3  # cells that a stage takes at most
_EIGHTHS = " ▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Drift:
    """One stage's distance, None where it is no number. ``style`` colours its column.

    ``sign`` stands at the foot where there is no column, and under one that has no height.
    """

    key: StageKey
    value: float | None
    style: str
    sign: str = "?"


class DriftChart(Lines, can_focus=False):
    """Columns on a logarithmic scale, the bar as a line, layers below, the cursor marked."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id, classes="frame")
        self._drifts: tuple[Drift, ...] = ()
        self._limit: float | None = None
        self._cursor: StageKey | None = None

    def show(self, drifts: Sequence[Drift], limit: float | None) -> None:
        """Draw these, in order of computation; ``limit`` is the bar, if one holds for all."""
        found = tuple(drifts)
        if (found, limit) != (self._drifts, self._limit):
            self._drifts, self._limit = found, limit
            self.refresh()

    def mark(self, key: StageKey | None) -> None:
        """Point at the stage under the cursor."""
        if key != self._cursor:
            self._cursor = key
            self.refresh(Region(0, max(self.size.height - 2, 0), self.size.width, 1))

    # Geometry.

    @property
    def _columns(self) -> list[Sequence[Drift]]:
        """The stages of each cell across: one stage has a cell or more, or shares one."""
        room, stages = max(self.size.width - _LABEL - 1, 1), len(self._drifts)
        if stages <= room:
            cells = range(min(room // max(stages, 1), _WIDEST))
            return [[drift] for drift in self._drifts for _ in cells]
        edges = [stages * x // room for x in range(room + 1)]
        return [self._drifts[start:end] for start, end in pairwise(edges)]

    def _x_of(self, key: StageKey | None) -> int | None:
        columns = enumerate(self._columns)
        return next((x for x, stages in columns if any(d.key == key for d in stages)), None)

    @property
    def _span(self) -> tuple[float, float]:
        """The powers of ten from the foot to the top: what is there, and the bar."""
        powers = [p for drift in self._drifts if math.isfinite(p := _power(drift.value))]
        if self._limit:
            powers.append(math.log10(self._limit))
        lowest, highest = min(powers, default=-1.0), max(powers, default=0.0)
        low = max(math.floor(lowest - 0.5), LOWEST)
        return low, max(math.ceil(highest + 0.1), low + 1)

    # Drawing.

    def render_line(self, y: int) -> Strip:
        width, rows = self.size.width, max(self.size.height - 2, 1)
        if y == rows:
            at = self._x_of(self._cursor)
            return self.strip([] if at is None else [(" " * (_LABEL + at) + "▲", "accent")], width)
        if y == rows + 1:
            return self.strip([(" " * _LABEL, ""), (self._layers(), "head")], width)
        if y > rows:
            return Strip.blank(width, self.rich_style)
        return self.strip(self._row(rows - 1 - y, rows), width)

    def _row(self, row: int, rows: int) -> list[Part]:
        """One line of the chart; ``row`` counts from below."""
        lowest, highest = self._span
        each = (highest - lowest) / rows  # powers of ten a row
        low = lowest + row * each
        limit = None if not self._limit else math.log10(self._limit)
        at_limit = limit is not None and low <= limit < low + each
        power = math.ceil(low)
        mark = ("1" if power == 0 else f"1e{power}") if power < low + each else ""
        if row == rows - 1 and not mark:
            mark = f"1e{highest:.0f}" if highest else "1"
        if at_limit:
            mark = "bar " + number(self._limit or 0.0, 2).replace("e-0", "e-")
        cells = [_tallest(column, low, each, row) for column in self._columns]
        if at_limit:
            cells = [("─", "dim") if sign == " " else (sign, style) for sign, style in cells]
        parts: list[Part] = [(right(mark, _LABEL - 1) + " ", "head")]
        for style, alike in groupby(cells, key=lambda cell: cell[1]):
            parts.append(("".join(sign for sign, _ in alike), style))
        return parts

    def _layers(self) -> str:
        """Where each layer begins, as far as the numbers have room."""
        columns = self._columns
        line, seen = "", set[int | None]()
        for x, stages in enumerate(columns):
            layer = stages[0].key.layer
            if layer in seen:
                continue
            seen.add(layer)
            text = "end" if layer is None else str(layer)
            start = min(x, max(len(columns) - len(text), 0))
            if start >= len(line):
                line = line.ljust(start) + text + " "
        return line


def _tallest(column: Sequence[Drift], low: float, each: float, row: int) -> Part:
    """What one cell of a column shows: the largest of its stages, or a sign at the foot."""
    known = [drift for drift in column if drift.value is not None]
    if not known:
        return (column[0].sign if row == 0 else " "), column[0].style
    largest = max(known, key=lambda drift: _power(drift.value))
    power = _power(largest.value)
    if power == -math.inf:
        return ("=" if row == 0 else " "), "dim"
    if row == 0 and power == math.inf:
        return largest.sign, largest.style
    if power > low + each:
        return "░", largest.style
    eighths = round(8 * (power - low) / each)
    if row == 0:
        eighths = max(eighths, 1)  # whatever is not zero shows
    return _EIGHTHS[max(0, min(eighths, 8))], largest.style


def _power(value: float | None) -> float:
    if value is None or value <= 0:
        return -math.inf
    return math.log10(value) if math.isfinite(value) else math.inf
