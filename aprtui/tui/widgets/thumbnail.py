"""A trace in small: a line a layer, a cell a stage, coloured by what the files hold."""

from __future__ import annotations

from collections.abc import Iterable

from aprtui.formats.tracedir import StageKey
from aprtui.graph.vocabulary import order_of
from aprtui.text import count
from aprtui.tui.trace_cells import Holdings, Look, lines_of_a_page, look_for
from aprtui.tui.widgets.blocks import Block, Line
from aprtui.tui.widgets.lines import right
from aprtui.tui.widgets.palette import Palette

__all__ = ["thumbnail"]

_LABEL = 5


def thumbnail(holdings: Holdings, width: int, lines: int, palette: Palette) -> Block:
    """At most ``width`` x ``lines`` of it, its legend among them; nothing of a trace that is empty.

    What does not fit is counted. Over SSH it keeps to a page's bytes.
    """
    keys = sorted(holdings.held, key=order_of)
    layers = sorted({key.layer for key in keys if key.layer is not None})
    room = min(max(lines - 3, 1), len(layers))
    shown: list[int | None] = [*layers[:room], *([None] if _of(keys, None) else [])]
    columns = [*dict.fromkeys(key.stage for key in keys if key.layer is not None)]
    columns.sort(key=lambda name: order_of(StageKey(0, name)))
    cells = columns[: max(width - _LABEL, 1)]
    more = [count(len(layers) - room, "more layer")] if len(layers) > room else []
    more += [count(len(columns) - len(cells), "more stage")] if len(cells) < len(columns) else []

    def draw(look: Look) -> Block:
        stages = {layer: cells if layer is not None else _of(keys, None) for layer in shown}
        return [_row(layer, names, holdings, look) for layer, names in stages.items()]

    def sent(look: Look) -> Block:
        return [[(" " * width, ""), *line] for line in draw(look)]  # and the column at its left

    look = look_for(palette, sent)
    kept = lines_of_a_page(sent(look))
    if kept < len(shown) and room > 1:
        return thumbnail(holdings, width, room + 3 - len(shown) + kept, palette)
    said = f"{count(len(keys), 'stage')}{', '.join(['', *more])}"
    return [[(said, "head")], *draw(look), holdings.legend(look)] if keys else []


def _of(keys: Iterable[StageKey], layer: int | None) -> list[str]:
    return [key.stage for key in keys if key.layer == layer]


def _row(layer: int | None, stages: Iterable[str], holdings: Holdings, look: Look) -> Line:
    name = "end" if layer is None else str(layer)
    keys = (StageKey(layer, stage) for stage in stages)
    return [
        (right(name, _LABEL - 1) + " ", "" if look is Look.INK else "dim"),
        *(holdings.cell(key, look) if key in holdings.held else (" ", "") for key in keys),
    ]
