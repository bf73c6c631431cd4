"""Steps twice, backwards, along another axis or before another, inputs that are another stage's,
dropout: many planted by numpy in one capture, each told apart and named."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from aprtui.compare.bisect import bisect
from aprtui.formats.modelfile import tensor_bytes
from tests.compare.planting import TOKENS, Scene, compute, model_of, write
from tests.compare.test_mistakes import (
    CAUSAL,
    HERE,
    LLAMA,
    MOE,
    QWEN2,
    QWEN3,
    SPM,
    Planted,
    all_scores,
    rms,
    softmax,
)
from tests.support import FIXTURES, needs_fixtures

Array = npt.NDArray[np.float64]
GEMMA3 = "gemma3-q4_0.gguf"


def weighed(s: Scene, x: Array) -> Array:
    return np.asarray(rms(x, s.own.eps) * (s.own.offset + s.replay.vector(s.own.weight)))


def own_heads(s: Scene, stage: str | None = None) -> Array:
    """The heads [T,h,d] that the stage, or another one of the layer, is given."""
    node = s.node if stage is None else s.graph[s.node.key._replace(stage=stage)]
    heads, x = s.op(node.key.stage).heads, s.values[node.inputs[0]]
    flat = x.reshape(len(x), -1)
    return flat[:, heads.columns].reshape(len(x), heads.count, heads.size)


def turned(x: Array, table: object, at: Array = HERE) -> Array:
    dims, theta, pairs, divisors = (
        getattr(table, name) for name in ("dims", "theta", "pairs", "divisors")
    )
    each = theta ** (-2 * np.arange(dims // 2) / dims) / (np.array(divisors) if divisors else 1.0)
    angle = np.outer(at / table.position_divisor, each)[:, None]  # type: ignore[attr-defined]
    one, two = (
        (slice(0, dims // 2), slice(dims // 2, dims))
        if pairs == "halves"
        else (slice(0, dims, 2), slice(1, dims, 2))
    )
    out = x.copy()
    out[..., one] = x[..., one] * np.cos(angle) - x[..., two] * np.sin(angle)
    out[..., two] = x[..., two] * np.cos(angle) + x[..., one] * np.sin(angle)
    return out


def norm_after_rope(s: Scene) -> Array:
    stage = s.node.inputs[0].stage
    norm = s.op(stage)
    made = rms(turned(own_heads(s, stage), s.own.table), norm.eps)
    return np.asarray(made * (norm.offset + s.replay.vector(norm.weight)))


def all_heads_together(s: Scene) -> Array:
    x = own_heads(s)
    made = rms(x.reshape(len(x), -1), s.own.eps).reshape(x.shape)
    return np.asarray(made * (s.own.offset + s.replay.vector(s.own.weight)))


def over_queries(s: Scene) -> Array:
    return np.swapaxes(softmax(np.swapaxes(s.inputs[0], 1, 2), CAUSAL.T), 1, 2)


def masked_late(s: Scene) -> Array:
    return np.where(CAUSAL, softmax(all_scores(s), np.ones_like(CAUSAL)), 0.0)


def dropped(s: Scene, rate: float) -> Array:
    kept = np.random.default_rng(7).random(s.right.shape) >= rate
    return np.where(kept, s.right / (1 - rate), 0.0)


def by(s: Scene, x: Array) -> Array:
    """The stage's product of another input."""
    role = s.own.parts[0].weight
    return np.asarray(x.reshape(len(x), -1) @ s.replay.rows(role, range(len(s.right.T))).T)


def in_turn(s: Scene, place: int) -> Array:
    both = np.concatenate([s.matrix("gate"), s.matrix("up")])
    return np.asarray(s.inputs[0] @ both[place::2].T)


def from_pairs(s: Scene, place: int) -> Array:
    gate, up = s.matrix("gate"), s.matrix("up")
    both = np.stack([gate, up], axis=1).reshape(-1, gate.shape[1])
    return np.asarray(s.inputs[0] @ both[place * len(gate) : (place + 1) * len(gate)].T)


def other_zero_point(s: Scene, by: int) -> Array:
    """Q4_0 whose codes count from 8 + by: blocks of a float16 scale and 16 bytes."""
    matrix = s.replay.model.weights[s.own.parts[0].weight]
    raw = np.frombuffer(bytes(tensor_bytes(matrix.entry)), np.uint8)
    scales = raw.reshape(matrix.rows, -1, 18)[:, :, :2].copy().view(np.float16)
    sums = s.inputs[0].reshape(len(s.inputs[0]), -1, 32).sum(-1)
    return np.asarray(s.right - by * sums @ scales[..., 0].astype(np.float64).T)


PLANTED = (
    Planted("norm_twice", QWEN2, "layer-0/attn_norm", lambda s: weighed(s, s.right)),
    Planted("norm_twice", GEMMA3, "layer-1/attn_post_norm", lambda s: weighed(s, s.right)),
    Planted("norm_twice", LLAMA, "final_norm", lambda s: weighed(s, s.right)),
    Planted("norm_whole", QWEN3, "layer-0/q_norm", all_heads_together, {"whole": True}),
    Planted("norm_whole", MOE, "layer-1/k_norm", all_heads_together, {"whole": True}),
    Planted("norm_whole", GEMMA3, "layer-2/q_norm", all_heads_together, {"whole": True}),
    Planted("norm_after_rope", QWEN3, "layer-1/q_post_rope", norm_after_rope),
    Planted("norm_after_rope", MOE, "layer-0/k_post_rope", norm_after_rope),
    Planted("norm_after_rope", GEMMA3, "layer-3/q_post_rope", norm_after_rope),
    Planted("rope_twice", QWEN2, "layer-1/k_post_rope", lambda s: turned(s.right, s.own.table)),
    Planted("rope_twice", LLAMA, "layer-0/q_post_rope", lambda s: turned(s.right, s.own.table)),
    Planted("rope_twice", QWEN3, "layer-3/k_post_rope", lambda s: turned(s.right, s.own.table)),
    Planted("rope_backwards", QWEN2, "layer-2/q_post_rope",
            lambda s: turned(own_heads(s), s.own.table, -HERE)),
    Planted("rope_backwards", LLAMA, "layer-1/k_post_rope",
            lambda s: turned(own_heads(s), s.own.table, -HERE)),
    Planted("rope_backwards", QWEN3, "layer-2/q_post_rope",
            lambda s: turned(own_heads(s), s.own.table, -HERE)),
    Planted("heads_not_transposed", QWEN2, "layer-1/attention",
            lambda s: s.right.swapaxes(0, 1).reshape(s.right.shape)),
    Planted("heads_not_transposed", LLAMA, "layer-2/attention",
            lambda s: s.right.swapaxes(0, 1).reshape(s.right.shape)),
    Planted("heads_not_transposed", SPM, "layer-0/q_post_rope", lambda s: turned(
            own_heads(s).reshape(s.right.shape[1], len(s.right), -1).swapaxes(0, 1), s.own.table)),
    Planted("softmax_axis", QWEN2, "layer-1/attn_softmax", over_queries),
    Planted("softmax_axis", LLAMA, "layer-2/attn_softmax", over_queries),
    Planted("softmax_axis", QWEN3, "layer-0/attn_softmax", over_queries),
    Planted("mask_after_softmax", QWEN2, "layer-3/attn_softmax", masked_late),
    Planted("mask_after_softmax", LLAMA, "layer-0/attn_softmax", masked_late),
    Planted("mask_after_softmax", QWEN3, "layer-2/attn_softmax", masked_late),
    Planted("dropout", QWEN2, "layer-2/attn_softmax", lambda s: dropped(s, 0.2), {"rate": 0.2}),
    Planted("dropout", LLAMA, "layer-1/ffn_out", lambda s: dropped(s, 0.1), {"rate": 0.1}),
    Planted("dropout", QWEN3, "layer-1/attn_out", lambda s: dropped(s, 0.5), {"rate": 0.5}),
    Planted("other_input", QWEN2, "layer-3/post_attn_residual",
            lambda s: s.value("attn_norm") + s.inputs[1],
            {"used": "layer-3/attn_norm", "right": "layer-2/post_ffn_residual"}),
    Planted("other_input", LLAMA, "layer-2/ffn_up", lambda s: by(s, s.value("post_attn_residual")),
            {"used": "layer-2/post_attn_residual", "right": "layer-2/ffn_norm"}),
    Planted("other_input", QWEN3, "layer-1/ffn_norm", lambda s: weighed(s, s.value("attn_out")),
            {"used": "layer-1/attn_out", "right": "layer-1/post_attn_residual"}),
    Planted("other_input", QWEN2, "lm_head",
            lambda s: by(s, s.values[s.graph[s.node.inputs[0]].inputs[0]])[-1],
            {"right": "final_norm"}),
    Planted("rows_interleaved", QWEN2, "layer-1/ffn_gate", lambda s: in_turn(s, 0)),
    Planted("rows_interleaved", LLAMA, "layer-0/ffn_up", lambda s: in_turn(s, 1)),
    Planted("rows_interleaved", QWEN3, "layer-2/ffn_gate", lambda s: from_pairs(s, 0)),
    Planted("other_matrix", SPM, "layer-1/ffn_gate", lambda s: other_zero_point(s, 1),
            {"type": "Q4_0", "reading": "with zero points that are one too high"}),
    Planted("other_matrix", GEMMA3, "layer-0/ffn_up", lambda s: other_zero_point(s, -1),
            {"type": "Q4_0", "reading": "with zero points that are one too low"}),
    Planted("activation", QWEN2, "layer-0/ffn_silu",
            lambda s: s.right / (1 + np.exp(-s.right)), {"used": "silu twice"}),
)  # fmt: skip
OF_MODEL = {
    model: tuple(found)
    for model, found in groupby(sorted(PLANTED, key=lambda p: p.model), key=lambda p: p.model)
}


@needs_fixtures
@pytest.mark.parametrize("model", OF_MODEL)
def test_each_is_told_apart_and_named(model: str, tmp_path: Path) -> None:
    planted = {each.stage: each for each in OF_MODEL[model]}
    opened = model_of(FIXTURES / "models" / model)
    values = compute(opened, {stage: each.plant for stage, each in planted.items()})
    found = bisect(opened, write(tmp_path, values), tokens=TOKENS)
    named = {str(each.key): each.mistake for each in found.culprits}
    assert {stage: told and told.id for stage, told in named.items()} == {
        stage: each.id for stage, each in planted.items()
    }
    for stage, each in planted.items():
        told = named[stage]
        assert told is not None and told.residual_rel_l2 <= 1e-5
        assert each.parameters.items() <= told.parameters.items()
