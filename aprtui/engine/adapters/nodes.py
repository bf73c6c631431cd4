"""llama.cpp's graph nodes to stages: told apart by operation, source weight and name.

The table is docs/numerics.md 4. Names alone do not do: ``Qcur-N`` is a product, a sum, a view and
a rotation, and some products have no name at all. A node that reads a weight is the stage of our
graph that reads it; the others go by llama.cpp's names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from aprtui.engine import ops
from aprtui.engine.adapters.ggml import Node, Values
from aprtui.errors import EngineError
from aprtui.formats.tracedir import StageKey
from aprtui.graph import Graph, Role
from aprtui.graph import Node as Stage
from aprtui.graph.ops import (
    Activate,
    Bias,
    Choose,
    Clip,
    Combine,
    Embed,
    Norm,
    Op,
    Product,
    Scores,
    Softmax,
)
from aprtui.graph.recurrent import DeltaRule, GatedNorm
from aprtui.model.open import Matrix

__all__ = ["Collector", "NodeMap", "Slot"]

# (operation, "" for any, and name) -> the stages that the node may be: the first that the layer
# has. Experts that all tokens share are computed under the names of a dense FFN.
_BY_NAME: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("SCALE", "inp_scaled"): ("embedding",),
    ("ADD", "inpL"): ("pos_embedding",),
    ("ROPE", "Qcur"): ("q_post_rope",),
    ("ROPE", "Kcur"): ("k_post_rope",),
    ("MUL_MAT", "kq"): ("attn_scores",),
    ("SCALE", "kq_scaled_2"): ("attn_scores",),
    ("SOFT_MAX", "kq_soft_max"): ("attn_softmax",),
    ("", "kqv_out"): ("attention",),
    ("ADD", "ffn_inp"): ("post_attn_residual",),
    ("ADD", "sa_out"): ("post_attn_residual",),
    ("ADD", "attn_residual"): ("post_attn_residual",),
    ("CONT", "attn_pregate"): ("attention",),
    ("SIGMOID", "gate_sigmoid"): ("attn_gate",),
    ("MUL", "attn_gated"): ("attn_gated",),
    ("SSM_CONV", "model.layers.{}.conv.conv"): ("conv",),
    ("ADD", "mamba2_y_add_d"): ("ssm_scan",),
    ("SIGMOID", "beta_sigmoid"): ("delta_beta",),
    ("MUL", "gate"): ("delta_decay",),
    ("SILU", "conv_output_silu"): ("delta_conv",),
    ("VIEW", "attn_output"): ("delta_out",),
    ("VIEW", "new_state"): ("delta_state",),
    ("GLU", "ffn_swiglu"): ("ffn_swigl", "shared_ffn_swigl"),
    ("GLU", "ffn_geglu"): ("ffn_swigl", "shared_ffn_swigl"),
    ("ARGSORT", "ffn_moe_argsort"): ("moe_router_indices",),
    ("GET_ROWS", "ffn_moe_weights"): ("moe_router",),
    ("DIV", "ffn_moe_weights_norm"): ("moe_router",),
    ("SCALE", "ffn_moe_weights_scaled"): ("moe_router",),
    ("", "ffn_moe_out"): ("moe_ffn_out",),
    ("", "ffn_shexp_gate"): ("shared_gate",),
    ("", "shared_expert_gate_sigmoid"): ("shared_gate",),
    ("ADD", "ffn_out"): ("ffn_out",),
    ("ADD", "l_out"): ("post_ffn_residual",),
}

# Where several nodes stand for one stage, by the name of each: whether it is the last one, of
# which the stage is made, for this operation of ours.
_LAST: Mapping[str, Callable[[Any], bool]] = {
    "inp_scaled": lambda op: op.scale != 1.0,
    "kq": lambda op: op.cap is None,
    "kq_scaled_2": lambda op: op.cap is not None,
    "ffn_moe_weights": lambda op: not op.renormalise and op.scale == 1.0,
    "ffn_moe_weights_norm": lambda op: op.renormalise and op.scale == 1.0,
    "ffn_moe_weights_scaled": lambda op: op.scale != 1.0,
    "ffn_out": lambda op: isinstance(op, Combine),
}

_COPIED = re.compile(r"[^#]+#(.+)#\d+")  # a weight that the scheduler copied to another device


@dataclass(frozen=True)
class Slot:
    """What a node is: ``part`` of so many ``parts`` of a stage, side by side. ``columns`` are the
    node's own that count, where it computes several at once; None: all of them."""

    key: StageKey
    part: int = 0
    parts: int = 1
    columns: tuple[int, int] | None = None


class NodeMap:
    """Which stage each node of llama.cpp's graph is, for one model."""

    def __init__(self, graph: Graph, weights: Mapping[Role, Matrix]) -> None:
        self.graph = graph
        self._windows: dict[str, list[tuple[Role, Matrix]]] = {}
        for role, matrix in weights.items():
            if role.expert is None and matrix.plain:  # packed experts' operation is MUL_MAT_ID
                self._windows.setdefault(matrix.entry.name, []).append((role, matrix))

    def slots(self, node: Node) -> tuple[Slot, ...]:
        """The slots that a node fills; none where it is no stage."""
        for source in reversed(node.sources[:2]):  # a bias or a norm's weight is the second
            copied = _COPIED.fullmatch(source)
            windows = self._windows.get(copied[1] if copied else source, ())
            found = [slot for window in windows if (slot := self._of_weight(node.op, *window))]
            if len(found) == 1:
                return (replace(found[0], columns=None),)
            if found:
                return tuple(found)
        named = self._of_name(node)
        return () if named is None else (named,)

    def _of_weight(self, ggml: str, role: Role, matrix: Matrix) -> Slot | None:
        """The stage, or the part of one, that ggml's operation with this weight is the end of."""
        stage = self.graph.reader(role)
        if stage is None or stage.last:  # logits come out of the library as they are
            return None
        op, first = stage.op, matrix.first_row
        if isinstance(op, Product | Bias):
            for place, part in enumerate(op.parts):
                plain = ggml == "MUL_MAT" and part.weight == role and part.bias is None
                if plain or (ggml == "ADD" and part.bias == role):
                    return Slot(stage.key, place, len(op.parts), (first, first + part.rows))
        ends = (
            (ggml == "GET_ROWS" and isinstance(op, Embed) and op.scale == 1.0)
            or (ggml == "MUL" and isinstance(op, Norm) and op.bias is None)
            or (ggml == "ADD" and isinstance(op, Norm) and op.bias == role)
            or (ggml == "MUL" and isinstance(op, GatedNorm) and op.before)
        )
        return Slot(stage.key) if ends else None

    def _of_name(self, node: Node) -> Slot | None:
        names = _BY_NAME.get((node.op, node.label)) or _BY_NAME.get(("", node.label)) or ()
        for name in names:
            key = StageKey(node.layer or 0, name)
            if key in self.graph:
                is_last = _LAST.get(node.label)
                return Slot(key) if is_last is None or is_last(self.graph[key].op) else None
        return None


class Collector:
    """Makes stages out of nodes as they come; holds at most one layer's parts."""

    def __init__(
        self,
        nodes: NodeMap,
        tokens: int,
        wanted: Collection[StageKey],
        put: Callable[[StageKey, torch.Tensor], None],
    ) -> None:
        self._nodes, self._graph = nodes, nodes.graph
        self._tokens = tokens
        self._wanted = frozenset(wanted)
        self._put = put
        self._held: dict[tuple[StageKey, int], torch.Tensor] = {}
        self._derived = _derived(nodes.graph)

    def wants(self, node: Node) -> bool:
        """Whether a stage that was asked for is made of this node."""
        return any(self._makes(slot.key) for slot in self._nodes.slots(node))

    def _makes(self, key: StageKey) -> bool:
        """Whether a wanted stage is made of this one: itself, what follows from it, or scores,
        whose scale is the softmax's parameter."""
        made = [key, *(stage.key for stage in self._derived.get(key, ()))]
        if isinstance(self._graph[key].op, Softmax):
            made.append(self._graph[key].inputs[0])
        return any(each in self._wanted for each in made)

    def take(self, node: Node, values: Values) -> None:
        """Use the values of a wanted node. Raises EngineError when their shape is another."""
        tensor = torch.from_numpy(np.asarray(values))
        slots = self._nodes.slots(node)
        width = max((slot.columns[1] for slot in slots if slot.columns), default=0)
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
            elif isinstance(op, Choose):
                self._give(slot.key, tensor.reshape(self._tokens, -1)[:, : op.top], node)
            else:
                self._part(node, slot, tensor)

    def _part(self, node: Node, slot: Slot, tensor: torch.Tensor) -> None:
        """A part of a stage: joined when all are there."""
        if slot.columns is not None:
            first, last = slot.columns
            tensor = tensor.reshape(self._tokens, -1)[:, first:last]
        if slot.parts == 1:
            self._give(slot.key, tensor, node)
            return
        self._held[slot.key, slot.part] = tensor.reshape(self._tokens, -1)
        places = [(slot.key, part) for part in range(slot.parts)]
        if all(place in self._held for place in places):
            joined = torch.cat([self._held.pop(place) for place in places], dim=1)
            self._give(slot.key, joined, node)

    def _keys_cut(self, node: Node, op: Scores, tensor: torch.Tensor) -> torch.Tensor:
        """[A,T,keys] without the keys that only pad the cache."""
        heads, tokens = op.heads, self._tokens
        if tensor.numel() % (heads * tokens) or tensor.numel() < heads * tokens * tokens:
            raise _other_shape(node, (heads, tokens, tokens))
        return tensor.reshape(heads, tokens, -1)[:, :, :tokens].contiguous()

    def _softmax(self, node: Node, stage: Stage, op: Softmax, tensor: torch.Tensor) -> None:
        """Both [A,T,T] stages: scores are scaled here, by the softmax's own parameter."""
        before = self._graph[stage.inputs[0]]
        assert isinstance(before.op, Scores)
        seen = ops.visible(op.mask, 0, self._tokens, self._tokens, tensor.device)
        scores = self._held.pop((before.key, 0), None)
        if scores is not None:
            scaled = scores * torch.tensor(node.first_param, dtype=torch.float32)
            added = ops.key_biases(before.op.alibi, scaled[0])  # ggml adds them with the mask
            scaled = scaled if added is None else scaled + added
            self._give(before.key, scaled.masked_fill(~seen, 0.0), node)
        weights = self._keys_cut(node, before.op, tensor).masked_fill(~seen, 0.0)
        self._give(stage.key, weights, node)

    def _give(self, key: StageKey, value: torch.Tensor, node: Node) -> None:
        """A whole stage, and what follows from it without a node of llama.cpp's own."""
        shape = self._graph[key].shape(self._tokens)
        if value.numel() != int(np.prod(shape)):
            raise _other_shape(node, shape)
        value = value.reshape(shape)
        if key in self._wanted:
            self._put(key, value)
        for stage in self._derived.get(key, ()):
            if stage.key in self._wanted:
                op = stage.op
                self._put(stage.key, _followed(value, op))


def _derived(graph: Graph) -> dict[StageKey, list[Stage]]:
    """Stages that follow from another one alone, which llama.cpp fuses or does not compute: the
    activation, and the FFN's output where nothing is added to the experts'."""
    found: dict[StageKey, list[Stage]] = {}
    for stage in graph:
        if isinstance(stage.op, Activate | Clip) or (
            isinstance(stage.op, Combine) and len(stage.inputs) == 1
        ):
            found.setdefault(stage.inputs[0], []).append(stage)
    return found


def _followed(value: torch.Tensor, op: Op) -> torch.Tensor:
    """What follows from ``value`` alone. An activation, which llama.cpp fuses with the product, is
    the exact one of its gate: on the CPU its GELU is a float16 table; that shows in ffn_swigl,
    which it does compute."""
    if isinstance(op, Clip):
        return value.clamp(-op.limit, op.limit)
    return ops.ACTIVATIONS[op.name](value.double()).float() if isinstance(op, Activate) else value


def _other_shape(node: Node, expected: tuple[int, ...]) -> EngineError:
    return EngineError(
        f"llama.cpp's node {node.name} is {list(node.shape)} where {list(expected)} was expected"
    )
