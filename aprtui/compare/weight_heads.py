"""Value heads of a delta rule that two models have in another order, as llama.cpp's converter deals
them round the key heads: weights cut by key head, a pass read in the other model's order."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from aprtui.formats.tracedir import StageKey, StageRecord, TraceDir
from aprtui.graph import Graph, Node, Role
from aprtui.graph.recurrent import DeltaRule
from aprtui.model.open import Matrix

__all__ = ["by_key_head", "dealt_columns", "in_order_of"]


def by_key_head(weights: Mapping[Role, Matrix], graph: Graph, other: Graph) -> dict[Role, Matrix]:
    """``weights`` with those of value heads as a window for each key head (``expert`` of its role),
    in the order of the heads that share it, wherever ``other`` has them in another order."""
    found = dict(weights)
    for node, rule in _dealt_otherwise(graph, other):
        for role, size in _rows_of(graph, node, rule).items():
            matrix = found.get(role)
            if matrix is None or not matrix.plain:
                continue
            rows = matrix.columns if matrix.rows == 1 else matrix.rows
            before = rows - rule.heads * size  # of a convolution: the channels of queries and keys
            if before >= 0:
                del found[role]
                found.update(_windows(role, rule, matrix, size, before))
    return found


def dealt_columns(graph: Graph, other: Graph) -> dict[Role, tuple[int, int]]:
    """(key heads, size of a value head) of the matrices whose columns are value heads that go round
    the key heads, where those of ``other`` do not."""
    found = {}
    for node, rule in _dealt_otherwise(graph, other):
        if rule.dealt:
            role = _reader(graph, _reader(graph, node)).op.weights[0]
            found[role] = (rule.key_heads, rule.value)
    return found


def in_order_of(graph: Graph, trace: TraceDir, own: Graph) -> TraceDir:
    """``trace``, a pass of ``own``, with value heads in the order that they have in ``graph``."""
    records = dict(trace.records)
    for node, rule in _dealt_otherwise(own, graph):
        shared = rule.heads // rule.key_heads
        cut = (shared, rule.key_heads) if rule.dealt else (rule.key_heads, shared)
        for key, size in _stages_of(own, node, rule).items():
            if key in records:
                each = math.prod(own[key].shape(1))
                records[key] = _Reordered(**_fields(records[key]), cut=cut, size=size, row=each)
    moved = sum(isinstance(each, _Reordered) for each in records.values())
    said = f"value heads of {moved} stages are read in the other model's order"
    return replace(trace, records=records, notes=(*trace.notes, said)) if moved else trace


@dataclass(frozen=True, kw_only=True)
class _Reordered(StageRecord):
    """A stage whose rows of ``row`` values end with heads of ``size``, a table of ``cut`` of them:
    the values have that table turned."""

    cut: tuple[int, int]
    size: int
    row: int

    def values(self) -> npt.NDArray[np.float32]:
        found = super().values()
        if found.size % self.row:
            return found  # it is told by its size
        rows = found.reshape(-1, self.row)
        before = self.row - math.prod(self.cut) * self.size
        heads = rows[:, before:].reshape(len(rows), *self.cut, self.size).swapaxes(1, 2)
        return np.concatenate([rows[:, :before], heads.reshape(len(rows), -1)], axis=1).reshape(-1)


def _fields(record: StageRecord) -> dict[str, Any]:
    return {each.name: getattr(record, each.name) for each in fields(StageRecord)}


def _stages_of(graph: Graph, node: Node, rule: DeltaRule) -> dict[StageKey, int]:
    """The stages whose rows end with value heads, and how many values a head has."""
    mixed, decay, beta = node.inputs
    after = _reader(graph, node)
    wide = (graph[mixed].inputs[0], mixed, node.key, *after.inputs, after.key)
    states = [each.key for each in graph if each.op == replace(rule, state=True)
              and each.inputs == node.inputs]  # fmt: skip
    return {
        **dict.fromkeys(wide, rule.value),
        **dict.fromkeys((decay, beta), 1),
        **dict.fromkeys(states, rule.key * rule.value),
    }


def _dealt_otherwise(graph: Graph, other: Graph) -> Iterator[tuple[Node, DeltaRule]]:
    for node in graph:
        theirs = other.by_key.get(node.key)
        if theirs is None or not isinstance(node.op, DeltaRule) or node.op.state:
            continue
        if isinstance(theirs.op, DeltaRule) and theirs.op.dealt != node.op.dealt:
            yield node, node.op


def _rows_of(graph: Graph, node: Node, rule: DeltaRule) -> dict[Role, int]:
    """The weights whose rows (or values) are value heads, and how many rows a head has."""
    mixed, decay, beta = (graph[key] for key in node.inputs)
    gate = graph[_reader(graph, node).inputs[1]]
    values = graph[mixed.inputs[0]].op.weights[-1]
    wide = (values, *gate.op.weights, *mixed.op.weights)
    thin = (*beta.op.weights, *decay.op.weights)
    return {**dict.fromkeys(wide, rule.value), **dict.fromkeys(thin, 1)}


def _reader(graph: Graph, node: Node) -> Node:
    """The first node that computes with what ``node`` makes."""
    return next(each for each in graph if node.key in each.inputs)


def _windows(
    role: Role, rule: DeltaRule, matrix: Matrix, size: int, before: int
) -> Iterator[tuple[Role, Matrix]]:
    if before:
        yield role, Matrix(matrix.entry, matrix.first_row, before, matrix.columns)
    each = rule.heads // rule.key_heads * size
    for head in range(rule.key_heads):
        first = matrix.first_row + before + head * (size if rule.dealt else each)
        rows, columns = (1, each) if matrix.rows == 1 else (each, matrix.columns)
        group, period = (size, rule.key_heads * size) if rule.dealt else (0, 0)
        window = Matrix(matrix.entry, first, rows, columns, group, period)
        yield role._replace(expert=head), window
