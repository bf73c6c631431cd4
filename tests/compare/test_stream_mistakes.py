"""Mistakes of experts' choices and weights, of Gemma 3n's streams and of a soft-cap: planted by
numpy in the families' tiny models, all of one model in one capture."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from aprtui.compare.bisect import bisect
from tests.compare.family_planting import Planted, same
from tests.compare.planting import Plant, Scene, compute, model_of, write
from tests.compare.test_family_mistakes import CAUSAL, TOKENS, product, queries_and_keys, silu

Array = npt.NDArray[np.float64]


def experts(s: Scene, *, weights: Array | None = None, by: int = 0) -> Array:
    """The sum of the chosen experts with other weights, or of experts next to them."""
    x, own, ids = s.inputs
    out, weights = np.zeros_like(x), own if weights is None else weights
    for token, row in enumerate(ids.astype(int)):
        for rank, chosen in enumerate(row):
            expert = (int(chosen) + by) % s.own.count
            gate, up = (product(s, part, expert, x[token], False) for part in ("gate", "up"))
            out[token] += weights[token, rank] * product(s, "down", expert, silu(gate) * up, False)
    return out


def of_first_rank(s: Scene) -> Array:
    return experts(s, weights=s.inputs[1] * (np.arange(s.inputs[1].shape[1]) < 1))


def of_few_tokens(s: Scene, limit: int) -> Array:
    """An expert's tokens beyond so many are dropped, in order of coming."""
    weights, taken = s.inputs[1].copy(), dict[int, int]()
    for place, expert in np.ndenumerate(s.inputs[2].astype(int)):
        taken[expert] = taken.get(expert, 0) + 1
        weights[place] *= taken[expert] <= limit
    return experts(s, weights=weights)


def capped_first(s: Scene) -> Array:
    q, k = queries_and_keys(s)
    plain = np.einsum("thd,shd->hts", q, np.repeat(k, q.shape[1] // k.shape[1], axis=1))
    made = s.own.cap * np.tanh(plain / s.own.cap) * s.own.scale
    return np.where(CAUSAL & (s.right != 0), made, 0.0)


def unsized(s: Scene) -> Array:
    x, parts = s.inputs
    rows = parts.reshape(len(x), s.own.streams - 1, -1)
    if x.ndim == 2:
        return np.concatenate((x[:, None], rows), axis=1)
    return np.asarray(np.concatenate((x[:, :1], rows), axis=1).mean(1))


def uncorrected(s: Scene) -> Array:
    return np.asarray(s.right - (s.inputs[1] - s.inputs[0][:, 0])[:, None])


MOE = ("qwen3moe", "mixtral", "olmoe")
PLANTED = (
    Planted("experts_swapped", tuple(
        (family, f"layer-{layer}/moe_ffn_out", partial(experts, by=1))
        for layer, family in enumerate(MOE)), {"by": 1}),
    Planted("experts_dropped", tuple(
        (family, f"layer-{layer}/moe_ffn_out", of_first_rank)
        for family, layer in (("afmoe", 2), ("mixtral", 2), ("olmoe", 0))), {"ranks": 1}),
    Planted("experts_dropped", same(
        partial(of_few_tokens, limit=3), ("qwen3moe", "layer-2/moe_ffn_out"),
        ("mixtral", "layer-0/moe_ffn_out"), ("olmoe", "layer-1/moe_ffn_out")), {"capacity": 3}),
    Planted("router_order", (
        ("qwen3moe", "layer-0/moe_router", lambda s: s.right[:, ::-1]),
        ("mixtral", "layer-1/moe_router", lambda s: s.right[:, ::-1]),
        ("olmoe", "layer-1/moe_router", lambda s: s.right[:, ::-1])), {"order": "reversed"}),
    Planted("router_order", same(
        lambda s: experts(s, weights=np.roll(s.inputs[1], 1, axis=0)),
        ("glm4moe", "layer-1/moe_ffn_out"), ("glm4moe", "layer-2/moe_ffn_out"),
        ("minimax_m2", "layer-1/moe_ffn_out")), {"rows": 1}),
    Planted("softcap_order", same(
        capped_first, *(("gemma2", f"layer-{layer}/attn_scores") for layer in range(3)))),
    Planted("altup_missing", (
        ("gemma3n", "layer-0/altup_predicted", lambda s: s.inputs[0]),
        ("gemma3n", "layer-1/altup_corrected", lambda s: s.inputs[0]),
        ("gemma3n", "layer-2/altup_corrected", uncorrected))),
    Planted("altup_size", (
        ("gemma3n", "layer-0/altup_streams", unsized), ("gemma3n", "altup_merged", unsized))),
    Planted("stream_modes", (
        ("gemma3n", "layer-1/altup_modes", lambda s: np.arctanh(s.right)),
        ("gemma3n", "layer-2/altup_correct_modes", lambda s: np.arctanh(s.right)),
        ("gemma3n", "layer-3/altup_modes",
         lambda s: np.tanh(np.arctanh(s.right) * s.inputs[0].shape[-1])))),
    Planted("sparsity_missing", (
        ("gemma3n", "layer-0/ffn_sparse", lambda s: s.inputs[0]),
        ("gemma3n", "layer-1/ffn_sparse", lambda s: np.maximum(s.inputs[0], 0.0)))),
)  # fmt: skip
IN_FAMILY: dict[str, dict[str, tuple[Planted, Plant]]] = {}
for each in PLANTED:
    for family, stage, plant in each.places:
        IN_FAMILY.setdefault(family, {})[stage] = (each, plant)


@pytest.mark.parametrize("family", IN_FAMILY)
def test_each_is_told_apart_and_named(
    family: str, folder: Callable[[str], Path], tmp_path: Path
) -> None:
    planted, model = IN_FAMILY[family], model_of(folder(family))
    values = compute(model, {stage: plant for stage, (_, plant) in planted.items()}, tokens=TOKENS)
    found = bisect(model, write(tmp_path, values), tokens=TOKENS)
    named = {str(each.key): each.mistake for each in found.culprits}
    assert {stage: told and told.id for stage, told in named.items()} == {
        stage: mistake.id for stage, (mistake, _) in planted.items()
    }
    for stage, (mistake, _) in planted.items():
        told = named[stage]
        assert told is not None and mistake.parameters.items() <= told.parameters.items()
