"""Two models' graphs compared node by node: what one computes otherwise than the other."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from aprtui.graph import Graph, Node, Role
from aprtui.graph.ops import Embed, Op, Product, Rope
from aprtui.text import clean, count, ranges

__all__ = ["NO_STAGE", "Otherwise", "compare_graphs", "same_value", "shown_value"]

NO_STAGE = "none"
_FLOAT_TOLERANCE = 1e-6  # of float32 values against decimal ones
_WEIGHTS_OWN = frozenset(
    {
        "norm.offset",
        "table.pairs",
        "decay.logged",
        "deltarule.dealt",
        "scan.logged",
        "channelscan.logged",
    }
)
_GELUS = {"gelu", "gelu_tanh"}
_SLIGHT_EPS = 1e-5


@dataclass(frozen=True)
class Otherwise:
    """One parameter of an operation, or a stage, that the models do not share.

    ``kind``: "differs", or "slight" where no file says it and the numbers hardly feel it.
    ``layers``: of those stages; none where one of them is the whole model's.
    """

    parameter: str
    kind: str
    a: str
    b: str
    stages: tuple[str, ...]
    layers: tuple[int, ...]

    def __str__(self) -> str:
        where = ", ".join(self.stages)
        if self.layers:
            noun = "layer" if len(self.layers) == 1 else "layers"
            where += f" of {noun} {ranges(self.layers)}"
        return f"{where}: {self.parameter} is {self.a} in A, {self.b} in B"


def compare_graphs(
    a: Graph, b: Graph, *, same_eps: bool = False, folded: frozenset[Role] = frozenset()
) -> tuple[Otherwise, ...]:
    """Every difference of the two passes but weights, in A's order of computation.

    What the comparison of weights makes the same (row order, norms as 1 + w) is none. ``same_eps``:
    both files say the same eps of norms, so one that differs is the programs' own. ``folded``:
    weights of which one file holds the factor that the other's pass multiplies by.
    """
    a, b = (_unscaled(graph, folded) for graph in (a, b))
    found: dict[tuple[str, str, str, str], list[Node]] = {}
    for node in (*a, *(node for node in b if node.key not in a)):
        for line in _of_node(node, a, b, same_eps=same_eps):
            found.setdefault(line, []).append(node)
    return tuple(_grouped(*line, nodes) for line, nodes in found.items())


def _unscaled(graph: Graph, folded: frozenset[Role]) -> Graph:
    """The graph without the factors that stand in the weights of the other."""
    if not folded:
        return graph
    return replace(graph, nodes=tuple(replace(node, op=_plain(node.op, folded)) for node in graph))


def _plain(op: Op, folded: frozenset[Role]) -> Op:
    if isinstance(op, Embed) and op.table in folded:
        return replace(op, scale=1.0)
    if not isinstance(op, Product):
        return op
    scales = [1.0 if part.weight in folded else op.whole_factor(part) for part in op.parts]
    parts = tuple(replace(part, scale=by) for part, by in zip(op.parts, scales, strict=True))
    return replace(op, scale=1.0, given=1.0, parts=parts)


def _grouped(parameter: str, kind: str, a: str, b: str, nodes: list[Node]) -> Otherwise:
    stages = tuple(dict.fromkeys(node.key.stage for node in nodes))
    layers = {node.key.layer for node in nodes}
    known = sorted(layer for layer in layers if layer is not None)
    return Otherwise(parameter, kind, a, b, stages, () if None in layers else tuple(known))


def _of_node(
    node: Node, a: Graph, b: Graph, *, same_eps: bool
) -> Iterator[tuple[str, str, str, str]]:
    """(parameter, kind, in A, in B) of everything in which the node is not the same."""
    x, y = a.by_key.get(node.key), b.by_key.get(node.key)
    if x is None or y is None:
        words = [_name(each.op) if each else NO_STAGE for each in (x, y)]
        yield "the stage", "differs", words[0], words[1]
        return
    if type(x.op) is not type(y.op):
        yield "the operation", "differs", _name(x.op), _name(y.op)
        return
    shared = all(key in a and key in b for key in (*x.inputs, *y.inputs))
    if x.inputs != y.inputs and shared:
        inputs = [", ".join(key.stage for key in each.inputs) for each in (x, y)]
        if inputs[0] != inputs[1]:
            yield "its input", "differs", inputs[0], inputs[1]
    left, right = (dict(_parameters(each.op)) for each in (x, y))
    for name in {**left, **right}:
        one, other = left.get(name), right.get(name)
        if not same_value(one, other):
            slight = _slight(name, one, other, same_eps=same_eps)
            yield name, "slight" if slight else "differs", shown_value(one), shown_value(other)


def _name(op: Op) -> str:
    return type(op).__name__.lower()


def _parameters(op: Op) -> Iterator[tuple[str, Any]]:
    """Every number, switch and name of an operation by its path; which weights it reads is left to
    the comparison of weights, and so is how many tensors hold them."""
    for path, value in _flat(op, ()):
        name = ".".join(path[-2:]) if len(path) > 1 else f"{_name(op)}.{path[0]}"
        if name not in _WEIGHTS_OWN:
            yield name, value
    parts = getattr(op, "parts", ())
    if parts:
        yield f"{_name(op)}.rows", sum(part.rows for part in parts)
    if isinstance(op, Rope):
        yield "rope.pair_distance", _apart(op)
    if isinstance(op, Product):
        runs = [(by, sum(part.rows for part in some)) for by, some in groupby(parts, op.factor)]
        yield "product.scale", runs[0][0] if len(runs) == 1 else tuple(by for by, _ in runs)
        yield "product.scaled", tuple(rows for _, rows in runs) if len(runs) > 1 else ()


def _apart(op: Rope) -> int:
    """How far the channels of a pair stand from one another, once rows of adjacent pairs are read
    as halves of the whole head, as a converter permuted them."""
    halves = op.table.pairs == "halves"
    return (op.table.dims if halves else op.heads.size - op.skip) // 2


def _flat(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    for field in dataclasses.fields(value):
        inner, here = getattr(value, field.name), (*path, field.name)
        of_product = isinstance(value, Product) and field.name == "scale"  # with its parts'
        if field.name in ("parts", "part") or of_product or isinstance(inner, Role):
            continue
        if dataclasses.is_dataclass(inner):
            yield from _flat(inner, here)
        else:
            yield here, inner


def _slight(name: str, a: Any, b: Any, *, same_eps: bool) -> bool:
    """What two programs do in their own ways whatever the files say, and numbers hardly feel: the
    form of GELU (5e-4 at most), the least sum that a router divides by, the least size of a stream,
    a norm's own eps."""
    if name == "activate.name":
        return {a, b} == _GELUS
    if name in ("norm.eps", "deltarule.eps"):
        return same_eps and abs(a - b) < _SLIGHT_EPS
    return name in ("route.eps", "route.floor", "streams.floor", "merge.floor")


def same_value(x: Any, y: Any) -> bool:
    """Whether two settings are the same but for the last bits of a float32."""
    if isinstance(x, tuple) and isinstance(y, tuple):
        return len(x) == len(y) and all(map(same_value, x, y))
    if isinstance(x, bool) or isinstance(y, bool):
        return bool(x == y)
    if isinstance(x, float) or isinstance(y, float):
        both = isinstance(x, int | float) and isinstance(y, int | float)
        return both and math.isclose(x, y, rel_tol=_FLOAT_TOLERANCE)
    return bool(x == y)


def shown_value(value: Any) -> str:
    """A setting as people read it, clean and short."""
    if isinstance(value, tuple):
        text = f"{count(len(value))} values: {', '.join(map(shown_value, value))}"
        return clean(text, 60) if value else "no"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.7g}" if isinstance(value, float) else clean(str(value), 60)
