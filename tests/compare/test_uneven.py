"""Mistakes are those of the node: layers that differ in sizes, masks, positions and experts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from aprtui.compare.bisect import bisect
from aprtui.formats.tracedir import StageKey, open_trace
from aprtui.graph.heads import head_windows
from tests.compare.planting import Array, Plant, Scene, compute, write
from tests.compare.uneven import TABLE, uneven_model

TOKENS = (3, 17, 5, 5, 61, 40, 8, 22, 13, 30, 2)
HERE = np.arange(len(TOKENS))


def turned(x: Array, dims: int, magnitude: float, theta: float = 1e4) -> Array:
    """x [T,heads,d], the first ``dims`` channels of each head turned as halves."""
    half = dims // 2
    angle = HERE[:, None, None] * theta ** (-np.arange(half) / half)
    cos, sin = magnitude * np.cos(angle), magnitude * np.sin(angle)
    out = x.copy()
    out[..., :half] = x[..., :half] * cos - x[..., half:dims] * sin
    out[..., half:dims] = x[..., half:dims] * cos + x[..., :half] * sin
    return out


def queries(s: Scene) -> Array:
    a, _, d = s.heads
    return s.inputs[0][:, : a * d].reshape(-1, a, d)


def visible(window: int = 99, chunk: int = 99) -> npt.NDArray[np.bool_]:
    away = HERE[:, None] - HERE[None, :]
    own_chunk = HERE[:, None] // chunk == HERE[None, :] // chunk
    return np.asarray((away >= 0) & (away < window) & own_chunk)


def softmax(x: Array, seen: npt.NDArray[np.bool_], sinks: Array | None = None) -> Array:
    powers = np.where(seen, np.exp(x), 0.0)
    lost = 0.0 if sinks is None else np.exp(sinks)[:, None, None]
    return np.asarray(powers / (powers.sum(-1, keepdims=True) + lost))


def scores(
    s: Scene, seen: npt.NDArray[np.bool_], cap: float = 2.0, *, warm: float = 0.5,
    turn: Callable[[Array], Array] = lambda x: x,
) -> Array:  # fmt: skip
    """Layer 1's, of q at its temperature and k, that nothing turned, soft-capped."""
    a, k, d = s.heads
    rows = s.inputs[0]
    q, keys = rows[:, : a * d].reshape(-1, a, d), rows[:, a * d : (a + k) * d]
    q, keys = turn(q), turn(keys[:, None])[:, 0]
    q = q * (1 + warm * np.log(1 + (HERE + 1) // 4))[:, None, None]
    raw = np.einsum("thd,sd->hts", q, keys) * 0.2
    return np.where(seen, np.tanh(raw / cap) * cap, 0.0)


def centred(s: Scene) -> Array:
    x = s.inputs[0] - s.inputs[0].mean(-1, keepdims=True)
    return np.asarray(x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5))


def chosen(s: Scene) -> Array:
    """The sigmoid of the chosen ids' logits."""
    return of_ids(s, sigmoid(s.inputs[0]))


def sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x)))


def biased(s: Scene) -> Array:
    """The scores of all experts with the bias that is meant for the choice."""
    return sigmoid(s.inputs[0]) + s.vector("correction_bias")


def in_groups(x: Array) -> Array:
    """-inf outside the pair of neighbours whose sum is the largest."""
    sums = x[:, 0::2] + x[:, 1::2]
    kept = sums == sums.max(1, keepdims=True)
    return np.where(np.repeat(kept, 2, axis=1), x, -np.inf)


def largest(x: Array, first: int = 0) -> Array:
    """The ids of two ranks from ``first`` on."""
    return np.argsort(-x, axis=1, kind="stable")[:, first : first + 2].astype(float)


def ranks(s: Scene, first: int) -> Array:
    return largest(in_groups(biased(s)), first)


def of_ids(s: Scene, x: Array) -> Array:
    return np.asarray(np.take_along_axis(x, s.inputs[1].astype(int), axis=1))


def over_sum(x: Array) -> Array:
    return np.asarray(x / x.sum(-1, keepdims=True))


RIGHT: dict[str, Plant] = {
    "layer-0/q_post_rope": lambda s: turned(queries(s), 8, 1.25),
    "layer-0/attn_softmax": lambda s: softmax(s.inputs[0], visible(window=4), s.vector("sinks")),
    "layer-1/attn_scores": lambda s: scores(s, visible(chunk=5)),
    "layer-1/attn_norm": lambda s: centred(s) * (1 + s.vector("attn_norm")),
    "layer-1/post_attn_residual": lambda s: s.inputs[0] + 0.5 * s.inputs[1],
    "layer-1/moe_router_indices": lambda s: ranks(s, 0),
    "layer-1/moe_router": lambda s: 2.5 * over_sum(chosen(s)),
    "lm_head": lambda s: 3 * np.tanh(s.inputs[0][-1] @ s.matrix("head").T / 3),
    "layer-1/ffn_out": lambda s: s.inputs[0] + s.inputs[1] * s.inputs[2],
}


@pytest.mark.parametrize("stage", RIGHT)
def test_a_node_computes_what_numpy_does(stage: str, tmp_path: Path) -> None:
    found: list[float] = []

    def check(scene: Scene) -> Array:
        right = RIGHT[stage](scene)
        found.append(float(np.linalg.norm(scene.right - right) / np.linalg.norm(right)))
        return right

    compute(uneven_model(tmp_path / "weights"), {stage: check}, tokens=TOKENS)
    assert len(found) == 1
    assert found[0] < 1e-12


@dataclass(frozen=True)
class Planted:
    """A mistake in one stage, and what must be said of it."""

    id: str
    stage: str
    plant: Plant
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.id}-{self.stage.replace('/', '-')}"


def heads_swapped(s: Scene) -> Array:
    return np.concatenate([s.right[:, 16:32], s.right[:, :16], s.right[:, 32:]], axis=1)


def head_lost(s: Scene) -> Array:
    x = s.inputs[0].copy()
    x[:, 0] = 0.0
    return s.replay.run(s.node, (x,))


def half_logit(s: Scene) -> Array:
    out = s.right.copy()
    out[:, 2] *= 0.5
    return out


PLANTED = (
    Planted("rope_missing", "layer-0/q_post_rope", queries),
    Planted("rope_partial", "layer-0/q_post_rope", lambda s: turned(queries(s), 16, 1.25),
            {"used": 16, "right": 8}),
    Planted("rope_magnitude", "layer-0/q_post_rope", lambda s: turned(queries(s), 8, 1.0),
            {"used": 1.0, "right": 1.25}),
    Planted("rope_theta", "layer-0/q_post_rope", lambda s: turned(queries(s), 8, 1.25, 4321.0),
            {"theta": 4321.0}),
    Planted("sinks_missing", "layer-0/attn_softmax",
            lambda s: softmax(s.inputs[0], visible(window=4))),
    Planted("softcap_missing", "layer-1/attn_scores",
            lambda s: scores(s, visible(chunk=5), 1e9)),
    Planted("window", "layer-1/attn_scores", lambda s: scores(s, visible(4, 5)), {"window": 4}),
    Planted("chunk_missing", "layer-1/attn_scores", lambda s: scores(s, visible()), {"right": 5}),
    Planted("chunk_edge", "layer-1/attn_scores", lambda s: scores(s, visible(chunk=6)),
            {"chunk": 6, "right": 5}),
    Planted("chunk_edge", "layer-1/attn_scores", lambda s: scores(s, visible(window=5)),
            {"chunk": None, "window": 5}),
    Planted("temperature_missing", "layer-1/attn_scores",
            lambda s: scores(s, visible(chunk=5), warm=0.0)),
    Planted("nope_rotated", "layer-1/attn_scores",
            lambda s: scores(s, visible(chunk=5), turn=lambda x: turned(x, 8, 1.25))),
    Planted("softcap_missing", "lm_head", lambda s: s.inputs[0][-1] @ s.matrix("head").T),
    Planted("heads_permuted", "layer-0/qkv_matmul", heads_swapped,
            {"part": "q", "heads": [1, 0, 2, 3]}),
    Planted("zero_part", "layer-1/attn_out", head_lost, {"head": 0, "columns": [0, 31]}),
    Planted("norm_rms", "layer-1/attn_norm",
            lambda s: s.inputs[0] / np.sqrt((s.inputs[0] ** 2).mean(-1, keepdims=True) + 1e-5)
            * (1 + s.vector("attn_norm"))),
    Planted("branch_scale_missing", "layer-1/post_attn_residual",
            lambda s: s.inputs[0] + s.inputs[1], {"right": 0.5}),
    Planted("scaled", "layer-1/post_attn_residual", lambda s: s.inputs[0] + 0.7 * s.inputs[1],
            {"factor": 0.7}),
    Planted("bad_block", "layer-1/router_logits", half_logit, {"row": 2, "factor": 0.5}),
    Planted("router_second", "layer-1/moe_router_indices", lambda s: ranks(s, 1), {"by": 1}),
    Planted("router_not_renormalised", "layer-1/moe_router", lambda s: 2.5 * chosen(s)),
    Planted("router_scale_missing", "layer-1/moe_router", lambda s: over_sum(chosen(s)),
            {"right": 2.5}),
    Planted("router_score", "layer-1/moe_router",
            lambda s: 2.5 * over_sum(np.exp(of_ids(s, s.inputs[0]))), {"used": "softmax"}),
    Planted("router_score", "layer-1/moe_router",
            lambda s: 2.5 * over_sum(of_ids(s, s.inputs[0])), {"used": "none"}),
    Planted("router_bias_in_weight", "layer-1/moe_router",
            lambda s: 2.5 * over_sum(of_ids(s, biased(s)))),
    Planted("router_bias_missing", "layer-1/moe_router_indices",
            lambda s: largest(in_groups(sigmoid(s.inputs[0])))),
    Planted("router_groups_ignored", "layer-1/moe_router_indices", lambda s: largest(biased(s)),
            {"groups": 4, "kept": 1}),
    Planted("shared_missing", "layer-1/ffn_out", lambda s: s.inputs[0]),
    Planted("shared_gate_missing", "layer-1/ffn_out", lambda s: s.inputs[0] + s.inputs[1]),
)  # fmt: skip


@pytest.mark.parametrize("planted", PLANTED, ids=str)
def test_a_mistake_of_a_layer_is_named_by_what_that_layer_is(
    planted: Planted, tmp_path: Path
) -> None:
    model = uneven_model(tmp_path / "weights")
    values = compute(model, {planted.stage: planted.plant}, tokens=TOKENS)
    found = bisect(model, write(tmp_path / "b", values), tokens=TOKENS)
    assert [str(culprit.key) for culprit in found.culprits] == [planted.stage]
    mistake = found.culprits[0].mistake
    assert mistake is not None
    assert mistake.id == planted.id
    for name, value in planted.parameters.items():
        said = mistake.parameters[name]
        assert said == (pytest.approx(value, rel=1e-6) if isinstance(value, float) else value)


def test_a_wrong_choice_is_one_culprit_without_the_logits_too(tmp_path: Path) -> None:
    """Other engines show ids and weights, and no logits: both are replayed from before them."""
    model = uneven_model(tmp_path / "weights")
    values = compute(model, {"layer-1/moe_router_indices": lambda s: ranks(s, 1)}, tokens=TOKENS)
    trace = write(tmp_path / "b", values, frozenset({"router_logits"}))
    found = bisect(model, trace, tokens=TOKENS)
    (culprit,) = found.culprits
    assert (str(culprit.key), culprit.span) == ("layer-1/moe_router_indices", ("router_logits",))
    assert culprit.mistake is not None
    assert culprit.mistake.id == "router_second"
    spans = {str(each.key): each.span for each in found.explained}
    assert spans["layer-1/moe_router"] == ("router_logits",)
    assert found.unmeasured == ()


def test_only_what_a_table_turns_is_reordered(tmp_path: Path) -> None:
    """B holds adjacent pairs: the first 8 channels of each head of layer 0's q and k."""
    model = uneven_model(tmp_path / "weights")
    values = compute(model, {}, tokens=TOKENS)
    windows = head_windows(model.graph)
    assert StageKey(1, "qkv_matmul") in windows  # heads, and nothing turns them
    order = np.arange(TABLE.dims).reshape(2, -1).T.reshape(-1)
    for key, (start, stop) in {
        "qkv_matmul": (0, 96), "qkv_bias": (0, 96), "q_post_rope": (0, 64), "k_post_rope": (0, 32),
    }.items():  # fmt: skip
        value = values[StageKey(0, key)]
        rows = value.reshape(len(TOKENS), -1)
        heads = rows[:, start:stop].reshape(len(TOKENS), -1, 16)
        heads[..., :8] = heads[..., order]
        rows[:, start:stop] = heads.reshape(len(TOKENS), -1)
    root = write(tmp_path / "b", values).root
    found = bisect(model, _said(root, "adjacent"), tokens=TOKENS)
    assert (found.culprits, found.unmeasured) == ((), ())
    assert any("reordered" in note for note in found.notes)


def _said(root: Path, layout: str) -> Any:
    """The trace with a manifest that says no more than how its rows are ordered."""
    return replace(open_trace(root), manifest={"rope_layout": layout})
