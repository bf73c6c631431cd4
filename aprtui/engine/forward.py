"""The traced forward pass: the stage graph walked from top to bottom, each value shown to a tap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Protocol

import torch

from aprtui.engine import ops
from aprtui.engine.ops import OPERATIONS, Operands
from aprtui.engine.stages import Node, build_graph
from aprtui.engine.workers import for_each, one_core
from aprtui.formats.tracedir import StageKey
from aprtui.model.roles import Role

__all__ = ["BlockSink", "Given", "Tap", "forward"]

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


def forward(operands: Operands, tap: Tap, given: Given | None = None) -> torch.Tensor:
    """Run the whole pass; the logits ([V], or [T,V] when ``operands.logits`` is "all").

    Memory is that of one layer: a value is dropped after its last use. Of a pass that was broken
    off ``given`` are values that it computed, with which it begins anew: all that comes behind
    them in the graph is computed, and nothing before. Raises KeyError where that needs others.
    """
    graph = build_graph(operands.config)
    if given:
        graph = graph[1 + max(graph.index(node) for node in graph if node.key in given) :]
    roles = [Role(name, node.key.layer) for node in graph for name in node.kind.weights]
    with one_core(), operands.weights.expecting(roles, len(operands.tokens)):
        return _forward(operands, graph, tap, dict(given or {}))


def _forward(
    operands: Operands, graph: Sequence[Node], tap: Tap, values: dict[StageKey, torch.Tensor]
) -> torch.Tensor:
    last_use = {key: place for place, node in enumerate(graph) for key in node.inputs}
    for place, node in enumerate(graph):
        if node.kind.operation in ("scores", "softmax"):
            continue  # computed block by block together with "attend"
        if node.kind.operation == "attend":
            value = _attention(operands, node, values, tap)
        else:
            _bring(node, values, operands.weights.device_of(node.key.layer))
            inputs = tuple(values[key] for key in node.inputs)
            value = OPERATIONS[node.kind.operation](operands, node, inputs)
        values[node.key] = value
        tap.put(node.key, value)
        for key in [key for key in values if last_use.get(key, len(graph)) <= place]:
            del values[key]
    return value


def _bring(node: Node, values: dict[StageKey, torch.Tensor], device: torch.device) -> None:
    """A node's inputs on the device that computes it: the residual, where a layer begins."""
    for key in node.inputs:
        if values[key].device != device:
            values[key] = values[key].to(device)


def _attention(
    operands: Operands, node: Node, values: dict[StageKey, torch.Tensor], tap: Tap
) -> torch.Tensor:
    """Scores, softmax and attention [T,A,d] in pieces: [A,T,T] is never whole.

    A piece is a block of queries in the heads that share one key/value head.
    """
    config, layer = operands.config, node.key.layer or 0
    softmax_key, qkv_key = node.inputs
    scores_key = StageKey(layer, "attn_scores")
    q = values[StageKey(layer, "q_post_rope")]
    k = values[StageKey(layer, "k_post_rope")]
    v = ops.value_heads(values[qkv_key], config)
    sinks = (tap.open_blocks(scores_key), tap.open_blocks(softmax_key))
    out = torch.empty_like(q)
    group = config.num_heads // config.num_kv_heads
    # On the CPU a key/value head a piece, for its threads; a device is given all in one launch.
    at_once = 1 if q.device.type == "cpu" else config.num_kv_heads
    part = replace(config, num_heads=group * at_once, num_kv_heads=at_once)

    def compute(piece: tuple[tuple[int, int], int]) -> None:
        (first, last), kv_head = piece
        heads = slice(kv_head * group, (kv_head + at_once) * group)
        kv_heads = slice(kv_head, kv_head + at_once)
        seen = ops.visible(config, layer, first, last, last, q.device)
        scores = ops.score_block(part, q[first:last, heads], k[:last, kv_heads], seen)
        weights = ops.softmax_block(scores, seen)
        out[first:last, heads] = ops.attend_block(part, weights, v[:last, kv_heads])
        for sink, block in zip(sinks, (scores, weights), strict=True):
            if sink is not None:
                sink.put(heads.start, first, block)

    blocks = ops.attention_blocks(config, q.shape[0])
    for_each(compute, product(blocks, range(0, config.num_kv_heads, at_once)), q.device)
    for sink in sinks:
        if sink is not None:
            sink.close()
    return out
