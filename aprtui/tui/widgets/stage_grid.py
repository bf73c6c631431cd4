"""Layers down, stages across, one cell a stage: what a trace fills and a diff colours."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar

from rich.segment import Segment
from textual import events
from textual.binding import BindingType
from textual.geometry import Region
from textual.message import Message
from textual.strip import Strip

from aprtui.formats.tracedir import StageKey
from aprtui.graph.vocabulary import order_of, short_name, stage_of
from aprtui.tui.keys import bindings
from aprtui.tui.widgets.lines import Lines, Part, fit, joined, right

__all__ = ["CELL", "StageGrid"]

_LABEL = 5
CELL = 4  # three letters and a blank; wider only where every stage's name fits in full


class StageGrid(Lines):
    """``cells`` maps a stage to its sign and style name; what is not in it has no cell.

    Layers may differ: one row's stages have their columns blank in another's, and the heads that
    stand out are those of the row with the cursor. A stage that the vocabulary does not know has
    its whole name above a column as wide. Stages of the whole model stand in a last row of their
    own, by name: they take no column.
    """

    BINDINGS: ClassVar[list[BindingType]] = bindings("move")  # type: ignore[assignment]

    class Moved(Message):
        """The cursor stands on another stage, or on none."""

        def __init__(self, grid: StageGrid, key: StageKey | None) -> None:
            super().__init__()
            self.grid, self.key = grid, key

        @property
        def control(self) -> StageGrid:
            return self.grid

    class Opened(Message):
        """Enter was pressed on a stage."""

        def __init__(self, grid: StageGrid, key: StageKey) -> None:
            super().__init__()
            self.grid, self.key = grid, key

        @property
        def control(self) -> StageGrid:
            return self.grid

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.cells: dict[StageKey, Part] = {}
        self._layers: list[int | None] = []
        self._stages: list[str] = []
        self._whole: list[str] = []
        self._heads: tuple[int, Mapping[str, tuple[str, int]]] | None = None  # of which width
        self.row = self.column = 0  # the column among those of the row
        self._wish = 0  # the column of layers that moving up and down keeps to
        self.first = self.first_column = 0

    # State.

    def set_stages(self, keys: Iterable[StageKey], blank: Part = ("·", "dim")) -> None:
        """One cell for each of ``keys``, all blank."""
        ordered = sorted(set(keys), key=order_of)
        here = self.current
        self.cells = dict.fromkeys(ordered, blank)
        self._layers = [*sorted({key.layer for key in ordered if key.layer is not None})]
        names = dict.fromkeys(key.stage for key in ordered if key.layer is not None)
        self._stages = sorted(names, key=lambda name: order_of(StageKey(0, name)))
        self._heads = None
        self._whole = [key.stage for key in ordered if key.layer is None]
        if self._whole:
            self._layers.append(None)
        self.row = self.column = self._wish = 0
        if here is not None and here in self.cells:
            self.select(here)
        else:
            self.first = self.first_column = 0
            self._go(0, 0)
        self.refresh()

    def put(self, cells: Mapping[StageKey, Part]) -> None:
        """Change some cells; only lines that look different are drawn again."""
        layers = {key.layer for key, part in cells.items() if self.cells.get(key) != part}
        self.cells.update(cells)
        for y, layer in enumerate(self._layers[self.first : self.first + self.page], 1):
            if layer in layers:
                self.refresh(Region(0, y, self.size.width, 1))

    @property
    def current(self) -> StageKey | None:
        if self.row >= len(self._layers):
            return None
        names = self._names(self.row)
        if self.column >= len(names):
            return None
        key = StageKey(self._layers[self.row], names[self.column])
        return key if key in self.cells else None

    def select(self, key: StageKey) -> None:
        """Put the cursor on ``key``."""
        if key in self.cells:
            row = self._layers.index(key.layer)
            self._across(row, self._names(row).index(key.stage))

    def _names(self, row: int) -> list[str]:
        return self._whole if self._layers[row] is None else self._stages

    # Geometry.

    @property
    def lines(self) -> int:
        """How many lines all of it takes, the head among them."""
        return 1 + len(self._layers)

    @property
    def heads(self) -> Mapping[str, tuple[str, int]]:
        """What stands above each column, and the cells that it takes.

        Known stages have columns alike, with their whole names where all of these fit.
        """
        width = self.size.width
        if self._heads is None or self._heads[0] != width:
            self._heads = (width, _laid_out(self._stages, width - _LABEL))
        return self._heads[1]

    @property
    def abbreviated(self) -> bool:
        """Whether a column's head is not the whole name of its stage."""
        return any(head != name for name, (head, _) in self.heads.items())

    @property
    def page(self) -> int:
        return max(self.size.height - 1, 1)

    def _columns(self, first: int) -> list[str]:
        """The stages whose columns fit from ``first`` on; one at least."""
        room, found, heads = self.size.width - _LABEL, list[str](), self.heads
        for name in self._stages[first:]:
            room -= heads[name][1]
            if room < 0 and found:
                break
            found.append(name)
        return found

    def _first_column(self, column: int) -> int:
        """The first column to be drawn, so that ``column`` is, and no blank on the right."""
        first = min(self.first_column, column)
        while first < column and first + len(self._columns(first)) <= column:
            first += 1
        while first and first - 1 + len(self._columns(first - 1)) >= len(self._stages):
            first -= 1
        return first

    # Moving.

    def _go(self, row: int, column: int) -> None:
        """To that row's cell nearest to ``column``."""
        if not self.cells:
            return
        before, old_row = self.current, self.row
        scrolled = (self.first, self.first_column)
        self.row = max(0, min(row, len(self._layers) - 1))
        layer, names = self._layers[self.row], self._names(self.row)
        there = [n for n, name in enumerate(names) if StageKey(layer, name) in self.cells]
        self.column = min(there, key=lambda n: abs(n - column), default=0)
        self.first = max(min(self.first, self.row), self.row - self.page + 1, 0)
        self.first = min(self.first, max(len(self._layers) - self.page, 0))  # no blank below
        self.first_column = self._first_column(self.first_column if layer is None else self.column)
        if scrolled != (self.first, self.first_column):
            self.refresh()
        else:  # only what changed: the heads of the columns and two rows
            for y in {0, 1 + old_row - self.first, 1 + self.row - self.first}:
                self.refresh(Region(0, y, self.size.width, 1))
        if before != self.current:
            self.post_message(self.Moved(self, self.current))

    def _across(self, row: int, column: int) -> None:
        """To a column that was asked for: moving up and down keeps to it."""
        self._go(row, column)
        if self._layers and self._layers[self.row] is not None:
            self._wish = self.column

    def _down(self, rows: int) -> None:
        row = max(0, min(self.row + rows, len(self._layers) - 1))
        if self._layers and row != self.row:
            halfway = self._wish >= len(self._stages) // 2
            last = self._layers[row] is None
            self._go(row, halfway * len(self._whole) if last else self._wish)

    def _right(self, step: int) -> None:
        if not self._layers:
            return
        layer, names = self._layers[self.row], self._names(self.row)
        column = self.column + step
        while 0 <= column < len(names):
            if StageKey(layer, names[column]) in self.cells:
                self._across(self.row, column)
                return
            column += step

    def action_down(self) -> None:
        self._down(1)

    def action_up(self) -> None:
        self._down(-1)

    def action_left(self) -> None:
        self._right(-1)

    def action_right(self) -> None:
        self._right(1)

    def action_page_down(self) -> None:
        self._down(self.page)

    def action_page_up(self) -> None:
        self._down(-self.page)

    def action_top(self) -> None:
        self.select(min(self.cells, key=order_of)) if self.cells else None

    def action_bottom(self) -> None:
        self.select(max(self.cells, key=order_of)) if self.cells else None

    def action_line_start(self) -> None:
        self._across(self.row, 0)

    def action_line_end(self) -> None:
        self._across(self.row, len(self._stages))

    def action_open(self) -> None:
        if self.current is not None:
            self.post_message(self.Opened(self, self.current))

    def on_click(self, event: events.Click) -> None:
        row = self.first + event.y - 1
        if not 0 <= row < len(self._layers) or event.x < _LABEL:
            return
        if self._layers[row] is None:
            edges = [sum(map(_whole_width, self._whole[:n])) for n in range(len(self._whole))]
            column = sum(event.x - _LABEL >= edge for edge in edges) - 1
        else:
            x, column = event.x - _LABEL, self.first_column
            for name in self._columns(self.first_column)[:-1]:
                x -= self.heads[name][1]
                column += x >= 0
        self._across(row, column)

    def on_focus(self) -> None:
        self.refresh()

    def on_blur(self) -> None:
        self.refresh()

    def on_resize(self) -> None:
        self._go(self.row, self.column)

    # Drawing.

    def render_line(self, y: int) -> Strip:
        width, stages, heads = self.size.width, self._columns(self.first_column), self.heads
        if y == 0:
            parts: list[Part] = [(" " * _LABEL, "")]
            for number, name in enumerate(stages, self.first_column):
                parts.append((right(*heads[name]), self._tone(number, name)))
            return self.strip(parts, width)
        row = self.first + y - 1
        if row >= len(self._layers):
            return Strip.blank(width, self.line_style(""))
        layer = self._layers[row]
        label = "end" if layer is None else str(layer)
        tone = "accent" if row == self.row and self.has_focus else "head"
        segments = [Segment(right(label, _LABEL - 1) + " ", self.line_style(tone))]
        first, names = (0, self._whole) if layer is None else (self.first_column, stages)
        for number, name in enumerate(names, first):
            lead, tail = f"  {name} ", 1
            if layer is not None:  # the sign under the middle of the name
                head, taken = heads[name]
                tail = max(len(head) // 2, 1)
                lead = " " * (taken - tail - 2)
            segments += self._cell(StageKey(layer, name), lead, " " * tail, (row, number))
        return Strip(joined(Strip(segments).adjust_cell_length(width, self.line_style(""))))

    def _tone(self, column: int, name: str) -> str:
        """The style of a column's head; dim where the row with the cursor has no such stage."""
        layer = self._layers[self.row] if self.row < len(self._layers) else None
        if layer is None:
            return "head"
        if column == self.column and self.has_focus:
            return "accent"
        return "head" if StageKey(layer, name) in self.cells else "dim"

    def _cell(self, key: StageKey, lead: str, tail: str, at: tuple[int, int]) -> list[Segment]:
        """The blanks or the name before a sign, the sign, and the blanks after it."""
        sign, style_name = self.cells.get(key, (" ", ""))
        style = self.line_style(style_name)
        if at == (self.row, self.column):
            style += self.over_style("cursor" if self.has_focus else "cursor-blur")
        before = self.line_style("head" if lead.strip() else "")
        return [Segment(lead, before), Segment(f"{sign:>2} ", style), Segment(tail[1:], before)]


def _laid_out(stages: Iterable[str], room: int) -> dict[str, tuple[str, int]]:
    """The head and the width of each column, in ``room`` cells where that can be."""
    known = [name for name in stages if stage_of(name) is not None]
    unknown = {name: fit(name, min(len(name), max(room - 2, 3))) for name in stages}
    taken = sum(len(unknown[name]) + 2 for name in stages if name not in known)
    each = (room - taken) // max(len(known), 1)
    full = max((len(name) for name in known), default=0) + 2
    cell = full if CELL < full <= each else max(3, min(CELL, each))
    return {
        name: (unknown[name], len(unknown[name]) + 2)
        if name not in known
        else (name if len(name) < cell else short_name(name)[: cell - 1], cell)
        for name in stages
    }


def _whole_width(name: str) -> int:
    return len(name) + 6
