"""Layers that compute alike: the same operations and parameters, each on weights of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

from aprtui.formats.tracedir import StageKey
from aprtui.graph.node import Graph, Node
from aprtui.graph.role import Role
from aprtui.graph.vocabulary import facts_of

__all__ = ["Alike", "alike"]


@dataclass(frozen=True)
class Alike:
    """Nodes of the first of ``layers``, which stand for those of all; of the whole model: none."""

    layers: tuple[int, ...]
    nodes: tuple[Node, ...]


def alike(graph: Graph) -> tuple[Alike, ...]:
    """Runs of the graph in order of computation: what belongs to no layer alone, and layers that
    follow one another and compute alike. The embedding stands before the layer that it feeds."""
    runs: list[tuple[Hashable, Alike]] = []
    for layer, nodes in _sections(graph):
        kind = None if layer is None else tuple(_placeless(node, layer) for node in nodes)
        if layer is not None and runs and runs[-1][0] == kind:
            last = runs[-1][1]
            runs[-1] = (kind, dataclasses.replace(last, layers=(*last.layers, layer)))
        else:
            runs.append((kind, Alike(() if layer is None else (layer,), nodes)))
    return tuple(run for _, run in runs)


def _sections(graph: Graph) -> list[tuple[int | None, tuple[Node, ...]]]:
    sections: list[tuple[int | None, list[Node]]] = []
    for node in graph:
        layer = node.key.layer if facts_of(node.key.stage).scope != "first" else None
        if not sections or sections[-1][0] != layer:
            sections.append((layer, []))
        sections[-1][1].append(node)
    return [(layer, tuple(nodes)) for layer, nodes in sections]


def _placeless(value: Any, layer: int) -> Hashable:
    """A node, or a part of one, without its layer: equal for layers that compute alike.

    What comes from outside the layer is the stream that runs through all of them.
    """
    if isinstance(value, StageKey):
        inside = value.layer == layer and facts_of(value.stage).scope != "first"
        return value.stage if inside else None
    if isinstance(value, Role):
        return (value.name, None if value.layer is None else value.layer - layer, value.expert)
    if isinstance(value, tuple):
        return tuple(_placeless(item, layer) for item in value)
    if dataclasses.is_dataclass(value):
        fields = dataclasses.fields(value)
        return (type(value), *(_placeless(getattr(value, f.name), layer) for f in fields))
    found: Hashable = value
    return found
