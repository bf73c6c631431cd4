"""Weights, caches, masks, tables and ranges gone wrong: planted by hand, each in several places."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from tests.compare.planting import Scene, previous_scale
from tests.compare.test_mistakes import (
    CAUSAL,
    HERE,
    LLAMA,
    MOE,
    PARTNER,
    QWEN2,
    QWEN3,
    SPM,
    Planted,
    found_culprit,
    rms,
    rotated,
    softmax,
    values_of,
)
from tests.support import needs_fixtures

Array = npt.NDArray[np.float64]


# -- stored weights --------------------------------------------------------------------------------


def one_weight(s: Scene, name: str, row: int, column: int, by: float, first: int = 0) -> Array:
    """Weight [row, column] of a matrix is off by ``by``; its outputs start at column ``first``."""
    out, x = s.right.copy(), s.inputs[0].reshape(len(s.inputs[0]), -1)
    out[:, first + row] += by * x[:, column]
    return out


def q4_k_step(s: Scene, name: str, row: int, column: int) -> float:
    """The smallest difference between two values of the weight's block of 32: its step."""
    block = s.matrix(name)[row, column // 32 * 32 :][:32]
    apart = np.diff(np.unique(block))
    return float(apart[apart > 1e-9].min())


def other_code(s: Scene, name: str, row: int, column: int) -> Array:
    return one_weight(s, name, row, column, 3 * q4_k_step(s, name, row, column))


def k_block(s: Scene, row: int) -> tuple[Array, Array]:
    """(d * scale, dmin * minimum) of a Q4_K row's blocks of 32, by ggml's layout of the bytes."""
    matrix = s.replay.model.weights[s.own.parts[0].weight]
    columns = matrix.columns
    from aprtui.formats.modelfile import tensor_bytes

    raw = np.asarray(tensor_bytes(matrix.entry)).reshape(-1, columns // 256 * 144)[row]
    scales, minima = [], []
    for block in raw.reshape(-1, 144):
        d, dmin = block[:4].copy().view(np.float16).astype(np.float64)
        q = block[4:16].astype(int)
        for j in range(8):
            if j < 4:
                sc, m = q[j] & 63, q[j + 4] & 63
            else:
                sc = (q[j + 4] & 15) | ((q[j - 4] >> 6) << 4)
                m = (q[j + 4] >> 4) | ((q[j] >> 6) << 4)
            scales.append(d * sc)
            minima.append(dmin * m)
    return np.array(scales), np.array(minima)


def without_minimum(s: Scene, row: int, block: int, factor: float) -> Array:
    """The minimum of one block of 32 of a row is multiplied by ``factor``."""
    out, x = s.right.copy(), s.inputs[0].reshape(len(s.inputs[0]), -1)
    minimum = k_block(s, row)[1][block]
    out[:, row] -= (factor - 1.0) * minimum * x[:, 32 * block : 32 * block + 32].sum(axis=1)
    return out


def with_scale(s: Scene, name: str, row: int, block: int, factor: float) -> Array:
    """The scale of one block of 32, but not its minimum, is multiplied by ``factor``."""
    out, x = s.right.copy(), s.inputs[0].reshape(len(s.inputs[0]), -1)
    here = slice(32 * block, 32 * block + 32)
    scaled = s.matrix(name)[row, here] + k_block(s, row)[1][block]
    out[:, row] += (factor - 1.0) * x[:, here] @ scaled
    return out


def no_minima(s: Scene, name: str) -> Array:
    """All rows of a Q4_K matrix read without their minima."""
    weight, x = s.matrix(name).copy(), s.inputs[0].reshape(len(s.inputs[0]), -1)
    for row in range(len(weight)):
        weight[row] += np.repeat(k_block(s, row)[1], 32)
    return np.asarray(x @ weight.T)


def without_tail(s: Scene, name: str, count: int) -> Array:
    x = s.inputs[0].reshape(len(s.inputs[0]), -1).copy()
    if s.right.ndim == 1:
        x = x[-1:]
    x[:, -count:] = 0.0
    return np.asarray(x @ s.matrix(name).T).reshape(s.right.shape)


def lora(s: Scene, rank: int) -> Array:
    rng = np.random.default_rng(rank)
    x = s.inputs[0].reshape(len(s.inputs[0]), -1)
    down = rng.standard_normal((x.shape[1], rank)) / math.sqrt(x.shape[1])
    return s.right + 0.1 * x @ down @ rng.standard_normal((rank, s.right.shape[1]))


# -- attention -------------------------------------------------------------------------------------


def zero_heads(s: Scene, axis: int, heads: list[int]) -> Array:
    out = np.moveaxis(s.right.copy(), axis, 0)
    out[heads] = 0.0
    return np.moveaxis(out, 0, axis)


def scores_of(s: Scene, k: Array) -> Array:
    q = s.value("q_post_rope")
    k = np.repeat(k, q.shape[1] // k.shape[1], axis=1)
    found = np.einsum("thd,shd->hts", q, k) * s.op("attn_scores").scale
    return np.where(CAUSAL, found, 0.0)


def as_codes(x: Array) -> Array:
    return np.asarray(np.rint(x / (np.abs(x).max(axis=-1, keepdims=True) / 127)))


def attended(s: Scene, v: Array) -> Array:
    heads = s.inputs[0].shape[0]
    v = np.repeat(v, heads // v.shape[1], axis=1)
    return np.asarray(np.einsum("hts,shd->thd", s.inputs[0], v))


def own_values(s: Scene) -> Array:
    a, k, _ = s.heads
    return values_of(s)[:, :: a // k]


def stale_key(s: Scene, slot: int, source: int | None) -> Array:
    k = s.value("k_post_rope").copy()
    k[slot] = 0.0 if source is None else k[source]
    return scores_of(s, k)


def cut(s: Scene, first: int) -> npt.NDArray[np.bool_]:
    hidden = (HERE[:, None] >= first) & (HERE[None, :] < first)
    return np.asarray(CAUSAL & ~hidden)


# -- rotations, norms, experts ---------------------------------------------------------------------


def yarned(s: Scene, factor: float, original: float, magnitude: float) -> Array:
    """YaRN as its paper has it (arXiv 2309.00071), betas 32 and 1."""
    x = s.inputs[0]
    x = x if x.ndim == 3 else x[:, : s.heads[0] * s.heads[2]].reshape(len(x), s.heads[0], -1)
    d, theta = int(x.shape[-1]), float(s.own.table.theta)
    pairs = np.arange(d // 2)

    def turning(times: float) -> float:
        return d * math.log(original / (times * 2 * math.pi)) / (2 * math.log(theta))

    low, high = max(math.floor(turning(32)), 0), min(math.ceil(turning(1)), d - 1)
    ramp = np.clip((pairs - low) / max(high - low, 1e-3), 0, 1)
    frequency = theta ** (-2 * pairs / d) * (ramp / factor + 1 - ramp)
    angle = HERE[:, None, None] * frequency
    one, two = x[..., : d // 2], x[..., d // 2 :]
    turned = [one * np.cos(angle) - two * np.sin(angle), two * np.cos(angle) + one * np.sin(angle)]
    return np.concatenate(turned, axis=-1) * magnitude


def linear(s: Scene, factor: float) -> Array:
    return rotated(s, s.own.table.theta, HERE / factor, "halves")


def padded(s: Scene) -> Array:
    return rotated(s, s.own.table.theta, np.maximum(HERE - 3, 0), s.own.table.pairs)


def eps_of_largest(s: Scene, name: str) -> Array:
    x, eps = s.inputs[0], s.own.eps
    mean = (x**2).mean(-1, keepdims=True)
    root = np.sqrt(mean + eps * np.abs(x).max(-1, keepdims=True) ** 2)
    return np.asarray(x / root * (s.own.offset + s.vector(name)))


def experts_run(s: Scene, swapped: bool, on_input: bool) -> Array:
    """Every expert of every token, gate and up exchanged or the weight on the input."""
    x, weights, ids = s.inputs
    out = np.zeros_like(s.right)
    for token, row in enumerate(ids.astype(int)):
        for rank, expert in enumerate(row):
            roles = [role._replace(expert=int(expert)) for role in s.own.roles]
            gate, up, down = (s.replay.rows(r, range(s.replay.shape(r)[0])) for r in roles)
            gate, up = (up, gate) if swapped else (gate, up)
            given = x[token] * (weights[token, rank] if on_input else 1.0)
            g = gate @ given
            made = down @ (g / (1 + np.exp(-g)) * (up @ given))
            out[token] += made * (1.0 if on_input else weights[token, rank])
    return out


def raw_logits(s: Scene) -> Array:
    logits, ids = s.inputs
    return np.take_along_axis(logits, ids.astype(int), axis=1)


PLANTED = (
    Planted("one_weight", QWEN2, "layer-1/ffn_up", lambda s: other_code(s, "up", 40, 100),
            {"row": 40, "column": 100}),
    Planted("one_weight", LLAMA, "layer-0/ffn_gate", lambda s: other_code(s, "gate", 0, 255),
            {"row": 0, "column": 255}),
    Planted("one_weight", QWEN3, "layer-2/attn_out", lambda s: one_weight(s, "o", 7, 31, 0.25),
            {"row": 7, "column": 31}),
    Planted("one_weight", SPM, "layer-1/ffn_out", lambda s: one_weight(s, "down", 200, 3, -0.5),
            {"row": 200, "column": 3}),
    Planted("block_minimum", QWEN2, "layer-1/ffn_up", lambda s: without_minimum(s, 17, 3, 0.0),
            {"row": 17, "block": 3, "size": 32, "factor": 0.0}),
    Planted("block_minimum", LLAMA, "layer-2/ffn_gate", lambda s: without_minimum(s, 300, 7, 0.5),
            {"row": 300, "block": 7, "size": 32, "factor": 0.5}),
    Planted("block_minimum", QWEN2, "layer-3/ffn_gate", lambda s: without_minimum(s, 0, 0, -1.0),
            {"row": 0, "block": 0, "factor": -1.0}),
    Planted("block_scale", QWEN2, "layer-1/ffn_up", lambda s: with_scale(s, "up", 9, 2, 0.5),
            {"row": 9, "block": 2, "size": 32, "factor": 0.5}),
    Planted("block_scale", LLAMA, "layer-0/ffn_up", lambda s: with_scale(s, "up", 500, 5, 0.0),
            {"row": 500, "block": 5, "factor": 0.0}),
    Planted("block_scale", QWEN2, "layer-2/ffn_gate", lambda s: with_scale(s, "gate", 1, 6, 2.0),
            {"row": 1, "block": 6, "factor": 2.0}),
    Planted("other_matrix", QWEN2, "layer-1/ffn_up", lambda s: no_minima(s, "up"),
            {"type": "Q4_K"}),
    Planted("other_matrix", QWEN2, "layer-3/ffn_gate", lambda s: no_minima(s, "gate"),
            {"type": "Q4_K"}),
    Planted("other_matrix", LLAMA, "layer-1/attn_out", lambda s: no_minima(s, "o"),
            {"type": "Q4_K"}),
    Planted("other_matrix", MOE, "layer-2/qkv_matmul", lambda s: np.concatenate(
            (no_minima(s, "q"), s.right[:, s.own.parts[0].rows :]), axis=1),
            {"type": "Q4_K", "part": "q"}),
    Planted("block_minimum", MOE, "layer-3/qkv_matmul", lambda s: without_minimum(s, 511, 5, 2.0),
            {"row": 511, "block": 5, "factor": 2.0, "part": "q"}),
    Planted("block_scale", MOE, "layer-0/qkv_matmul", lambda s: with_scale(s, "q", 33, 1, -1.0),
            {"row": 33, "block": 1, "factor": -1.0, "part": "q"}),
    Planted("columns_dropped", QWEN2, "layer-1/ffn_out", lambda s: without_tail(s, "down", 32),
            {"columns": [480, 511], "count": 32}),
    Planted("columns_dropped", LLAMA, "layer-0/ffn_up", lambda s: without_tail(s, "up", 3),
            {"count": 3}),
    Planted("columns_dropped", QWEN2, "lm_head", lambda s: without_tail(s, "head", 64),
            {"count": 64}),
    Planted("low_rank", QWEN2, "layer-1/ffn_up", lambda s: lora(s, 4), {"rank": 4}),
    Planted("low_rank", LLAMA, "layer-2/attn_out", lambda s: lora(s, 1), {"rank": 1}),
    Planted("low_rank", QWEN3, "layer-0/ffn_out", lambda s: lora(s, 2), {"rank": 2}),
    Planted("heads_zero", QWEN2, "layer-1/attn_scores", lambda s: zero_heads(s, 0, [5, 6, 7]),
            {"heads": [5, 6, 7]}),
    Planted("heads_zero", LLAMA, "layer-0/attention", lambda s: zero_heads(s, 1, [2]),
            {"heads": [2]}),
    Planted("heads_zero", QWEN3, "layer-2/k_post_rope", lambda s: zero_heads(s, 1, [1]),
            {"heads": [1]}),
    Planted("kv_no_scale", QWEN2, "layer-1/attn_scores",
            lambda s: scores_of(s, as_codes(s.value("k_post_rope"))),
            {"of": "keys", "type": "int8"}),
    Planted("kv_no_scale", QWEN2, "layer-3/attention",
            lambda s: attended(s, as_codes(own_values(s))), {"of": "values", "type": "int8"}),
    Planted("kv_no_scale", QWEN3, "layer-0/attn_scores",
            lambda s: scores_of(s, as_codes(s.value("k_post_rope"))), {"of": "keys"}),
    Planted("kv_scale_of_neighbour", QWEN2, "layer-1/attention",
            lambda s: attended(s, previous_scale(own_values(s))),
            {"of": "values", "type": "q8_0", "block": "before"}),
    Planted("kv_scale_of_neighbour", QWEN3, "layer-2/attention",
            lambda s: attended(s, previous_scale(own_values(s))), {"type": "q8_0"}),
    Planted("kv_scale_of_neighbour", QWEN2, "layer-0/attn_scores",
            lambda s: scores_of(s, previous_scale(s.value("k_post_rope"))), {"of": "keys"}),
    Planted("kv_slot_stale", QWEN2, "layer-1/attn_scores", lambda s: stale_key(s, 6, 2),
            {"position": 6, "taken_from": 2}),
    Planted("kv_slot_stale", QWEN3, "layer-0/attn_scores", lambda s: stale_key(s, 0, None),
            {"position": 0, "taken_from": "zero"}),
    Planted("kv_slot_stale", QWEN2, "layer-3/attn_scores", lambda s: stale_key(s, 11, 10),
            {"position": 11, "taken_from": 10}),
    Planted("keys_cut", QWEN2, "layer-1/attn_scores",
            lambda s: np.where(cut(s, 8), s.right, 0.0), {"from": 8, "keys": [0, 7]}),
    Planted("keys_cut", LLAMA, "layer-2/attn_softmax",
            lambda s: softmax(s.inputs[0], cut(s, 5)), {"from": 5, "keys": [0, 4]}),
    Planted("keys_cut", QWEN3, "layer-0/attn_scores",
            lambda s: np.where(HERE[None, :] >= 9, s.right, 0.0), {"last": 3}),
    Planted("rope_shift", QWEN2, "layer-1/q_post_rope",
            lambda s: rotated(s, 1e6, HERE + 4097, "halves"), {"by": 4097}),
    Planted("rope_shift", QWEN3, "layer-2/q_post_rope",
            lambda s: rotated(s, 1e6, HERE - 33, "halves"), {"by": -33}),
    Planted("rope_shift", LLAMA, "layer-0/q_post_rope",
            lambda s: rotated(s, 5e5, HERE + 33, "adjacent"), {"by": 33}),
    Planted("rope_table", QWEN3, "layer-1/q_post_rope",
            lambda s: yarned(s, 4, 32768, 0.1 * math.log(4) + 1),
            {"kind": "yarn", "factor": 4.0, "original": 32768.0}),
    Planted("rope_table", QWEN2, "layer-2/q_post_rope", lambda s: yarned(s, 8, 4096, 1.0),
            {"kind": "yarn", "factor": 8.0, "original": 4096.0, "magnitude": 1.0}),
    Planted("rope_table", QWEN2, "layer-0/q_post_rope", lambda s: linear(s, 4),
            {"kind": "linear", "factor": 4.0}),
    Planted("rope_magnitude", QWEN2, "layer-0/q_post_rope",
            lambda s: 1.1386 * rotated(s, 1e6, HERE, "halves"), {"used": 1.1386}),
    Planted("rope_positions", QWEN2, "layer-1/q_post_rope", padded),
    Planted("rope_positions", QWEN3, "layer-0/q_post_rope", padded),
    Planted("rope_positions", LLAMA, "layer-3/q_post_rope", padded),
    Planted("eps_scaled", LLAMA, "layer-2/attn_norm", lambda s: eps_of_largest(s, "attn_norm"),
            {"by": "max|x|^2 of the row"}),
    Planted("eps_scaled", LLAMA, "layer-1/ffn_norm", lambda s: eps_of_largest(s, "ffn_norm"),
            {"by": "max|x|^2 of the row"}),
    Planted("eps_scaled", LLAMA, "layer-0/attn_norm",
            lambda s: s.inputs[0] / (np.sqrt((s.inputs[0] ** 2).mean(-1, keepdims=True)) + 1e-5)
            * s.vector("attn_norm"), {"by": "outside the root"}),
    Planted("gate_up_swapped", MOE, "layer-0/moe_ffn_out", lambda s: experts_run(s, True, False)),
    Planted("gate_up_swapped", MOE, "layer-2/moe_ffn_out", lambda s: experts_run(s, True, False)),
    Planted("gate_up_swapped", MOE, "layer-3/moe_ffn_out", lambda s: experts_run(s, True, False)),
    Planted("weight_on_input", MOE, "layer-0/moe_ffn_out", lambda s: experts_run(s, False, True)),
    Planted("weight_on_input", MOE, "layer-1/moe_ffn_out", lambda s: experts_run(s, False, True)),
    Planted("weight_on_input", MOE, "layer-3/moe_ffn_out", lambda s: experts_run(s, False, True)),
    Planted("router_score", MOE, "layer-1/moe_router", raw_logits,
            {"used": "none", "renormalised": False}),
    Planted("one_weight", QWEN2, "layer-2/ffn_up",
            lambda s: s.right
            + np.eye(512)[11] * 0.5 * s.replay.rounded(s.inputs[0], "Q8_K")[:, [9]],
            {"row": 11, "column": 9}, how=PARTNER),
)  # fmt: skip


@needs_fixtures
@pytest.mark.parametrize("planted", PLANTED, ids=str)
def test_a_planted_mistake_is_named_with_its_parameters(planted: Planted, tmp_path: Path) -> None:
    mistake = found_culprit(planted, tmp_path).mistake
    assert mistake is not None
    assert mistake.id == planted.id
    for name, value in planted.parameters.items():
        found = mistake.parameters[name]
        near = isinstance(value, float)
        assert found == (pytest.approx(value, rel=1e-4, abs=1e-6) if near else value)


@needs_fixtures
def test_the_steps_that_a_weight_is_off_by_are_told(tmp_path: Path) -> None:
    planted = Planted("", QWEN2, "layer-1/ffn_up", lambda s: other_code(s, "up", 40, 100))
    mistake = found_culprit(planted, tmp_path).mistake
    assert mistake is not None
    quanta = mistake.parameters["quanta"]
    assert round(quanta) and quanta == pytest.approx(round(quanta), abs=0.02)
    assert "of its steps" in mistake.text


@needs_fixtures
def test_a_small_error_is_not_named_by_what_leaves_half_of_it(tmp_path: Path) -> None:
    """Within the bar of an honest stage, but no account of the error: no name."""

    def eps_and_noise(s: Scene) -> Array:
        right = rms(s.inputs[0], 1e-6) * s.vector("attn_norm")
        noise = np.random.default_rng(5).standard_normal(right.shape)
        away = 1.5e-5 * np.linalg.norm(right) / math.sqrt(right.size)
        return np.asarray(right * (1 - 1.2e-5) + away * noise)

    planted = Planted("", QWEN2, "layer-1/attn_norm", eps_and_noise)
    assert found_culprit(planted, tmp_path).mistake is None


@needs_fixtures
@pytest.mark.parametrize("value", [3e38, 0.5])
def test_an_output_of_one_number_is_no_update_of_low_rank(value: float, tmp_path: Path) -> None:
    planted = Planted("", QWEN2, "layer-1/ffn_up", lambda s: np.full_like(s.right, value))
    culprit = found_culprit(planted, tmp_path)
    assert culprit.mistake is None
    assert f"every value is {np.float32(value):g}" in culprit.looks_like
