"""The catalogue walked entry by entry: each mistake planted by independent numpy in models of three
sizes, each time in another layer and as large as it comes there; several faults of one capture are
told apart, and nothing else is accused."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from aprtui.compare.bisect import bisect
from aprtui.compare.mistakes.naming import CATALOGUE
from aprtui.compare.mistakes.products import PRODUCTS
from aprtui.compare.mistakes.stored import LAST
from tests.compare import (
    test_family_mistakes,
    test_mistakes,
    test_new_mistakes,
    test_order_mistakes,
    test_recurrent_mistakes,
    test_stream_mistakes,
)
from tests.compare.planting import Scene, compute, model_of, previous_scale, write
from tests.families import TINY, save_tiny

pytest.importorskip("transformers", reason="transformers is a dev dependency")

Array = npt.NDArray[np.float64]
Plant = Callable[[Scene, int], Array]

TOKENS = (76, 68, 97, 11, 95, 13, 58, 29, 66, 41, 5, 98)
HERE = np.arange(len(TOKENS), dtype=float)
CAUSAL = HERE[None, :] <= HERE[:, None]
LAYERS = 3


@dataclass(frozen=True)
class Fault:
    """One mistake at a stage; ``plant`` is given the scene and the size's number, ``parameters``
    (of each size, by name) must be told."""

    id: str
    stage: str
    plant: Plant
    parameters: Mapping[str, tuple[Any, Any, Any]] = field(default_factory=dict)


# -- in numpy --------------------------------------------------------------------------------------


def rms(x: Array, eps: float) -> Array:
    return np.asarray(x / np.sqrt((x**2).mean(-1, keepdims=True) + eps))


def weight(s: Scene) -> Array:
    return s.replay.vector(s.own.weight)


def matrix(s: Scene, part: int = 0) -> Array:
    role = s.own.parts[part].weight
    return s.replay.rows(role, range(s.replay.shape(role)[0]))


def rows(s: Scene) -> Array:
    return s.inputs[0].reshape(len(s.inputs[0]), -1)


def q_heads(s: Scene) -> Array:
    (a, _, d), x = s.heads, s.inputs[0]
    return x if x.ndim == 3 else x[:, : a * d].reshape(len(x), a, d)


def rotated(s: Scene, *, theta: float = 0.0, at: Array = HERE, pairs: str = "") -> Array:
    x, d, table = q_heads(s), s.heads[2], s.own.table
    angle = at[:, None, None] * (theta or table.theta) ** (-2 * np.arange(d // 2) / d)
    halves = (pairs or table.pairs) == "halves"
    one, two = (slice(0, d // 2), slice(d // 2, d)) if halves else (slice(0, d, 2), slice(1, d, 2))
    out = np.empty_like(x)
    out[..., one] = x[..., one] * np.cos(angle) - x[..., two] * np.sin(angle)
    out[..., two] = x[..., two] * np.cos(angle) + x[..., one] * np.sin(angle)
    return out


def moved(position: int) -> Array:
    placed = HERE.copy()
    placed[position] = 2
    return placed


def softmax(x: Array, seen: npt.NDArray[np.bool_]) -> Array:
    held = np.where(seen, x, -np.inf)
    e = np.exp(held - held.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True))


def scores(s: Scene, k: Array | None = None) -> Array:
    """Of all keys, before any mask."""
    q, right = s.value("q_post_rope"), s.value("k_post_rope")
    k = right if k is None else k
    k = np.repeat(k, q.shape[1] // k.shape[1], axis=1)
    return np.asarray(np.einsum("thd,shd->hts", q, k) * s.op("attn_scores").scale)


def masked(values: Array) -> Array:
    return np.where(CAUSAL, values, 0.0)


def window(size: int) -> npt.NDArray[np.bool_]:
    return np.asarray(CAUSAL & (HERE[:, None] - HERE[None, :] < size))


def dealt_scores(s: Scene) -> Array:
    q, k = s.inputs
    out = [q[:, h] @ k[:, h % k.shape[1]].T for h in range(q.shape[1])]
    return masked(np.stack(out) * s.own.scale)


def values_of(s: Scene) -> Array:
    """Of each key/value head [T,K,d]."""
    a, k, d = s.heads
    return s.inputs[1][:, (a + k) * d :].reshape(-1, k, d)


def attended(s: Scene, v: Array) -> Array:
    grouped = np.repeat(v, s.inputs[0].shape[0] // v.shape[1], axis=1)
    return np.asarray(np.einsum("hts,shd->thd", s.inputs[0], grouped))


def dealt_values(s: Scene) -> Array:
    v = values_of(s)
    heads = [s.inputs[0][h] @ v[:, h % v.shape[1]] for h in range(len(s.inputs[0]))]
    return np.stack(heads, axis=1)


def wrong_kv_head(s: Scene, head: int) -> Array:
    """A head of the first group reads the last key/value head."""
    out = s.right.copy()
    out[:, head] = s.inputs[0][head] @ values_of(s)[:, -1]
    return out


def stale(s: Scene, position: int, source: int | None) -> Array:
    v = values_of(s).copy()
    v[position] = 0.0 if source is None else v[source]
    return attended(s, v)


def stale_key(s: Scene, position: int, source: int | None) -> Array:
    k = s.value("k_post_rope").copy()
    k[position] = 0.0 if source is None else k[source]
    return masked(scores(s, k))


def as_codes(x: Array) -> Array:
    return np.asarray(np.rint(x / (np.abs(x).max(axis=-1, keepdims=True) / 127)))


def with_row(s: Scene, row: int, values: Array | float) -> Array:
    out = s.right.copy()
    out[row] = values
    return out


def with_columns(s: Scene, columns: slice, factor: float) -> Array:
    out = s.right.copy()
    out[:, columns] *= factor
    return out


def bad_block(s: Scene, row: int, block: int, factor: float) -> Array:
    """A block of 16 columns of a row of the matrix."""
    here, out = slice(16 * block, 16 * block + 16), s.right.copy()
    out[:, row] += (factor - 1) * rows(s)[:, here] @ matrix(s)[row, here]
    return out


def permuted_heads(s: Scene) -> Array:
    x = s.inputs[0].copy()
    x[:, [0, 1]] = x[:, [1, 0]]
    return np.asarray(x.reshape(len(x), -1) @ matrix(s).T)


def head_left_out(s: Scene, head: int) -> Array:
    x = s.inputs[0].copy()
    x[:, head] = 0.0
    return np.asarray(x.reshape(len(x), -1) @ matrix(s).T)


def other_layers(s: Scene) -> Array:
    role = s.own.parts[0].weight
    role = role._replace(layer=(role.layer + 1) % LAYERS)
    return np.asarray(rows(s) @ s.replay.rows(role, range(s.replay.shape(role)[0])).T)


def lora(s: Scene, rank: int) -> Array:
    rng, x = np.random.default_rng(rank), rows(s)
    down = rng.standard_normal((x.shape[1], rank)) / x.shape[1] ** 0.5
    return np.asarray(s.right + 0.1 * x @ down @ rng.standard_normal((rank, s.right.shape[1])))


def without_bias(s: Scene, part: int, times: float) -> Array:
    """The bias of one part that many times."""
    out, columns = s.right.copy(), s.own.columns(s.own.parts[part])
    out[:, columns] += (times - 1) * s.replay.vector(s.own.parts[part].bias)
    return out


def ids_of(s: Scene) -> npt.NDArray[np.int64]:
    return np.asarray(s.inputs[-1], dtype=np.int64)


def ranked(s: Scene) -> tuple[Array, npt.NDArray[np.int64]]:
    """(softmax of the logits in descending order, the experts in that order)."""
    p = softmax(s.inputs[0], np.ones(s.inputs[0].shape, dtype=bool))
    order = np.argsort(-p, axis=1)
    return np.take_along_axis(p, order, axis=1), order


def ranks(s: Scene) -> npt.NDArray[np.int64]:
    """The rank of each of the captured ids."""
    return np.take_along_axis(np.argsort(ranked(s)[1], axis=1), ids_of(s), axis=1)


def second(s: Scene) -> Array:
    chosen = ranked(s)[0][:, 1 : 1 + s.right.shape[1]]
    return np.asarray(chosen / chosen.sum(-1, keepdims=True))


def softmax_again(s: Scene) -> Array:
    e = np.exp(np.take_along_axis(ranked(s)[0], ranks(s), axis=1))
    return np.asarray(e / e.sum(-1, keepdims=True))


def sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x)))


def biased_weights(s: Scene) -> Array:
    """The weights of the chosen experts with the bias that only the choice should see."""
    logits, ids = s.inputs[0], ids_of(s)
    choice = s.op("moe_router_indices")
    chosen = np.take_along_axis(sigmoid(logits) + s.replay.vector(choice.bias), ids, axis=1)
    return np.asarray(chosen / chosen.sum(-1, keepdims=True) * s.own.scale)


def all_groups(s: Scene) -> Array:
    by = sigmoid(s.inputs[0]) + s.replay.vector(s.own.bias)
    return np.argsort(-by, axis=1, kind="stable")[:, : s.right.shape[1]].astype(float)


def experts(s: Scene, *, swapped: bool = False, renamed: bool = False) -> Array:
    """Every expert of every token, gate and up exchanged or two experts."""
    x, weights, ids = s.inputs
    out, one = np.zeros_like(s.right), int(ids[0, 0])
    other = next(e for e in range(s.own.count) if e not in set(ids[0].astype(int)))
    names = {one: other, other: one} if renamed else {}
    for token, row in enumerate(ids.astype(int)):
        for rank, expert in enumerate(row):
            roles = [r._replace(expert=names.get(int(expert), int(expert))) for r in s.own.roles]
            gate, up, down = (s.replay.rows(r, range(s.replay.shape(r)[0])) for r in roles)
            gate, up = (up, gate) if swapped else (gate, up)
            g = gate @ x[token]
            out[token] += weights[token, rank] * (down @ (g * sigmoid(g) * (up @ x[token])))
    return out


def gelu_tanh(x: Array) -> Array:
    return np.asarray(0.5 * x * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3))))


def plain_scores(s: Scene) -> Array:
    """Of queries and keys that nothing turns: windows of what q, k and v come in."""
    (first, second), op = s.inputs, s.own
    q = part_of(first, op.queries)
    k = part_of(second, op.keys)
    k = np.repeat(k, q.shape[1] // k.shape[1], axis=1)
    return masked(np.einsum("thd,shd->hts", q, k) * op.scale)


def part_of(x: Array, heads: Any) -> Array:
    flat = x.reshape(len(x), -1)
    if heads.period:
        apart = flat.reshape(len(x), -1, heads.period)
        first, place = divmod(heads.first, heads.period)
        return apart[:, first : first + heads.count, place : place + heads.size]
    flat = flat[:, heads.first : heads.first + heads.count * heads.size]
    return flat.reshape(len(x), heads.count, heads.size)


def table_rows(s: Scene, first: int) -> Array:
    return np.asarray(
        s.inputs[0] + s.replay.rows(s.own.table, range(first, first + len(s.inputs[0])))
    )


# -- what is planted where -------------------------------------------------------------------------

SIZES = (
    {"hidden_size": 128, "intermediate_size": 160, "num_attention_heads": 4},
    {"hidden_size": 192, "intermediate_size": 224, "num_attention_heads": 6},
    {"hidden_size": 256, "intermediate_size": 320, "num_attention_heads": 8},
)
COMMON = {
    "vocab_size": 160, "num_hidden_layers": LAYERS, "num_key_value_heads": 2,
    "tie_word_embeddings": False,
}  # fmt: skip
OWN: dict[str, dict[str, Any]] = {
    "qwen2": {"use_sliding_window": False, "rms_norm_eps": 1e-3},
    "gemma2": {"head_dim": 32},
    "qwen3moe": {"head_dim": 32, "mlp_only_layers": []},
    "qwen2moe": {"mlp_only_layers": [], "use_sliding_window": False},
    "glm4moe": {"head_dim": 32, "first_k_dense_replace": 0},
    "starcoder2": {"norm_epsilon": 1e-3},
    "llama": {"rope_parameters": {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
    }, "head_dim": 32},
}  # fmt: skip
"""What a family's tiny model has beside its row of ``tests.families`` and the size."""

DENSE = (
    Fault("wrong_token", "embedding", lambda s, k: with_row(
        s, (8, 0, 11)[k], s.matrix("embedding")[(77, 3, 159)[k]]),
        {"position": (8, 0, 11), "token": (77, 3, 159)}),
    Fault("embedding_scale", "embedding", lambda s, k: s.right * s.right.shape[1] ** 0.5),
    Fault("head_tied", "lm_head", lambda s, k: s.inputs[0][-1] @ s.matrix("embedding").T),
    Fault("position", "lm_head", lambda s, k: s.inputs[0][(3, 0, 10)[k]] @ s.matrix("head").T,
          {"position": (3, 0, 10)}),
    Fault("norm_missing", "attn_norm", lambda s, k: s.inputs[0]),
    Fault("norm_no_weight", "attn_norm", lambda s, k: rms(s.inputs[0], s.own.eps)),
    Fault("norm_one_plus", "attn_norm",
          lambda s, k: rms(s.inputs[0], s.own.eps) * (1 + weight(s)),
          {"used": ("1 + w",) * 3}),
    Fault("norm_layernorm", "attn_norm", lambda s, k: weight(s) * rms(
        s.inputs[0] - s.inputs[0].mean(-1, keepdims=True), s.own.eps)),
    Fault("norm_eps", "ffn_norm",
          lambda s, k: rms(s.inputs[0], (1e-6, 1e-2, 0.1)[k]) * weight(s),
          {"eps": (1e-6, 1e-2, 0.1)}),
    Fault("eps_scaled", "ffn_norm", lambda s, k: weight(s) * s.inputs[0] / (
        np.sqrt((s.inputs[0] ** 2).mean(-1, keepdims=True)) + s.own.eps),
        {"by": ("outside the root",) * 3}),
    Fault("norm_other_weight", "ffn_norm",
          lambda s, k: rms(s.inputs[0], s.own.eps) * s.vector("attn_norm")),
    Fault("norm_weight_shift", "attn_norm",
          lambda s, k: rms(s.inputs[0], s.own.eps) * np.roll(weight(s), (1, -3, 40)[k]),
          {"by": (1, -3, 40)}),
    Fault("bias_missing", "qkv_bias", lambda s, k: without_bias(s, k, 0.0),
          {"part": ("q", "k", "v")}),
    Fault("bias_scaled", "qkv_bias", lambda s, k: without_bias(s, k, (2.0, -1.0, 8.0)[k]),
          {"factor": (2.0, -1.0, 8.0)}),
    Fault("rope_missing", "q_post_rope", lambda s, k: q_heads(s)),
    Fault("rope_style", "q_post_rope", lambda s, k: rotated(s, pairs="adjacent")),
    Fault("rope_theta", "q_post_rope",
          lambda s, k: rotated(s, theta=(12345.0, 1e6, 777.0)[k]),
          {"theta": (12345.0, 1e6, 777.0)}),
    Fault("rope_position", "q_post_rope", lambda s, k: rotated(s, at=moved((7, 3, 11)[k])),
          {"position": (7, 3, 11), "used": (2, 2, 2)}),
    Fault("rope_table", "q_post_rope", lambda s, k: rotated(s, at=HERE / (2.0, 4.0, 8.0)[k]),
          {"kind": ("linear",) * 3, "factor": (2.0, 4.0, 8.0)}),
    Fault("kv_tiling", "attn_scores", lambda s, k: dealt_scores(s)),
    Fault("mask_leak", "attn_scores", lambda s, k: scores(s), {"ahead": (11,) * 3}),
    Fault("window", "attn_scores",
          lambda s, k: np.where(window((3, 7, 11)[k]), scores(s), 0.0), {"window": (3, 7, 11)}),
    Fault("kv_no_scale", "attn_scores",
          lambda s, k: masked(scores(s, as_codes(s.value("k_post_rope")))), {"of": ("keys",) * 3}),
    Fault("kv_slot_stale", "attn_scores",
          lambda s, k: stale_key(s, (6, 0, 11)[k], (2, None, 10)[k]), {"position": (6, 0, 11)}),
    Fault("mask_leak", "attn_softmax",
          lambda s, k: softmax(scores(s), np.ones_like(CAUSAL))),
    Fault("window", "attn_softmax", lambda s, k: softmax(s.inputs[0], window((4, 9, 2)[k])),
          {"window": (4, 9, 2)}),
    Fault("kv_tiling", "attention", lambda s, k: dealt_values(s)),
    Fault("other_head", "attention", lambda s, k: wrong_kv_head(s, (0, 1, 2)[k]),
          {"head": (0, 1, 2), "kv_head": (1, 1, 1)}),
    Fault("stale_row", "attention", lambda s, k: stale(s, (6, 2, 5)[k], (3, None, 0)[k]),
          {"position": (6, 2, 5), "taken_from": (3, "zero", 0)}),
    Fault("kv_scale_of_neighbour", "attention",
          lambda s, k: attended(s, previous_scale(values_of(s))), {"of": ("values",) * 3}),
    Fault("kv_no_scale", "attention", lambda s, k: attended(s, as_codes(values_of(s))),
          {"of": ("values",) * 3}),
    Fault("transposed", "attn_out", lambda s, k: rows(s) @ matrix(s)),
    Fault("heads_permuted", "attn_out", lambda s, k: permuted_heads(s), {"side": ("input",) * 3}),
    Fault("zero_part", "attn_out", lambda s, k: head_left_out(s, (1, 0, 5)[k]),
          {"head": (1, 0, 5), "side": ("input",) * 3}),
    Fault("low_rank", "attn_out", lambda s, k: lora(s, (1, 2, 4)[k]), {"rank": (1, 2, 4)}),
    Fault("branch_missing", "post_attn_residual", lambda s, k: s.inputs[0]),
    Fault("branch_twice", "post_attn_residual", lambda s, k: s.inputs[0] + 2 * s.inputs[1]),
    Fault("residual_shift", "post_ffn_residual",
          lambda s, k: np.roll(s.inputs[0], (1, -2, 4)[k], axis=0) + s.inputs[1],
          {"by": (1, -2, 4)}),
    Fault("position", "post_ffn_residual",
          lambda s, k: with_row(s, (4, 0, 11)[k], s.inputs[1][(4, 0, 11)[k]]),
          {"position": (4, 0, 11), "missing": ("hidden",) * 3}),
    Fault("scaled", "post_ffn_residual",
          lambda s, k: s.inputs[0] + (0.5, 1.01, -1.0)[k] * s.inputs[1],
          {"factor": (0.5, 1.01, -1.0)}),
    Fault("other_weight", "ffn_gate", lambda s, k: rows(s) @ s.matrix("up").T),
    Fault("other_layer", "ffn_gate", lambda s, k: other_layers(s)),
    Fault("bad_block", "ffn_gate",
          lambda s, k: bad_block(s, (7, 0, 319)[k], (2, 11, 0)[k], (-1.0, 0.0, 1.5)[k]),
          {"row": (7, 0, 319), "factor": (-1.0, 0.0, 1.5)}),
    Fault("columns_dropped", "ffn_up",
          lambda s, k: (rows(s)[:, : -(32, 3, 64)[k]] @ matrix(s)[:, : -(32, 3, 64)[k]].T),
          {"count": (32, 3, 64)}),
    Fault("rows_shifted", "ffn_up", lambda s, k: np.roll(s.right, (3, -1, 100)[k], axis=1),
          {"by": (3, -1, 100), "axis": ("output",) * 3}),
    Fault("nonfinite", "ffn_up",
          lambda s, k: with_row(s, (3, 0, 11)[k], (np.nan, np.inf, np.nan)[k]),
          {"token": (3, 0, 11)}),
    Fault("activation", "ffn_silu",
          lambda s, k: (np.maximum(s.inputs[0], 0), gelu_tanh(s.inputs[0]), s.inputs[0])[k],
          {"used": ("relu", "gelu_tanh", "none")}),
    Fault("clipped", "ffn_silu", lambda s, k: np.minimum(s.right, (0.5, 0.1, 1.0)[k]),
          {"high": (0.5, 0.1, 1.0)}),
    Fault("zeros", "ffn_out", lambda s, k: np.zeros_like(s.right)),
    Fault("zero_part", "ffn_out",
          lambda s, k: with_columns(s, slice(*((9, 10), (0, 64), (100, 256))[k]), 0.0),
          {"columns": ([9, 9], [0, 63], [100, 255])}),
    Fault("transposed", "ffn_out",
          lambda s, k: rows(s) @ matrix(s).reshape(matrix(s).shape[::-1])),
)  # fmt: skip
KINDS: dict[str, tuple[Fault, ...]] = {
    "qwen2": DENSE,
    "llama": (Fault("rope_freqs_ignored", "q_post_rope", lambda s, k: rotated(s)),),
    "gemma2": (
        Fault("norm_one_plus", "attn_norm", lambda s, k: rms(s.inputs[0], s.own.eps) * weight(s),
              {"used": ("w",) * 3, "right": ("1 + w",) * 3}),
        Fault("softcap_missing", "attn_scores", lambda s, k: np.where(
            s.right != 0, np.arctanh(s.right / s.own.cap) * s.own.cap, 0.0)),
        Fault("post_norm_missing", "post_attn_residual",
              lambda s, k: s.inputs[0] + s.value("attn_out"), {"norm": ("attn_post_norm",) * 3}),
        Fault("post_norm_missing", "post_ffn_residual",
              lambda s, k: s.inputs[0] + s.value("ffn_out"), {"norm": ("ffn_post_norm",) * 3}),
    ),
    "qwen3moe": (
        Fault("router_not_renormalised", "moe_router",
              lambda s, k: np.take_along_axis(ranked(s)[0], ranks(s), axis=1)),
        Fault("router_second", "moe_router", lambda s, k: second(s), {"by": (1,) * 3}),
        Fault("router_softmax_after", "moe_router", lambda s, k: softmax_again(s)),
        Fault("router_second", "moe_router_indices",
              lambda s, k: ranked(s)[1][:, 1 : 1 + s.right.shape[1]].astype(float),
              {"by": (1,) * 3}),
        Fault("experts_swapped", "moe_ffn_out", lambda s, k: experts(s, renamed=True)),
        Fault("gate_up_swapped", "moe_ffn_out", lambda s, k: experts(s, swapped=True)),
    ),
    "qwen2moe": (
        Fault("shared_gate_missing", "ffn_out", lambda s, k: s.inputs[0] + s.inputs[1]),
        Fault("shared_missing", "ffn_out", lambda s, k: s.inputs[0]),
    ),
    "glm4moe": (
        Fault("router_groups_ignored", "moe_router_indices", lambda s, k: all_groups(s)),
        Fault("router_bias_in_weight", "moe_router", lambda s, k: biased_weights(s)),
        Fault("router_scale_missing", "moe_router", lambda s, k: s.right / s.own.scale),
    ),
    "starcoder2": (
        Fault("norm_rms", "attn_norm", lambda s, k: rms(s.inputs[0], s.own.eps) * weight(s)
              + s.replay.vector(s.own.bias)),
        Fault("norm_no_weight", "ffn_norm", lambda s, k: s.replay.vector(s.own.bias) + rms(
            s.inputs[0] - s.inputs[0].mean(-1, keepdims=True), s.own.eps)),
        Fault("norm_eps", "ffn_norm", lambda s, k: weight(s) * rms(
            s.inputs[0] - s.inputs[0].mean(-1, keepdims=True), (0.5, 1e-2, 0.1)[k])
            + s.replay.vector(s.own.bias), {"eps": (0.5, 1e-2, 0.1)}),
        Fault("bias_missing", "attn_out",
              lambda s, k: s.right - s.replay.vector(s.own.parts[0].bias)),
        Fault("bias_scaled", "ffn_out", lambda s, k: s.right + (1.0, -0.5, 3.0)[k]
              * s.replay.vector(s.own.parts[0].bias), {"factor": (2.0, 0.5, 4.0)}),
    ),
    "gpt2": (
        Fault("positions_missing", "pos_embedding", lambda s, k: s.inputs[0]),
        Fault("positions_shifted", "pos_embedding", lambda s, k: table_rows(s, (1, 2, 1)[k]),
              {"used": (1, 2, 1)}),
    ),
    "bloom": (Fault("alibi_missing", "attn_scores", lambda s, k: plain_scores(s)),),
}  # fmt: skip
"""What is planted in each family's tiny model of every size."""


FIRST = ("embedding", "pos_embedding")
"""Stages of the whole model, which stand with its first layer."""


def captures() -> Iterator[tuple[str, int, int]]:
    """(family, size, turn): in each turn every stage has another of its faults."""
    for family, faults in KINDS.items():
        stages = [fault.stage for fault in faults]
        most = max(map(stages.count, stages))
        yield from ((family, size, turn) for size in range(len(SIZES)) for turn in range(most))


def planted(family: str, size: int, turn: int) -> dict[str, Fault]:
    """Where each fault of one capture stands: another layer for another size."""
    found: dict[str, Fault] = {}
    for stage, group in itertools.groupby(
        sorted(KINDS[family], key=lambda fault: fault.stage), lambda fault: fault.stage
    ):
        faults = list(group)
        if turn < len(faults):
            layer = 0 if stage in FIRST else (turn + size) % LAYERS
            found[stage if stage == "lm_head" else f"layer-{layer}/{stage}"] = faults[turn]
    return found


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], Path]:
    """Where the tiny model of a family and size lies; made once."""
    root = tmp_path_factory.mktemp("sizes")

    def made(family: str, size: int) -> Path:
        folder = root / f"{family}-{size}"
        if not folder.exists():
            tiny = TINY[family]
            settings = {**tiny.settings, **COMMON, **SIZES[size], **OWN.get(family, {})}
            save_tiny(replace(tiny, settings=settings), folder)
        return folder

    return made


@pytest.mark.parametrize(("family", "size", "turn"), list(captures()))
def test_faults_of_a_capture_are_told_apart_and_named(
    family: str, size: int, turn: int, models: Callable[[str, int], Path], tmp_path: Path
) -> None:
    faults, model = planted(family, size, turn), model_of(models(family, size))
    plants = {
        stage: lambda scene, fault=fault: fault.plant(scene, size)
        for stage, fault in faults.items()
    }
    with np.errstate(invalid="ignore"):  # what is born NaN goes on
        trace = write(tmp_path, compute(model, plants, tokens=TOKENS))
    found = bisect(model, trace, tokens=TOKENS)
    mistakes = {str(each.key): each.mistake for each in found.culprits}
    named = {stage: mistake and mistake.id for stage, mistake in mistakes.items()}
    assert named == {stage: fault.id for stage, fault in faults.items()}
    for stage, fault in faults.items():
        mistake = mistakes[stage]
        assert mistake is not None
        for name, of_size in fault.parameters.items():
            right, told = of_size[size], mistake.parameters[name]
            near = isinstance(right, float)
            assert told == (pytest.approx(right, rel=1e-3, abs=1e-6) if near else right), (
                stage,
                name,
            )


# -- what is proved where --------------------------------------------------------------------------

ELSEWHERE = {
    "overflow": "test_ranges: three models, two layers",
    "saturated": "test_ranges: three models, two layers",
    "altup_size": "test_stream_mistakes: both stages that there are",
    "sparsity_missing": "test_stream_mistakes: both layers that have it",
}
ONE_FAMILY = {
    "chunk_missing", "chunk_edge", "value_scale_missing", "xielu", "expert_clamp_missing",
    "expert_bias_missing", "clip_missing", "gate_curve", "multiplier_missing", "sinks_missing",
    "temperature_missing", "rope_partial", "branch_scale_missing", "choice_count",
    "choice_ignored", "index_relu_missing", "index_weights_missing", "softcap_order",
    "altup_missing", "stream_modes",
}  # fmt: skip
"""What so few families have: planted in all of these, in three places."""
ONE_STAGE = {
    "embedding_scale",
    "head_tied",
    "positions_missing",
    "positions_shifted",
    "wrong_token",
}
"""What can befall one stage of the whole model alone."""


def places() -> dict[str, set[tuple[str, str]]]:
    """Where each entry is planted: (model and its size, stage), by id."""
    found: dict[str, set[tuple[str, str]]] = {}
    for family, size, turn in captures():
        for stage, fault in planted(family, size, turn).items():
            found.setdefault(fault.id, set()).add((f"{family}-{size}", stage))
    for module in (test_mistakes, test_new_mistakes, test_order_mistakes):
        for each in module.PLANTED:
            found.setdefault(each.id, set()).add((each.model, each.stage))
    for module in (test_family_mistakes, test_recurrent_mistakes, test_stream_mistakes):
        for each in module.PLANTED:
            found.setdefault(each.id, set()).update(place[:2] for place in each.places)
    return found


def test_every_entry_is_planted_in_three_models_and_two_positions() -> None:
    found, ids = places(), {entry.id for entry in (*CATALOGUE, *PRODUCTS, *LAST)}
    lacking = {}
    for each in ids - ELSEWHERE.keys():
        held = found.get(each, set())
        models, stages = {model for model, _ in held}, {stage for _, stage in held}
        enough = len(held) >= 3 if each in ONE_FAMILY else len(models) >= 3
        if not enough or len(stages) + (each in ONE_STAGE) < 2:
            lacking[each] = sorted(held)
    assert lacking == {}
