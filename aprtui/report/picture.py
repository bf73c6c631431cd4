"""The grid of stages as a picture: inline SVG, and plain characters where no SVG is shown."""

from __future__ import annotations

import math
from html import escape

from aprtui.graph.vocabulary import short_name
from aprtui.report.model import Cell, Grid
from aprtui.text import clean

__all__ = ["grid_svg", "grid_text", "legend"]

_LEFT, _TOP, _WIDTH, _HEIGHT, _GAP = 52, 112, 28, 18, 3
_LABEL = 80  # characters of a stage's name: whole, unless somebody means harm
_RISE, _RUN = 4.9, 3.9  # of a slanted label, a character
_TEXT_MARKS = {"equal": "=", "within": ".", "differs": "X", "culprit": "*"}

legend = (
    ("l0", "", "bit-identical"),
    ("l1", "", "within its bar"),
    ("l2", "", "beyond it"),
    ("l3", "", "3 times and more"),
    ("l4", "", "30 times and more"),
    ("mark", "N", "NaN or Inf"),
    ("mark", "#", "another shape"),
    ("mark", "?", "unreadable"),
    ("none", "a", "not in A"),
    ("none", "b", "not in B"),
    ("l1 culprit", "", "culprit"),
)
"""Class of the cell, mark in it, meaning."""


def grid_svg(grid: Grid) -> str:
    """The picture; colours come from the document's style. Every text in it is escaped."""
    across, down = len(grid.stages), len(grid.layers)
    names = [clean(stage, _LABEL) for stage in grid.stages]
    longest = max(map(len, names), default=0)
    top = max(_TOP, math.ceil(_RISE * longest) + 16)
    width = _LEFT + across * (_WIDTH + _GAP) + max(84, math.ceil(_RUN * longest) + 8)
    height = top + down * (_HEIGHT + _GAP) + 4
    parts = [
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="{down} layers by {across} stages, coloured by how far A and B differ">'
    ]
    for place, name in enumerate(names):
        x = _LEFT + place * (_WIDTH + _GAP) + _WIDTH / 2 + 3
        y = top - 8
        text = escape(name)
        parts.append(
            f'<text class="label" x="{x:g}" y="{y}" transform="rotate(-52 {x:g} {y})">{text}</text>'
        )
    for line, layer in enumerate(grid.layers):
        y = top + line * (_HEIGHT + _GAP)
        name = "model" if layer is None else str(layer)
        parts.append(
            f'<text class="label" x="{_LEFT - 9}" y="{y + _HEIGHT - 5}" text-anchor="end">{name}'
            "</text>"
        )
        for place, stage in enumerate(grid.stages):
            cell = grid.cells.get((layer, stage))
            if cell is not None:
                parts.append(_cell_svg(cell, _LEFT + place * (_WIDTH + _GAP), y))
    return "\n".join([*parts, "</svg>"])


def _cell_svg(cell: Cell, x: int, y: int) -> str:
    ring = " culprit" if cell.culprit else ""
    mark = (
        f'<text class="in" x="{x + _WIDTH / 2:g}" y="{y + _HEIGHT - 5}" text-anchor="middle">'
        f"{escape(cell.mark)}</text>"
        if cell.mark
        else ""
    )
    dot = (
        f'<circle class="dot" cx="{x + _WIDTH / 2:g}" cy="{y + _HEIGHT / 2:g}" r="4"/>'
        if cell.culprit and not cell.mark
        else ""
    )
    return (
        f"<g><title>{escape(clean(cell.text, 300))}</title>"
        f'<rect class="{cell_class(cell)}{ring}" x="{x}" y="{y}" width="{_WIDTH}" '
        f'height="{_HEIGHT}" rx="3.5"/>{mark}{dot}</g>'
    )


def cell_class(cell: Cell) -> str:
    """The style's name for a cell's colour."""
    if cell.kind in ("missing-a", "missing-b", "culprit"):
        return "none"
    return "mark" if cell.mark else f"l{cell.level}"


def grid_text(grid: Grid) -> str:
    """The grid in characters: one mark a stage, a culprit's in brackets."""
    names = [clean(short_name(stage), _LABEL) for stage in grid.stages]
    widths = [max(3, len(name)) for name in names]
    lines = ["layer  " + " ".join(f"{n:^{w}}" for n, w in zip(names, widths, strict=True))]
    for layer in grid.layers:
        row = []
        for stage, width in zip(grid.stages, widths, strict=True):
            cell = grid.cells.get((layer, stage))
            mark = "" if cell is None else cell.mark or _TEXT_MARKS.get(cell.kind, "X")
            row.append(f"{f'[{mark}]' if cell is not None and cell.culprit else mark:^{width}}")
        lines.append(f"{'model' if layer is None else layer:>5}  {' '.join(row)}")
    return "\n".join(line.rstrip() for line in lines)
