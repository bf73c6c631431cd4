"""Block characters: bars of eight heights, and the histogram that is made of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from aprtui.compare.statistics import Histogram
from aprtui.text import number
from aprtui.tui.widgets.lines import Part, right

__all__ = [
    "axis_parts", "bar", "columns_of", "histogram_rows", "profile", "signed_columns", "sparkline",
]  # fmt: skip

_EIGHTHS = " ▁▂▃▄▅▆▇█"
_SIDEWAYS = " ▏▎▍▌▋▊▉█"


def bar(share: float, width: int) -> str:
    """A bar from the left, ``share`` (0 to 1) of ``width`` cells, in eighths of a cell."""
    eighths = round(max(0.0, min(share, 1.0)) * width * 8) if share == share else 0
    text = "█" * (eighths // 8) + (_SIDEWAYS[eighths % 8] if eighths % 8 else "")
    return text.ljust(width)


def columns_of(counts: Sequence[int], height: int, logarithmic: bool) -> list[int]:
    """The height of each column in eighths of a cell; whatever is not zero shows."""
    largest = max(counts, default=0)
    if largest <= 0:
        return [0] * len(counts)
    known = np.asarray(counts, dtype=np.float64)
    shares = np.log1p(known) / math.log1p(largest) if logarithmic else known / largest
    eighths = np.rint(shares * height * 8)
    return [int(e) for e in np.where((known > 0) & (eighths < 1), 1, eighths)]


def sparkline(counts: Sequence[int], logarithmic: bool) -> str:
    """One row of columns."""
    return "".join(_EIGHTHS[min(e, 8)] for e in columns_of(counts, 1, logarithmic))


def profile(values: Sequence[float], width: int) -> str:
    """One row of columns from 0 to the largest value; where they do not fit, the largest of each.

    Few values take several cells each.
    """
    if len(values) > width:
        edges = [len(values) * x // width for x in range(width + 1)]
        values = [max(values[start:end]) for start, end in pairwise(edges)]
    each = max(min(width // max(len(values), 1), 3), 1)
    largest = max(values, default=0.0)
    if not largest > 0 or math.isinf(largest):
        return " " * (each * len(values))
    heights = (max(round(8 * value / largest), value > 0) for value in values)
    return "".join(_EIGHTHS[height] * each for height in heights)


def histogram_rows(
    counts: Sequence[int], height: int, logarithmic: bool, style: str = "a"
) -> list[list[Part]]:
    """``height`` rows of parts, the top first, with the largest count at the left edge."""
    columns = columns_of(counts, height, logarithmic)
    largest = f"{max(counts, default=0):,}"
    label = max(len(largest), 5) + 1
    rows: list[list[Part]] = []
    for row in range(height):
        floor = (height - 1 - row) * 8
        text = "".join(_EIGHTHS[max(0, min(column - floor, 8))] for column in columns)
        last = "1" if logarithmic else "0"
        mark = largest if row == 0 else last if row == height - 1 else ""
        rows.append([(right(mark, label) + " ", "dim"), (text, style)])
    return rows


def axis_parts(counts: Histogram, lead: int) -> list[Part]:
    """The line under a histogram: the edges' values at even steps of the axis."""
    width = len(counts.counts)
    steps = 8 if width >= 90 else 4 if width >= 44 else 2
    line = [" "] * width
    for step in range(steps + 1):
        value = counts.edges[round(step / steps * width)]
        scale = max(abs(counts.edges[0]), abs(counts.edges[-1]))
        text = number(0.0 if abs(value) < 1e-3 * scale else value, 3)
        start = round(step / steps * (width - 1)) - len(text) // 2
        start = max(0, min(start, width - len(text)))
        if start and line[start - 1] != " ":
            continue  # it would run into the one before
        line[start : start + len(text)] = text
    return [(" " * lead, ""), ("".join(line), "dim")]


def signed_columns(values: Sequence[float], height: int, wide: int) -> tuple[list[list[Part]], int]:
    """Columns up and down from zero in ``height`` lines, and the line that zero is the foot of.

    What is no number is a letter on that line.
    """
    finite = [value for value in values if math.isfinite(value)]
    high, low = max([0.0, *finite]), min([0.0, *finite])
    span = (high - low) or 1.0
    up = height if not low else max(1, min(height - 1, round(height * high / span)))
    up = 1 if not high and low else up
    down = height - up
    rows: list[list[Part]] = []
    for y in range(height):
        row: list[Part] = []
        for value in values:
            if not math.isfinite(value):
                letter = ("N" if value != value else "I") if y == up - 1 else " "
                row.append((letter * wide, "bad"))
            elif y < up:
                eighths = round(value / high * up * 8) if value > 0 else 0
                eighths = max(eighths, 1) if value > 0 else 0
                filled = max(0, min(eighths - (up - 1 - y) * 8, 8))
                row.append((_EIGHTHS[filled] * wide, "b"))
            else:
                halves = max(round(value / low * down * 2), 1) if value < 0 else 0
                filled = max(0, min(halves - (y - up) * 2, 2))
                row.append((" ▀█"[filled] * wide, "a"))
        rows.append(_joined(row))
    return rows, up - 1


def _joined(parts: Sequence[Part]) -> list[Part]:
    """Neighbours of one style in one part; blanks join what stands before them."""
    found: list[Part] = []
    for text, style in parts:
        if found and (found[-1][1] == style or not text.strip()):
            found[-1] = (found[-1][0] + text, found[-1][1])
        else:
            found.append((text, style))
    return found
