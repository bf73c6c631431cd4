"""Nodes and graphs: one model's forward pass in order of computation, shapes resolved."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from aprtui.formats.aprt import HEADER_BYTES
from aprtui.formats.tracedir import StageKey
from aprtui.graph.ops import Add, Attend, Embed, Op, Positions, Product, Rope, SharedRope
from aprtui.graph.recurrent import DeltaRule
from aprtui.graph.role import Role
from aprtui.text import count

__all__ = ["Absent", "Axis", "Graph", "Node"]


class Axis(NamedTuple):
    """A dimension of a stage; ``extent`` None: as many as the prompt has tokens."""

    name: str
    extent: int | None = None


@dataclass(frozen=True)
class Node:
    """One stage of one layer of one model: what the pass walks and replay runs.

    ``last``: it holds the last position alone unless all logits are asked for; ``axes`` are then
    those of one position.
    """

    key: StageKey
    op: Op
    inputs: tuple[StageKey, ...]
    axes: tuple[Axis, ...]

    @property
    def last(self) -> bool:
        return isinstance(self.op, Product) and self.op.last

    @property
    def timeless(self) -> bool:
        """Whether it has no place for each token: a state behind the last one."""
        return not self.last and all(axis.extent is not None for axis in self.axes)

    @property
    def position_axis(self) -> int:
        """The axis that positions run along."""
        names = [axis.name for axis in self.axes]
        return names.index("query") if "query" in names else 0

    def axis_names(self, logits: str = "last") -> tuple[str, ...]:
        """The names of the dimensions."""
        return tuple(axis.name for axis in self._axes(logits))

    def shape(self, tokens: int, logits: str = "last") -> tuple[int, ...]:
        """The row-major shape for a prompt of ``tokens`` tokens."""
        extents = (axis.extent for axis in self._axes(logits))
        return tuple(tokens if extent is None else extent for extent in extents)

    def file_bytes(self, tokens: int, logits: str = "last") -> int:
        """The exact size of the stage's file."""
        return HEADER_BYTES + 4 * math.prod(self.shape(tokens, logits))

    def _axes(self, logits: str) -> tuple[Axis, ...]:
        return (Axis("token"), *self.axes) if self.last and logits == "all" else self.axes


@dataclass(frozen=True)
class Absent:
    """A stage that the model does not have, and why."""

    stage: str
    reason: str


@dataclass(frozen=True, repr=False)
class Graph:
    """Every node of a model's forward pass, in order of computation. ``rows``: the pairs that the
    rows of q and k are ordered for, which nothing else tells where nothing is turned."""

    nodes: tuple[Node, ...]
    absent: tuple[Absent, ...] = ()
    rows: str = ""

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes)

    def __len__(self) -> int:
        return len(self.nodes)

    def __getitem__(self, key: StageKey) -> Node:
        return self.by_key[key]

    def __contains__(self, key: object) -> bool:
        return key in self.by_key

    def __repr__(self) -> str:
        return (
            f"{count(self.num_layers, 'layer')}, {count(len(self))} stages, "
            f"hidden {count(self.hidden_size)}, vocabulary {count(self.vocab_size)}"
        )

    @cached_property
    def by_key(self) -> Mapping[StageKey, Node]:
        return {node.key: node for node in self.nodes}

    @cached_property
    def num_layers(self) -> int:
        return 1 + max(node.key.layer for node in self.nodes if node.key.layer is not None)

    @cached_property
    def hidden_size(self) -> int:
        """H, the width of the residual stream."""
        axes = (axis for node in self.nodes for axis in node.axes)
        return next((axis.extent for axis in axes if axis.name == "hidden"), None) or 0

    @cached_property
    def vocab_size(self) -> int:
        """V, the number of logits."""
        return self.nodes[-1].axes[-1].extent or 0

    @cached_property
    def rope_layout(self) -> str:
        """The pairs that RoPE turns, or q and k are ordered for: "halves" or "adjacent", or ""."""
        tables = (node.op.table for node in self.nodes if isinstance(node.op, Rope | SharedRope))
        return next((table.pairs for table in tables), self.rows)

    @cached_property
    def weights(self) -> Mapping[Role, tuple[int, ...]]:
        """Every weight that the pass reads, in the order of its first use: its row-major shape."""
        found: dict[Role, tuple[int, ...]] = {}
        for node in self.nodes:
            first = self.by_key[node.inputs[0]] if node.inputs else node
            width = math.prod(axis.extent or 1 for axis in first.axes)
            for role, shape in node.op.weight_shapes(width).items():
                found.setdefault(role, shape)
        return found

    @cached_property
    def stages(self) -> tuple[str, ...]:
        """The names of the stages, in order of their first computation."""
        return tuple(dict.fromkeys(node.key.stage for node in self.nodes))

    @cached_property
    def tables(self) -> frozenset[Role]:
        """Tables of tokens and positions: the pass reads rows of them, where they lie in the
        file."""
        ops = (node.op for node in self.nodes)
        return frozenset(op.table for op in ops if isinstance(op, Embed | Positions))

    @cached_property
    def kv_heads(self) -> Mapping[int | None, int]:
        """The key/value heads of each layer that has attention, or a delta rule."""
        ops = [(node.key.layer, node.op) for node in self.nodes]
        return {
            **{layer: op.values.count for layer, op in ops if isinstance(op, Attend)},
            **{layer: op.key_heads for layer, op in ops if isinstance(op, DeltaRule)},
        }

    @cached_property
    def query_heads(self) -> Mapping[int | None, int]:
        """The query heads of each layer that has attention."""
        ops = ((node.key.layer, node.op) for node in self.nodes)
        return {layer: op.heads for layer, op in ops if isinstance(op, Attend)}

    @cached_property
    def longest(self) -> int | None:
        """The tokens that a learned table of positions has rows for; None where there is none."""
        ops = (node.op for node in self.nodes)
        return min((op.rows - op.first for op in ops if isinstance(op, Positions)), default=None)

    @cached_property
    def layers_of(self) -> Mapping[str, tuple[int, ...]]:
        """The layers that have each stage; none for a stage of the whole model."""
        found: dict[str, list[int]] = {}
        for node in self.nodes:
            layers = found.setdefault(node.key.stage, [])
            layers += [] if node.key.layer is None else [node.key.layer]
        return {stage: tuple(layers) for stage, layers in found.items()}

    @cached_property
    def parallel_sums(self) -> tuple[Node, ...]:
        """The sums of stream and branch that nothing reads but the next sum: both branches of the
        layer start from one norm, and an engine may add them in any order."""
        readers: dict[StageKey, list[Node]] = {}
        for node in self.nodes:
            for key in node.inputs:
                readers.setdefault(key, []).append(node)
        return tuple(
            node
            for node in self.nodes
            if isinstance(node.op, Add)
            and node.key in readers
            and all(
                isinstance(reader.op, Add) and reader.op.total == 1.0
                for reader in readers[node.key]
            )
        )

    def only_in(self, stages: Iterable[str], layers: Sequence[int]) -> dict[str, tuple[int, ...]]:
        """Of these stages those of a layer that not all of ``layers`` have, and which have them."""
        found = {
            stage: tuple(layer for layer in self.layers_of[stage] if layer in layers)
            for stage in stages
            if self.layers_of[stage]
        }
        return {stage: having for stage, having in found.items() if having != tuple(layers)}

    def reader(self, role: Role) -> Node | None:
        """The first node that reads a weight of ``role``."""
        return self._readers.get(role)

    @cached_property
    def _readers(self) -> Mapping[Role, Node]:
        found: dict[Role, Node] = {}
        for node in self.nodes:
            for role in node.op.weights:
                found.setdefault(role, node)
        return found
