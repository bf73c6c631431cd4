"""What every virtual view shares: drawing a line from styled parts, a cursor, and moving it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from rich.cells import cell_len, set_cell_size
from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import BindingType
from textual.geometry import Region
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

from aprtui.tui.keys import bindings
from aprtui.tui.widgets.palette import INF, palette_of

__all__ = [
    "STYLES",
    "Lines",
    "Part",
    "PartLine",
    "Picture",
    "RowList",
    "fit",
    "right",
    "spaced",
    "whole_fields",
]

Part = tuple[str, str]  # text, and the name of a style: "", "dim", "accent", "good", ...

# The app's, once: as every view's own Textual would work them out for each, at every focus.
STYLES = frozenset(
    f"lines--{name}"
    for name in (
        "dim", "head", "accent", "good", "warn", "bad", "cursor", "cursor-blur", "a", "b", "d",
    )
)  # fmt: skip


def fit(text: str, width: int) -> str:
    """``text`` in exactly ``width`` cells, cut with an ellipsis."""
    if cell_len(text) > width:
        return set_cell_size(text, max(width - 1, 0)) + "…" if width > 0 else ""
    return set_cell_size(text, width)


def right(text: str, width: int) -> str:
    """``text`` at the right of exactly ``width`` cells."""
    short = cell_len(text)
    return " " * (width - short) + text if short <= width else fit(text, width)


def spaced(marks: Iterable[tuple[int, str, str]], width: int) -> list[Part]:
    """Names at their places (column, name, style) in a line; of two that touch the first stays."""
    taken = [False] * (width + 1)
    kept: list[tuple[int, str, str]] = []
    for start, name, style in marks:
        end = start + cell_len(name)
        start -= max(end - width, 0)
        end = start + cell_len(name)
        if start < 0 or any(taken[max(start - 1, 0) : end + 1]):
            continue
        taken[start:end] = [True] * (end - start)
        kept.append((start, name, style))
    parts: list[Part] = []
    used = 0
    for start, name, style in sorted(kept):
        parts += [(" " * (start - used), "dim"), (name, style)]
        used = start + cell_len(name)
    return parts


def whole_fields(parts: Iterable[Part], width: int) -> list[Part]:
    """The leading fields that fit: half a number reads as another number.

    A field ends with the part that ends in two blanks. The first one is cut when even it does
    not fit.
    """
    fields: list[list[Part]] = [[]]
    for part in parts:
        fields[-1].append(part)
        if part[0].endswith("  "):
            fields.append([])
    kept: list[Part] = []
    used = 0
    for field in fields:
        text = "".join(text for text, _ in field)
        if used and used + cell_len(text.rstrip()) > width:
            break
        kept += field
        used += cell_len(text)
    return kept if used <= width or len(kept) > len(fields[0]) else _cut(kept, width)


def _cut(parts: Iterable[Part], width: int) -> list[Part]:
    """The parts as far as they go in ``width`` cells, with an ellipsis where that is not all."""
    kept: list[Part] = []
    for text, style in parts:
        if cell_len(text.rstrip()) > width:
            return [*kept, (fit(text, width), style)]
        kept.append((text, style))
        width -= cell_len(text)
    return kept


def joined(segments: Iterable[Segment]) -> list[Segment]:
    """The segments with neighbours joined that look the same, blanks to what stands before them.

    Every change of style is twenty bytes or more on the way to the terminal.
    """
    found: list[Segment] = []
    before, style = "", None
    for text, other, _ in segments:
        if before and (style is other or style == other or _blank_after(style, text, other)):
            before += text
            found[-1] = Segment(before, style)
        else:
            before, style = text, other
            found.append(Segment(text, other))
    return found


def _blank_after(one: Style | None, text: str, other: Style | None) -> bool:
    """Whether ``text`` is blank and looks the same in the style of what stands before it."""
    if one is None or other is None or text.strip(" "):
        return False
    ground = one.bgcolor == other.bgcolor and not (one.reverse or other.reverse)
    return ground and not (one.underline or other.underline)


class Lines(Widget, can_focus=True):
    """A view that draws any line on demand from ``(text, style name)`` parts."""

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes)
        self._known_styles: dict[str, Style] = {}

    def notify_style_update(self) -> None:
        self._known_styles.clear()
        super().notify_style_update()

    def line_style(self, name: str) -> Style:
        """The theme's style of that name over the widget's own background; of ``size 3`` and
        ``sign -2`` the colour of that level, where the terminal has colours for it.

        Kept until the theme or the focus changes: Textual works it out anew each time that it is
        asked, which takes longer than to draw the line.
        """
        known = self._known_styles.get(name)
        if known is None:
            kind, _, level = name.partition(" ")
            if not name:
                known = self.rich_style
            elif level:
                known = self.rich_style + self._level_style(int(level), kind == "sign")
            else:
                known = self.rich_style + self.over_style(name)
            self._known_styles[name] = known
        return known

    def _level_style(self, level: int, signed: bool) -> Style:
        palette = palette_of(self.app)
        if palette.depth.blends:
            return Style(color=palette.colour(level, signed))
        return self.over_style("bad" if abs(level) >= INF else "b" if signed and level > 0 else "a")

    def over_style(self, name: str) -> Style:
        """The style of that name alone, to be laid over another."""
        known = self._known_styles.get(f"over {name}")
        if known is None:
            known = self.app.get_component_styles(f"lines--{name}").partial_rich_style
            self._known_styles[f"over {name}"] = known
        return known

    def strip(self, parts: Iterable[Part], width: int, over: str = "") -> Strip:
        """The parts as one line of ``width`` cells; ``over`` is laid over all of them."""
        above = self.over_style(over) if over else None
        segments = [
            Segment(text, self.line_style(name) + above if above else self.line_style(name))
            for text, name in parts
            if text
        ]
        fill = self.line_style("") + above if above else self.line_style("")
        return Strip(joined(Strip(segments).adjust_cell_length(width, fill)))

    def refresh_changed(self, before: list[list[Part]], after: list[list[Part]]) -> None:
        """Draw again only the lines that differ: each costs a hundred bytes over SSH."""
        for y in range(max(len(before), len(after))):
            if before[y : y + 1] != after[y : y + 1]:
                self.refresh(Region(0, y, self.size.width, 1))


class PartLine(Lines, can_focus=False):
    """One line of parts."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._parts: list[Part] = []

    def show(self, parts: list[Part]) -> None:
        if parts != self._parts:
            self._parts = parts
            self.refresh()

    def render_line(self, y: int) -> Strip:
        width = self.size.width
        return self.strip(whole_fields(self._parts, width) if y == 0 else [], width)


class Picture(Lines, can_focus=False):
    """A histogram of ``bins`` columns beside its labels; a subclass draws all of its lines."""

    @property
    def bins(self) -> int:
        return max(self.size.width - 12, 8)

    def picture(self) -> list[list[Part]]:
        """The lines, from the top; what they do not fill stays blank."""
        raise NotImplementedError

    def render_line(self, y: int) -> Strip:
        lines = self.picture()
        width = self.size.width
        return (
            self.strip(lines[y], width) if y < len(lines) else Strip.blank(width, self.rich_style)
        )


class RowList(Lines):
    """A list of any number of rows with one cursor; a subclass draws a row."""

    BINDINGS: ClassVar[list[BindingType]] = bindings("move")  # type: ignore[assignment]
    blurred: ClassVar[str] = "cursor-blur"  # the cursor's style without the focus; empty: none

    class Moved(Message):
        """The cursor stands on another row."""

        def __init__(self, rows: RowList, row: int) -> None:
            super().__init__()
            self.rows, self.row = rows, row

        @property
        def control(self) -> RowList:
            return self.rows

    class Opened(Message):
        """Enter was pressed on a row."""

        def __init__(self, rows: RowList, row: int) -> None:
            super().__init__()
            self.rows, self.row = rows, row

        @property
        def control(self) -> RowList:
            return self.rows

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes)
        self.cursor = 0
        self.first = 0

    # What a subclass says.

    def row_count(self) -> int:
        """How many rows there are."""
        raise NotImplementedError

    def row_parts(self, row: int, width: int) -> list[Part]:
        """How row ``row`` looks in ``width`` cells."""
        raise NotImplementedError

    def head_parts(self, width: int) -> list[Part] | None:
        """A line above the rows that never scrolls, if there is one."""
        return None

    # Drawing.

    @property
    def head_height(self) -> int:
        return 0 if self.head_parts(max(self.size.width, 1)) is None else 1

    def render_line(self, y: int) -> Strip:
        width = self.size.width
        head = self.head_parts(width)
        if head is not None:
            if y == 0:
                return self.strip(head, width)
            y -= 1
        row = self.first + y
        if row >= self.row_count():
            return Strip.blank(width, self.rich_style)
        over = "" if row != self.cursor else "cursor" if self.has_focus else self.blurred
        return self.strip(_cut(self.row_parts(row, width), width), width, over)

    def on_focus(self) -> None:
        self.refresh()

    def on_blur(self) -> None:
        self.refresh()

    def on_resize(self) -> None:
        self._keep_in_view()
        self.refresh()

    # Moving.

    @property
    def page(self) -> int:
        return max(self.size.height - self.head_height, 1)

    def move_to(self, row: int, *, tell: bool = True) -> None:
        """Put the cursor on ``row`` (clamped), scroll it into view, tell who listens."""
        before, first = self.cursor, self.first
        self.cursor = max(0, min(row, self.row_count() - 1))
        self._keep_in_view()
        if self.first != first:
            self.refresh()
        elif before != self.cursor:
            for changed in (before, self.cursor):
                y = changed - self.first + self.head_height
                self.refresh(Region(0, y, self.size.width, 1))
        if tell and before != self.cursor:
            self.post_message(self.Moved(self, self.cursor))

    def rows_changed(self) -> None:
        """The rows are others now: keep the cursor among them and draw again."""
        self.cursor = max(0, min(self.cursor, self.row_count() - 1))
        self._keep_in_view()
        self.refresh()

    def _keep_in_view(self) -> None:
        if self.size.height == 0:  # not laid out yet: a resize follows
            self.first = 0
            return
        page = self.page
        self.first = max(min(self.first, self.cursor), self.cursor - page + 1, 0)
        self.first = max(0, min(self.first, self.row_count() - page))

    def action_down(self) -> None:
        self.move_to(self.cursor + 1)

    def action_up(self) -> None:
        self.move_to(self.cursor - 1)

    def action_page_down(self) -> None:
        self.move_to(self.cursor + self.page)

    def action_page_up(self) -> None:
        self.move_to(self.cursor - self.page)

    def action_top(self) -> None:
        self.move_to(0)

    def action_bottom(self) -> None:
        self.move_to(self.row_count() - 1)

    def action_open(self) -> None:
        if self.row_count():
            self.post_message(self.Opened(self, self.cursor))

    def action_left(self) -> None: ...

    def action_right(self) -> None: ...

    def action_line_start(self) -> None: ...

    def action_line_end(self) -> None: ...

    def on_click(self, event: events.Click) -> None:
        place = event.get_content_offset(self)
        if place is not None and place.y >= self.head_height:
            row = self.first + place.y - self.head_height
            if row < self.row_count():
                self.move_to(row)
                if event.chain == 2:
                    self.action_open()

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        event.stop()
        self.move_to(self.cursor + 3)

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        event.stop()
        self.move_to(self.cursor - 3)
