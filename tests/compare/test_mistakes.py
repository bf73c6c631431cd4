"""Every mistake of the catalogue, planted by hand, is named with its parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from aprtui.compare.bisect import bisect
from aprtui.compare.bisection import Culprit
from aprtui.engine.replay import EXACT, Arithmetic
from tests.compare.planting import TOKENS, Plant, Scene, compute, model_of, write
from tests.support import FIXTURES, needs_fixtures

Array = npt.NDArray[np.float64]

PARTNER = Arithmetic("partner")


@dataclass(frozen=True)
class Planted:
    """A mistake in one stage of one model, and what the bisection must say of it."""

    id: str
    model: str
    stage: str
    plant: Plant
    parameters: Mapping[str, Any] = field(default_factory=dict)
    overrides: tuple[tuple[str, str], ...] = ()
    how: Arithmetic = EXACT

    def __str__(self) -> str:
        rounded = "-rounded" if self.how != EXACT else ""
        return f"{self.id}-{self.model.split('-')[0]}-{self.stage.replace('/', '-')}{rounded}"


# -- the mistakes, each in a few lines of numpy ----------------------------------------------------


def rms(x: Array, eps: float) -> Array:
    return np.asarray(x / np.sqrt((x**2).mean(-1, keepdims=True) + eps))


def q_heads(s: Scene) -> Array:
    (a, _, d), x = s.heads, s.inputs[0]
    return x if x.ndim == 3 else x[:, : a * d].reshape(len(x), a, d)


def rotated(s: Scene, theta: float, positions: Array, pairs: str) -> Array:
    x, d = q_heads(s), s.heads[2]
    angle = positions[:, None, None] * theta ** (-2 * np.arange(d // 2) / d)
    out = np.empty_like(x)
    one, two = (
        (slice(0, d // 2), slice(d // 2, d))
        if pairs == "halves"
        else (slice(0, d, 2), slice(1, d, 2))
    )
    out[..., one] = x[..., one] * np.cos(angle) - x[..., two] * np.sin(angle)
    out[..., two] = x[..., two] * np.cos(angle) + x[..., one] * np.sin(angle)
    return out


HERE = np.arange(len(TOKENS), dtype=float)


def moved_position(s: Scene) -> Array:
    positions = HERE.copy()
    positions[7] = 2
    return rotated(s, 1e6, positions, "halves")


def softmax(x: Array, seen: npt.NDArray[np.bool_]) -> Array:
    held = np.where(seen, x, -np.inf)
    e = np.exp(held - held.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True))


def all_scores(s: Scene) -> Array:
    q, k = s.value("q_post_rope"), s.value("k_post_rope")
    k = np.repeat(k, q.shape[1] // k.shape[1], axis=1)
    return np.asarray(np.einsum("thd,shd->hts", q, k) * s.op("attn_scores").scale)


CAUSAL = HERE[None, :] <= HERE[:, None]


def leaked(s: Scene) -> Array:
    return softmax(all_scores(s), np.ones_like(CAUSAL))


def windowed(s: Scene, window: int) -> Array:
    seen = CAUSAL & (HERE[:, None] - HERE[None, :] < window)
    return softmax(s.inputs[0], seen)


def values_of(s: Scene) -> Array:
    a, k, d = s.heads
    v = s.inputs[1][:, (a + k) * d :].reshape(-1, k, d)
    return np.repeat(v, a // k, axis=1)


def wrong_kv_head(s: Scene) -> Array:
    out, v = s.right.copy(), values_of(s)
    out[:, 2] = s.inputs[0][2] @ v[:, 7]  # head 2 belongs to kv head 0; head 7 reads kv head 1
    return out


def dealt_values(s: Scene) -> Array:
    a, k, _ = s.heads
    v = values_of(s)[:, :: a // k]
    heads = [s.inputs[0][h] @ v[:, h % k] for h in range(a)]
    return np.stack(heads, axis=1)


def dealt_scores(s: Scene) -> Array:
    q, k = s.inputs
    out = np.stack([q[:, h] @ k[:, h % k.shape[1]].T for h in range(q.shape[1])])
    return np.where(CAUSAL, out * s.own.scale, 0.0)


def stale(s: Scene, source: str) -> Array:
    v = values_of(s).copy()
    v[6] = 0.0 if source == "zero" else v[3]
    return np.asarray(np.einsum("hts,shd->thd", s.inputs[0], v))


def columns(right: Array, first: int, last: int, by: float) -> Array:
    out = right.copy()
    out[:, first:last] *= by
    return out


def bad_block(s: Scene, name: str, factor: float) -> Array:
    """Row 40, block 2 of 32 weights of a matrix whose activations were rounded as ``s.replay``
    says: the term that the block adds, taken from the rounded rows."""
    x = s.replay.rounded(s.inputs[0], name)
    out, weights = s.right.copy(), s.matrix("up")
    out[:, 40] += (factor - 1) * x[:, 64:96] @ weights[40, 64:96]
    return out


def swapped_experts(s: Scene) -> Array:
    x, weights, ids = s.inputs
    one, other = int(ids[0, 0]), next(e for e in range(8) if e not in set(ids[0].astype(int)))
    renamed = np.where(ids == one, other, np.where(ids == other, one, ids))
    return s.replay.run(s.node, (x, weights, renamed))


def ranked(s: Scene) -> tuple[Array, npt.NDArray[np.int64]]:
    logits = s.inputs[0]
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    order = np.argsort(-p, axis=1)
    return np.take_along_axis(p, order, axis=1), order


def second_ranks(s: Scene) -> Array:
    chosen = ranked(s)[0][:, 1 : 1 + s.right.shape[1]]
    return np.asarray(chosen / chosen.sum(-1, keepdims=True))


def softmax_again(s: Scene) -> Array:
    e = np.exp(ranked(s)[0][:, : s.right.shape[1]])
    return np.asarray(e / e.sum(-1, keepdims=True))


def one_nan(s: Scene) -> Array:
    out = s.right.copy()
    out[3, 100] = np.nan
    return out


def lost_row(s: Scene) -> Array:
    out = s.right.copy()
    out[4] = s.inputs[1][4]
    return out


def half_row(s: Scene) -> Array:
    out = s.right.copy()
    out[9] = np.cos(np.arange(out.shape[1]))
    return out


def wrong_row(s: Scene) -> Array:
    out = s.right.copy()
    out[8] = s.matrix("embedding")[77] * s.own.scale
    return out


def permuted_inputs(s: Scene) -> Array:
    x = s.inputs[0][:, [0, 2, 1, 3, 4, 5, 7, 6]]
    return s.replay.run(s.node, (x,))


def head_left_out(s: Scene) -> Array:
    x = s.inputs[0].copy()
    x[:, 5] = 0.0
    return s.replay.run(s.node, (x,))


def gelu_erf(x: Array) -> Array:
    return np.asarray(0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))))


QWEN2, LLAMA = "qwen2-q4_k_m.gguf", "llama-q4_k_m.gguf"
QWEN3, MOE, GEMMA = "qwen3-q6_k.gguf", "qwen3moe-q4_k_m.gguf", "gemma3-q4_0.gguf"
SPM = "llamaspm-q4_0.gguf"

PLANTED = (
    Planted("zeros", QWEN2, "layer-1/ffn_up", lambda s: 0 * s.right),
    Planted("zeros", QWEN2, "lm_head", lambda s: 0 * s.right),
    Planted("zeros", LLAMA, "layer-1/attention", lambda s: 0 * s.right),
    Planted("scaled", LLAMA, "layer-2/ffn_swigl", lambda s: 1.25 * s.right, {"factor": 1.25}),
    Planted("scaled", QWEN3, "layer-1/attn_softmax", lambda s: 0.5 * s.right, {"factor": 0.5}),
    Planted("nonfinite", QWEN2, "layer-2/ffn_out", one_nan, {"count": 1, "token": 3}),
    Planted("rows_shifted", QWEN3, "layer-1/q_post_rope", lambda s: np.roll(s.right, 2, axis=0),
            {"by": 2}),
    Planted("rows_shifted", QWEN3, "layer-1/ffn_up", lambda s: np.roll(s.right, 1, axis=0),
            {"by": 1, "axis": "position"}),
    Planted("position", QWEN2, "layer-2/post_attn_residual", lost_row,
            {"position": 4, "missing": "hidden"}),
    Planted("position", QWEN2, "layer-2/ffn_norm", half_row, {"position": 9}),
    Planted("position", QWEN2, "layer-2/ffn_gate", half_row, {"position": 9}),
    Planted("embedding_scale", GEMMA, "layer-0/embedding", lambda s: s.right / 16, {"used": 1.0}),
    Planted("embedding_scale", QWEN2, "layer-0/embedding", lambda s: s.right * 16, {"used": 16.0}),
    Planted("wrong_token", QWEN2, "layer-0/embedding", wrong_row,
            {"position": 8, "token": 77, "right": 266}),
    Planted("norm_missing", QWEN2, "layer-1/attn_norm", lambda s: s.inputs[0]),
    Planted("norm_missing", QWEN3, "layer-1/q_norm", q_heads),
    Planted("norm_no_weight", LLAMA, "layer-1/ffn_norm", lambda s: rms(s.inputs[0], 1e-5)),
    Planted("norm_one_plus", GEMMA, "layer-2/attn_norm",
            lambda s: rms(s.inputs[0], 1e-6) * (1 + s.vector("attn_norm")), {"used": "1 + w"}),
    Planted("norm_layernorm", QWEN2, "layer-1/attn_norm",
            lambda s: rms(s.inputs[0] - s.inputs[0].mean(-1, keepdims=True), 1e-6)
            * s.vector("attn_norm")),
    Planted("norm_eps", QWEN2, "layer-0/attn_norm",
            lambda s: rms(s.inputs[0], 1e-3) * s.vector("attn_norm"), {"eps": 1e-3}),
    Planted("norm_other_weight", QWEN2, "layer-2/ffn_norm",
            lambda s: rms(s.inputs[0], 1e-6) * s.vector("attn_norm"),
            {"weight": "layer 2 attn_norm"}),
    Planted("norm_weight_shift", QWEN2, "layer-2/ffn_norm",
            lambda s: rms(s.inputs[0], 1e-6) * np.roll(s.vector("ffn_norm"), 1), {"by": 1}),
    Planted("transposed", LLAMA, "layer-1/attn_out",
            lambda s: s.inputs[0].reshape(12, -1) @ s.matrix("o")),
    Planted("heads_permuted", QWEN2, "layer-1/qkv_matmul",
            lambda s: np.concatenate([s.right[:, 32:64], s.right[:, :32], s.right[:, 64:]], 1),
            {"part": "q", "heads": [1, 0, 2, 3, 4, 5, 6, 7]}),
    Planted("heads_permuted", QWEN2, "layer-1/attn_out", permuted_inputs,
            {"heads": [0, 2, 1, 3, 4, 5, 7, 6], "side": "input"}),
    Planted("rows_shifted", QWEN2, "layer-1/ffn_gate", lambda s: np.roll(s.right, 3, axis=1),
            {"by": 3, "axis": "output"}),
    Planted("rows_shifted", LLAMA, "lm_head", lambda s: np.roll(s.right, -1), {"by": -1}),
    Planted("other_weight", QWEN2, "layer-1/ffn_gate", lambda s: s.inputs[0] @ s.matrix("up").T,
            {"weight": "layer 1 up"}),
    Planted("other_weight", QWEN2, "layer-1/qkv_matmul",
            lambda s: np.concatenate([s.right[:, :320], s.right[:, 256:320]], axis=1),
            {"weight": "layer 1 k", "part": "v"}),
    Planted("bad_block", QWEN2, "layer-1/ffn_up", lambda s: bad_block(s, "", -1.0),
            {"row": 40, "block": 2, "size": 32, "factor": -1.0}),
    Planted("bad_block", LLAMA, "layer-1/ffn_out", lambda s: columns(s.right, 9, 10, 1.3),
            {"row": 9, "size": 768, "factor": 1.3}),
    Planted("zero_part", QWEN2, "layer-1/qkv_matmul", lambda s: columns(s.right, 96, 128, 0.0),
            {"part": "q", "head": 3}),
    Planted("zero_part", QWEN2, "layer-1/attn_out", head_left_out, {"head": 5, "side": "input"}),
    Planted("scaled", QWEN2, "layer-1/qkv_matmul", lambda s: columns(s.right, 256, 320, 2.0),
            {"part": "k", "factor": 2.0}),
    Planted("experts_swapped", MOE, "layer-2/moe_ffn_out", swapped_experts),
    Planted("bias_missing", QWEN2, "layer-2/qkv_bias", lambda s: s.inputs[0], {"part": "qkv"}),
    Planted("bias_scaled", QWEN2, "layer-2/qkv_bias",
            lambda s: s.right + np.concatenate([np.zeros(320), s.vector("v_bias")]),
            {"part": "v", "factor": 2.0}),
    Planted("rope_missing", QWEN2, "layer-1/q_post_rope", q_heads),
    Planted("rope_style", LLAMA, "layer-1/q_post_rope",
            lambda s: rotated(s, 5e5, HERE, "halves"), {"used": "halves", "right": "adjacent"}),
    Planted("rope_style", QWEN3, "layer-1/q_post_rope",
            lambda s: rotated(s, 1e6, HERE, "adjacent"), {"used": "adjacent"}),
    Planted("rope_theta", QWEN2, "layer-1/q_post_rope",
            lambda s: rotated(s, 12345.0, HERE, "halves"), {"theta": 12345.0}),
    Planted("rope_shift", QWEN2, "layer-1/q_post_rope",
            lambda s: rotated(s, 1e6, HERE + 1, "halves"), {"by": 1}),
    Planted("rope_freqs_ignored", LLAMA, "layer-1/q_post_rope",
            lambda s: rotated(s, 5e5, HERE, "adjacent"), {},
            (("rope_scaling", "llama3:8:1:4:16"),)),
    Planted("rope_position", QWEN2, "layer-1/q_post_rope", moved_position,
            {"position": 7, "used": 2}),
    Planted("score_scale", QWEN2, "layer-1/attn_scores", lambda s: s.right * math.sqrt(32),
            {"scale": 1.0}),
    Planted("score_scale", QWEN3, "layer-1/attn_scores", lambda s: s.right * 1.02,
            {"factor": 1.02}),
    Planted("kv_tiling", QWEN3, "layer-1/attn_scores", dealt_scores),
    Planted("kv_tiling", QWEN2, "layer-1/attention", dealt_values),
    Planted("mask_leak", QWEN2, "layer-1/attn_softmax", leaked, {"ahead": 11}),
    Planted("mask_leak", QWEN2, "layer-1/attn_scores", all_scores, {"ahead": 11}),
    Planted("window", GEMMA, "layer-1/attn_scores",
            lambda s: np.where(CAUSAL, all_scores(s), 0.0), {"window": None, "right": 4}),
    Planted("window", QWEN2, "layer-1/attn_softmax", lambda s: windowed(s, 5), {"window": 5}),
    Planted("other_head", QWEN2, "layer-1/attention", wrong_kv_head, {"head": 2, "kv_head": 1}),
    Planted("stale_row", QWEN2, "layer-1/attention", lambda s: stale(s, "row"),
            {"position": 6, "taken_from": 3}),
    Planted("stale_row", SPM, "layer-1/attention", lambda s: stale(s, "zero"),
            {"position": 6, "taken_from": "zero"}),
    Planted("branch_missing", LLAMA, "layer-1/post_attn_residual", lambda s: s.inputs[0],
            {"missing": "attn_out"}),
    Planted("branch_missing", LLAMA, "layer-1/post_ffn_residual",
            lambda s: s.values[s.node.inputs[0]._replace(layer=0, stage="post_ffn_residual")]
            + s.inputs[1], {"missing": "attn_out"}),
    Planted("branch_twice", LLAMA, "layer-1/post_ffn_residual",
            lambda s: s.inputs[0] + 2 * s.inputs[1], {"twice": "ffn_out"}),
    Planted("residual_shift", LLAMA, "layer-1/post_ffn_residual",
            lambda s: np.roll(s.inputs[0], 1, axis=0) + s.inputs[1], {"by": 1, "of": "hidden"}),
    Planted("post_norm_missing", GEMMA, "layer-1/post_attn_residual",
            lambda s: s.inputs[0] + s.value("attn_out"), {"norm": "attn_post_norm"}),
    Planted("activation", QWEN2, "layer-1/ffn_silu", lambda s: np.maximum(s.inputs[0], 0),
            {"used": "relu", "right": "silu"}),
    Planted("activation", GEMMA, "layer-1/ffn_silu", lambda s: gelu_erf(s.inputs[0]),
            {"used": "gelu"}),
    Planted("activation", QWEN2, "layer-1/ffn_swigl",
            lambda s: s.value("ffn_gate") * s.inputs[1], {"used": "none"}),
    Planted("clipped", QWEN2, "layer-1/ffn_silu", lambda s: np.clip(s.right, -0.1, 0.5),
            {"high": 0.5}),
    Planted("router_not_renormalised", MOE, "layer-2/moe_router", lambda s: ranked(s)[0][:, :3]),
    Planted("router_second", MOE, "layer-2/moe_router", second_ranks, {"by": 1}),
    Planted("router_second", MOE, "layer-2/moe_router_indices",
            lambda s: ranked(s)[1][:, 1:4].astype(float), {"by": 1}),
    Planted("router_softmax_after", MOE, "layer-2/moe_router", softmax_again),
    Planted("head_tied", QWEN2, "lm_head", lambda s: s.inputs[0][-1] @ s.matrix("embedding").T),
    Planted("position", QWEN2, "lm_head", lambda s: s.inputs[0][3] @ s.matrix("head").T,
            {"position": 3}),
    # The same inside captures whose products round activations as llama.cpp's CPU path does.
    Planted("bad_block", QWEN2, "layer-1/ffn_up", lambda s: bad_block(s, "Q8_K", 2.0),
            {"row": 40, "block": 2, "factor": 2.0}, how=PARTNER),
    Planted("transposed", LLAMA, "layer-1/attn_out",
            lambda s: s.replay.rounded(s.inputs[0].reshape(12, -1), "Q8_K") @ s.matrix("o"),
            how=PARTNER),
    Planted("zero_part", QWEN2, "layer-1/qkv_matmul", lambda s: columns(s.right, 96, 128, 0.0),
            {"part": "q", "head": 3}, how=PARTNER),
    Planted("scaled", QWEN2, "layer-1/qkv_matmul", lambda s: columns(s.right, 320, 384, 1.01),
            {"part": "v", "factor": 1.01}, how=PARTNER),
    Planted("other_weight", QWEN2, "layer-1/ffn_gate",
            lambda s: s.replay.rounded(s.inputs[0], "Q8_K") @ s.matrix("up").T,
            {"weight": "layer 1 up"}, how=PARTNER),
    Planted("rows_shifted", SPM, "lm_head", lambda s: np.roll(s.right, 1), {"by": 1}, how=PARTNER),
    Planted("rope_style", LLAMA, "layer-1/q_post_rope",
            lambda s: rotated(s, 5e5, HERE, "halves"), {"used": "halves"}, how=PARTNER),
    Planted("bias_missing", QWEN2, "layer-2/qkv_bias", lambda s: s.inputs[0], {"part": "qkv"},
            how=PARTNER),
    Planted("experts_swapped", MOE, "layer-2/moe_ffn_out",
            lambda s: swapped_rounded(s), how=PARTNER),
)  # fmt: skip


def swapped_rounded(s: Scene) -> Array:
    x, weights, ids = s.inputs
    one, other = int(ids[0, 0]), next(e for e in range(8) if e not in set(ids[0].astype(int)))
    renamed = np.where(ids == one, other, np.where(ids == other, one, ids))
    return s.replay.run(s.node, (x, weights, renamed), PARTNER)


def found_culprit(planted: Planted, root: Path, without: frozenset[str] = frozenset()) -> Culprit:
    model = model_of(FIXTURES / "models" / planted.model, planted.overrides)
    values = compute(model, {planted.stage: planted.plant}, planted.how)
    found = bisect(model, write(root, values, without), tokens=TOKENS)
    assert [str(culprit.key) for culprit in found.culprits] == [planted.stage]
    return found.culprits[0]


@needs_fixtures
@pytest.mark.parametrize("planted", PLANTED, ids=str)
def test_a_planted_mistake_is_named_with_its_parameters(planted: Planted, tmp_path: Path) -> None:
    mistake = found_culprit(planted, tmp_path).mistake
    assert mistake is not None
    assert mistake.id == planted.id
    assert mistake.residual_rel_l2 <= 1e-5
    for name, value in planted.parameters.items():
        found = mistake.parameters[name]
        assert found == (pytest.approx(value, rel=1e-6) if isinstance(value, float) else value)


@needs_fixtures
def test_what_no_entry_reproduces_gets_no_name(tmp_path: Path) -> None:
    noise = np.random.default_rng(3).standard_normal((12, 512))
    planted = Planted("", QWEN2, "layer-1/ffn_up", lambda s: s.right + 1e-3 * noise)
    culprit = found_culprit(planted, tmp_path)
    assert culprit.mistake is None
    assert culprit.looks_like


@needs_fixtures
def test_a_mistake_inside_a_span_is_named(tmp_path: Path) -> None:
    planted = Planted("", QWEN3, "layer-1/q_norm", q_heads)
    model = model_of(FIXTURES / "models" / QWEN3)
    values = compute(model, {planted.stage: planted.plant})
    trace = write(tmp_path, values, frozenset({"q_norm"}))
    found = bisect(model, trace, tokens=TOKENS)
    (culprit,) = found.culprits
    assert (str(culprit.key), culprit.span) == ("layer-1/q_post_rope", ("q_norm",))
    assert culprit.mistake is not None
    assert culprit.mistake.id == "norm_missing"
