"""Mistakes that the families of docs/families.md bring: each planted in three places by numpy,
located, and named with its parameters."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from tests.compare.family_planting import Planted, cases, located, same
from tests.compare.planting import Plant, Scene

pytest.importorskip("transformers", reason="transformers is a dev dependency")

Array = npt.NDArray[np.float64]
TOKENS = tuple((11 * place + 3) % 96 for place in range(12))
HERE = np.arange(len(TOKENS), dtype=float)
CAUSAL = HERE[None, :] <= HERE[:, None]


# -- the mistakes ----------------------------------------------------------------------------------


def softmax(x: Array, seen: npt.NDArray[np.bool_] | bool = True) -> Array:
    held = np.where(seen, x, -np.inf)
    e = np.exp(held - held.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True))


def sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x)))


def silu(x: Array) -> Array:
    return x * sigmoid(x)


def turned(x: Array, dims: int, theta: float, pairs: str = "halves") -> Array:
    """The first ``dims`` channels of heads [T,heads,d] turned by their positions."""
    angle = HERE[:, None, None] * theta ** (-2 * np.arange(dims // 2) / dims)
    halves = slice(0, dims // 2), slice(dims // 2, dims)
    one, two = halves if pairs == "halves" else (slice(0, dims, 2), slice(1, dims, 2))
    out = x.copy()
    out[..., one] = x[..., one] * np.cos(angle) - x[..., two] * np.sin(angle)
    out[..., two] = x[..., two] * np.cos(angle) + x[..., one] * np.sin(angle)
    return out


def all_turned(s: Scene, theta: float, pairs: str = "halves") -> Array:
    """RoPE over the whole head where it is over a part."""
    heads, x = s.own.heads, s.inputs[0].reshape(len(TOKENS), -1)
    own = x[:, heads.columns].reshape(len(TOKENS), heads.count, heads.size)
    return turned(own, heads.size, theta, pairs)


def turned_first(s: Scene, pairs: str) -> Array:
    """RoPE over the first channels of each head in other pairs."""
    heads = s.inputs[0].reshape(len(TOKENS), s.own.heads.count, -1)
    return turned(heads, s.own.table.dims, s.own.table.theta, pairs)


def queries_and_keys(s: Scene) -> tuple[Array, Array]:
    """Q and K [T,heads,d] of scores, whatever stage holds them."""
    op, cut = s.op("attn_scores"), list[Array]()
    node = s.graph[s.node.key._replace(stage="attn_scores")]
    for key, heads in zip(node.inputs[:2], (op.queries, op.keys), strict=True):
        x = s.values[key].reshape(len(TOKENS), -1)
        x = x if heads is None else x[:, heads.columns]
        cut.append(x.reshape(len(TOKENS), op.heads if not cut else op.kv_heads, -1))
    return cut[0], cut[1]


def scores(s: Scene, q: Array, k: Array, seen: npt.NDArray[np.bool_]) -> Array:
    k = np.repeat(k, q.shape[1] // k.shape[1], axis=1)
    made = np.einsum("thd,shd->hts", q, k) * s.op("attn_scores").scale
    return np.where(seen, made, 0.0)


def seen(window: int | None) -> npt.NDArray[np.bool_]:
    return np.asarray(CAUSAL & (HERE[:, None] - HERE < (window or len(TOKENS))))


def plain(s: Scene, window: int | None = None) -> Array:
    """Scores whose queries have no temperature, of keys that no chunk hides."""
    return scores(s, *queries_and_keys(s), seen(window))


def rotated_anyway(s: Scene, theta: float, window: int | None = None) -> Array:
    q, k = (turned(x, x.shape[-1], theta) for x in queries_and_keys(s))
    return scores(s, q, k, seen(window))


def in_chunks(s: Scene, size: int) -> Array:
    return scores(s, *queries_and_keys(s), CAUSAL & (HERE[:, None] // size == HERE // size))


def weights_in_chunks(s: Scene, size: int) -> Array:
    shown = CAUSAL & (HERE[:, None] // size == HERE // size)
    return softmax(scores(s, *queries_and_keys(s), shown), shown)


def without_sinks(s: Scene, window: int | None) -> Array:
    return softmax(s.inputs[0], seen(window))


def routed(s: Scene, score: Callable[[Array], Array], scale: float) -> Array:
    """Weights of the captured ids by another score, divided by their sum."""
    logits, ids = s.inputs
    chosen = np.take_along_axis(score(logits), ids.astype(int), axis=1)
    return np.asarray(scale * chosen / chosen.sum(1, keepdims=True))


def unbiased_ids(s: Scene) -> Array:
    return np.argsort(-s.inputs[0], axis=1, kind="stable")[:, : s.right.shape[1]].astype(float)


def routed_alone(s: Scene) -> Array:
    return s.value("moe_ffn_out")


def xielu(x: Array, positive: float, negative: float, beta: float) -> Array:
    below = (np.expm1(np.minimum(x, -1e-6)) - x) * negative
    return np.where(x > 0, positive * x * x, below) + beta * x


def experts(s: Scene, gated: Callable[[Array, Array], Array], *, biased: bool = True) -> Array:
    """The sum of the chosen experts with another gate, or with biases left out."""
    x, weights, ids = s.inputs
    out = np.zeros_like(x)
    for token, row in enumerate(ids.astype(int)):
        for rank, expert in enumerate(row):
            gate = product(s, "gate", expert, x[token], biased)
            up = product(s, "up", expert, x[token], biased)
            made = product(s, "down", expert, gated(gate, up), biased)
            out[token] += weights[token, rank] * made
    return out


def product(s: Scene, part: str, expert: int, x: Array, biased: bool) -> Array:
    role = next(r for r in s.own.roles if r.name == f"expert_{part}")._replace(expert=int(expert))
    made = s.replay.rows(role, range(s.replay.shape(role)[0])) @ x
    if biased and s.own.biased:
        made = made + s.replay.vector(role._replace(name=f"{role.name}_bias"))
    return np.asarray(made)


def unclamped(gate: Array, up: Array) -> Array:
    return gate * sigmoid(1.3 * gate) * (up + 1)


def clamped(gate: Array, up: Array) -> Array:
    gate, up = np.minimum(gate, 0.8), np.clip(up, -0.8, 0.8)
    return unclamped(gate, up)


def weight_behind(s: Scene) -> Array:
    return experts(s, lambda gate, up: silu(gate) * up)


def weight_before(s: Scene) -> Array:
    """The weights on the experts' inputs where they belong on what the experts make."""
    x, weights, ids = s.inputs
    out = np.zeros_like(x)
    for token, row in enumerate(ids.astype(int)):
        for rank, expert in enumerate(row):
            given = weights[token, rank] * x[token]
            gate, up = (product(s, part, expert, given, True) for part in ("gate", "up"))
            out[token] += product(s, "down", expert, silu(gate) * up, True)
    return out


def gate_of(s: Scene, curve: Callable[[Array], Array]) -> Array:
    return curve(s.inputs[0] @ s.matrix("attn_gate").T)


# -- where they are planted ------------------------------------------------------------------------

YARN = 0.1 * math.log(4.0) + 1.0  # the magnitude of factor 4
MINISTRAL3 = YARN / (0.05 * math.log(4.0) + 1.0)  # of mscale 1 and mscale_all_dim 0.5


def chosen(s: Scene, top: int) -> Array:
    """The ``top`` best keys of each query."""
    held = np.where(CAUSAL, s.inputs[0][0], -np.inf)
    best = np.argsort(-held, axis=-1, kind="stable")[:, :top]
    return np.where(CAUSAL & (best[:, None, :] == HERE[None, :, None]).any(-1), 1.0, 0.0)[None]


def indexed(s: Scene, *, relu: bool = True, weighed: bool = True) -> Array:
    q, k, weights = s.inputs
    made = np.einsum("thd,sd->ths", q, k[:, 0])
    made = np.maximum(made, 0) if relu else made
    made = made * (weights if weighed else np.ones_like(weights))[:, :, None]
    return np.where(CAUSAL, made.sum(1) / math.sqrt(q.shape[1] * q.shape[2]), 0.0)[None]


OF_INDEX = (("deepseek_v32", "layer-0/index_scores"), ("deepseek_v32", "layer-2/index_scores"),
            ("glm_moe_dsa", "layer-2/index_scores"))  # fmt: skip
OF_CHOICE = (("deepseek_v32", "layer-1/index_keys"), ("glm_moe_dsa", "layer-0/index_keys"),
             ("glm_moe_dsa", "layer-2/index_keys"))  # fmt: skip
PLANTED = (
    Planted("choice_ignored", (
        ("deepseek_v32", "layer-0/attn_scores", plain),
        ("glm_moe_dsa", "layer-1/attn_scores", plain),
        ("glm_moe_dsa", "layer-2/attn_softmax", lambda s: softmax(plain(s), CAUSAL)))),
    Planted("choice_count", same(partial(chosen, top=7), *OF_CHOICE), {"used": 7, "right": 5}),
    Planted("index_relu_missing", same(partial(indexed, relu=False), *OF_INDEX)),
    Planted("index_weights_missing", same(partial(indexed, weighed=False), *OF_INDEX)),
    Planted("rope_style", (
        ("glm_moe_dsa", "layer-0/index_q_rope", lambda s: turned_first(s, "halves")),
        ("glm_moe_dsa", "layer-2/index_k_rope", lambda s: turned_first(s, "halves")),
        ("deepseek_v32", "layer-1/index_k_rope", lambda s: turned_first(s, "adjacent")))),
    Planted("rope_partial", same(
        lambda s: all_turned(s, 10000.0), ("glm4moe", "layer-0/q_post_rope"),
        ("glm4moe", "layer-2/k_post_rope"), ("nemotron", "layer-1/q_post_rope")), {"used": 16}),
    Planted("rope_magnitude", (
        ("gpt_oss", "layer-0/q_post_rope", lambda s: s.right / YARN),
        ("gpt_oss", "layer-2/k_post_rope", lambda s: s.right / YARN),
        ("ministral3", "layer-1/q_post_rope", lambda s: s.right / MINISTRAL3)), {"used": 1.0}),
    Planted("temperature_missing", (
        ("ministral3", "layer-1/attn_scores", partial(plain, window=6)),
        ("llama4", "layer-1/attn_scores", plain), ("llama4", "layer-3/attn_scores", plain))),
    Planted("nope_rotated", (
        ("smollm3", "layer-1/attn_scores", lambda s: rotated_anyway(s, 2e6, 4)),
        ("exaone4", "layer-1/attn_scores", lambda s: rotated_anyway(s, 1e4)),
        ("afmoe", "layer-2/attn_scores", lambda s: rotated_anyway(s, 1e4)))),
    Planted("chunk_missing", (
        ("llama4", "layer-0/attn_scores", plain), ("llama4", "layer-2/attn_scores", plain),
        ("llama4", "layer-0/attn_softmax", lambda s: softmax(plain(s), CAUSAL))), {"right": 5}),
    Planted("chunk_edge", (
        ("llama4", "layer-0/attn_scores", partial(in_chunks, size=6)),
        ("llama4", "layer-2/attn_scores", partial(in_chunks, size=6)),
        ("llama4", "layer-2/attn_softmax", partial(weights_in_chunks, size=6))), {"chunk": 6}),
    Planted("sinks_missing", (
        ("gpt_oss", "layer-0/attn_softmax", partial(without_sinks, window=4)),
        ("gpt_oss", "layer-1/attn_softmax", partial(without_sinks, window=None)),
        ("mimo", "layer-1/attn_softmax", partial(without_sinks, window=4)))),
    Planted("value_scale_missing", same(
        lambda s: s.right / 0.707, *(("mimo", f"layer-{n}/attention") for n in range(3))),
        {"used": 1.0}),
    Planted("gate_missing", same(
        lambda s: s.value("attention"), ("afmoe", "layer-0/attn_gated"),
        ("afmoe", "layer-3/attn_gated"), ("laguna", "layer-1/attn_gated")),
        {"gate": "attn_gate"}),
    Planted("gate_curve", (
        ("afmoe", "layer-1/attn_gate", lambda s: gate_of(s, lambda x: np.log1p(np.exp(x)))),
        ("laguna", "layer-0/attn_gate", lambda s: gate_of(s, sigmoid)),
        ("laguna", "layer-2/attn_gate", lambda s: gate_of(s, lambda x: x)))),
    Planted("router_score", (
        ("mimo", "layer-1/moe_router", partial(routed, score=softmax, scale=1.5)),
        ("minimax_m2", "layer-0/moe_router", partial(routed, score=softmax, scale=1.0)),
        ("laguna", "layer-2/moe_router", partial(routed, score=softmax, scale=2.5))),
        {"used": "softmax", "right": "sigmoid"}),
    Planted("router_scale_missing", (
        ("afmoe", "layer-3/moe_router", lambda s: s.right / 1.7),
        ("laguna", "layer-1/moe_router", lambda s: s.right / 2.5),
        ("glm4moe", "layer-2/moe_router", lambda s: s.right / 2.5)), {"used": 1.0}),
    Planted("router_scale_missing", tuple(
        ("gemma4_moe", f"layer-{layer}/moe_router",
         lambda s: s.right / s.vector("expert_factor")[s.inputs[1].astype(int)])
        for layer in range(3))),
    Planted("router_bias_missing", same(
        unbiased_ids, ("afmoe", "layer-2/moe_router_indices"),
        ("laguna", "layer-1/moe_router_indices"), ("minimax_m2", "layer-1/moe_router_indices"))),
    Planted("shared_missing", same(
        routed_alone, ("afmoe", "layer-1/ffn_out"), ("laguna", "layer-2/ffn_out"),
        ("dots1", "layer-1/ffn_out"))),
    Planted("expert_clamp_missing", same(
        partial(experts, gated=unclamped),
        *(("gpt_oss", f"layer-{n}/moe_ffn_out") for n in range(3))), {"limit": None}),
    Planted("expert_bias_missing", same(
        partial(experts, gated=clamped, biased=False),
        *(("gpt_oss", f"layer-{n}/moe_ffn_out") for n in range(3)))),
    Planted("weight_on_input", (
        ("llama4", "layer-1/moe_ffn_out", weight_behind),
        ("llama4", "layer-3/moe_ffn_out", weight_behind),
        ("olmoe", "layer-1/moe_ffn_out", weight_before))),
    Planted("embedding_scale", (
        ("afmoe", "layer-0/embedding", lambda s: s.right / math.sqrt(48)),
        ("granite", "layer-0/embedding", lambda s: s.right / 3),
        ("granitemoe", "layer-0/embedding", lambda s: s.right / 3)), {"used": 1.0}),
    Planted("score_scale", same(
        lambda s: s.right / 0.2 / math.sqrt(12),
        *(("granite", f"layer-{n}/attn_scores") for n in range(3)))),
    Planted("branch_scale_missing", same(
        lambda s: s.inputs[0] + s.inputs[1], ("granite", "layer-0/post_attn_residual"),
        ("granite", "layer-2/post_ffn_residual"), ("granitemoe", "layer-1/post_attn_residual")),
        {"used": 1.0}),
    Planted("xielu", (
        ("apertus", "layer-0/ffn_silu", lambda s: xielu(
            s.inputs[0], s.own.positive, s.own.negative - s.own.beta, s.own.beta)),
        ("apertus", "layer-1/ffn_silu", lambda s: xielu(
            s.inputs[0], s.own.positive, s.own.negative, 0.0)),
        ("apertus", "layer-2/ffn_silu", lambda s: silu(s.inputs[0])))),
)  # fmt: skip


@pytest.mark.parametrize(("planted", "family", "stage", "plant"), cases(PLANTED))
def test_a_familys_mistake_is_located_and_named(
    planted: Planted, family: str, stage: str, plant: Plant,
    folder: Callable[[str], Path], tmp_path: Path,
) -> None:  # fmt: skip
    mistake = located(planted, folder(family), stage, plant, TOKENS, tmp_path)
    for name, value in planted.parameters.items():
        assert mistake.parameters[name] == (
            pytest.approx(value, rel=1e-6) if isinstance(value, float) else value
        )


def test_every_mistake_is_planted_in_three_places() -> None:
    assert all(len(planted.places) == 3 for planted in PLANTED)
