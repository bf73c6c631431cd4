"""llama.cpp's graph nodes to stages: told apart by operation, source weight and name.

The table is docs/numerics.md 4. Names alone do not do: ``Qcur-N`` is a product, a sum, a view and
a rotation, and some products have no name at all.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np
import torch

from aprtui.engine import ops
from aprtui.engine.adapters.ggml import Node, Values
from aprtui.errors import EngineError
from aprtui.formats.tracedir import StageKey
from aprtui.graph import Role
from aprtui.model.config import ModelConfig
from aprtui.model.roles import role_of

__all__ = ["Collector", "Slot", "slot_of"]

# (operation, role of the weight) -> slot. A norm's or a bias's weight is the second source.
_BY_WEIGHT = {
    ("GET_ROWS", "embedding"): "embedding",
    **{("MUL_MAT", part): f"qkv_matmul.{part}" for part in "qkv"},
    **{("ADD", f"{part}_bias"): f"qkv_bias.{part}" for part in "qkv"},
    **{
        ("MUL", norm): norm
        for norm in ("attn_norm", "q_norm", "k_norm", "attn_post_norm", "ffn_norm",
                     "ffn_post_norm", "final_norm")
    },
    ("MUL_MAT", "o"): "attn_out",
    ("ADD", "o_bias"): "attn_out_biased",
    ("MUL_MAT", "gate"): "ffn_gate",
    ("MUL_MAT", "up"): "ffn_up",
    ("MUL_MAT", "down"): "ffn_out",
}  # fmt: skip

# (operation, "" for any, and name) -> slot.
_BY_NAME = {
    ("SCALE", "inp_scaled"): "embedding_scaled",
    ("ROPE", "Qcur"): "q_post_rope",
    ("ROPE", "Kcur"): "k_post_rope",
    ("MUL_MAT", "kq"): "scores",
    ("SCALE", "kq_scaled_2"): "scores_capped",
    ("SOFT_MAX", "kq_soft_max"): "softmax",
    ("", "kqv_out"): "attention",
    ("ADD", "ffn_inp"): "post_attn_residual",
    ("ADD", "sa_out"): "post_attn_residual",
    ("GLU", "ffn_swiglu"): "ffn_swigl",
    ("GLU", "ffn_geglu"): "ffn_swigl",
    ("ARGSORT", "ffn_moe_argsort"): "moe_router_indices",
    ("GET_ROWS", "ffn_moe_weights"): "router_plain",
    ("DIV", "ffn_moe_weights_norm"): "router_normalised",
    ("", "ffn_moe_out"): "moe_ffn_out",
    ("ADD", "l_out"): "post_ffn_residual",
}

# Slot -> the stages that are made of it, where that is not the one of the same name.
_MAKES = {
    **{f"{stage}.{part}": (stage,) for stage in ("qkv_matmul", "qkv_bias") for part in "qkv"},
    "scores": ("attn_scores",),
    "softmax": ("attn_scores", "attn_softmax"),
    "router": ("moe_router",),
    "ffn_gate": ("ffn_gate", "ffn_silu"),
    "moe_ffn_out": ("moe_ffn_out", "ffn_out"),
}

_COPIED = re.compile(r"[^#]+#(.+)#\d+")  # a weight that the scheduler copied to another device


@dataclass(frozen=True)
class Slot:
    """What a node is: a stage, or a part of one (``qkv_matmul.q``, ``scores``)."""

    name: str
    layer: int | None


def slot_of(node: Node, config: ModelConfig) -> Slot | None:
    """The slot that a node fills, None for one that fills none."""
    role = _weight(node, config.architecture)
    name = _BY_WEIGHT.get((node.op, role.name)) if role is not None else None
    layer = role.layer if name and role is not None else node.layer
    if name is None:
        name = _BY_NAME.get((node.op, node.label)) or _BY_NAME.get(("", node.label))
    chosen = _one_of(name, config) if name else None
    if chosen is None:
        return None
    return Slot(chosen, 0 if chosen == "embedding" else layer)


def _weight(node: Node, architecture: str) -> Role | None:
    """The role of the weight among the first two sources; a bias or a norm's is the second."""
    for source in reversed(node.sources[:2]):
        copied = _COPIED.fullmatch(source)
        role = role_of(copied[1] if copied else source, architecture)
        if role is not None:
            return role
    return None


def _one_of(name: str, config: ModelConfig) -> str | None:
    """Where two nodes stand for one stage, by the family: the later one counts."""
    pairs = {
        "embedding": ("embedding_scaled", config.embedding_scale != 1.0),
        "scores": ("scores_capped", config.score_softcap is not None),
        "attn_out": ("attn_out_biased", config.output_bias),
    }
    for plain, (later, has_later) in pairs.items():
        if name in (plain, later):
            return plain if (name == later) == has_later else None
    if name in ("router_plain", "router_normalised"):
        return "router" if (name == "router_normalised") == config.norm_topk_prob else None
    return name


class Collector:
    """Makes stages out of nodes as they come; holds at most one layer's parts."""

    def __init__(
        self,
        config: ModelConfig,
        tokens: int,
        wanted: Collection[StageKey],
        put: Callable[[StageKey, torch.Tensor], None],
    ) -> None:
        self._config = config
        self._tokens = tokens
        self._wanted = frozenset(wanted)
        self._put = put
        self._held: dict[Slot, torch.Tensor] = {}

    def wants(self, node: Node) -> bool:
        """Whether a stage that was asked for is made of this node."""
        slot = slot_of(node, self._config)
        return slot is not None and any(key in self._wanted for key in _keys(slot))

    def take(self, node: Node, values: Values) -> None:
        """Use the values of a wanted node. Raises EngineError when their shape is another."""
        slot = slot_of(node, self._config)
        if slot is None:
            return
        tensor = torch.from_numpy(np.asarray(values))
        name, layer = slot.name, slot.layer
        stage, dot, _ = name.partition(".")
        if dot:
            self._part(slot, stage, tensor)
        elif name == "scores":
            self._held[slot] = self._keys_cut(node, tensor)
        elif name == "softmax":
            self._softmax(node, slot, tensor)
        elif name == "router":
            self._give("moe_router", layer, tensor, node)
        elif name == "moe_router_indices":
            chosen = tensor.reshape(self._tokens, -1)[:, : self._config.num_experts_per_tok]
            self._give(name, layer, chosen, node)
        else:
            for key in _keys(slot):
                value = _activated(tensor, self._config) if key.stage == "ffn_silu" else tensor
                self._give(key.stage, layer, value, node)

    def _part(self, slot: Slot, stage: str, tensor: torch.Tensor) -> None:
        """Q, K or V: joined when all three are there."""
        self._held[slot] = tensor.reshape(self._tokens, -1)
        parts = [Slot(f"{stage}.{part}", slot.layer) for part in "qkv"]
        if all(part in self._held for part in parts):
            joined = torch.cat([self._held.pop(part) for part in parts], dim=1)
            self._give(stage, slot.layer, joined)

    def _keys_cut(self, node: Node, tensor: torch.Tensor) -> torch.Tensor:
        """[A,T,keys] without the keys that only pad the cache."""
        heads, tokens = self._config.num_heads, self._tokens
        if tensor.numel() % (heads * tokens) or tensor.numel() < heads * tokens * tokens:
            raise _other_shape(node, (heads, tokens, tokens))
        return tensor.reshape(heads, tokens, -1)[:, :, :tokens].contiguous()

    def _softmax(self, node: Node, slot: Slot, tensor: torch.Tensor) -> None:
        """Both [A,T,T] stages: scores are scaled here, by the softmax's own parameter."""
        layer, tokens = slot.layer or 0, self._tokens
        seen = ops.visible(self._config, layer, 0, tokens, tokens, tensor.device)
        scores = self._held.pop(Slot("scores", slot.layer), None)
        if scores is not None:
            scaled = scores * torch.tensor(node.first_param, dtype=torch.float32)
            self._give("attn_scores", slot.layer, scaled.masked_fill(~seen, 0.0))
        weights = self._keys_cut(node, tensor).masked_fill(~seen, 0.0)
        self._give("attn_softmax", slot.layer, weights)

    def _give(
        self, stage: str, layer: int | None, value: torch.Tensor, node: Node | None = None
    ) -> None:
        key = StageKey(layer, stage)
        if key not in self._wanted:
            return
        shape = stage_shape(stage, self._config, self._tokens)
        if value.numel() != int(np.prod(shape)):
            raise _other_shape(node, shape)
        self._put(key, value.reshape(shape))


def _activated(gate: torch.Tensor, config: ModelConfig) -> torch.Tensor:
    """The activation, which llama.cpp fuses with the product: the exact one of its gate.

    On the CPU its GELU is a float16 table; that shows in ffn_swigl, which it does compute.
    """
    if config.activation != "silu":
        return ops.activate(gate.double(), config.activation).float()
    x = gate.numpy()
    with np.errstate(over="ignore"):
        return torch.from_numpy(x / (1 + np.exp(-x)))


def _keys(slot: Slot) -> tuple[StageKey, ...]:
    layer = None if slot.name == "final_norm" else slot.layer
    return tuple(StageKey(layer, stage) for stage in _MAKES.get(slot.name, (slot.name,)))


def _other_shape(node: Node | None, expected: tuple[int, ...]) -> EngineError:
    found = f"node {node.name} is {list(node.shape)}" if node else "a node is of another size"
    return EngineError(f"llama.cpp's {found} where {list(expected)} was expected")
