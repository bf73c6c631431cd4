"""What a pass of transformers shows, in our shapes: of each sequence its own rows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from aprtui.engine import ops
from aprtui.engine.adapters import modules
from aprtui.engine.adapters.hf_rows import Lane, Lanes
from aprtui.engine.adapters.scans import INSIDE_SCANS
from aprtui.engine.device import torch_settings
from aprtui.errors import EngineError
from aprtui.formats.tracedir import StageKey
from aprtui.graph import Graph, Node
from aprtui.graph.ops import (
    Activate,
    Add,
    Attend,
    Bias,
    Clip,
    Combine,
    Norm,
    Op,
    Product,
    Scores,
    Sigmoid,
    Softplus,
)
from aprtui.graph.vocabulary import facts_of

if TYPE_CHECKING:
    from aprtui.engine.plan import Plan

__all__ = [
    "BIASED", "INSIDE_ATTENTION", "JOINED", "KEY", "MIXED", "PRODUCT", "QUERY", "SCORES",
    "WEIGHTS", "Part", "Shown",
]  # fmt: skip

# The stages of what the attention function is given, meets and returns.
QUERY, KEY, JOINED, SCORES, WEIGHTS, MIXED = INSIDE_ATTENTION = (
    "q_post_rope", "k_post_rope", "k_joined", "attn_scores", "attn_softmax", "attention",
)  # fmt: skip
PRODUCT, BIASED = "qkv_matmul", "qkv_bias"
_EXPANDED = "kv_b"  # made anew in every pass, of all latents in the cache
_ROUTED = ("moe_router", "moe_ffn_out")


class Shown:
    """Takes what the hooks see, with its batch, and puts each sequence's rows in our shapes.

    ``lanes``: whose rows the coming pass has. ``heads_first``: of norms of heads, whether they are
    given [B,heads,T,d].
    """

    def __init__(self, plan: Plan, version: str) -> None:
        self.graph: Graph = plan.model.graph
        self.wanted = frozenset(file.key for file in plan.files)
        self.lanes = Lanes([Lane(lambda key, value: None, 0, 1)])
        self.heads_first: dict[StageKey, bool] = {}
        self._version = version
        self._chosen: dict[StageKey, list[torch.Tensor]] = {}  # keys, of the last layer that did
        self._followers: dict[StageKey, list[Node]] = {}
        for node in self.graph:
            if isinstance(node.op, Clip) and node.key in self.wanted:
                self.follow(node)
        self.watched = self.wanted.difference(self._followed()).union(self._followers)

    @property
    def width(self) -> int:
        """Rows of the coming pass, a batch's padding among them."""
        return self.lanes.width

    def follow(self, node: Node) -> None:
        """Have a stage computed once more from its inputs, where no module shows it."""
        for key in node.inputs:
            self._followers.setdefault(key, []).append(node)

    def _followed(self) -> dict[StageKey, Node]:
        """The stages that are computed once more."""
        return {node.key: node for nodes in self._followers.values() for node in nodes}

    def engine(self) -> dict[str, Any]:
        """The manifest's."""
        settings = {"attention": "eager"}
        name, version = "transformers", self._version
        return {"name": name, "version": version, **torch_settings(), "settings": settings}

    @property
    def notes(self) -> tuple[str, ...]:
        """What of the stages transformers does not hold by itself."""
        again = any(key.stage == BIASED for key in self.graph.by_key)
        more = {
            node.key.stage: " and ".join(key.stage for key in node.inputs)
            for node in self._followed().values()
        }
        sums = dict.fromkeys(node.key.stage for node in self.graph.parallel_sums)
        return (
            *([f"{PRODUCT} is computed once more without its bias"] if again else []),
            *(f"{stage} is computed once more from {inputs}" for stage, inputs in more.items()),
            *(f"{stage} is computed once more: both branches are added at once" for stage in sums),
        )

    def put(self, stage: str, value: torch.Tensor, *, layer: int | None = None) -> None:
        """[B,T,...], or the rows [B*T,n] of all. Raises EngineError when they are of another size
        than the stage."""
        key = StageKey(layer, stage)
        if key not in self.wanted and key not in self._followers:
            return
        node, lanes = self.graph[key], self.lanes
        inside = stage in INSIDE_SCANS  # seen where it is used
        if isinstance(node.op, Sigmoid) and not inside:  # the module is the product before it
            value = value.sigmoid()
        elif isinstance(node.op, Softplus) and not inside:
            value = torch.nn.functional.softplus(value.float()).to(value.dtype)
        if stage == _EXPANDED:
            value = value[..., -lanes.width :, :]
        if value.shape[0] % len(lanes) or (value.dim() > 2 and value.shape[0] != len(lanes)):
            raise self._other_shape(key, value, (len(lanes), *node.shape(lanes.width)))
        for place, lane in enumerate(lanes.lanes):
            rows = self._in_shape(node, lanes.of(value, place))[lanes.width - lane.rows :]
            self._give(lane, key, rows)

    def _give(self, lane: Lane, key: StageKey, rows: torch.Tensor) -> None:
        """A sequence's rows of a stage, and what follows from it and those that were seen before.
        What waits is cloned: a kernel may write over it."""
        if key in self.wanted:
            lane.put(key, rows)
        for node in self._followers.get(key, ()):
            held = lane.held.setdefault(node.key, {})
            held[key] = rows.clone()
            if all(each in held for each in node.inputs):
                del lane.held[node.key]
                self._give(lane, node.key, _again(node.op, *(held[each] for each in node.inputs)))

    def _in_shape(self, node: Node, value: torch.Tensor) -> torch.Tensor:
        """One sequence's part as the stage has it, in all columns of the pass."""
        shape = node.shape(self.lanes.width)
        if value.dim() == 3 and self._has_heads_first(node, value, shape):
            value = value.transpose(0, 1)
        if value.numel() != math.prod(shape):
            raise self._other_shape(node.key, value, shape)
        return value.reshape(shape)

    def _has_heads_first(self, node: Node, value: torch.Tensor, shape: tuple[int, ...]) -> bool:
        """Whether it is [heads,T,d]; the sizes say so but where T is the number of heads."""
        layer, stage = node.key
        turned = stage in ("q_norm", "k_norm", QUERY, KEY) and self.turns_first(layer)
        if not (turned or isinstance(node.op, Norm)):
            return False
        if shape[0] != shape[1]:
            return tuple(value.shape[:2]) == shape[1::-1]
        return turned or self.heads_first.get(node.key, False)

    def put_state(self, stage: str, value: torch.Tensor, layer: int) -> None:
        """[B,...] of a stage without tokens: the state behind the last one."""
        key, lanes = StageKey(layer, stage), self.lanes
        if key not in self.wanted:
            return
        expected = (len(lanes), *self.graph[key].shape(lanes.width))
        if tuple(value.shape) != expected:
            raise self._other_shape(key, value, expected)
        for place, lane in enumerate(lanes.lanes):
            lane.put(key, value[place])

    def put_scores(self, stage: str, value: torch.Tensor, layer: int) -> None:
        """Scores [B,A,T,keys], or what softmax makes of them, or a choice of keys: of each sequence
        [A,rows,keys] with those of its own, 0 where the layer's mask, or its choice, hides the
        key."""
        key = StageKey(layer, stage)
        scored = self.graph.by_key.get(StageKey(layer, SCORES))
        choice = facts_of(stage).integers  # of keys, which the scores below need
        if not (choice or key in self.wanted):
            return
        if scored is None or not isinstance(scored.op, Scores) or key not in self.graph:
            return
        node, mask, lanes = self.graph[key], scored.op.mask, self.lanes
        reach = mask.window if mask.chunk is None else mask.chunk
        held = lanes.columns if reach is None else min(lanes.columns, lanes.width + reach - 1)
        expected = (len(lanes), self.graph[key].axes[0].extent or 1, lanes.width, held)
        found = tuple(value.shape)
        if found[:-1] != expected[:-1] or not held <= found[-1] <= lanes.columns:
            raise self._other_shape(key, value, expected)
        if choice:
            self._chosen = {key: []}
        for place, lane in enumerate(lanes.lanes):
            whole = lanes.keys(value[place], lane)
            if stage != WEIGHTS:
                seen = ops.visible(mask, lane.first, lane.end, lane.end, value.device)
                of_all = [each[place] for each in map(self._chosen.get, node.inputs[2:]) if each]
                seen = ops.looked_at(seen, of_all[0] if of_all else None)
                whole = whole.masked_fill(~seen, 0.0)
            if choice:
                self._chosen[key].append(whole)
            if key in self.wanted:
                lane.put(key, whole)

    def in_order(self, value: torch.Tensor, layer: int | None) -> torch.Tensor:
        """Columns of q, k and v of each key/value head as those of all queries, keys, values."""
        heads = self.graph.kv_heads[layer]
        size = next(
            node.op.values.size
            for node in self.graph
            if node.key.layer == layer and isinstance(node.op, Attend)
        )
        by_head = value.reshape(*value.shape[:-1], heads, -1, size)
        parts = (by_head[..., :-2, :], by_head[..., -2, :], by_head[..., -1, :])
        return torch.cat([part.flatten(value.dim() - 1) for part in parts], dim=-1)

    def scaled(self, stage: str, value: torch.Tensor, layer: int | None) -> torch.Tensor:
        """What a product's own module gives, times the scales of the parts, which its layer
        multiplies by."""
        node = self.graph.by_key.get(StageKey(layer, stage))
        if node is None or not isinstance(node.op, Product | Bias):
            return value
        return ops.scale_columns(node.op.parts, value)

    def turns_first(self, layer: int | None) -> bool:
        """Whether the layer normalises heads [heads,T,d] once they are turned."""
        norm = self.graph.by_key.get(StageKey(layer, "q_norm"))
        return norm is not None and norm.inputs[0].stage == QUERY

    def differs(self, why: str) -> EngineError:
        return EngineError(
            f"transformers {self._version} builds this model differently: {why}",
            hint="5.23 is known to work; --stages may leave a stage out",
        )

    def _other_shape(
        self, key: StageKey, value: torch.Tensor, shape: tuple[int, ...]
    ) -> EngineError:
        return self.differs(
            f"it gives {key} as {list(value.shape)} where {list(shape)} was expected"
        )


def _again(op: Op, value: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
    """A limit, an activation or a sum of what modules show, which the library makes in passing."""
    if isinstance(op, Activate):
        return ops.ACTIVATIONS[op.name](value)
    if isinstance(op, Clip):
        return value.clamp(-op.limit, op.limit)
    if isinstance(op, Add):
        return (value + op.scale * others[0].reshape(value.shape)) * op.total
    assert isinstance(op, Combine)
    shared = others[0] * others[1] if len(others) > 1 else others[0]
    return value + shared


@dataclass(frozen=True)
class Part:
    """What ``hooks`` put into: the modules of one layer, or with None the decoder's own.

    ``routed``: the factor on the experts' weights that the layer multiplies their sum by.
    """

    shown: Shown
    layer: int | None
    routed: float = 1.0

    def put(self, stage: str, value: torch.Tensor, *, layer: int | None = None) -> None:
        """The stage, or both of a fused gate and up; the embedding is a stage of layer 0."""
        if stage.endswith(modules.PLAIN):
            stage = stage.removesuffix(modules.PLAIN)
            value = self.shown.scaled(stage, value, self.layer)
        if stage.endswith(modules.TOGETHER):
            stage = stage.removesuffix(modules.TOGETHER)
            self.shown.put(stage, self.shown.in_order(value, self.layer), layer=self.layer)
        elif stage == modules.QUERY_GATE:
            heads = self.shown.graph.query_heads[self.layer]
            size = self.shown.graph[StageKey(self.layer, MIXED)].axes[-1].extent or 0
            both = value[..., : 2 * heads * size]
            both = both.reshape(*value.shape[:-1], heads, 2, size)
            rest = value[..., 2 * heads * size :]
            joined = torch.cat((both[..., 0, :].flatten(-2), rest), dim=-1)
            self.shown.put(PRODUCT, joined, layer=self.layer)
            self.shown.put("attn_gate", both[..., 1, :].flatten(-2), layer=self.layer)
        elif (name := modules.HALVES.get(stage)) is not None:
            for part, half in zip(("gate", "up"), value.chunk(2, dim=-1), strict=True):
                self.shown.put(f"{name}_{part}", half, layer=self.layer)
        else:
            first = facts_of(stage).scope == "first"
            if stage == "shared_ffn_out":  # the experts' may be added to it where it lies
                value = value.clone()
            if stage in _ROUTED and self.routed != 1.0:
                value = value * self.routed
            self.shown.put(stage, value, layer=0 if first else self.layer)
