"""The cells of a trace's grid, coloured by what the files hold; the same scale for every trace.

``growth`` is the rms against that of the same stage in the layer above it: what grows or dies away
along the pass stands out, an honest pass is quiet.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from itertools import accumulate, pairwise

from aprtui.formats.tracedir import StageKey
from aprtui.text import clean, number, size
from aprtui.tui.widgets.lines import Part
from aprtui.tui.widgets.palette import HALF, LEVELS, PAGE_BYTES, Palette, over_ssh, shade

__all__ = [
    "COLOURED_BY",
    "Held",
    "Holdings",
    "Look",
    "holdings_of",
    "lines_of_a_page",
    "look_for",
    "rms_of",
]

COLOURED_BY = ("growth", "rms", "size")
_STEPS = (1.25, 2.0, 4.0, 10.0)  # factors of the rms at which a layer's cell is of another level
_DARKEST = 3  # level: a file that is there is seen, however little it holds


_CHANGE_BYTES = 36  # of one colour to another, on the wire
_LINE_BYTES = 80  # of a line's place and its frame


class Look(Enum):
    """How cells are drawn, what shows most first."""

    COLOURS = "colours"  # one for each level
    TONES = "tones"  # more ink is more; what grew and what died away in a tone each
    INK = "ink"  # all in one tone: what died away is told by its shape alone


Draw = Callable[[Look], Iterable[Iterable[Part]]]


def look_for(palette: Palette, draw: Draw, share: float = 1.0) -> Look:
    """What shows most; over SSH, of what a page has room for, where ``share`` of it is seen."""
    looks: list[Look] = [*Look][not palette.depth.blends :]
    if not over_ssh():
        return looks[0]
    return next(
        (look for look in looks if share * sum(map(_line_cost, draw(look))) <= PAGE_BYTES),
        looks[-1],
    )


def lines_of_a_page(lines: Iterable[Iterable[Part]]) -> int:
    """How many of these a page over SSH has room for; near at hand all."""
    costs = list(accumulate(map(_line_cost, lines)))
    return sum(not over_ssh() or cost <= PAGE_BYTES for cost in costs)


def _line_cost(line: Iterable[Part]) -> int:
    """The bytes that the terminal will be sent, about: a blank takes any style."""
    parts = list(line)
    seen = [part for part in parts if part[0].strip()]
    changes = sum(a[1] != b[1] for a, b in pairwise(seen)) + 1
    text = sum(len(text.encode()) for text, _ in parts)
    return _LINE_BYTES + _CHANGE_BYTES * changes + text


@dataclass(frozen=True)
class Held:
    """What is known of one stage's file. ``rms`` is NaN where it is not known or not a number."""

    rms: float
    nan: int = 0
    inf: int = 0
    size_bytes: int = 0
    shape: tuple[int, ...] = ()
    damaged: bool = False

    @property
    def known(self) -> bool:
        """Whether its values were looked at, by whoever wrote or read it."""
        return _is_number(self.rms) or bool(self.nan or self.inf)


@dataclass
class Holdings:
    """What the files of a trace hold, and how the grid shows it."""

    by: str = COLOURED_BY[0]
    held: dict[StageKey, Held] = field(default_factory=dict)

    def next_way(self) -> None:
        self.by = COLOURED_BY[(COLOURED_BY.index(self.by) + 1) % len(COLOURED_BY)]

    def above(self, key: StageKey) -> StageKey | None:
        """The same stage in the nearest layer above that has it with a number."""
        if key.layer is None:
            return None
        for layer in range(key.layer - 1, -1, -1):
            other = StageKey(layer, key.stage)
            if other in self.held and _is_number(self.held[other].rms):
                return other
        return None

    def growth(self, key: StageKey) -> float | None:
        """By which factor the rms is larger than in the layer above; None where that is not known.

        Infinity where there was nothing above, and something is here.
        """
        above, here = self.above(key), self.held[key].rms
        if above is None or not _is_number(here):
            return None
        before = self.held[above].rms
        if before == 0.0:
            return 1.0 if here == 0.0 else math.inf
        return here / before

    def level(self, key: StageKey) -> int:
        held = self.held[key]
        if self.by == "growth":
            return _growth_level(self.growth(key))
        top = LEVELS - 1 - _DARKEST
        if self.by == "size":
            share = (math.log2(max(held.size_bytes, 1)) - 10) / 20  # 1 KiB .. 1 GiB
        elif not held.rms > 0 or not _is_number(held.rms):
            return _DARKEST
        else:
            share = (math.log10(held.rms) + 3) / 6  # 1e-3 .. 1e3
        return _DARKEST + round(top * min(max(share, 0.0), 1.0))

    def cell(self, key: StageKey, look: Look) -> Part:
        """The sign and the style of a stage whose file is there."""
        held = self.held[key]
        if held.damaged:
            return ("#", "bad")
        if held.nan or held.inf:
            return ("N" if held.nan else "I", "bad")
        level, signed = self.level(key), self.by == "growth"
        return _sign(level, signed, look)

    def legend(self, look: Look) -> list[Part]:
        """What the colours mean."""
        signed = self.by == "growth"
        ends = {"growth": ("rms against the layer above: 1/10", "x10"),
                "rms": ("rms: 0.001", "1000"), "size": ("size: 1 kB", "1 GB")}[self.by]  # fmt: skip
        grown = (*range(-HALF, -1), 0, *range(2, HALF + 1))
        levels = grown if signed else range(_DARKEST, LEVELS)
        parts: list[Part] = [(f" {ends[0]} ", "dim")]
        parts += [_sign(level, signed, look) for level in levels]
        return [*parts, (f" {ends[1]}  ", "dim"), ("N", "bad"), (" NaN  ", "dim")]

    def told(self, key: StageKey) -> list[Part]:
        """One stage in words."""
        held = self.held.get(key)
        where = "" if key.layer is None else f"layer {key.layer} "
        parts: list[Part] = [(f" {where}{clean(key.stage, 40)}  ", "head")]
        if held is None:
            return [*parts, ("not written yet  ", "dim")]
        broken = [
            f"{count} {name}" for count, name in ((held.nan, "NaN"), (held.inf, "Inf")) if count
        ]
        if held.damaged:
            parts.append(("damaged  ", "bad"))
        if broken:
            parts.append((f"{', '.join(broken)}  ", "bad"))
        if _is_number(held.rms):
            parts += [("rms ", "dim"), (f"{number(held.rms, 3)}  ", "")]
        growth = self.growth(key)
        if growth is not None and math.isfinite(growth):
            tone = "" if _growth_level(growth) == 0 else "accent"
            parts += [(f"{number(growth, 3)} x ", tone), ("the layer above  ", "dim")]
        if held.shape:
            parts.append((f"{' x '.join(map(str, held.shape))}  ", "dim"))
        return [*parts, (f"{size(held.size_bytes)}  ", "dim")] if held.size_bytes else parts


def _sign(level: int, signed: bool, look: Look) -> Part:
    """A level as a cell, alone or in the legend."""
    nothing = signed and level == 0
    if look is Look.COLOURS:
        return "█", "dim" if nothing else f"{'sign' if signed else 'size'} {level}"
    sign = "░" if nothing else shade(level, signed)
    if look is Look.INK or nothing:
        return sign, ""
    return sign, "b" if signed and level > 0 else "a"


def _growth_level(factor: float | None) -> int:
    if factor is None:
        return 0
    if factor == 0.0 or math.isinf(factor):
        return HALF if factor else -HALF
    far = max(factor, 1 / factor)
    step = sum(far >= edge for edge in _STEPS)
    step += step > 0  # the first level beside zero is hardly seen
    return step if factor > 1 else -step


def _is_number(value: float) -> bool:
    return math.isfinite(value)


def rms_of(said: object) -> float:
    """A file's rms as an event or a manifest says it: JSON has no NaN, so that is a string."""
    try:
        return float(said)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return math.nan


def holdings_of(stats: Mapping[str, object], size_bytes: int = 0,
                shape: tuple[int, ...] = ()) -> Held:  # fmt: skip
    """What a manifest's numbers of a stage say."""
    counts = [stats.get(name) for name in ("nan", "inf")]
    nan, inf = (count if isinstance(count, int) else 0 for count in counts)
    return Held(rms_of(stats.get("rms")), nan, inf, size_bytes, shape)
