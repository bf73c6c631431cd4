"""What was sent to the terminal: of the next frame only the cells that look different follow.

Textual sends every line that a widget may have changed, whole; a frame's title sends all that it
holds, another widget with the focus the whole screen. Over SSH a cell costs up to forty bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import repeat

from rich.cells import get_character_cell_size
from rich.color import ColorSystem
from rich.console import Console
from rich.style import Style
from textual._compositor import ChopsUpdate, CompositorUpdate, LayoutUpdate
from textual.strip import Strip

from aprtui.tui.harmless import is_plain

__all__ = ["Sent"]

# A character, the codes of its look, and those of a blank there. None: nobody knows what stands
# there, or a terminal may measure it otherwise.
Cell = tuple[str, str, str] | None

GAP = 8  # cells alike that are sent again: to move the cursor over them takes as many bytes


class Sent:
    """The cells of the terminal, as far as they are known: none at first, after a resize and when
    the app comes back."""

    def __init__(self) -> None:
        self._lines: list[list[Cell]] = []

    def forget(self) -> None:
        """Whatever stands on the terminal by now: all that is drawn next is sent."""
        self._lines.clear()

    def rest_of(self, update: CompositorUpdate) -> CompositorUpdate:
        """Of an update what is not there yet, worked out when it is sent."""
        return _Rest(self, update) if isinstance(update, ChopsUpdate | LayoutUpdate) else update

    def replace(self, x: int, y: int, cells: list[Cell]) -> list[Cell]:
        """Note what is drawn from ``x`` on in a line; what stood there."""
        while len(self._lines) <= y:
            self._lines.append([])
        line = self._lines[y]
        line += repeat(None, x + len(cells) - len(line))
        before, line[x : x + len(cells)] = line[x : x + len(cells)], cells
        return before


class _Rest(CompositorUpdate):
    """Of an update what is not on the terminal yet."""

    def __init__(self, sent: Sent, update: ChopsUpdate | LayoutUpdate) -> None:
        self.sent, self.update = sent, update

    def render_segments(self, console: Console) -> str:
        try:
            return "".join(self._rest(console))
        except Exception:
            self.sent.forget()  # part of it was noted and none is sent
            raise

    def _rest(self, console: Console) -> list[str]:
        system, parts = console._color_system or ColorSystem.TRUECOLOR, list[str]()
        pen = _Pen()
        for x, y, strip in _strips_of(self.update):
            cells = _cells(strip, system)
            before = self.sent.replace(x, y, cells)
            if None in cells or None in before:
                parts += [f"\x1b[{y + 1};{x + 1}H\x1b[0m", strip.render(console)]
                pen = _Pen()
            elif before != cells:
                for start, end in _stretches(before, cells):
                    parts += [f"\x1b[{y + 1};{x + start + 1}H", *pen.drawn(cells[start:end])]
        return [*parts, "\x1b[0m"] if parts else []


def _strips_of(update: ChopsUpdate | LayoutUpdate) -> Iterator[tuple[int, int, Strip]]:
    """What an update draws, each at its column and line."""
    if isinstance(update, LayoutUpdate):
        for y, line in enumerate(update.strips, update.region.y):
            yield update.region.x, y, Strip.join(line)
        return
    for y, left, right in update.spans:
        for end, (x, strip) in zip(update.chop_ends[y], update.chops[y].items(), strict=False):
            if strip is not None and x < right and end > left:
                yield x, y, strip.crop(0, min(end, right) - x)


def _cells(strip: Strip, system: ColorSystem) -> list[Cell]:
    """A strip cell by cell."""
    cells: list[Cell] = []
    for text, style, _ in strip:
        if not _one_cell_each(text) or (style is not None and style.link):
            return [None] * strip.cell_length
        look, ground = _codes(style, system) if style is not None else ("", "")
        if look == ground or " " not in text:
            cells += zip(text, repeat(look), repeat(ground), strict=False)
        else:
            cells += [(char, ground if char == " " else look, ground) for char in text]
    return cells


@lru_cache(1 << 14)
def _codes(style: Style, system: ColorSystem) -> tuple[str, str]:
    """Of a style, and of its blanks, where the ground alone shows."""
    lined = style.underline or style.underline2 or style.overline or style.strike
    bare = style if lined or style.reverse else style.background_style
    return Strip.render_ansi(style, system), Strip.render_ansi(bare, system)


def _one_cell_each(text: str) -> bool:
    return is_plain(text) or all(get_character_cell_size(char) == 1 for char in {*text})


def _stretches(before: list[Cell], after: list[Cell]) -> list[list[int]]:
    """From where to where the cells differ; what is close together is one."""
    found: list[list[int]] = []
    for at, (old, new) in enumerate(zip(before, after, strict=True)):
        if old == new:
            continue
        if found and at - found[-1][1] <= GAP and _alike(after[found[-1][1] - 1 : at + 1]):
            found[-1][1] = at + 1
        else:
            found.append([at, at + 1])
    return found


def _alike(cells: list[Cell]) -> bool:
    """Whether they take one change of looks at most."""
    return len({cell[1] for cell in cells if cell is not None}) <= 2


class _Pen:
    """The look that the terminal draws with, as far as this frame has set it."""

    def __init__(self) -> None:
        self._look: str | None = None
        self._ground: str | None = None

    def drawn(self, cells: list[Cell]) -> Iterator[str]:
        """The cells, and what their looks change; a blank goes with what stands before it."""
        for cell in cells:
            assert cell is not None
            char, look, bare = cell
            if look != self._look and not (char == " " and look == self._ground):
                yield _change(self._look, look)
                self._look, self._ground = look, bare
            yield char


@lru_cache(1 << 14)
def _change(before: str | None, look: str) -> str:
    """From one look to another: of two colours that alone which is another one."""
    old, new = _two_colours(before), _two_colours(look)
    if old and new and (old[0] == new[0] or old[1] == new[1]):
        return f"\x1b[{new[old[0] == new[0]]}m"
    return f"\x1b[0;{look}m" if look else "\x1b[0m"


def _two_colours(look: str | None) -> tuple[str, str] | None:
    """The codes of the ink and of the ground of a look that is nothing else."""
    ink, between, ground = (look or "").partition(";48;")
    return (ink, f"48;{ground}") if between and ink.startswith("38;") else None
