"""`aprtui inspect MODEL --graph`: the forward pass in order of computation, as a table or JSON."""

from __future__ import annotations

import math
import os
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from aprtui.cli.output import print_json
from aprtui.formats.tracedir import StageKey
from aprtui.graph import Node, Role
from aprtui.graph.alike import Alike, alike
from aprtui.graph.words import op_json, op_words, sizes
from aprtui.model.open import Matrix, Model
from aprtui.text import clean, count, ranges, size

__all__ = ["print_graph"]

_WIDE = 116  # columns from which on operation, inputs and weights stand side by side
_LEAST, _MOST = 60, 160
_GAP = "  "
_ABOVE = "↑ "  # before an input that another layer computes
_HARD = "\u00a0"  # a blank that no line is broken at


def print_graph(model: Model, *, as_json: bool) -> None:
    """The graph of a model that was opened; its weights with their sizes, and what they sum to."""
    counted = _Counted(model)
    if as_json:
        print_json(_json(model, counted))
        return
    width = max(_LEAST, min(_terminal_width(), _MOST))
    words = ", ".join(sizes(model.graph))
    print(f"{clean(str(model.path))}")
    for line in _wrapped([f"{clean(model.architecture, 60)}: {words}"], width - 2):
        print(f"  {line}")
    print()
    _print_table(model, counted, width)
    print()
    above = ["↑ of the layer before"] if model.graph.num_layers > 1 else []
    for line in (*above, *_sums(model, counted)):
        print("\n".join(_wrapped([line], width)))


def _terminal_width() -> int:
    """The terminal's columns, also where stdout goes to a pager; 120 where there is none."""
    if os.environ.get("COLUMNS", "").isdecimal():
        return int(os.environ["COLUMNS"])
    for stream in (sys.__stdout__, sys.__stderr__, sys.__stdin__):
        try:
            return os.get_terminal_size(stream.fileno()).columns if stream else 120
        except (OSError, ValueError):
            continue
    return 120


# -- weights ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Weight:
    """Weights of one name that a node reads: ``number`` of them where experts have their own."""

    name: str
    number: int
    shape: tuple[int, ...]
    types: tuple[str, ...]


class _Counted:
    """Each weight counted at the first node that reads it: a tied head is the embedding."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._first: dict[tuple[Any, ...], Node] = {}
        for node in model.graph:
            for _, matrix in self.matrices(node):
                self._first.setdefault(_window(matrix), node)

    def matrices(self, node: Node) -> Iterator[tuple[Role, Matrix]]:
        for role in node.op.weights:
            matrix = self._model.weights.get(role)
            if matrix is not None:
                yield role, matrix

    def is_first(self, node: Node, matrix: Matrix) -> bool:
        return self._first[_window(matrix)] is node

    def values(self, node: Node) -> int:
        """The parameters of a node that no earlier one has."""
        windows = {_window(m): m for _, m in self.matrices(node) if self.is_first(node, m)}
        return sum(m.rows * m.columns for m in windows.values())

    @property
    def shares(self) -> bool:
        """Whether a stage reads a weight that an earlier one has."""
        nodes = self._model.graph
        return any(not self.is_first(node, m) for node in nodes for _, m in self.matrices(node))

    def total(self) -> int:
        return sum(self.values(node) for node in self._model.graph)

    def of(self, nodes: Sequence[Node]) -> list[_Weight]:
        """The weights of nodes that are alike, by name; types are those of all of the layers."""
        found: dict[str, list[tuple[Node, Matrix]]] = {}
        for node in nodes:
            for role, matrix in self.matrices(node):
                found.setdefault(role.name, []).append((node, matrix))
        return [
            _Weight(
                name.replace("_", " "),
                len(each) // len(nodes),
                _shape(each[0][1]),
                tuple(dict.fromkeys(matrix.entry.type for _, matrix in each)),
            )
            for name, each in found.items()
        ]


def _window(matrix: Matrix) -> tuple[Any, ...]:
    """What tells one weight from another: its place in its tensor."""
    return matrix.entry.name, matrix.first_row, matrix.rows, matrix.columns, matrix.group


def _shape(matrix: Matrix) -> tuple[int, ...]:
    return (matrix.columns,) if matrix.rows == 1 else (matrix.rows, matrix.columns)


def _bytes(matrix: Matrix) -> int:
    """The part of its tensor's bytes that is this window's."""
    whole = math.prod(matrix.entry.shape)
    return matrix.entry.size_bytes * matrix.rows * matrix.columns // max(whole, 1)


def _sums(model: Model, counted: _Counted) -> Iterator[str]:
    read = {matrix.entry.name for node in model.graph for _, matrix in counted.matrices(node)}
    entries = [model.file.tensors[name] for name in read]
    held = sum(entry.size_bytes for entry in entries)
    text = f"{count(counted.total(), 'parameter')} in {count(len(read), 'tensor')}, {size(held)}"
    yield text + ("; what several stages share is counted at the first" if counted.shares else "")
    rest = [entry for name, entry in model.file.tensors.items() if name not in read]
    if rest:
        values = count(sum(math.prod(entry.shape) for entry in rest), "value")
        names = ", ".join(clean(entry.name, 60) for entry in rest[:3])
        yield f"no stage reads {count(len(rest), 'tensor')} of the file, {values}: {names}"


# -- text ------------------------------------------------------------------------------------------


def _print_table(model: Model, counted: _Counted, width: int) -> None:
    runs = alike(model.graph)
    stages = [node.key.stage for run in runs for node in run.nodes]
    shapes = [_extents(node) for run in runs for node in run.nodes]
    values = [count(counted.values(node)) for run in runs for node in run.nodes]
    fixed = (
        min(max(map(len, stages)) + 2, 26),
        min(max(map(len, [*shapes, "shape"])), 22),
        max(map(len, [*values, "parameters"])),
    )
    wide = width >= _WIDE
    room = width - sum(fixed) - len(_GAP) * (5 if wide else 3)
    froms = max(
        (len(line) for run in runs for node in run.nodes for line in _inputs(model, run, node)),
        default=0,
    )
    froms = min(froms, room // 3)
    half = (room - froms) * 6 // 11
    flexible = (half, froms, room - froms - half) if wide else (room,)
    heads = (("operation",), ("from",), ("weights",)) if wide else (("operation, from, weights",),)
    _print_row(("stage",), heads, ("shape",), ("parameters",), fixed, flexible)
    for run in runs:
        _print_run(model, counted, run, fixed, flexible)


def _print_run(
    model: Model,
    counted: _Counted,
    run: Alike,
    fixed: tuple[int, int, int],
    flexible: Sequence[int],
) -> None:
    indent = ""
    if run.layers:
        indent = "  "
        each = sum(counted.values(node) for node in run.nodes)
        several = len(run.layers) > 1
        name = f"layers {ranges(run.layers)}, alike" if several else f"layer {run.layers[0]}"
        title = f"{name}: {count(each, 'parameter')}{' each' if several else ''}"
        print("\n" + title)
    for node in run.nodes:
        weights = counted.of(_same(model, run, node))
        told = (
            (op_words(node.op),),
            _inputs(model, run, node),
            tuple(map(_weight_words, weights)),
        )
        columns = told if len(flexible) == 3 else ((*told[0], *_marked("of ", told[1]), *told[2]),)
        values = counted.values(node)
        shown = count(values) if values else "shared" if any(counted.matrices(node)) else ""
        _print_row(
            (indent + clean(node.key.stage, 60),), columns, (_extents(node),), (shown,),
            fixed, flexible,
        )  # fmt: skip


def _marked(word: str, lines: Iterable[str]) -> tuple[str, ...]:
    joined = ", ".join(lines)
    return (word + joined,) if joined else ()


def _print_row(
    stage: Sequence[str],
    columns: Sequence[Sequence[str]],
    shape: Sequence[str],
    values: Sequence[str],
    fixed: tuple[int, int, int],
    flexible: Sequence[int],
) -> None:
    """One node: as many lines as its longest cell has."""
    cells = [
        _wrapped(stage, fixed[0]),
        _wrapped(shape, fixed[1]),
        *(_wrapped(lines, width) for lines, width in zip(columns, flexible, strict=True)),
    ]
    widths = (fixed[0], fixed[1], *flexible)
    for number, line in enumerate(zip_longest(*cells, fillvalue="")):
        left = _GAP.join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True))
        right = values[0].rjust(fixed[2]) if number == 0 else ""
        print(f"{left}{_GAP}{right}".rstrip())


def _wrapped(lines: Iterable[str], width: int) -> list[str]:
    """The lines in so many columns, broken after commas where that is enough; what follows a break
    stands in by two."""
    found: list[str] = []
    for line in lines:
        items = line.split(", ")
        if max(map(len, items)) + 3 <= width:
            items = [item.replace(" ", _HARD) for item in items]
        wrapped = textwrap.wrap(", ".join(items), max(width, 8), subsequent_indent="  ") or [""]
        found += [part.replace(_HARD, " ") for part in wrapped]
    return found


def _same(model: Model, run: Alike, node: Node) -> list[Node]:
    """The node in each of the layers that it stands for."""
    layers = run.layers or (node.key.layer,)
    return [model.graph[node.key._replace(layer=layer)] for layer in layers]


def _inputs(model: Model, run: Alike, node: Node) -> tuple[str, ...]:
    """The stages that a node reads, in all of the layers that it stands for."""
    nodes = _same(model, run, node)
    names = (
        _input(each, each.inputs[place]) for place in range(len(node.inputs)) for each in nodes
    )
    return tuple(dict.fromkeys(names))


def _input(node: Node, key: StageKey) -> str:
    layers = key.layer, node.key.layer
    return (_ABOVE if None not in layers and layers[0] != layers[1] else "") + clean(key.stage, 60)


def _extents(node: Node) -> str:
    return " x ".join("T" if axis.extent is None else str(axis.extent) for axis in node.axes)


def _weight_words(weight: _Weight) -> str:
    shape = "x".join(map(str, weight.shape))
    number = f" {weight.number} of" if weight.number > 1 else ""
    return f"{clean(weight.name, 40)}{number} {shape} {' '.join(weight.types)}"


# -- JSON ------------------------------------------------------------------------------------------


def _json(model: Model, counted: _Counted) -> dict[str, Any]:
    return {
        "kind": "graph",
        "path": str(model.path),
        "architecture": model.architecture,
        "num_layers": model.graph.num_layers,
        "parameters": counted.total(),
        "nodes": [_node_json(node, counted) for node in model.graph],
        "absent": [{"stage": item.stage, "reason": item.reason} for item in model.graph.absent],
    }


def _node_json(node: Node, counted: _Counted) -> dict[str, Any]:
    return {
        "layer": node.key.layer,
        "stage": node.key.stage,
        "operation": op_json(node.op),
        "inputs": [{"layer": key.layer, "stage": key.stage} for key in node.inputs],
        "axes": [axis.name for axis in node.axes],
        "shape": [axis.extent for axis in node.axes],
        "positions": "last" if node.last else "all",
        "parameters": counted.values(node),
        "weights": [
            {
                "role": str(role),
                "tensor": matrix.entry.name,
                "type": matrix.entry.type,
                "first_row": matrix.first_row,
                "shape": _shape(matrix),
                "size_bytes": _bytes(matrix),
                "counted": counted.is_first(node, matrix),
            }
            for role, matrix in counted.matrices(node)
        ],
    }
