"""What a model is, in a few words: its sizes as its graph has them, where layers differ too."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from aprtui.graph.node import Graph, Node
from aprtui.graph.ops import Attend, Choose, Experts, Rope, Scores
from aprtui.text import count

__all__ = ["sizes"]


def sizes(graph: Graph) -> tuple[str, ...]:
    """``4 layers``, ``hidden 256``, ``vocab 2,048``, ``heads 8/2 x 32``, ``ffn 512``, ``rope 1e6
    halves``; of layers that differ each, with how many layers have it."""
    named = {name: _by_layer(graph, told) for name, told in _TOLD.items()}
    words = [f"{name} {found}" for name, found in named.items() if found]
    whole = (count(graph.num_layers, "layer"), f"hidden {graph.hidden_size}")
    return (*whole, *words, f"vocab {count(graph.vocab_size)}")


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


_TOLD: dict[str, Callable[[Node], str]] = {
    "heads": _heads, "ffn": _ffn, "rope": _rope, "experts": _experts, "window": _window,
}  # fmt: skip


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
