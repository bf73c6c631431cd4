"""A heatmap before it is drawn: which level each cell has, how large cells are, what it will cost.

Over SSH every change of colour is thirty bytes: of all ways to draw a table in the room there is,
the one that shows most for the bytes of a page is taken (docs/tui.md 4).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from rich.color import Color, ColorSystem
from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip

from aprtui.tui.reduce import Float32, Reduced, Window, coarser, reduce_values
from aprtui.tui.widgets.lines import joined
from aprtui.tui.widgets.palette import (
    HALF,
    INF,
    LEVELS,
    NAN,
    PAGE_BYTES,
    Depth,
    Palette,
    shade,
)

__all__ = [
    "Ask", "Heat", "Scale", "Way", "fitted", "heat_of", "painted", "scale_of",
]  # fmt: skip

CURSOR = 125  # a level of its own: the half of a cell that the cursor stands on
TALL, WIDE = (0, 1, 2, 3, 4), (1, 2, 3, 4, 6, 8, 12, 16)  # lines and columns of a cell
_COLOUR_BITS, _INK_BITS = 6.0, 2.7  # how much of a cell is seen, drawn in the one way or the other
DECADES = 4.0

Int8 = npt.NDArray[np.int8]
Named = Callable[[str], Style]  # the theme's style of a name


@dataclass(frozen=True)
class Scale:
    """From magnitudes to levels: ``low`` is where the first one ends, ``high`` the last."""

    low: float
    high: float
    logarithmic: bool
    signed: bool

    @property
    def top(self) -> int:
        return HALF if self.signed else LEVELS - 1

    def levels(self, cells: npt.NDArray[np.float64]) -> Int8:
        """NAN and INF keep levels of their own; 0 is zero alone, however small the rest."""
        sizes = np.abs(cells)
        with np.errstate(divide="ignore", invalid="ignore"):
            if self.logarithmic:
                shares = np.log(sizes / self.low) / math.log(self.high / self.low)
            else:
                shares = sizes / self.high
            steps = np.clip(np.ceil(shares * self.top), 1, self.top)
            found = np.where(sizes == 0, 0, steps)
        found = np.where(np.isfinite(cells), found, np.where(np.isnan(cells), NAN, INF))
        if self.signed:
            found = np.where(cells < 0, -found, found)
        return found.astype(np.int8)


def scale_of(cells: npt.NDArray[np.float64], logarithmic: bool) -> Scale:
    """One that fits the cells: with two signs where one of them is negative."""
    finite = cells[np.isfinite(cells)]
    sizes = np.abs(finite[finite != 0])
    signed = bool((cells < 0).any())
    if not sizes.size:
        return Scale(0.1, 1.0, logarithmic, signed)
    high = float(sizes.max())
    low = max(float(np.percentile(sizes, 5)), high / 10**DECADES)
    low = min(low, high / 2)
    if low == 0.0:  # the smallest of all numbers
        low, high = high, 2 * high
    return Scale(low, high, logarithmic, signed)


@dataclass(frozen=True)
class Way:
    """How cells are drawn: lines (0: half a one) and columns of each; by ``ink``, signs of more
    and less of it in few colours, or in a colour for each level."""

    tall: int
    wide: int
    ink: bool


@dataclass(frozen=True)
class Ask:
    """What is to be drawn, and where: all that a picture depends on but the values."""

    lines: int
    columns: int
    palette: Palette
    how: str = "largest"
    logarithmic: bool = True
    window: Window | None = None  # all of it
    thrifty: bool = True  # keep to PAGE_BYTES


@dataclass(frozen=True, eq=False)
class Heat:
    """A picture, what it costs, and what the one that shows most would, where that is another."""

    reduced: Reduced
    window: Window
    scale: Scale
    levels: Int8
    way: Way
    palette: Palette
    cost_bytes: int
    finer_bytes: int = 0

    @property
    def tall(self) -> int:
        return self.way.tall

    @property
    def wide(self) -> int:
        return self.way.wide

    @property
    def lines(self) -> int:
        rows = len(self.levels)
        return rows * self.tall if self.tall else -(-rows // 2)

    @property
    def columns(self) -> int:
        return int(self.levels.shape[1]) * self.wide

    def line_of(self, row: int) -> int:
        """The first line of a row of cells."""
        return row * self.tall if self.tall else row // 2

    def rows_at(self, line: int) -> range:
        """The rows of cells that a line shows: one, or two halves."""
        if self.tall:
            return range(line // self.tall, line // self.tall + 1)
        return range(2 * line, min(2 * line + 2, len(self.levels)))


def heat_of(
    values: Float32, columns: int, ask: Ask, cancelled: Callable[[], bool] = lambda: False
) -> Heat:
    """A row-major table [n] of ``columns`` columns as a picture. Raises metrics.Cancelled."""
    window = ask.window or Window(0, -(-values.size // max(columns, 1)), 0, columns)
    most = 2 * ask.lines if ask.palette.depth.blends else ask.lines
    fine = reduce_values(values, columns, window, most, ask.columns, ask.how, cancelled)
    return fitted(fine, window, ask)


def fitted(fine: Reduced, window: Window, ask: Ask) -> Heat:
    """The picture that shows most for its bytes, as large as can be."""
    first: Heat | None = None
    cheapest: Heat | None = None
    for way in _ways(window, ask):
        rows = ask.lines // way.tall if way.tall else 2 * ask.lines
        reduced = coarser(fine, rows, ask.columns // way.wide)
        scale = scale_of(reduced.cells, ask.logarithmic)
        levels = scale.levels(reduced.cells)
        bare = Heat(reduced, window, scale, levels, way, ask.palette, 0)
        made = replace(bare, cost_bytes=_cost(bare), finer_bytes=first.cost_bytes if first else 0)
        first = first or made
        if not ask.thrifty or made.cost_bytes <= PAGE_BYTES:
            return made
        if cheapest is None or made.cost_bytes < cheapest.cost_bytes:
            cheapest = made
    if cheapest is None:  # no room, or no values
        scale, way = scale_of(fine.cells, ask.logarithmic), Way(1, 1, False)
        return Heat(fine, window, scale, scale.levels(fine.cells), way, ask.palette, 0)
    return cheapest


def _ways(window: Window, ask: Ask) -> list[Way]:
    """The ways to draw a table in the room there is: what shows most first, then the largest."""
    blends = ask.palette.depth.blends

    def shown(way: Way) -> tuple[int, int]:
        rows = ask.lines // way.tall if way.tall else 2 * ask.lines
        return min(window.rows, rows), min(window.columns, ask.columns // way.wide)

    def order(way: Way) -> tuple[float, float]:
        rows, columns = shown(way)
        bits = _INK_BITS if way.ink else _COLOUR_BITS
        return -bits * rows * columns, -rows * (way.tall or 0.5) * columns * way.wide

    every = [Way(tall, wide, ink) for wide in WIDE for tall in TALL for ink in (False, True)]
    every = [way for way in every if (way.ink and way.tall) or (blends and not way.ink)]
    if not ask.thrifty and blends:
        every = [way for way in every if not way.ink]
    kept = [way for way in every if way.tall <= 1 or shown(way)[0] == window.rows]
    return sorted((way for way in kept if all(shown(way))), key=order)


def _cost(heat: Heat) -> int:
    """The bytes that the terminal will be sent; told from some of the lines of a large picture."""
    step = max(1, heat.lines // _PROBED)
    lines = range(step // 2, heat.lines, step)
    total = 0
    for line in lines:
        segments = painted(heat, line, _STAND_INS.__getitem__)
        ansi = (_ansi(segment.style or Style(), heat.palette.depth) for segment in segments)
        total += sum(len(code) + 7 for code in ansi)
        total += sum(len(segment.text.encode()) for segment in segments) + 9
    return total * heat.lines // max(len(lines), 1)


_PROBED = 8
_STAND_INS = {  # for the theme's styles, as long as those are
    name: Style(color=Color.from_rgb(255, 180, number), bold=name == "bad")
    for number, name in enumerate(("dim", "a", "b", "bad"), 100)
}


def _ansi(style: Style, depth: Depth) -> str:
    system = {Depth.TRUE: ColorSystem.TRUECOLOR, Depth.MANY: ColorSystem.EIGHT_BIT}
    return Strip.render_ansi(style, system.get(depth, ColorSystem.STANDARD))


# Drawing.


def painted(
    heat: Heat, line: int, named: Named, cursor: tuple[int, int] | None = None
) -> list[Segment]:
    """One line of a picture; ``cursor`` is the (row, column) of the cell that it stands on."""
    rows = heat.rows_at(line)
    upper = heat.levels[rows[0]].tolist()
    if heat.way.ink:
        return _inked(heat, upper, cursor[1] if cursor and cursor[0] in rows else None, named)
    below = heat.levels[rows[-1]].tolist() if heat.tall or len(rows) == 2 else [None] * len(upper)
    pairs: list[Pair] = [_shown(*pair) for pair in zip(upper, below, strict=True)]
    at = cursor[1] if cursor is not None and cursor[0] in rows else None
    if at is None or cursor is None:
        return [_run(heat, pairs[first:last]) for first, last in _runs(pairs)]
    here = _under_cursor(heat, pairs[at], None if heat.tall else rows.index(cursor[0]))
    before, after = pairs[:at], pairs[at + 1 :]
    return [
        *(_run(heat, before[first:last]) for first, last in _runs(before)),
        *here,
        *(_run(heat, after[first:last]) for first, last in _runs(after)),
    ]


Level = int | None  # None: below the last row, where the background is
Pair = tuple[Level, Level]  # of the upper and the lower half
_BROKEN = (NAN, INF, -INF)


def _shown(upper: Level, lower: Level) -> Pair:
    """What is no number takes both halves: a letter stands on it."""
    for level in _BROKEN:
        if level in (upper, lower):
            return level, level
    return upper, lower


def _runs(pairs: list[Pair]) -> Iterator[tuple[int, int]]:
    """(first, last): stretches of at most two colours, which one style can draw."""
    first, seen = 0, set[Level]()
    for at, pair in enumerate(pairs):
        if pair[0] in seen and pair[1] in seen:
            continue
        new = seen | set(pair)
        broken = any(level in _BROKEN for level in new)
        if at > first and len(new) > (1 if broken else 2):
            yield first, at
            first, new = at, set(pair)
        seen = new
    if pairs:
        yield first, len(pairs)


def _run(heat: Heat, cells: list[Pair]) -> Segment:
    """A stretch of two colours as blanks, halves and full blocks in one style."""
    upper = cells[0][0]
    if upper in _BROKEN:
        return Segment(_letter(upper) * len(cells) * heat.wide, _style(heat, upper, None))
    colours = list(dict.fromkeys(level for pair in cells for level in pair))
    colours.sort(key=lambda level: (level is not None, -cells.count((level, level))))
    ground, over = colours[0], colours[-1]  # most blanks: a block takes three bytes
    signs = {(over, over): "█", (over, ground): "▀", (ground, over): "▄", (ground, ground): " "}
    text = "".join(signs[cell] * heat.wide for cell in cells)
    return Segment(text, _style(heat, ground, over))


def _under_cursor(heat: Heat, pair: Pair, half: int | None) -> list[Segment]:
    """The cell with the cursor: its colour between brackets where it is wide enough."""
    upper, lower = pair
    if upper in _BROKEN:
        edge = "▌▐" if heat.wide >= 3 else ""
        letters = (
            _letter(upper).center(heat.wide - len(edge)) if edge else _letter(upper) * heat.wide
        )
        style = _style(heat, CURSOR, upper)
        return [Segment(edge[:1] + letters + edge[1:], style)]
    if half is None and heat.wide >= 3:
        return [Segment("▌" + " " * (heat.wide - 2) + "▐", _style(heat, upper, CURSOR))]
    covered = (CURSOR, CURSOR) if half is None else ((CURSOR, lower), (upper, CURSOR))[half]
    return [_run(heat, [covered])]


def _letter(level: Level) -> str:
    return "N" if level == NAN else "I"


def _style(heat: Heat, ground: Level, over: Level) -> Style:
    return _known_style(heat.palette, heat.scale.signed, ground, over)


@lru_cache(1024)
def _known_style(palette: Palette, signed: bool, ground: Level, over: Level) -> Style:
    """``over`` drawn on ``ground``; of what is no number the letter on its colour."""
    if ground is not None and ground in _BROKEN:
        return Style(color=palette.ink, bgcolor=palette.colour(ground, signed), bold=True)

    def colour(level: int) -> Color:
        return palette.cursor if level == CURSOR else palette.colour(level, signed)

    return Style(
        color=None if over is None or over == ground else colour(over),
        bgcolor=None if ground is None else colour(ground),
    )


def _inked(heat: Heat, levels: list[int], at: int | None, named: Named) -> list[Segment]:
    """Signs of more and less ink; what lies below zero by its shape."""
    looks = {
        level: Segment(shade(level, heat.scale.signed) * heat.wide, named(_tone(heat, level)))
        for level in {*levels}
    }
    segments = [looks[level] for level in levels]
    if at is not None:
        segments[at] = Segment(segments[at].text, named("cursor"))
    return joined(segments)


def _tone(heat: Heat, level: int) -> str:
    """The theme's name for a level: only the farthest ones stand out, for the sake of the bytes."""
    if level in _BROKEN:
        return "bad"
    if abs(level) < heat.scale.top:
        return "dim" if heat.scale.signed else "a"
    return "a" if level < 0 else "b"
