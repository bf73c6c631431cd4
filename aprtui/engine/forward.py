"""The traced forward pass: a graph walked from top to bottom, each value shown to a tap.

Scores, softmax and their product with V are computed together, by blocks of queries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Protocol

import torch

from aprtui.engine import ops
from aprtui.engine.ops import Pass
from aprtui.engine.workers import for_each, one_core
from aprtui.formats.tracedir import StageKey
from aprtui.graph import Graph, Node
from aprtui.graph.ops import Attend, Experts, Scores, Softmax

__all__ = ["Attending", "BlockSink", "Given", "Tap", "forward"]

Given = Mapping[StageKey, torch.Tensor]
"""Values of a pass that is gone on with, in the dtype that it computes in."""


class BlockSink(Protocol):
    """Takes a tensor [A,T,T] piece by piece; what is never put stays zero."""

    def put(self, first_head: int, first_query: int, block: torch.Tensor) -> None:
        """Rows first_query.. of heads first_head..: [a,t,S], S <= T. Called by several threads."""

    def close(self) -> None:
        """All pieces have come."""


class Tap(Protocol):
    """Watches the pass. Watching changes no value: a tap copies what it wants to keep."""

    def put(self, key: StageKey, value: torch.Tensor) -> None:
        """A stage has been computed."""

    def open_blocks(self, key: StageKey) -> BlockSink | None:
        """A stage is about to be computed in blocks; None when it is not watched."""


class Attending(Protocol):
    """Computes scores, softmax and attention [T,A,d] of an ``Attend`` node, and shows them."""

    def __call__(
        self, graph: Graph, ar: Pass, node: Node, values: Given, tap: Tap, /
    ) -> torch.Tensor: ...


def forward(
    graph: Graph,
    ar: Pass,
    tap: Tap,
    given: Given | None = None,
    attend: Attending | None = None,
) -> torch.Tensor:
    """Run the whole pass; the logits ([V], or [T,V] when ``ar.logits`` is "all").

    ``attend``: how attention is computed, where not among the rows of this pass alone.

    Memory is that of one layer: a value is dropped after its last use. Of a pass that was broken
    off ``given`` are values that it computed, with which it begins anew: all that comes behind
    them in the graph is computed, and nothing before. Raises KeyError where that needs others.
    """
    if given:
        begin = 1 + max(place for place, node in enumerate(graph) if node.key in given)
        graph = replace(graph, nodes=graph.nodes[begin:])
    roles = [role for node in graph if not isinstance(node.op, Experts) for role in node.op.weights]
    with one_core(), ar.weights.expecting(roles, len(ar.tokens)):
        return _forward(graph, ar, tap, dict(given or {}), attend or _attention)


def _forward(
    graph: Graph, ar: Pass, tap: Tap, values: dict[StageKey, torch.Tensor], attend: Attending
) -> torch.Tensor:
    last_use = {key: place for place, node in enumerate(graph) for key in node.inputs}
    for place, node in enumerate(graph):
        if isinstance(node.op, Attend):  # scores and softmax are computed with it
            soft = graph[node.inputs[0]]
            for key in (*soft.inputs, *graph[soft.inputs[0]].inputs):
                last_use[key] = max(last_use[key], place)
    for place, node in enumerate(graph):
        if isinstance(node.op, Scores | Softmax):
            continue
        device = ar.weights.device_of(node.key.layer)
        if isinstance(node.op, Attend):
            scored = graph[graph[node.inputs[0]].inputs[0]]
            _bring((*scored.inputs, node.inputs[1]), values, device)
            value = attend(graph, ar, node, values, tap)
        else:
            _bring(node.inputs, values, device)
            value = ops.compute(ar, node, [values[key] for key in node.inputs])
        values[node.key] = value
        tap.put(node.key, value)
        for key in [key for key in values if last_use.get(key, len(graph)) <= place]:
            del values[key]
    return value


def _bring(
    keys: Sequence[StageKey], values: dict[StageKey, torch.Tensor], device: torch.device
) -> None:
    """A node's inputs on the device that computes it: the residual, where a layer begins, and
    keys and values of another layer."""
    for key in keys:
        if values[key].device != device:
            values[key] = values[key].to(device)


def _attention(graph: Graph, ar: Pass, node: Node, values: Given, tap: Tap) -> torch.Tensor:
    """Scores, softmax and attention [T,A,d] in pieces: [A,T,T] is never whole.

    A piece is a block of queries in the heads that share one key/value head.
    """
    soft = graph[node.inputs[0]]
    scored = graph[soft.inputs[0]]
    attend, softmax, score = node.op, soft.op, scored.op
    assert isinstance(attend, Attend) and isinstance(softmax, Softmax) and isinstance(score, Scores)
    q, k = ops.query_key_heads(ar, score, *(values[key] for key in scored.inputs))
    chosen = values[scored.inputs[2]] if len(scored.inputs) > 2 else None
    v = ops.value_heads(ar, attend, values[node.inputs[1]])
    sinks = (tap.open_blocks(scored.key), tap.open_blocks(soft.key))
    out = q.new_empty(q.shape[0], attend.heads, attend.values.size)
    lost = None if softmax.sinks is None else ar.vector(softmax.sinks)
    biases = ops.key_biases(score.alibi, k)
    group = score.heads // score.kv_heads
    # On the CPU a key/value head a piece, for its threads; a device is given all in one launch.
    at_once = 1 if q.device.type == "cpu" else score.kv_heads

    def compute(piece: tuple[tuple[int, int], int]) -> None:
        (first, last), kv_head = piece
        heads = slice(kv_head * group, (kv_head + at_once) * group)
        kv_heads = slice(kv_head, kv_head + at_once)
        keys = min(last + score.mask.ahead, len(q)) if score.mask.causal else len(q)
        seen = ops.visible(score.mask, first, last, keys, q.device)
        some = None if chosen is None else chosen[:, first:last, :keys]
        seen = ops.looked_at(seen, some)
        added = None if biases is None else biases[heads, :, :keys]
        scores = ops.score_block(ar, score, q[first:last, heads], k[:keys, kv_heads], seen, added)
        sink = None if lost is None else lost[heads]
        weights = ops.softmax_block(ar, scores, seen, sink)
        out[first:last, heads] = ops.attend_block(ar, weights, v[:keys, kv_heads])
        for taken, block in zip(sinks, (scores, weights), strict=True):
            if taken is not None:
                taken.put(heads.start, first, block)

    blocks = ops.attention_blocks(score.heads, q.shape[0])
    for_each(compute, product(blocks, range(0, score.kv_heads, at_once)), q.device)
    for taken in sinks:
        if taken is not None:
            taken.close()
    return out
