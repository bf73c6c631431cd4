"""Routers that score each expert by a sigmoid, choose with a bias and by groups, and scale what
they weigh, as DeepSeek-V3's does; and the experts beside them that every token goes through."""

from __future__ import annotations

from dataclasses import replace

from aprtui.families.settings import Settings
from aprtui.graph.blocks import Routing
from aprtui.graph.ops import Route

__all__ = [
    "LEAST_SUM",
    "read_dense_first", "read_groups", "read_mlp_types", "read_shared", "read_sigmoid",
    "refuse_weights",
]  # fmt: skip

LEAST_SUM = 2.0**-14  # llama.cpp divides by no smaller sum of the chosen experts' scores
_SIGMOID = 2  # of llama.cpp's gating functions


def read_sigmoid(
    s: Settings,
    routing: Routing,
    scale: str,
    *,
    renormalise: bool,
    eps: float = 1e-20,
    **null: float,
) -> Routing:
    """Sigmoid scores, a bias for the choice, the weights times config.json's key ``scale``.

    ``eps`` is what transformers adds to the sum that divides; ``null``: what a null ``scale`` means
    where it is a value. GGUF says the rest itself.
    """
    if s.file.format == "gguf":
        if s.take("expert_gating_func") != _SIGMOID:
            raise s.fail("expert_gating_func is not 2, a sigmoid, which the family needs")
        known = s.known("expert_weights_norm")
        renormalise = s.flag("expert_weights_norm", *(() if known else (renormalise,)))
        factor = s.number("expert_weights_scale", 1.0)
        route = Route("sigmoid", renormalise, factor, floor=LEAST_SUM)
    else:
        route = Route("sigmoid", renormalise, s.number(scale, **null), eps=eps)
    if route.scale == 0:  # llama.cpp takes it for none
        raise s.fail(f"{'expert_weights_scale' if s.file.format == 'gguf' else scale} is 0")
    corrected = s.file.format == "safetensors" or s.shape("correction_bias") is not None
    choose = replace(routing.choose, score="sigmoid")
    s.say("norm_topk_prob", renormalise)
    s.say("routed_scaling_factor", route.scale)
    return replace(routing, choose=choose, route=route, corrected=corrected)


def refuse_weights(s: Settings) -> None:
    """Keys of GGUF that llama.cpp reads of others: this architecture has these values alone."""
    for key, value in {"expert_weights_norm": True, "expert_weights_scale": 1.0}.items():
        s.must_be(key, (value,), f"llama.cpp computes with {value}")


def read_groups(s: Settings, routing: Routing) -> Routing:
    """``n_group`` groups of experts, of which ``topk_group`` are chosen from."""
    if s.file.format == "gguf":
        groups = s.integer("expert_group_count", 1) or 1
        kept = s.integer("expert_group_used_count", 0) if groups > 1 else 1
        s.take("expert_group_used_count", None)
        if groups > 1 and kept >= groups:  # and 0 is refused below
            raise s.fail(f"expert_group_used_count is {kept} of {groups}: llama.cpp takes fewer")
    else:
        groups, kept = s.integer("n_group"), s.integer("topk_group")
    count, top = routing.choose.experts, routing.choose.top
    if groups < 1 or count % groups or count // groups < 2:
        raise s.fail(f"{count} experts cannot be {groups} groups (n_group)")
    if not 1 <= kept <= groups or top > kept * (count // groups):
        raise s.fail(f"{top} experts cannot be chosen from {kept} of {groups} groups (topk_group)")
    s.say("n_group", groups)
    s.say("topk_group", kept)
    return replace(routing, choose=replace(routing.choose, groups=groups, kept=kept))


def read_shared(
    s: Settings, routing: Routing, count_key: str, *, width_of_each: bool = False
) -> Routing:
    """The shared experts, ``count_key`` of them, as one without a gate. ``width_of_each``: a width
    that a GGUF states, but 0, is that of each."""
    if s.file.format == "gguf":
        count = s.integer("expert_shared_count")
        stated = s.integer("shared_expert_intermediate_size", None)
    else:
        count, stated = s.integer(count_key), None
    if width_of_each:
        size = count * (stated or routing.size)
    else:
        size = count * routing.size if stated is None else stated
    s.say("shared_expert_intermediate_size", size)
    return replace(routing, shared_size=size, shared_gate=False)


def read_dense_first(
    s: Settings, layers: int, count_key: str = "first_k_dense_replace"
) -> list[bool]:
    """Which layers have experts: all but the first ones, as many as ``count_key`` says."""
    if s.file.format == "gguf":
        first = s.integer("leading_dense_block_count", 0)
    else:
        first = s.integer(count_key)
    sparse = [layer >= first for layer in range(layers)]
    s.say("sparse_layers", tuple(sparse))
    return sparse


def read_mlp_types(s: Settings, default: list[bool]) -> list[bool]:
    """Which layers have experts, as ``mlp_layer_types`` says where it is stated."""
    types = s.per_layer("mlp_layer_types", (str,), None)
    if types is None:
        return default
    if not set(types) <= {"dense", "sparse"}:
        raise s.fail("mlp_layer_types has another kind than dense and sparse")
    sparse = [kind == "sparse" for kind in types]
    s.say("sparse_layers", tuple(sparse))
    return sparse
