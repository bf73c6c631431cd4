"""The graph in words: a model's sizes, where its layers differ too, and each operation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from aprtui.graph.node import Graph, Node
from aprtui.graph.ops import Attend, Choose, Experts, Heads, Op, Part, Rope, Scores
from aprtui.graph.role import Role
from aprtui.text import count

__all__ = ["op_json", "op_words", "sizes"]


def sizes(graph: Graph) -> tuple[str, ...]:
    """``4 layers``, ``hidden 256``, ``heads 8/2 x 32``, ``ffn 512``, ``vocab 2,048``, ``rope 1e6
    halves``; of layers that differ each, with how many layers have it."""
    found = {
        "hidden": str(graph.hidden_size),
        "heads": _by_layer(graph, _heads),
        "ffn": _by_layer(graph, _ffn),
        "vocab": count(graph.vocab_size),
        "rope": _by_layer(graph, _rope),
        "experts": _by_layer(graph, _experts),
        "window": _by_layer(graph, _window),
    }
    words = (f"{name} {text}" for name, text in found.items() if text)
    return (count(graph.num_layers, "layer"), *words)


def _heads(node: Node) -> str:
    op = node.op
    return f"{op.heads}/{op.values.count} x {op.values.size}" if isinstance(op, Attend) else ""


def _ffn(node: Node) -> str:
    if isinstance(node.op, Experts):
        return str(node.op.size)
    return str(next((axis.extent for axis in node.axes if axis.name == "ffn"), "") or "")


def _rope(node: Node) -> str:
    if not isinstance(node.op, Rope):
        return ""
    table, size = node.op.table, node.op.heads.size
    part = "" if table.dims == size else f" of {table.dims} channels"
    return f"{table.theta:g} {table.pairs}{part}".replace("e+0", "e")


def _experts(node: Node) -> str:
    return f"{node.op.top} of {node.op.experts}" if isinstance(node.op, Choose) else ""


def _window(node: Node) -> str:
    return str(node.op.mask.window or "") if isinstance(node.op, Scores) else ""


def _by_layer(graph: Graph, told: Callable[[Node], str]) -> str:
    """What the layers' nodes say; with their number where it is not that of all layers."""
    layers: dict[str, set[int | None]] = {}
    for node in graph:
        if text := told(node):
            layers.setdefault(text, set()).add(node.key.layer)
    return " and ".join(f"{text}{_where(graph, having)}" for text, having in layers.items())


def _where(graph: Graph, layers: Iterable[int | None]) -> str:
    number = len(set(layers))
    return "" if number == graph.num_layers else f" in {count(number, 'layer')}"


# -- one operation ---------------------------------------------------------------------------------


def op_words(op: Op) -> str:
    """``rope dims 32, theta 1e+06, halves, 8 x 32 from 0``: the operation and what decides its
    numbers. Weights are left out, and numbers that change nothing because they are the default."""
    return f"{_name(op)} {', '.join(_told(op))}".strip()


def op_json(op: Op) -> dict[str, Any]:
    """Every parameter of the operation under its field's name; weights by their roles."""
    return {"name": _name(op), **{f.name: _plain(getattr(op, f.name)) for f in _fields(op)}}


def _name(op: Op) -> str:
    return type(op).__name__.lower()


def _fields(value: Any) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(value)


def _told(value: Any) -> Iterator[str]:
    for field in _fields(value):
        found, name = getattr(value, field.name), field.name.replace("_", " ")
        if isinstance(found, Heads):
            yield f"{found.count} x {found.size} from {found.first}"
        elif dataclasses.is_dataclass(found) and not isinstance(found, Part):
            yield from _told(found)
        elif isinstance(found, bool):
            yield from [name] * found
        elif isinstance(found, str):
            yield found
        elif isinstance(found, int | float) and found != field.default:
            yield f"{name} {count(found) if isinstance(found, int) else format(found, 'g')}"
        elif isinstance(found, tuple) and found and isinstance(found[0], float):
            yield f"{count(len(found))} {name}"


def _plain(value: Any) -> Any:
    if isinstance(value, Role):
        return str(value)
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in _fields(value)}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
