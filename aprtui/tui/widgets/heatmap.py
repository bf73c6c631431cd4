"""A heatmap with a cursor: labels at the left, an axis above, the cell under the cursor in words.

A subclass says what rows and columns are called and what the cell under the cursor means; the
picture itself is made elsewhere, in a thread (``heat``), and given.
"""

from __future__ import annotations

from rich.segment import Segment
from textual import events
from textual.geometry import Region
from textual.message import Message
from textual.strip import Strip

from aprtui.text import count, number
from aprtui.tui.heat import Ask, Heat, painted
from aprtui.tui.reduce import Window
from aprtui.tui.widgets.cell_cursor import CellCursor
from aprtui.tui.widgets.lines import Part, fit, joined, right, spaced, whole_fields
from aprtui.tui.widgets.palette import over_ssh, palette_of, shade
from aprtui.tui.widgets.pane import Pane

__all__ = ["HeatMap"]

MOST_LABEL = 18


class HeatMap(CellCursor):
    """Draws what it is given; the cursor stays on the same value while pictures change."""

    class Moved(Message):
        """The cursor stands on another cell."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.heat: Heat | None = None
        self.window: Window | None = None  # all of it
        self.how = "largest"
        self.logarithmic = True
        self.thrifty = over_ssh()
        self.label_width = 0  # of the picture that is drawn
        self._at: tuple[int, int] | None = None  # the value that the cursor keeps to

    # What a subclass says.

    def row_name(self, row: int) -> str:
        """What stands before a row of the table."""
        return str(row)

    def column_name(self, column: int) -> str:
        """What stands above a column of the table."""
        return str(column)

    def axis_name(self) -> str:
        """What the columns are."""
        return ""

    def place_name(self, row: int, column: int) -> str:
        """One value of the table in words."""
        return f"({row}, {column})"

    def longest_label(self) -> int:
        """The cells that labels of rows want, of what is to be drawn next."""
        return 6

    @property
    def axis_lines(self) -> int:
        """How many lines the names of the columns take."""
        return 1

    def remake(self) -> None:
        """The picture is to be made again: its size, its window or its scale changed."""
        self.post_message(Pane.Wanted())

    # State.

    def _label_room(self) -> int:
        return min(self.longest_label(), MOST_LABEL, self.size.width // 4) + 2

    @property
    def ask(self) -> Ask:
        """What picture fits here."""
        lines = self.size.height - 2 - self.axis_lines
        columns = self.size.width - self._label_room() - 1
        return Ask(
            max(lines, 1), max(columns, 1), palette_of(self.app), self.how, self.logarithmic,
            self.window, self.thrifty,
        )  # fmt: skip

    def draw_heat(self, heat: Heat | None) -> None:
        """Draw this picture."""
        before, self.heat = self._at, heat
        self.label_width = self._label_room()
        if heat is None or not heat.levels.size:
            self.row = self.column = 0
        elif before is not None:
            self.row, self.column = heat.reduced.place(*before)
        else:
            self.row, self.column = 0, 0
        self.refresh()

    @property
    def block(self) -> Window | None:
        """The part of the table under the cursor."""
        if self.heat is None or not self.heat.levels.size:
            return None
        return self.heat.reduced.block(self.row, self.column)

    @property
    def value(self) -> float | None:
        """What the cell under the cursor shows."""
        if self.heat is None or not self.heat.levels.size:
            return None
        return float(self.heat.reduced.cells[self.row, self.column])

    # Moving.

    @property
    def page_rows(self) -> int:
        return max(len(self.heat.levels) // 4, 1) if self.heat is not None else 1

    def move_to(self, row: int, column: int) -> None:
        """Put the cursor on a cell (clamped); only what looks different is drawn again."""
        heat = self.heat
        if heat is None or not heat.levels.size:
            return
        rows, columns = heat.levels.shape
        before = (self.row, self.column)
        self.row, self.column = max(0, min(row, rows - 1)), max(0, min(column, columns - 1))
        block = heat.reduced.block(self.row, self.column)
        self._at = (block.top, block.left)
        if before == (self.row, self.column):
            return
        for place in (before, (self.row, self.column)):
            self._refresh_at(heat, *place, label=before[0] != self.row)
        if before[1] != self.column:
            self.refresh(Region(0, 1, self.size.width, self.axis_lines))
        self.refresh(Region(0, self.size.height - 1, self.size.width, 1))
        self.post_message(self.Moved())

    def _refresh_at(self, heat: Heat, row: int, column: int, *, label: bool) -> None:
        """Draw a cell again, and its row's label."""
        y = 1 + self.axis_lines + heat.line_of(row)
        x = self.label_width + column * heat.wide
        self.refresh(Region(x, y, heat.wide, max(heat.tall, 1)))
        if label:
            self.refresh(Region(0, y, self.label_width, 1))

    def go_to(self, row: int, column: int) -> None:
        """To a value of the table; a window that does not hold it gives way to the whole."""
        self._at = (row, column)
        heat = self.heat
        if heat is None or not heat.levels.size:
            return
        window = heat.window
        if window.top <= row < window.bottom and window.left <= column < window.right:
            self.move_to(*heat.reduced.place(row, column))
        else:
            self.window = None
            self.remake()

    def zoom(self, nearer: bool) -> None:
        """Half as much of the table around the cursor, or twice as much."""
        heat, block = self.heat, self.block
        if heat is None or block is None:
            return
        rows, columns = heat.window.rows, heat.window.columns
        if nearer:
            most_rows, most_columns = heat.levels.shape
            if (rows, columns) == (most_rows, most_columns):
                return  # every value has a cell of its own
            rows, columns = max(rows // 2, min(rows, 4)), max(columns // 2, min(columns, 8))
            self.window = heat.window.nearer(block.top, block.left, rows, columns)
        else:
            whole = self.whole
            wider = whole.nearer(block.top, block.left, 2 * rows, 2 * columns)
            self.window = None if wider == whole else wider
        self.remake()

    @property
    def whole(self) -> Window:
        """All of the table."""
        return self.heat.window if self.heat is not None else Window(0, 0, 0, 0)

    def action_nearer(self) -> None:
        self.zoom(True)

    def action_farther(self) -> None:
        self.zoom(False)

    def action_reduce(self) -> None:
        """The largest of each cell, or the mean of magnitudes."""
        self.how = "mean" if self.how == "largest" else "largest"
        self.remake()

    def action_scale(self) -> None:
        """Logarithmic or linear."""
        self.logarithmic = not self.logarithmic
        self.remake()

    def action_finer(self) -> None:
        """A colour for every cell, whatever it costs; or what a page may take."""
        self.thrifty = not self.thrifty
        self.remake()

    def on_click(self, event: events.Click) -> None:
        place, heat = event.get_content_offset(self), self.heat
        if place is None or heat is None or not heat.levels.size:
            return
        line, across = place.y - 1 - self.axis_lines, place.x - self.label_width
        if 0 <= line < heat.lines and 0 <= across < heat.columns:
            self.move_to(heat.rows_at(line)[0], across // heat.wide)

    def on_resize(self) -> None:
        self.remake()

    def on_focus(self) -> None:
        """The cursor is drawn, or no more: the rest of the picture is as it was."""
        if self.heat is not None and self.heat.levels.size:
            self._refresh_at(self.heat, self.row, self.column, label=True)
            self.refresh(Region(0, 1, self.size.width, self.axis_lines))

    def on_blur(self) -> None:
        self.on_focus()

    def notify_style_update(self) -> None:
        """Another theme: the picture's colours are made for its background."""
        super().notify_style_update()
        if self.heat is not None and self.heat.palette != palette_of(self.app):
            self.remake()

    # Drawing.

    def render_line(self, y: int) -> Strip:
        (width, height), heat = self.size, self.heat
        if heat is None or not heat.levels.size:
            return self.strip(self.empty_parts() if y == 1 else [], width)
        if y == 0:
            return self.strip(whole_fields(self.head_parts(heat), width), width)
        if y == height - 1:
            return self.strip(whole_fields(self.told(heat), width), width)
        line = y - 1 - self.axis_lines
        if line < 0:
            return self._axis(heat, y - 1)
        if line >= heat.lines:
            return Strip.blank(width, self.line_style(""))
        cursor = (self.row, self.column) if self.has_focus else None
        segments = [self._label(heat, line), *painted(heat, line, self.line_style, cursor)]
        strip = Strip(segments).adjust_cell_length(width, self.line_style(""))
        return Strip(joined(strip)) if heat.way.ink else strip

    def empty_parts(self) -> list[Part]:
        """What stands where there is no picture yet."""
        return [("  shading …", "dim")] if self.heat is None else [("  no values", "dim")]

    def head_parts(self, heat: Heat) -> list[Part]:
        """What a cell shows, and the scale."""
        rows, columns = heat.levels.shape
        tall, wide = -(-heat.window.rows // rows), -(-heat.window.columns // columns)
        what = "largest" if heat.reduced.how == "largest" else "mean |x|"
        each = "each value" if tall == wide == 1 else f"{what} of {count(tall)} x {count(wide)}"
        broken = int((abs(heat.levels) > 100).sum())
        parts: list[Part] = [(f" {each}  ", "head"), *self._legend(heat)]
        if broken:
            parts.append((f"{count(broken)} with NaN or Inf  ", "bad"))
        if heat.window != self.whole:
            parts.append((f"{count(rows)} of {count(self.whole.rows)} rows  ", "warn"))
        if heat.finer_bytes:
            parts.append((f"f finer, {heat.finer_bytes // 1000} KB  ", "dim"))
        return parts

    def _legend(self, heat: Heat) -> list[Part]:
        scale = heat.scale
        ends = ("-", "0", "") if scale.signed else ("", "", "")
        low = number(scale.low, 2) if scale.logarithmic else "0"
        high = number(scale.high, 3)
        levels = range(-scale.top, scale.top + 1) if scale.signed else range(scale.top + 1)
        inks = [(shade(level, scale.signed), "b" if level > 0 and scale.signed else "a")
                for level in levels]  # fmt: skip
        left = f"{ends[0]}{high} " if scale.signed else f"{low} "
        kind = "log" if scale.logarithmic else "linear"
        if heat.way.ink:
            bar: list[Part] = [("".join(dict.fromkeys(sign for sign, _ in inks)), "")]
        else:
            kind_of = "sign" if scale.signed else "size"
            bar = [("█", f"{kind_of} {level}") for level in levels]
        return [(left, "dim"), *bar, (f" {high} {kind}  ", "dim")]

    def told(self, heat: Heat) -> list[Part]:
        """The cell under the cursor: where it is, what it shows."""
        block, value = heat.reduced.block(self.row, self.column), self.value
        assert value is not None
        if block.rows == block.columns == 1:
            where, what = self.place_name(block.top, block.left), ""
        else:
            where = f"{_span(block.top, block.bottom)} x {_span(block.left, block.right)}"
            what = "largest " if heat.reduced.how == "largest" else "mean |x| "
        tone = "accent" if value - value == 0 else "bad"
        return [
            (f" {where}  ", "head"), (what, "dim"), (f"{number(value, 6)}  ", tone),
            (f"{fit(self.row_name(block.top), MOST_LABEL).strip()} → "
             f"{self.column_name(block.left)}  ", "dim"),
        ]  # fmt: skip

    def _label(self, heat: Heat, line: int) -> Segment:
        """The name of the row whose first line this is; the cursor's row stands out."""
        rows = heat.rows_at(line)
        if heat.line_of(rows[0]) != line:
            return Segment(" " * self.label_width, self.line_style(""))
        here = self.row if self.row in rows else rows[0]
        name = self.row_name(int(heat.reduced.row_edges[here]))
        tone = "accent" if self.row in rows and self.has_focus else "dim"
        return Segment(f" {fit(name, self.label_width - 2)} ", self.line_style(tone))

    def _axis(self, heat: Heat, line: int) -> Strip:
        """Names of columns where there is room, that of the cursor's first."""
        columns = heat.levels.shape[1]
        step = max(1, 8 // heat.wide)

        def mark(column: int) -> tuple[int, str, str]:
            name = self.column_name(int(heat.reduced.column_edges[column]))
            name = fit(name, heat.wide - 1).rstrip() if heat.wide > 3 else name
            here = column == self.column and self.has_focus
            return column * heat.wide, name, "accent" if here else "dim"

        order = (self.column, *range(0, columns, step), columns - 1)
        lead: Part = (right(self.axis_name(), self.label_width - 1) + " ", "dim")
        room = self.size.width - self.label_width
        return self.strip([lead, *spaced(map(mark, order), room)], self.size.width)


def _span(first: int, last: int) -> str:
    return str(first) if last - first == 1 else f"{first}..{last - 1}"
