"""Our own pass over a few rows of some sequences, with the keys and values of the rows before them.

On the CPU in float32 a row's numbers are the same bits whatever rows it is computed with: products
are given several rows at least, attention whole groups of keys, values are added up group by group,
and functions of single elements are computed in whole vectors (docs/numerics.md 6).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product

import torch
import torch.nn.functional as functional

from aprtui.engine import ops
from aprtui.engine.forward import Given, Tap, forward
from aprtui.engine.ops import SCORE_BLOCK_VALUES, Pass, rotation
from aprtui.engine.passes import Piece
from aprtui.engine.plan import Plan
from aprtui.engine.rounding import round_bf16, round_f16, round_q4_0, round_q8_0
from aprtui.engine.stacking import Stack
from aprtui.engine.staging import send
from aprtui.engine.weights import WeightStream
from aprtui.engine.workers import for_each
from aprtui.errors import EngineError
from aprtui.formats.tracedir import StageKey
from aprtui.graph import Graph, Node, Role
from aprtui.graph.ops import Attend, Scores, Softmax
from aprtui.graph.rope import RopeTable

__all__ = ["CachedRun"]

Tensor = torch.Tensor

_ROWS = 8  # of fewer, kernels sum in another order
_KEYS = 64  # a group; the last keys of other numbers are computed by other kernels
_SUMMED = 256  # keys whose values are added up at once; of more, kernels choose where they cut
_VECTOR = 64  # elements: what is left of whole vectors is computed by another function

_STORED: Mapping[str, Callable[[Tensor], Tensor]] = {
    "f32": lambda x: x,
    "f16": round_f16,
    "bf16": round_bf16,
    "q8_0": round_q8_0,
    "q4_0": round_q4_0,
}


@dataclass
class _Cache:
    """Keys and values [rows,heads,d] of one sequence, by the node that scores them, as stored; and
    what nodes with a memory have carried along it, in the type that they compute in."""

    rows: int
    kind: str
    held: dict[StageKey, tuple[Tensor, Tensor]] = field(default_factory=dict)
    carried: dict[StageKey, Tensor] = field(default_factory=dict)

    def grown(self, key: StageKey, first: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values there is room for, these rows among them from ``first`` on."""
        if key not in self.held:
            room = -(-self.rows // _KEYS) * _KEYS
            self.held[key] = (k.new_zeros(room, *k.shape[1:]), v.new_zeros(room, *v.shape[1:]))
        for whole, rows in zip(self.held[key], (k, v), strict=True):
            by_head = _STORED[self.kind](rows.reshape(-1, rows.shape[-1]))
            whole[first : first + len(rows)] = by_head.reshape(rows.shape).to(rows.dtype)
        return self.held[key]


@dataclass(frozen=True)
class _Lane:
    """One piece among the rows of a pass: they stand at ``rows`` there."""

    piece: Piece
    rows: slice
    cache: _Cache
    stack: Stack

    @property
    def positions(self) -> range:
        first = self.piece.stretch.first
        return range(first, first + self.piece.stretch.rows)

    def own(self, x: Tensor, axis: int) -> Tensor:
        """Its rows of x [rows,...], or of [1,rows,keys] with its own keys."""
        return x[:, self.rows, : self.positions.stop] if axis else x[self.rows]


class _Rows(Pass):
    """Exact arithmetic on the rows of several lanes, whose bits depend on no other row. A state is
    carried token by token: of several at once the bits depend on where they are cut."""

    stride = 1

    def __init__(
        self, graph: Graph, weights: WeightStream, lanes: Sequence[_Lane], logits: str
    ) -> None:
        tokens = tuple(token for lane in lanes for token in lane.piece.tokens)
        positions = tuple(float(at) for lane in lanes for at in lane.positions)
        super().__init__(weights, tokens, "all", positions)
        self.every = logits == "all"
        self._graph, self._lanes = graph, lanes
        self._before: Tensor | None = None
        self._behind: Tensor | None = None

    def along(self, node: Node, kernel: Callable[..., Tensor], inputs: Sequence[Tensor]) -> Tensor:
        """Each lane by itself, from what its rows before have left."""
        made, axes = [], [self._graph[key].position_axis for key in node.inputs]
        for lane in self._lanes:
            carried = lane.cache.carried
            self._before, self._behind = carried.get(node.key), None
            own = (lane.own(x, axis) for x, axis in zip(inputs, axes, strict=True))
            made.append(kernel(self, node.op, *own))
            if self._behind is not None:
                carried[node.key] = self._behind
            elif node.op.remembers:
                raise EngineError(f"{node.key} hands nothing on from pass to pass")
        return torch.stack(made) if node.timeless else _together(made, node.position_axis)

    def recall(self, empty: Tensor) -> Tensor:
        return empty if self._before is None else self._before

    def keep(self, carried: Tensor) -> None:
        self._behind = carried.clone()

    def product(self, x: Tensor, role: Role) -> Tensor:
        if self.weights.model.weights[role].rows == 1:  # a kernel that sums over the rows at once
            wide = x if x.dtype == torch.float64 else x.float()
            return (wide * self.vector(role)).sum(-1, keepdim=True).to(x.dtype)
        return super().product(_at_least(x, _ROWS), role)[: len(x)]

    def asked(self, x: Tensor) -> Tensor:
        return x if self.every else x[[lane.rows.stop - 1 for lane in self._lanes]]

    def map(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        flat = x.reshape(-1)
        whole = flat.new_zeros(-(-flat.numel() // _VECTOR) * _VECTOR)
        whole[: flat.numel()] = flat
        return function(whole)[: flat.numel()].reshape(x.shape)

    def met(self, q: Tensor, k: Tensor) -> Tensor:
        keys = _at_least(k, -(-len(k) // _KEYS) * _KEYS)
        return super().met(_at_least(q, _ROWS), keys)[: len(q), : len(k)]

    def mix(self, weights: Tensor, v: Tensor) -> Tensor:
        parts = (
            super(_Rows, self).mix(weights[:, :, at : at + _SUMMED], v[at : at + _SUMMED])
            for at in range(0, len(v), _SUMMED)
        )
        mixed = next(parts)
        for part in parts:
            mixed = mixed + part
        return mixed

    def angles(self, table: RopeTable, x: Tensor) -> tuple[Tensor, Tensor]:
        """Each lane by itself: a table may change with how far a sequence has come."""
        key = (table, x.shape[0], x.dtype, x.device)
        if key not in self._angles:
            dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
            lanes = [rotation(table, lane.positions) for lane in self._lanes]
            cos, sin = (torch.cat(parts).to(dtype) for parts in zip(*lanes, strict=True))
            self._angles[key] = send(cos, x.device), send(sin, x.device)
        return self._angles[key]


class _Split:
    """A tap that gives every lane its own rows."""

    def __init__(self, graph: Graph, lanes: Sequence[_Lane], every: bool) -> None:
        self._graph, self._lanes, self._every = graph, lanes, every

    def put(self, key: StageKey, value: Tensor) -> None:
        node = self._graph[key]
        one_each = (node.last and not self._every) or node.timeless
        for at, lane in enumerate(self._lanes):
            if lane.stack.wants(key):
                own = value[at] if one_each else lane.own(value, node.position_axis)
                lane.stack.put(key, own)

    def open_blocks(self, key: StageKey) -> None:
        """Each lane's are opened where its attention is computed."""


class CachedRun:
    """What the passes of some sequences share; called with the pieces of one pass it runs it
    (``adapters.Running``)."""

    notes: tuple[str, ...] = ()

    def __init__(
        self, graph: Graph, weights: WeightStream, plans: Sequence[Plan], stacks: Sequence[Stack]
    ) -> None:
        self._graph, self._weights, self._stacks = graph, weights, stacks
        self._logits = plans[0].job.logits
        self.engine: Mapping[str, object] = {}  # nothing beside what the session says
        self._caches = [_Cache(plan.rows, plan.job.kv or "f32") for plan in plans]

    def __call__(self, pieces: Sequence[Piece]) -> list[Tensor]:
        lanes, start = [], 0
        for piece in pieces:
            at = piece.sequence
            rows = slice(start, start + piece.stretch.rows)
            lanes.append(_Lane(piece, rows, self._caches[at], self._stacks[at]))
            start = rows.stop
        ar = _Rows(self._graph, self._weights, lanes, self._logits)
        tap = _Split(self._graph, lanes, ar.every)

        def attend(graph: Graph, ar: Pass, node: Node, values: Given, tap: Tap) -> Tensor:
            return _attend(graph, ar, node, values, lanes)

        logits = forward(self._graph, ar, tap, attend=attend)
        if ar.every:
            logits = logits[[lane.rows.stop - 1 for lane in lanes]]
        return list(logits)


def _attend(graph: Graph, ar: Pass, node: Node, values: Given, lanes: Sequence[_Lane]) -> Tensor:
    """Attention [T,A,d] of the rows of all lanes, each to the keys of its own sequence."""
    scored = graph[graph[node.inputs[0]].inputs[0]]
    assert isinstance(node.op, Attend) and isinstance(scored.op, Scores)
    q, k = ops.query_key_heads(ar, scored.op, *(values[key] for key in scored.inputs))
    chosen = values[scored.inputs[2]] if len(scored.inputs) > 2 else None
    v = ops.value_heads(ar, node.op, values[node.inputs[1]])
    out = q.new_empty(q.shape[0], node.op.heads, node.op.values.size)
    for lane in lanes:
        first = lane.piece.stretch.first
        keys, vals = lane.cache.grown(scored.key, first, k[lane.rows], v[lane.rows])
        some = None if chosen is None else lane.own(chosen, 1)
        _attend_lane(graph, ar, node, lane, (q[lane.rows], keys, vals, some), out[lane.rows])
    return out


def _attend_lane(
    graph: Graph, ar: Pass, node: Node, lane: _Lane,
    given: tuple[Tensor, Tensor, Tensor, Tensor | None], out: Tensor,
) -> None:  # fmt: skip
    """One lane's attention into ``out`` [t,A,d], a block of queries in one key/value head at a
    time; a device is given all heads at once. ``given``: q, k, v, and the keys that are chosen."""
    soft = graph[node.inputs[0]]
    scored = graph[soft.inputs[0]]
    softmax, score = soft.op, scored.op
    assert isinstance(softmax, Softmax) and isinstance(score, Scores)
    q, k, v, chosen = given
    start, device = lane.piece.stretch.first, q.device
    lost = None if softmax.sinks is None else ar.vector(softmax.sinks)
    sinks = (lane.stack.open_blocks(scored.key), lane.stack.open_blocks(soft.key))
    biases = ops.key_biases(score.alibi, k, start + len(q))
    group = score.heads // score.kv_heads
    at_once = 1 if device.type == "cpu" else score.kv_heads

    def compute(block: tuple[tuple[int, int], int]) -> None:
        (first, last), kv_head = block
        heads = slice(kv_head * group, (kv_head + at_once) * group)
        kv_heads, end = slice(kv_head, kv_head + at_once), start + last
        keys = -(-end // _KEYS) * _KEYS
        queries = _at_least(q[first:last, heads], _ROWS)
        seen = ops.visible(score.mask, start + first, start + first + len(queries), keys, device)
        if chosen is not None:
            some = torch.zeros_like(seen)
            some[: last - first, :end] = chosen[0, first:last, :end] != 0
            seen = seen & some
        added = None if biases is None else biases[heads, :, :keys]
        scores = ops.score_block(ar, score, queries, k[:keys, kv_heads], seen, added)
        weights = ops.softmax_block(ar, scores, seen, None if lost is None else lost[heads])
        mixed = ops.attend_block(ar, weights, v[:keys, kv_heads])
        out[first:last, heads] = mixed[: last - first]
        for taken, made in zip(sinks, (scores, weights), strict=True):
            if taken is not None:
                taken.put(heads.start, start + first, made[:, : last - first, :end])

    blocks = _blocks(score.heads, len(q), len(k))
    for_each(compute, product(blocks, range(0, score.kv_heads, at_once)), device)


def _blocks(heads: int, queries: int, keys: int) -> list[tuple[int, int]]:
    """The blocks of queries (first, last): scores of one are never too many."""
    step = max(_ROWS, SCORE_BLOCK_VALUES // (heads * keys))
    return [(first, min(first + step, queries)) for first in range(0, queries, step)]


def _together(made: Sequence[Tensor], axis: int) -> Tensor:
    """The rows of all lanes; of [1,rows,keys] with zeros behind each lane's own keys."""
    keys = max(each.shape[-1] for each in made)
    same = [each if not axis else functional.pad(each, (0, keys - each.shape[-1])) for each in made]
    return torch.cat(same, dim=axis)


def _at_least(x: Tensor, rows: int) -> Tensor:
    """x with zeros below it, so that it has so many rows."""
    if len(x) >= rows:
        return x
    padded = x.new_zeros(rows, *x.shape[1:])
    padded[: len(x)] = x
    return padded
