"""A picture's cells have the colours of their levels, for the bytes that it says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from rich.color import Color, ColorSystem
from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip

from aprtui.tui.heat import Ask, Heat, heat_of, painted, scale_of
from aprtui.tui.reduce import Window
from aprtui.tui.widgets.palette import HALF, INF, LEVELS, NAN, PAGE_BYTES, Depth, Palette, shade

NAMED = {
    name: Style(color=f"color({n})") for n, name in enumerate(("dim", "a", "b", "bad", "cursor"))
}
BLENDING = [Palette(depth, dark) for depth in (Depth.TRUE, Depth.MANY) for dark in (True, False)]
PLAIN = [Palette(Depth.FEW), Palette(Depth.NONE, False)]


def _noise(rows: int, columns: int, seed: int = 1) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


def _luminance(colour: Color) -> float:
    """CIE 1931 Y of an sRGB colour (IEC 61966-2-1), then CIE L* of it."""
    parts = [part / 255 for part in colour.get_truecolor()]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    y = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return 116 * y ** (1 / 3) - 16 if y > 0.008856 else 903.3 * y


@pytest.mark.parametrize("palette", BLENDING)
def test_lightness_grows_with_the_level_on_both_sides_of_zero(palette: Palette) -> None:
    up = 1 if palette.dark else -1
    plain = [_luminance(palette.colour(level, False)) * up for level in range(LEVELS)]
    assert plain == sorted(plain) and len(set(plain)) == LEVELS
    for sign in (1, -1):
        side = [_luminance(palette.colour(sign * n, True)) * up for n in range(HALF + 1)]
        assert side == sorted(side) and len(set(side)) == HALF + 1
    if palette.depth is Depth.TRUE:  # even steps, both sides alike
        steps = np.diff(plain)
        assert steps.max() < 1.6 * steps.min()
        ends = [_luminance(palette.colour(sign * HALF, True)) for sign in (1, -1)]
        assert abs(ends[0] - ends[1]) < 6


@pytest.mark.parametrize("palette", BLENDING)
def test_no_two_levels_look_alike_and_no_number_looks_like_none(palette: Palette) -> None:
    colours = [palette.colour(level, True) for level in range(-HALF, HALF + 1)]
    colours += [palette.colour(level, False) for level in range(1, LEVELS)]
    broken = [palette.colour(level, True) for level in (NAN, INF)]
    assert len(set(colours[: 2 * HALF + 1])) == 2 * HALF + 1
    assert not set(broken) & set(colours) and broken[0] != broken[1]
    assert palette.cursor not in colours + broken


def test_shades_grow_and_differ_by_sign() -> None:
    assert [shade(level, False) for level in (0, LEVELS - 1, NAN, INF, -INF)] == [*" █NII"]
    below = {shade(level, True) for level in range(-HALF, 0)}
    above = {shade(level, True) for level in range(1, HALF + 1)}
    assert not below & above and len(below) == len(above) == 4


@pytest.mark.parametrize("logarithmic", [True, False])
def test_levels_are_of_magnitude_with_its_sign_and_zero_is_zero_alone(logarithmic: bool) -> None:
    cells = np.array([[0.0, 1e-30, -1e-30, 1.0, -1.0, 0.5, np.nan, np.inf, -np.inf]])
    scale = scale_of(cells, logarithmic)
    assert scale.signed and scale.high == 1.0
    found = scale.levels(cells)[0].tolist()
    assert found[:5] == [0, 1, -1, HALF, -HALF] and 1 < found[5] <= HALF
    assert found[6:] == [NAN, INF, -INF]
    sequential = scale_of(np.abs(cells), logarithmic)
    assert not sequential.signed
    assert sequential.levels(np.abs(cells))[0].tolist()[3] == LEVELS - 1


def test_a_scale_of_nothing_at_all_still_has_two_ends() -> None:
    for cells in (np.zeros((2, 2)), np.full((1, 1), np.nan), np.zeros((0, 0)), np.full((1, 3), 5.0),
                  np.full((1, 1), 5e-324)):  # fmt: skip
        scale = scale_of(cells, True)
        assert 0 <= scale.low < scale.high
        scale.levels(cells)


def _halves(heat: Heat, cursor: tuple[int, int] | None = None) -> list[list[Color | str | None]]:
    """What each half of each column shows: a colour, or the letter on it."""
    shown: list[list[Color | str | None]] = []
    for line in range(heat.lines):
        upper: list[Color | str | None] = []
        lower: list[Color | str | None] = []
        for segment in painted(heat, line, NAMED.__getitem__, cursor):
            style = segment.style or Style()
            for sign in segment.text:
                over, ground = style.color, style.bgcolor
                above, below = {" ": (ground, ground), "█": (over, over), "▀": (over, ground),
                                "▄": (ground, over)}.get(sign, (sign, sign))  # fmt: skip
                upper.append(above)
                lower.append(below)
        shown += [upper, lower]
    return shown


@pytest.mark.parametrize("palette", BLENDING)
@pytest.mark.parametrize("room", [(20, 60), (8, 30), (3, 200)])
@pytest.mark.parametrize("signed", [True, False])
def test_every_cell_is_drawn_in_the_colour_of_its_level(
    palette: Palette, room: tuple[int, int], signed: bool
) -> None:
    values = _noise(13, 37)
    values[3, 4], values[12, 36], values[0, 0] = np.nan, np.inf, 0
    values = values if signed else np.abs(values)
    heat = heat_of(values.ravel(), 37, Ask(*room, palette, thrifty=False))
    shown = _halves(heat)
    assert heat.columns <= room[1] and heat.lines <= room[0]
    for row, column in np.ndindex(*heat.levels.shape):
        level = int(heat.levels[row, column])
        for half in range(2 * row * heat.tall, 2 * (row + 1) * heat.tall) if heat.tall else [row]:
            for x in range(column * heat.wide, (column + 1) * heat.wide):
                if level in (NAN, INF):
                    assert shown[half][x] == ("N" if level == NAN else "I")
                elif shown[half][x] not in ("N", "I"):  # of the other half
                    assert shown[half][x] == palette.colour(level, signed), (row, column)


@pytest.mark.parametrize("palette", [*BLENDING, *PLAIN])
def test_nan_and_inf_are_seen_in_a_table_of_any_size(palette: Palette) -> None:
    values = _noise(700, 900)
    values[123, 456], values[600, 100] = np.nan, -np.inf
    heat = heat_of(values.ravel(), 900, Ask(20, 60, palette))
    text = ["".join(s.text for s in painted(heat, line, NAMED.__getitem__)) for line in range(20)]
    assert any("N" in line for line in text) and any("I" in line for line in text)


@pytest.mark.parametrize("palette", [*BLENDING, *PLAIN])
@pytest.mark.parametrize("shape", [(12, 384), (512, 4096), (7, 3584), (64, 64), (3, 8)])
def test_a_thrifty_picture_keeps_to_its_bytes_and_tells_them(
    palette: Palette, shape: tuple[int, int]
) -> None:
    values = _noise(*shape)
    ask = Ask(32, 78, palette)
    heat = heat_of(values.ravel(), shape[1], ask)
    system = ColorSystem.TRUECOLOR if palette.depth is Depth.TRUE else ColorSystem.EIGHT_BIT
    sent = 0
    for line in range(heat.lines):
        for segment in painted(heat, line, NAMED.__getitem__):
            sent += len(Strip.render_style(_fresh(segment), segment.text, system).encode())
    assert heat.cost_bytes <= PAGE_BYTES
    assert sent <= 1.25 * PAGE_BYTES
    full = heat_of(values.ravel(), shape[1], replace(ask, thrifty=False))
    assert full.levels.size >= heat.levels.size or not palette.depth.blends


def _fresh(segment: Segment) -> Style:
    style = segment.style or Style()
    return Style(color=style.color, bgcolor=style.bgcolor, bold=style.bold)


@pytest.mark.parametrize("palette", BLENDING)
@pytest.mark.parametrize("room", [(40, 80), (6, 12), (12, 24)])
def test_the_cursor_is_seen_on_any_cell_and_nothing_else_changes(
    palette: Palette, room: tuple[int, int]
) -> None:
    values = _noise(12, 12)
    values[5, 5] = np.nan
    heat = heat_of(values.ravel(), 12, Ask(*room, palette, thrifty=False))
    before = _halves(heat)
    for row, column in np.ndindex(*heat.levels.shape):
        after = _halves(heat, (row, column))
        changed = {
            (y, x)
            for y, line in enumerate(after)
            for x, shown in enumerate(line)
            if shown != before[y][x]
        }
        styles = [
            s.style for s in painted(heat, heat.line_of(row), NAMED.__getitem__, (row, column))
        ]
        assert any(palette.cursor in (s.color, s.bgcolor) for s in styles if s is not None)
        left, right = column * heat.wide, (column + 1) * heat.wide
        top = 2 * row * heat.tall if heat.tall else row
        bottom = top + (2 * heat.tall or 1)
        assert all(left <= x < right and top - 1 <= y <= bottom for y, x in changed)


@pytest.mark.parametrize("palette", PLAIN)
def test_where_colours_are_few_the_cursor_and_the_farthest_stand_out(palette: Palette) -> None:
    values = np.array([[1, -8, 0, 8, np.nan, 2]], dtype=np.float32)
    heat = heat_of(values.ravel(), 6, Ask(4, 24, palette))
    segments = painted(heat, 0, NAMED.__getitem__, (0, 5))
    text = "".join(segment.text for segment in segments)
    assert text == "".join(sign * heat.wide for sign in ("░", "≡", " ", "█", "N", text[-1]))
    styles = [segment.style for segment in segments]
    assert styles[-1] is NAMED["cursor"]
    assert NAMED["a"] in styles and NAMED["b"] in styles and NAMED["bad"] in styles


def test_a_window_draws_only_its_part() -> None:
    values = np.arange(100, dtype=np.float32)
    ask = Ask(10, 40, Palette(Depth.TRUE), window=Window(2, 4, 5, 8))
    heat = heat_of(values, 10, ask)
    assert heat.reduced.cells.tolist() == [[25, 26, 27], [35, 36, 37]]
    assert heat_of(values[:0], 10, replace(ask, window=None)).levels.size == 0
    assert heat_of(values, 10, replace(ask, columns=0, window=None)).levels.size == 0
