"""What is known of the stage under the cursor: blocks of lines, in two columns where they fit."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

from rich.cells import cell_len
from textual.geometry import Region
from textual.message import Message
from textual.strip import Strip

from aprtui.tui.widgets.frame import Named
from aprtui.tui.widgets.lines import Part, fit
from aprtui.tui.widgets.scrolled import Scrolled

__all__ = ["Block", "BlockPane", "Line", "named", "wrapped"]

Line = list[Part]
Block = list[Line]

_NAME = 11  # cells of a fact's name
_TWO_COLUMNS = 72  # cells from which on blocks stand side by side


def named(facts: Iterable[tuple[str, str]]) -> Block:
    """A line for each fact that has a text: its name, then the text."""
    return [[(f"{name:<{_NAME}}", "head"), (text, "")] for name, text in facts if text]


def wrapped(text: str, style: str, width: int, lead: str = "") -> Block:
    """A text in lines of at most ``width`` cells, those after the first under ``lead``."""
    room = max(width - cell_len(lead), 8)
    lines = textwrap.wrap(text, room, break_on_hyphens=False) or [""]
    first, *rest = lines
    return [[(lead, "head"), (first, style)], *([(" " * len(lead), ""), (x, style)] for x in rest)]


class BlockPane(Scrolled, Named, can_focus=False):
    """A picture of blocks, most important first; what does not fit is reached with Tab."""

    class Changed(Message):
        """There is more or less room now: the blocks flow otherwise."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id, classes="frame")
        self._lines: list[Line] = []

    @property
    def column(self) -> int:
        """The cells that a block may take."""
        width = max(self.size.width - 1, 8)
        return (width - 2) // 2 if width >= _TWO_COLUMNS else width

    def on_resize(self) -> None:
        self.post_message(self.Changed())

    def show(self, blocks: Sequence[Block]) -> None:
        """Draw other blocks; only lines that look different are drawn again."""
        before, self._lines = self._lines, self._flow([block for block in blocks if block])
        if self.first and not self.has_focus:
            self.go_to_line(0)
        self.can_focus = len(self._lines) > self.size.height
        self.tell_more()
        for y in range(max(len(before), len(self._lines))):
            if _at(before, y) != _at(self._lines, y):
                self.refresh(Region(0, y, self.size.width, 1))

    def _flow(self, blocks: Sequence[Block]) -> list[Line]:
        height = self.size.height
        if self.size.width - 1 < _TWO_COLUMNS or not blocks:
            return _stacked(blocks)
        left, right = [blocks[0]], list(blocks[1:])
        while right and len(_stacked([*left, right[0]])) <= height and len(right) > 1:
            left.append(right.pop(0))
        columns = [_stacked(left), _stacked(right)]
        return [
            [*_padded(_at(columns[0], y), self.column + 2), *_at(columns[1], y)]
            for y in range(max(map(len, columns)))
        ]

    def all_lines(self) -> list[Line]:
        return self._lines

    def render_line(self, y: int) -> Strip:
        width = self.size.width
        return self.strip([(" ", ""), *_at(self._lines, self.first + y)], width)


def _at(lines: Sequence[Line], y: int) -> Line:
    return lines[y] if y < len(lines) else []


def _stacked(blocks: Sequence[Block]) -> list[Line]:
    """The blocks one below the other, a blank line between."""
    lines: list[Line] = []
    for block in blocks:
        lines += [[], *block] if lines else block
    return lines


def _padded(line: Line, width: int) -> Line:
    used, kept = 0, []
    for text, style in line:
        kept.append((fit(text, width - used) if used + cell_len(text) > width else text, style))
        used += min(cell_len(text), width - used)
    return [*kept, (" " * (width - used), "")]
