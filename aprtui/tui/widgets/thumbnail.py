"""A trace in small: a line a layer, a cell a stage, coloured by what the files hold."""

from __future__ import annotations

from collections.abc import Iterable

from aprtui.formats.tracedir import StageKey
from aprtui.graph.vocabulary import order_of
from aprtui.text import count
from aprtui.tui.trace_cells import Holdings
from aprtui.tui.widgets.blocks import Block, Line
from aprtui.tui.widgets.lines import right

__all__ = ["thumbnail"]

_LABEL = 5


def thumbnail(holdings: Holdings, width: int, lines: int, coloured: bool) -> Block:
    """At most ``width`` x ``lines`` of it, its legend among them; nothing of a trace that is empty.

    What does not fit is counted.
    """
    keys = sorted(holdings.held, key=order_of)
    layers = sorted({key.layer for key in keys if key.layer is not None})
    room = max(lines - 3, 1)
    shown: list[int | None] = [*layers[:room], *([None] if _of(keys, None) else [])]
    columns = [*dict.fromkeys(key.stage for key in keys if key.layer is not None)]
    columns.sort(key=lambda name: order_of(StageKey(0, name)))
    cells = columns[: max(width - _LABEL, 1)]
    more = [count(len(layers) - room, "more layer")] if len(layers) > room else []
    more += [count(len(columns) - len(cells), "more stage")] if len(cells) < len(columns) else []
    block: Block = [
        _row(layer, cells if layer is not None else _of(keys, None), holdings, coloured)
        for layer in shown
    ]
    said = f"{count(len(keys), 'stage')}{', '.join(['', *more])}"
    return [[(said, "head")], *block, holdings.legend(coloured)] if keys else []


def _of(keys: Iterable[StageKey], layer: int | None) -> list[str]:
    return [key.stage for key in keys if key.layer == layer]


def _row(layer: int | None, stages: Iterable[str], holdings: Holdings, coloured: bool) -> Line:
    name = "end" if layer is None else str(layer)
    keys = (StageKey(layer, stage) for stage in stages)
    return [
        (right(name, _LABEL - 1) + " ", "dim"),
        *(holdings.cell(key, coloured) if key in holdings.held else (" ", "") for key in keys),
    ]
