"""The stage graph: every stage declared once. No torch here; operations are bound in ``ops``.

The forward pass walks it, captures are named by it, replay runs one node of it, comparing orders
by it, progress counts it and documentation prints it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import filter as matching
from typing import NamedTuple

from aprtui.errors import UsageError
from aprtui.formats.aprt import HEADER_BYTES
from aprtui.formats.tracedir import StageKey
from aprtui.model.config import ModelConfig
from aprtui.text import clean, nearest

__all__ = [
    "ALIASES",
    "STAGES",
    "WHOLE_MODEL_STAGES",
    "Absent",
    "Node",
    "StageKind",
    "absent_stages",
    "build_graph",
    "order_of",
    "parse_layers",
    "parse_stages",
    "stage_shape",
]


@dataclass(frozen=True)
class StageKind:
    """One stage as declared.

    ``inputs`` name stages of the same layer, ``a|b`` meaning the first that exists in the model,
    ``hidden`` the tensor that enters the layer (or, for a whole-model stage, leaves the last one).
    ``weights`` are roles of ``model.roles``; ``axes`` name the tensor's dimensions.
    """

    name: str
    short: str  # at most three letters, for grids
    operation: str
    inputs: tuple[str, ...]
    weights: tuple[str, ...]
    axes: tuple[str, ...]
    doc: str
    exists: Callable[[ModelConfig], bool] = lambda config: True
    why_absent: str = ""
    scope: str = "layer"  # "layer", "first" (only in layer 0) or "model"


def _bias(config: ModelConfig) -> bool:
    return config.qkv_bias


def _qk_norm(config: ModelConfig) -> bool:
    return config.qk_norm


def _post_norms(config: ModelConfig) -> bool:
    return config.post_norms


def _dense(config: ModelConfig) -> bool:
    return config.num_experts == 0


def _experts(config: ModelConfig) -> bool:
    return config.num_experts > 0


_QKV = "qkv_bias|qkv_matmul"
_HIDDEN = ("token", "hidden")
_FFN = ("token", "ffn")
_NO_POST_NORM = "the family has no norm after this branch"
_NO_DENSE = "the FFN is made of experts"
_NO_EXPERTS = "the FFN is dense: the model has no experts"

# In order of computation. Definitions: specs/stages.md sections 2 and 6.
STAGES: tuple[StageKind, ...] = (
    StageKind("embedding", "emb", "embed", (), ("embedding",), _HIDDEN,
              "rows of the token table, scaled where the family scales", scope="first"),
    StageKind("attn_norm", "nrm", "rms_norm", ("hidden",), ("attn_norm",), _HIDDEN,
              "normalised layer input"),
    StageKind("qkv_matmul", "qkv", "qkv", ("attn_norm",), ("q", "k", "v"), ("token", "qkv"),
              "Q, then K, then V of each token, before bias"),
    StageKind("qkv_bias", "+b", "qkv_bias", ("qkv_matmul",), ("q_bias", "k_bias", "v_bias"),
              ("token", "qkv"), "Q, K and V after bias",
              _bias, "the layers have no q/k/v bias"),
    StageKind("q_norm", "qn", "q_norm", (_QKV,), ("q_norm",), ("token", "head", "channel"),
              "RMSNorm of each query head", _qk_norm, "the family has no QK norm"),
    StageKind("k_norm", "kn", "k_norm", (_QKV,), ("k_norm",), ("token", "kv_head", "channel"),
              "RMSNorm of each key head", _qk_norm, "the family has no QK norm"),
    StageKind("q_post_rope", "q", "q_rope", (f"q_norm|{_QKV}",), (),
              ("token", "head", "channel"), "Q after RoPE"),
    StageKind("k_post_rope", "k", "k_rope", (f"k_norm|{_QKV}",), (),
              ("token", "kv_head", "channel"), "K after RoPE, heads not repeated"),
    StageKind("attn_scores", "sco", "scores", ("q_post_rope", "k_post_rope"), (),
              ("head", "query", "key"), "q.k scaled (and soft-capped), 0 where masked"),
    StageKind("attn_softmax", "smx", "softmax", ("attn_scores",), (), ("head", "query", "key"),
              "softmax over the visible keys, 0 elsewhere"),
    StageKind("attention", "att", "attend", ("attn_softmax", _QKV), (),
              ("token", "head", "channel"), "softmax times V"),
    StageKind("attn_out", "out", "linear", ("attention",), ("o", "o_bias"), _HIDDEN,
              "after the output projection and its bias"),
    StageKind("attn_post_norm", "apn", "rms_norm", ("attn_out",), ("attn_post_norm",), _HIDDEN,
              "the attention branch normalised before it is added", _post_norms, _NO_POST_NORM),
    StageKind("post_attn_residual", "+re", "add", ("hidden", "attn_post_norm|attn_out"), (),
              _HIDDEN, "hidden after adding the attention branch"),
    StageKind("ffn_norm", "nrm", "rms_norm", ("post_attn_residual",), ("ffn_norm",), _HIDDEN,
              "normalised FFN input"),
    StageKind("ffn_gate", "gat", "linear", ("ffn_norm",), ("gate",), _FFN,
              "gate projection", _dense, _NO_DENSE),
    StageKind("ffn_up", "up", "linear", ("ffn_norm",), ("up",), _FFN,
              "up projection", _dense, _NO_DENSE),
    StageKind("ffn_silu", "act", "activation", ("ffn_gate",), (), _FFN,
              "the activation of the gate", _dense, _NO_DENSE),
    StageKind("ffn_swigl", "gxu", "multiply", ("ffn_silu", "ffn_up"), (), _FFN,
              "activation times up", _dense, _NO_DENSE),
    StageKind("moe_router", "rtr", "router", ("ffn_norm",), ("router",), ("token", "rank"),
              "weights of the chosen experts, descending", _experts, _NO_EXPERTS),
    StageKind("moe_router_indices", "ids", "router_indices", ("ffn_norm",), ("router",),
              ("token", "rank"), "ids of the chosen experts", _experts, _NO_EXPERTS),
    StageKind("moe_ffn_out", "moe", "experts", ("ffn_norm", "moe_router", "moe_router_indices"),
              ("expert_gate", "expert_up", "expert_down"), _HIDDEN,
              "weighted sum of the experts", _experts, _NO_EXPERTS),
    StageKind("ffn_out", "out", "ffn_out", ("ffn_swigl|moe_ffn_out",), ("down",), _HIDDEN,
              "after the down projection; for experts their weighted sum"),
    StageKind("ffn_post_norm", "fpn", "rms_norm", ("ffn_out",), ("ffn_post_norm",), _HIDDEN,
              "the FFN branch normalised before it is added", _post_norms, _NO_POST_NORM),
    StageKind("post_ffn_residual", "+re", "add", ("post_attn_residual", "ffn_post_norm|ffn_out"),
              (), _HIDDEN, "the layer's output"),
    StageKind("final_norm", "fin", "rms_norm", ("hidden",), ("final_norm",), _HIDDEN,
              "normalised output of the last layer", scope="model"),
    StageKind("lm_head", "log", "head", ("final_norm",), ("head",), ("vocab",),
              "logits of the last position", scope="model"),
)  # fmt: skip

ALIASES = {"layer_output": "post_ffn_residual"}
WHOLE_MODEL_STAGES = frozenset(kind.name for kind in STAGES if kind.scope == "model")
_BY_NAME = {kind.name: kind for kind in STAGES}
_RANK = {kind.name: rank for rank, kind in enumerate(STAGES)}


class Node(NamedTuple):
    """One stage of one layer of one model: what the pass walks and replay runs."""

    key: StageKey
    kind: StageKind
    inputs: tuple[StageKey, ...]


@dataclass(frozen=True)
class Absent:
    """A stage that the model does not have, and why."""

    stage: str
    reason: str


def build_graph(config: ModelConfig) -> tuple[Node, ...]:
    """Every node of the model's forward pass, in order of computation."""
    kinds = [kind for kind in STAGES if kind.exists(config)]
    present = {kind.name for kind in kinds}
    nodes: list[Node] = []
    hidden = StageKey(0, "embedding")

    def resolve(name: str, layer: int | None) -> StageKey:
        if name == "hidden":
            return hidden
        return StageKey(layer, next(choice for choice in name.split("|") if choice in present))

    def place(kind: StageKind, layer: int | None) -> None:
        inputs = tuple(resolve(name, layer) for name in kind.inputs)
        nodes.append(Node(StageKey(layer, kind.name), kind, inputs))

    for layer in range(config.num_layers):
        for kind in kinds:
            if kind.scope == "layer" or (kind.scope == "first" and layer == 0):
                place(kind, layer)
        hidden = StageKey(layer, "post_ffn_residual")
    for kind in kinds:
        if kind.scope == "model":
            place(kind, None)
    return tuple(nodes)


def absent_stages(config: ModelConfig) -> tuple[Absent, ...]:
    """The stages that this model does not have, each with the reason."""
    return tuple(Absent(kind.name, kind.why_absent) for kind in STAGES if not kind.exists(config))


def stage_shape(
    stage: str, config: ModelConfig, tokens: int, logits: str = "last"
) -> tuple[int, ...]:
    """The shape of ``stage`` for a prompt of ``tokens`` tokens, row-major."""
    extent = {
        "token": tokens,
        "query": tokens,
        "key": tokens,
        "hidden": config.hidden_size,
        "qkv": config.q_size + 2 * config.kv_size,
        "head": config.num_heads,
        "kv_head": config.num_kv_heads,
        "channel": config.head_dim,
        "ffn": config.intermediate_size,
        "rank": config.num_experts_per_tok,
        "vocab": config.vocab_size,
    }
    return tuple(extent[axis] for axis in stage_axes(stage, logits))


def stage_axes(stage: str, logits: str = "last") -> tuple[str, ...]:
    """The names of the stage's dimensions."""
    axes = _BY_NAME[stage].axes
    return ("token", *axes) if stage == "lm_head" and logits == "all" else axes


def stage_bytes(stage: str, config: ModelConfig, tokens: int, logits: str = "last") -> int:
    """The exact size of the stage's file."""
    return HEADER_BYTES + 4 * math.prod(stage_shape(stage, config, tokens, logits))


def order_of(key: StageKey) -> tuple[int, int, str]:
    """A sort key: order of computation; unknown stages after the known ones of their layer."""
    rank = _RANK.get(key.stage, len(_RANK))
    layer = key.layer if key.layer is not None else 1 << 32
    return (layer, rank, key.stage)


def short_name(stage: str) -> str:
    """At most three letters for the head of a grid's column."""
    kind = _BY_NAME.get(stage)
    return kind.short if kind else stage[:3]


def parse_stages(text: str) -> tuple[str, ...] | None:
    """The stages that ``text`` names, in order of computation; None means all.

    Names are case-insensitive and separated by commas; ``ffn_*`` names all that begin so. Raises
    UsageError for an empty name and for one that names no stage, with what was likely meant.
    """
    names: set[str] = set()
    for part in text.split(","):
        name = part.strip().lower()
        if name == "all":
            return None
        if not name:
            raise UsageError("an empty stage name", hint="name stages with commas between, or all")
        found = matching(_BY_NAME, ALIASES.get(name, name))
        if not found:
            raise UsageError(f"unknown stage {clean(part.strip())!r}", hint=_meant(name))
        names.update(found)
    return tuple(sorted(names, key=_RANK.__getitem__))


def _meant(name: str) -> str:
    """What a person who typed ``name`` may have meant: a pattern, the nearest stage, or any."""
    begin_so = [stage for stage in _BY_NAME if stage.startswith(name)]
    if len(begin_so) > 1:
        whole = all(stage.startswith(f"{name}_") for stage in begin_so)
        return f"did you mean '{name}_*'?" if whole else f"did you mean '{name}*'?"
    near = nearest(name, [*_BY_NAME, *ALIASES])
    return f"did you mean {near}?" if near else f"valid: {', '.join(_BY_NAME)}"


def parse_layers(text: str, num_layers: int) -> tuple[int, ...]:
    """The layers that ``all``, ``N``, ``START..END`` (END excluded) or a comma list names.

    Raises UsageError for anything else and for a layer outside the model.
    """
    chosen: set[int] = set()
    for part in text.split(","):
        chosen.update(_layer_range(part.strip().lower(), num_layers))
    return tuple(sorted(chosen))


def _layer_range(part: str, num_layers: int) -> Iterable[int]:
    if part == "all":
        return range(num_layers)
    first, dots, last = part.partition("..")
    try:
        start = int(first)
        end = int(last) if dots else start + 1
    except ValueError:
        raise UsageError(
            f"layers {clean(part)!r} cannot be read",
            hint="write all, 3, 0,3,7 or 3..6: the end of a range is not included",
        ) from None
    if start == end or (dots and end < start):
        raise UsageError(
            f"layers {clean(part)} are none", hint="the end of a range is not included"
        )
    if not 0 <= start < end <= num_layers:
        raise UsageError(
            f"layers {clean(part)} lie outside the model, which has layers 0..{num_layers}",
            hint=f"the last layer is {num_layers - 1}; the end of a range is not included",
        )
    return range(start, end)
