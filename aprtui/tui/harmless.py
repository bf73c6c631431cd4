"""The last thing before the terminal: no character in any line of any widget can act on it.

Names are cleaned where they are shown, with an escape that says what was there. What is typed and
edited (a form's folder, the answer to a question) has to stay what it is, so it is made harmless as
it is drawn, cell for cell.
"""

from __future__ import annotations

import re
from functools import lru_cache

from rich.cells import get_character_cell_size
from rich.segment import Segment
from textual.color import Color
from textual.filter import LineFilter

from aprtui.text import MAX_MARKS, is_hidden

__all__ = ["Harmless", "harmless", "is_plain"]

STAND_IN = "�"
_PLAIN = re.compile("[ -~·─-▟]*")  # printable ASCII, lines and blocks: a cell each


class Harmless(LineFilter):
    """Draws a stand-in for each hidden character that takes a cell, and nothing for the others."""

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        if all(is_plain(text) for text, _, _ in segments):
            return segments
        return [
            segment if segment.control else Segment(harmless(segment.text), segment.style)
            for segment in segments
        ]


def is_plain(text: str) -> bool:
    """Whether each character takes one cell, in any terminal, and does nothing else."""
    return _PLAIN.fullmatch(text) is not None


def harmless(text: str) -> str:
    """``text`` in as many cells, without what a terminal could act on or what overflows a cell."""
    if is_plain(text):
        return text
    shown: list[str] = []
    over = 0  # marks in a row, which take no cell of their own
    for character in text:
        drawn, cells = _drawn(character)
        over = 0 if cells else over + 1
        if over <= MAX_MARKS:
            shown.append(drawn)
    return "".join(shown)


@lru_cache(8192)
def _drawn(character: str) -> tuple[str, int]:
    """What stands for the character, and how many cells it takes."""
    cells = get_character_cell_size(character)
    return (STAND_IN * cells if is_hidden(character) else character), cells
