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

from aprtui.engine.stages import order_of, short_name
from aprtui.formats.tracedir import StageKey
from aprtui.tui.keys import bindings
from aprtui.tui.widgets.lines import Lines, Part, joined, right

__all__ = ["StageGrid"]

_LABEL = 6


class StageGrid(Lines):
    """``cells`` maps a stage to its sign and style name; what is not in it has no cell."""

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
        self.row = self.column = 0
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
        whole = [key.stage for key in ordered if key.layer is None]
        if whole:
            self._layers.append(None)
            self._stages += [name for name in whole if name not in names]
        self.row = self.column = self.first = self.first_column = 0
        if here is not None and here in self.cells:
            self.select(here)
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
        if not (self.row < len(self._layers) and self.column < len(self._stages)):
            return None
        key = StageKey(self._layers[self.row], self._stages[self.column])
        return key if key in self.cells else None

    def select(self, key: StageKey) -> None:
        """Put the cursor on ``key``."""
        if key in self.cells:
            self._go(self._layers.index(key.layer), self._stages.index(key.stage))

    # Geometry.

    @property
    def cell_width(self) -> int:
        room = self.size.width - _LABEL
        return max(3, min(4, room // max(len(self._stages), 1)))

    @property
    def page(self) -> int:
        return max(self.size.height - 1, 1)

    @property
    def page_columns(self) -> int:
        return max((self.size.width - _LABEL) // self.cell_width, 1)

    # Moving.

    def _go(self, row: int, column: int) -> None:
        if not self.cells:
            return
        before = self.current
        self.row = max(0, min(row, len(self._layers) - 1))
        self.column = max(0, min(column, len(self._stages) - 1))
        self.first = max(min(self.first, self.row), self.row - self.page + 1, 0)
        self.first_column = max(
            min(self.first_column, self.column), self.column - self.page_columns + 1, 0
        )
        self.refresh()
        if before != self.current:
            self.post_message(self.Moved(self, self.current))

    def _step(self, rows: int, columns: int) -> None:
        """To the nearest cell in that direction, passing over stages that do not exist."""
        row, column = self.row + rows, self.column + columns
        while 0 <= row < len(self._layers) and 0 <= column < len(self._stages):
            if StageKey(self._layers[row], self._stages[column]) in self.cells:
                self._go(row, column)
                return
            row, column = row + rows, column + columns
        if rows > 0 and self._layers and self._layers[-1] is None:
            whole = [n for n, name in enumerate(self._stages) if StageKey(None, name) in self.cells]
            self._go(len(self._layers) - 1, min(whole, key=lambda n: abs(n - self.column)))
        elif rows < 0 and self.row and self._layers[self.row] is None:
            near = [n for n, name in enumerate(self._stages)
                    if StageKey(self._layers[self.row - 1], name) in self.cells]  # fmt: skip
            self._go(self.row - 1, min(near, key=lambda n: abs(n - self.column), default=0))

    def action_down(self) -> None:
        self._step(1, 0)

    def action_up(self) -> None:
        self._step(-1, 0)

    def action_left(self) -> None:
        self._step(0, -1)

    def action_right(self) -> None:
        self._step(0, 1)

    def action_page_down(self) -> None:
        self._go(self.row + self.page, self.column)

    def action_page_up(self) -> None:
        self._go(self.row - self.page, self.column)

    def action_top(self) -> None:
        self.select(min(self.cells, key=order_of)) if self.cells else None

    def action_bottom(self) -> None:
        self.select(max(self.cells, key=order_of)) if self.cells else None

    def action_line_start(self) -> None:
        self._go(self.row, 0)

    def action_line_end(self) -> None:
        self._go(self.row, len(self._stages) - 1)

    def action_open(self) -> None:
        if self.current is not None:
            self.post_message(self.Opened(self, self.current))

    def on_click(self, event: events.Click) -> None:
        row = self.first + event.y - 1
        column = self.first_column + (event.x - _LABEL) // self.cell_width
        if 0 <= row < len(self._layers) and 0 <= column < len(self._stages) and event.x >= _LABEL:
            self._go(row, column)

    def on_focus(self) -> None:
        self.refresh()

    def on_blur(self) -> None:
        self.refresh()

    # Drawing.

    def render_line(self, y: int) -> Strip:
        width, cell = self.size.width, self.cell_width
        last = self.first_column + self.page_columns
        stages = self._stages[self.first_column : last]
        if y == 0:
            parts: list[Part] = [(" " * _LABEL, "")]
            for number, name in enumerate(stages, self.first_column):
                here = number == self.column and self.has_focus
                head = short_name(name)[: cell - 1]
                parts.append((right(head, cell), "accent" if here else "head"))
            return self.strip(parts, width)
        row = self.first + y - 1
        if row >= len(self._layers):
            return Strip.blank(width, self.rich_style)
        layer = self._layers[row]
        label = "end" if layer is None else str(layer)
        tone = "accent" if row == self.row and self.has_focus else "head"
        segments = [Segment(right(label, _LABEL - 1) + " ", self.line_style(tone))]
        over = self.get_component_rich_style(
            "lines--cursor" if self.has_focus else "lines--cursor-blur", partial=True
        )
        for number, name in enumerate(stages, self.first_column):
            sign, style_name = self.cells.get(StageKey(layer, name), (" ", ""))
            style = self.line_style(style_name)
            here = row == self.row and number == self.column
            segments.append(Segment(" " * (cell - 3), self.rich_style))
            segments.append(Segment(f"{sign:>2} ", style + over if here else style))
        return Strip(joined(Strip(segments).adjust_cell_length(width, self.rich_style)))
