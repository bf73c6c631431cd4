"""Which columns of a stage's rows are heads: told by the nodes that cut them out of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from aprtui.formats.tracedir import StageKey
from aprtui.graph.node import Graph, Node
from aprtui.graph.ops import Adapt, Attend, Bias, Clip, Heads, Norm, Rope, Scores
from aprtui.graph.rope import RopeTable

__all__ = ["HeadWindow", "head_windows"]


@dataclass(frozen=True)
class HeadWindow:
    """Heads in the columns of a row. ``table`` is what turns them, here or later: their channels
    lie in the order of its pairs. None for what is not turned: values, queries of a NoPE layer.
    ``ordered``: whether they are queries or keys, which a file may hold in either order of pairs.
    """

    heads: Heads
    table: RopeTable | None = None
    ordered: bool = True


def head_windows(graph: Graph) -> Mapping[StageKey, tuple[HeadWindow, ...]]:
    """The windows of heads of every stage that has some, in the order of their columns."""
    found: dict[StageKey, dict[HeadWindow, None]] = {}
    for node in reversed(graph.nodes):
        own = found.get(node.key, {})
        for key, window in _cut_by(node, tuple(own)):
            found.setdefault(key, {})[window] = None
    return {
        key: tuple(sorted(windows, key=lambda window: window.heads.first))
        for key, windows in found.items()
    }


def _cut_by(node: Node, own: tuple[HeadWindow, ...]) -> list[tuple[StageKey, HeadWindow]]:
    """The windows that a node tells of its inputs and of itself; ``own``: those known of it."""
    op, inputs = node.op, node.inputs
    if isinstance(op, Rope) and not op.skip:
        turned = HeadWindow(replace(op.heads, first=0), op.table)
        return [(node.key, turned), (inputs[0], HeadWindow(op.heads, op.table))]
    if isinstance(op, Norm) and op.heads is not None:
        tables = {window.table: None for window in own} or {None: None}
        return [(inputs[0], HeadWindow(op.heads, table)) for table in tables]
    if isinstance(op, Adapt | Bias | Clip):
        return [(inputs[0], window) for window in own]
    if isinstance(op, Attend):
        return [(inputs[1], HeadWindow(op.values, ordered=False))]
    if isinstance(op, Scores):
        cut = zip(inputs[:2], (op.queries, op.keys), strict=True)
        return [(key, HeadWindow(heads)) for key, heads in cut if heads is not None]
    return []
