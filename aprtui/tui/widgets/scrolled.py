"""Lines of which more may be known than fit: j, k, pages and the wheel reach the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual import events
from textual.binding import BindingType
from textual.strip import Strip
from textual.widget import Widget

from aprtui.text import count
from aprtui.tui.keys import bindings
from aprtui.tui.widgets.lines import Lines, Part

__all__ = ["Scrolled"]


class Scrolled(Lines):
    """The frame around it says how many lines are below, and that Tab leads there."""

    BINDINGS: ClassVar[list[BindingType]] = [
        binding for binding in bindings("move")
        if binding.id in ("down", "up", "top", "bottom", "page-down", "page-up")
    ]  # fmt: skip
    first = 0  # the line at the top

    def all_lines(self) -> Sequence[list[Part]]:
        """Every line that is known."""
        raise NotImplementedError

    @property
    def below(self) -> int:
        """How many lines do not fit below the last one."""
        return max(len(self.all_lines()) - self.first - self.size.height, 0)

    def scrolled_line(self, y: int) -> Strip:
        lines, width = self.all_lines(), self.size.width
        at = self.first + y
        return (
            self.strip(lines[at], width) if at < len(lines) else Strip.blank(width, self.rich_style)
        )

    def tell_more(self) -> None:
        """Say in the frame what does not fit."""
        frame = next((w for w in self.ancestors_with_self if w.has_class("frame")), None)
        if isinstance(frame, Widget) and self.display and self.size.height:
            how = "" if self.has_focus else ", tab reaches them"
            said = f"{count(self.below, 'more line')}{how}" if self.below else ""
            if said != (frame.border_subtitle or ""):  # else all of it would be drawn again
                frame.border_subtitle = said

    def go_to_line(self, first: int) -> None:
        """Put that line at the top, as far as there are lines to fill the page."""
        most = max(len(self.all_lines()) - self.size.height, 0)
        first = max(0, min(first, most))
        if first != self.first:
            self.first = first
            self.refresh()
        self.tell_more()

    def action_down(self) -> None:
        self.go_to_line(self.first + 1)

    def action_up(self) -> None:
        self.go_to_line(self.first - 1)

    def action_page_down(self) -> None:
        self.go_to_line(self.first + self.size.height)

    def action_page_up(self) -> None:
        self.go_to_line(self.first - self.size.height)

    def action_top(self) -> None:
        self.go_to_line(0)

    def action_bottom(self) -> None:
        self.go_to_line(len(self.all_lines()))

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        event.stop()
        self.go_to_line(self.first + 3)

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        event.stop()
        self.go_to_line(self.first - 3)

    def on_focus(self) -> None:
        self.tell_more()

    def on_blur(self) -> None:
        self.go_to_line(0)

    def on_hide(self) -> None:
        frame = next((w for w in self.ancestors_with_self if w.has_class("frame")), None)
        if isinstance(frame, Widget) and frame is not self:
            frame.border_subtitle = ""
