"""The colours of pictures: even steps of lightness, and what stands for them where colours are few.

Sequential for magnitudes: from the background to the brightest there is. Diverging for signs: blue
below zero and orange above it, as bright as each other, the background between. The steps are
even in Oklab (Ottosson 2020, "A perceptual color space for image processing"), so that a value
twice as far up looks twice as far up, also to those who tell red from green badly.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from rich.color import Color

if TYPE_CHECKING:
    from textual.app import App

__all__ = [
    "HALF",
    "INF",
    "LEVELS",
    "NAN",
    "PAGE_BYTES",
    "Depth",
    "Palette",
    "oklab",
    "over_ssh",
    "palette_of",
    "shade",
]

PAGE_BYTES = 10_000  # of a picture; labels, the axis, the tree and titles come on top
LEVELS = 10  # of magnitudes, 0 is nothing
HALF = 5  # on each side of zero
NAN, INF = 127, 126  # levels of what is no number; -INF is an infinity below zero

RGB = tuple[int, int, int]


class Depth(Enum):
    """How many colours a terminal shows."""

    TRUE = "true"
    MANY = "256"
    FEW = "16"
    NONE = "none"

    @property
    def blends(self) -> bool:
        """Whether a colour of its own for each level can be told apart."""
        return self in (Depth.TRUE, Depth.MANY)


@dataclass(frozen=True)
class Palette:
    """What draws a level in a terminal, on a dark or a light background."""

    depth: Depth
    dark: bool = True

    def colour(self, level: int, signed: bool) -> Color:
        """Of a level: 0..LEVELS - 1, signed -HALF..HALF, or what is no number."""
        return _colour(self, level, signed)

    @property
    def cursor(self) -> Color:
        """Of the half that the cursor stands on: no level's."""
        return Color.from_rgb(*((255, 255, 255) if self.dark else (0, 0, 0)))

    @property
    def ink(self) -> Color:
        """Of the letter on what is no number."""
        return Color.from_rgb(255, 255, 255)


def palette_of(app: App[Any]) -> Palette:
    """What this app's terminal and theme call for."""
    dark = app.current_theme.dark
    if app.no_color:
        return Palette(Depth.NONE, dark)
    system = app.console.color_system
    if app.current_theme.name.startswith("ansi-") or system in (None, "standard", "windows"):
        return Palette(Depth.FEW, dark)
    return Palette(Depth.TRUE if system == "truecolor" else Depth.MANY, dark)


def over_ssh() -> bool:
    """Whether what is drawn goes over a network, as far as the environment says."""
    return any(os.environ.get(name) for name in ("SSH_CONNECTION", "SSH_CLIENT", "SSH_TTY"))


def shade(level: int, signed: bool) -> str:
    """The sign of a level where colour does not tell it: more ink is more, lines are below zero."""
    if level in (NAN, INF, -INF):
        return "N" if level == NAN else "I"
    if not signed:
        return " ·░▒▓█"[-(-level * 5 // (LEVELS - 1))]
    step = -(-abs(level) * 4 // HALF)
    return " -~=≡"[step] if level < 0 else " ░▒▓█"[step]


@lru_cache(256)
def _colour(palette: Palette, level: int, signed: bool) -> Color:
    if palette.depth is Depth.TRUE:
        return Color.from_rgb(*_rgb(level, signed, palette.dark))
    if level in (NAN, INF, -INF):
        return Color.from_ansi(_nearest(_rgb(level, signed, palette.dark)))
    way = range(0, level + 1) if level >= 0 else range(0, level - 1, -1)
    return Color.from_ansi(_ladder(tuple(_rgb(step, signed, palette.dark) for step in way))[-1])


def _rgb(level: int, signed: bool, dark: bool) -> RGB:
    if level in (NAN, INF, -INF):
        return (214, 0, 130) if level == NAN else (170, 0, 220)
    if signed:
        share = abs(level) / HALF
        lightness = 0.24 + 0.60 * share if dark else 0.97 - 0.47 * share
        return _srgb(lightness, 0.05 + 0.11 * share if level else 0.0, 255.0 if level < 0 else 58.0)
    share = level / (LEVELS - 1)
    lightness = 0.22 + 0.72 * share if dark else 0.97 - 0.67 * share
    depth = share if dark else 1.0 - share
    return _srgb(lightness, (0.03 + 0.13 * share) if dark else 0.02 + 0.11 * share,
                 290.0 - 185.0 * depth)  # fmt: skip


def _srgb(lightness: float, chroma: float, hue: float) -> RGB:
    """Oklch to the nearest sRGB of that lightness and hue, with less chroma where it must be."""
    angle = math.radians(hue)
    while True:
        linear = _linear(lightness, chroma * math.cos(angle), chroma * math.sin(angle))
        if all(-1e-4 <= part <= 1.0001 for part in linear) or chroma < 1e-4:
            break
        chroma *= 0.97
    red, green, blue = (round(255 * _gamma(min(max(part, 0.0), 1.0))) for part in linear)
    return red, green, blue


def _linear(lightness: float, a: float, b: float) -> tuple[float, float, float]:
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    middle = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    return (
        4.0767416621 * long - 3.3077115913 * middle + 0.2309699292 * short,
        -1.2684380046 * long + 2.6097574011 * middle - 0.3413193965 * short,
        -0.0041960863 * long - 0.7034186147 * middle + 1.7076147010 * short,
    )


def _gamma(part: float) -> float:
    return 12.92 * part if part <= 0.0031308 else 1.055 * part ** (1 / 2.4) - 0.055


def oklab(rgb: RGB) -> tuple[float, float, float]:
    """The lightness and the two opponent colours of an sRGB colour."""
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4
        for part in (each / 255 for each in rgb)
    )
    long = math.cbrt(0.4122214708 * red + 0.5363325363 * green + 0.0514459929 * blue)
    middle = math.cbrt(0.2119034982 * red + 0.6806995451 * green + 0.1073969566 * blue)
    short = math.cbrt(0.0883024619 * red + 0.2817188376 * green + 0.6299787005 * blue)
    return (
        0.2104542553 * long + 0.7936177850 * middle - 0.0040720468 * short,
        1.9779984951 * long - 2.4285922050 * middle + 0.4505937099 * short,
        0.0259040371 * long + 0.7827717662 * middle - 0.8086757660 * short,
    )


@lru_cache(1)
def _cube() -> tuple[tuple[int, tuple[float, float, float]], ...]:
    """The colours 16..255 that every terminal of 256 has alike: a cube of six steps, and greys."""
    steps = (0, 95, 135, 175, 215, 255)
    cube = [(r, g, b) for r in steps for g in steps for b in steps]
    greys = [(8 + 10 * n, 8 + 10 * n, 8 + 10 * n) for n in range(24)]
    return tuple((16 + n, oklab(rgb)) for n, rgb in enumerate(cube + greys))


@lru_cache(256)
def _ladder(way: tuple[RGB, ...]) -> tuple[int, ...]:
    """The nearest of the 256 to each colour of ``way``, each further in lightness than the last."""
    if len(way) < 2:
        return tuple(map(_nearest, way))
    before, wanted = _ladder(way[:-1]), oklab(way[-1])
    last = _oklab_of(before[-1])
    up = 1 if wanted[0] > oklab(way[0])[0] else -1
    further = [each for each in _cube() if up * (each[1][0] - last[0]) > 0.02]
    return (*before, min(further, key=lambda each: _unlike(each[1], wanted))[0])


def _oklab_of(number: int) -> tuple[float, float, float]:
    return _cube()[number - 16][1]


def _nearest(rgb: RGB) -> int:
    wanted = oklab(rgb)
    return min(_cube(), key=lambda each: _unlike(each[1], wanted))[0]


def _unlike(one: tuple[float, float, float], other: tuple[float, float, float]) -> float:
    """How unlike two colours are; hue before lightness, which a ladder holds in order anyway."""
    return math.hypot(0.4 * (one[0] - other[0]), one[1] - other[1], one[2] - other[2])
