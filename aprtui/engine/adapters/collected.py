"""Stages made of llama.cpp's nodes as they come: parts joined, what pads the cache cut off, and
what llama.cpp fuses or does not compute derived."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from aprtui.engine import ops
from aprtui.engine.adapters.ggml import Node, Values
from aprtui.engine.adapters.nodes import NodeMap, Slot
from aprtui.errors import EngineError
from aprtui.formats.tracedir import StageKey
from aprtui.graph import Graph
from aprtui.graph import Node as Stage
from aprtui.graph.altup import Correct, Pick, Predict, Spread, Streams
from aprtui.graph.ops import (
    Activate,
    Alibi,
    Attend,
    Choose,
    Clip,
    Combine,
    Multiply,
    Op,
    Scores,
    Softmax,
)
from aprtui.graph.recurrent import ChannelScan, DeltaRule, Scan

__all__ = ["Collector", "Span", "fused"]

_GELU = "gelu_tanh"  # the one that ggml has under the name


@dataclass(frozen=True)
class Span:
    """One sequence's rows of a pass: ``rows`` there, from position ``first`` on. ``cells`` are
    those of the cache that hold its keys, from position 0 to its last row's."""

    put: Callable[[StageKey, torch.Tensor], None]
    rows: slice
    first: int
    cells: Sequence[int]


class Collector:
    """Makes stages out of the nodes of one pass as they come; holds at most one layer's parts.

    ``tokens``: the rows of the pass; ``spans``: whose they are, where not all one sequence's, from
    position 0 on, that ``put`` takes.
    """

    def __init__(
        self,
        nodes: NodeMap,
        tokens: int,
        wanted: Collection[StageKey],
        put: Callable[[StageKey, torch.Tensor], None],
        spans: Sequence[Span] = (),
    ) -> None:
        nodes.begin()
        self._nodes, self._graph = nodes, nodes.graph
        self._tokens = tokens
        self._wanted = frozenset(wanted)
        self._spans = tuple(spans) or (Span(put, slice(0, tokens), 0, range(tokens)),)
        self._held: dict[tuple[StageKey, int], torch.Tensor] = {}
        self._derived = _derived(nodes.graph)
        self._between = nodes.graph.parallel_sums
        self._streams: dict[StageKey, torch.Tensor] = {}

    def wants(self, node: Node) -> bool:
        """Whether a stage that was asked for is made of this node."""
        return any(self._makes(slot.key) for slot in self._nodes.slots(node))

    def _makes(self, key: StageKey) -> bool:
        """Whether a wanted stage is made of this one: itself, what follows from it, or scores,
        whose scale is the softmax's parameter."""
        made = [key, *(stage.key for stage in self._derived.get(key, ()))]
        made += [stage.key for stage in self._between if key in stage.inputs]
        if isinstance(self._graph[key].op, Softmax):
            made.append(self._graph[key].inputs[0])
        return any(each in self._wanted for each in made)

    def take(self, node: Node, values: Values) -> None:
        """Use the values of a wanted node. Raises EngineError when their shape is another."""
        tensor = torch.from_numpy(np.asarray(values))
        slots = self._nodes.slots(node)
        width = max((slot.width for slot in slots), default=0)
        if width and tensor.numel() != self._tokens * width:
            raise _other_shape(node, (self._tokens, width))
        for slot in slots:
            op = self._graph[slot.key].op
            if isinstance(op, Scores):
                self._held[slot.key, 0] = self._keys_cut(node, op, tensor)
            elif isinstance(op, Softmax):
                self._softmax(node, self._graph[slot.key], op, tensor)
            elif isinstance(op, DeltaRule) and op.state:  # ggml has it [N,value,key]
                turned = tensor.reshape(op.heads, op.value, op.key).transpose(1, 2)
                self._give(slot.key, turned.contiguous(), node)
            elif isinstance(op, Scan | ChannelScan) and op.last:  # behind the rows, [N,size,state]
                heads, state, size = self._graph[slot.key].shape(self._tokens)
                last = tensor.flatten()[-heads * state * size :].reshape(heads, size, state)
                self._give(slot.key, last.transpose(1, 2).contiguous(), node)
            elif isinstance(op, Streams | Predict | Correct | Spread):  # ggml has streams first
                streams = self._graph[slot.key].axes[1].extent or 1
                turned = tensor.reshape(streams, self._tokens, -1).transpose(0, 1)
                self._give(slot.key, turned.contiguous(), node)
            elif isinstance(op, Choose):
                self._give(slot.key, tensor.reshape(self._tokens, -1)[:, : op.top], node)
            elif isinstance(op, Attend) and op.scale != 1.0:  # which llama.cpp does later
                self._give(slot.key, tensor * op.scale, node)
            else:
                self._part(node, slot, tensor)

    def _part(self, node: Node, slot: Slot, tensor: torch.Tensor) -> None:
        """A part of a stage: joined when all are there."""
        if slot.columns is not None:
            rows = tensor.reshape(self._tokens, -1)
            tensor = torch.cat([rows[:, at : at + count] for at, count in slot.columns], dim=1)
        if slot.parts == 1:
            self._give(slot.key, tensor, node)
            return
        self._held[slot.key, slot.part] = tensor.reshape(self._tokens, -1)
        places = [(slot.key, part) for part in range(slot.parts)]
        if all(place in self._held for place in places):
            joined = torch.cat([self._held.pop(place) for place in places], dim=1)
            self._give(slot.key, joined, node)

    def _keys_cut(self, node: Node, op: Scores, tensor: torch.Tensor) -> torch.Tensor:
        """[A,T,cells] without the cells that only pad the cache."""
        heads, tokens = op.heads, self._tokens
        cells = 1 + max(max(span.cells) for span in self._spans)
        if tensor.numel() % (heads * tokens) or tensor.numel() < heads * tokens * cells:
            raise _other_shape(node, (heads, tokens, cells))
        return tensor.reshape(heads, tokens, -1)[:, :, :cells].contiguous()

    def _softmax(self, node: Node, stage: Stage, op: Softmax, tensor: torch.Tensor) -> None:
        """Both [A,T,T] stages: scores are scaled here, by the softmax's own parameter."""
        before = self._graph[stage.inputs[0]]
        assert isinstance(before.op, Scores)
        scores = self._held.pop((before.key, 0), None)
        if scores is not None:
            scaled = scores * torch.tensor(node.first_param, dtype=torch.float32)
            self._give_scores(before.key, scaled, op, before.op.alibi)
        self._give_scores(stage.key, self._keys_cut(node, before.op, tensor), op)

    def _give_scores(
        self, key: StageKey, cells: torch.Tensor, op: Softmax, alibi: Alibi | None = None
    ) -> None:
        """Of [A,T,cells] each sequence's rows, with the keys at their positions; ``alibi``: what
        ggml adds to them with the mask."""
        if key not in self._wanted:
            return
        for span in self._spans:
            keys = cells[:, span.rows][:, :, torch.as_tensor(span.cells)]
            last = span.first + keys.shape[1]
            added = ops.key_biases(alibi, keys.movedim(2, 0))
            keys = keys if added is None else keys + added
            seen = ops.visible(op.mask, span.first, last, last, keys.device)
            span.put(key, keys.masked_fill(~seen, 0.0))

    def _give(self, key: StageKey, value: torch.Tensor, node: Node) -> None:
        """A whole stage, and what follows from it without a node of llama.cpp's own."""
        shape = self._graph[key].shape(self._tokens)
        if value.numel() != int(np.prod(shape)):
            raise _other_shape(node, shape)
        value = value.reshape(shape)
        if key in self._wanted:
            self._put(key, value)
        self._sum(key, value)
        for stage in self._derived.get(key, ()):
            if stage.key in self._wanted:
                self._put(stage.key, _followed(value, stage.op))

    def _sum(self, key: StageKey, value: torch.Tensor) -> None:
        """The stream plus one branch, where llama.cpp adds the other one first."""
        for stage in self._between:
            hidden, branch = stage.inputs
            if key == hidden:
                self._streams[key] = value
            elif key == branch and stage.key in self._wanted:
                self._put(stage.key, self._streams.pop(hidden) + value)

    def _put(self, key: StageKey, value: torch.Tensor) -> None:
        """Each sequence's rows; a state, which has none, is of the pass's only sequence."""
        for span in self._spans:
            span.put(key, value if self._graph[key].timeless else value[span.rows])


def fused(graph: Graph) -> Iterator[Stage]:
    """The activations that llama.cpp computes with what is multiplied by them, or in two nodes."""
    gates = {stage.inputs[0] for stage in graph if isinstance(stage.op, Multiply)}
    for stage in graph:
        if isinstance(stage.op, Activate) and (stage.op.name != _GELU or stage.key in gates):
            yield stage


def _derived(graph: Graph) -> dict[StageKey, list[Stage]]:
    """Stages that follow from another one alone, which llama.cpp fuses or does not compute: the
    activation, and the FFN's output where nothing is added to the experts'."""
    found: dict[StageKey, list[Stage]] = {}
    acts = {stage.key for stage in fused(graph)}
    for stage in graph:
        alone = len(stage.inputs) == 1 and not stage.op.weights
        clipped = isinstance(stage.op, Clip) or stage.key in acts
        if clipped or (isinstance(stage.op, Combine | Pick) and alone):
            found.setdefault(stage.inputs[0], []).append(stage)
    return found


def _followed(value: torch.Tensor, op: Op) -> torch.Tensor:
    """What follows from ``value`` alone. An activation, which llama.cpp fuses with the product, is
    the exact one of its gate: on the CPU its GELU is a float16 table; that shows in ffn_swigl,
    which it does compute."""
    if isinstance(op, Clip):
        return value.clamp(-op.limit, op.limit)
    if isinstance(op, Pick):
        return value[:, op.stream]
    return ops.ACTIVATIONS[op.name](value.double()).float() if isinstance(op, Activate) else value


def _other_shape(node: Node, expected: tuple[int, ...]) -> EngineError:
    return EngineError(
        f"llama.cpp's node {node.name} is {list(node.shape)} where {list(expected)} was expected"
    )
