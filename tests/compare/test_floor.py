"""One weight that is a step off in a matrix that is right: named with its row, column and value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from aprtui.compare.bisect import bisect
from aprtui.compare.bisection import Bisection
from aprtui.model.open import Model, open_model
from tests.compare.planting import Plant, Scene, compute, write
from tests.compare.test_runtimes import TOKENS, bf16, summed, whole
from tests.support import FIXTURES, needs_fixtures

Array = npt.NDArray[np.float64]
pytestmark = needs_fixtures


@pytest.fixture(scope="module")
def model() -> Model:
    return open_model(FIXTURES / "models" / "qwen2-q4_k_m.gguf")


def running(x: Array, weight: Array) -> Array:
    """x times weight transposed, one running sum in float32: the roughest that engines sum."""
    total = np.zeros((len(x), len(weight)), dtype=np.float32)
    narrow = x.astype(np.float32), weight.astype(np.float32)
    for column in range(x.shape[1]):
        total += narrow[0][:, column, None] * narrow[1][None, :, column]
    return np.asarray(total.astype(np.float64))


def step_of(weights: Array, column: int, kind: str) -> float:
    """The step of the values that share a scale with a weight: 32 of Q4_K, 16 of Q6_K."""
    size = {"Q4_K": 32, "Q6_K": 16}[kind]
    values = np.unique(weights[column // size * size : column // size * size + size])
    return float(np.diff(values).min())


def off_by_a_step(part: int, row: int, column: int, steps: float) -> Plant:
    def plant(scene: Scene) -> Array:
        x = scene.inputs[0].reshape(len(TOKENS), -1)
        made = []
        for place, each in enumerate(scene.own.parts):
            weight = whole(scene, each)
            if place == part:
                weight[row, column] += steps * step_of(
                    weight[row], column, scene.replay.type_of(each.weight)
                )
            made.append(running(x, weight))
        return np.concatenate(made, axis=1)

    return plant


def bisected(root: Path, model: Model, plants: dict[str, Plant]) -> Bisection:
    return bisect(
        model, write(root / "trace", compute(model, plants, tokens=TOKENS)), tokens=TOKENS
    )


@pytest.mark.parametrize(
    ("name", "part", "row", "column", "steps"),
    [
        ("layer-1/ffn_gate", 0, 17, 3, 1),
        ("layer-2/ffn_out", 0, 255, 511, -1),
        ("layer-0/qkv_matmul", 1, 40, 200, 2),
        ("layer-3/attn_out", 0, 0, 128, 8),
    ],
)
def test_a_weight_that_is_a_step_off_is_named(
    tmp_path: Path, model: Model, name: str, part: int, row: int, column: int, steps: int
) -> None:
    found = bisected(tmp_path, model, {name: off_by_a_step(part, row, column, steps)})
    (culprit,) = found.culprits
    assert str(culprit.key) == name and culprit.mistake is not None
    assert culprit.mistake.id == "one_weight"
    told: dict[str, Any] = dict(culprit.mistake.parameters)
    assert (told["row"], told["column"]) == (row, column)
    assert told.get("quanta", steps) == pytest.approx(steps, abs=0.05)


def test_an_engine_that_sums_roughly_is_innocent(tmp_path: Path, model: Model) -> None:
    names = [str(node.key) for node in model.graph if node.key.stage in ("ffn_gate", "ffn_out")]
    found = bisected(tmp_path, model, {name: off_by_a_step(0, 0, 0, 0.0) for name in names})
    assert found.culprits == ()
    assert found.floor is not None and found.floor.hidden_weight is not None
    assert 1e-7 < found.floor.hidden_weight < 1e-3


def test_what_sixteen_bits_hide_is_said(tmp_path: Path, model: Model) -> None:
    def rounded(scene: Scene, steps: float = 0.0) -> Array:
        weight = bf16(whole(scene, scene.own.parts[0]))
        column = int(np.abs(scene.inputs[0]).max(0).argmax())
        weight[17, column] += steps * float(np.sqrt(np.square(weight).mean()))
        return bf16(np.asarray(bf16(scene.inputs[0]) @ weight.T))

    plants: dict[str, Plant] = {"layer-1/ffn_norm": summed, "layer-1/ffn_gate": rounded}
    found = bisected(tmp_path / "right", model, plants)
    assert found.culprits == ()
    (gate,) = (each for each in found.explained if str(each.key) == "layer-1/ffn_gate")
    hidden = gate.hidden_weight
    assert hidden is not None and 1e-4 < hidden < 0.5
    plants["layer-1/ffn_gate"] = lambda scene: rounded(scene, 3 * hidden)
    (culprit,) = bisected(tmp_path / "wrong", model, plants).culprits
    assert culprit.worst["channel"] == 17  # of the columns several may do


def test_a_weight_of_a_norm_that_is_a_unit_off_is_named(tmp_path: Path, model: Model) -> None:
    def norm(scene: Scene) -> Array:
        x, weight = scene.inputs[0], scene.replay.vector(scene.own.weight).copy()
        weight[77] *= 1 + 2.0**-13
        made = x / np.sqrt(np.square(x).mean(-1, keepdims=True) + scene.own.eps) * weight
        return np.asarray(made.astype(np.float32).astype(np.float64))

    (culprit,) = bisected(tmp_path, model, {"layer-2/ffn_norm": norm}).culprits
    assert str(culprit.key) == "layer-2/ffn_norm"
    assert culprit.worst["channel"] == 77
    assert f"so it is at {len(TOKENS)} of {len(TOKENS)} positions" in culprit.looks_like


def a_head_off(head: int, axis: int, by: float) -> Plant:
    def plant(scene: Scene) -> Array:
        made = scene.right.astype(np.float32).astype(np.float64)
        made[(slice(None),) * axis + (head,)] *= 1 + by
        return made

    return plant


@pytest.mark.parametrize(
    ("name", "axis", "head"),
    [("layer-0/attn_scores", 0, 5), ("layer-3/attn_scores", 0, 0), ("layer-2/attention", 1, 7)],
)
def test_a_head_that_is_a_little_off_is_named(
    tmp_path: Path, model: Model, name: str, axis: int, head: int
) -> None:
    """By far less than the bar of the whole."""
    found = bisected(tmp_path, model, {name: a_head_off(head, axis, 2.0**-17)})
    (culprit,) = found.culprits
    assert (str(culprit.key), culprit.local_rel_l2 and culprit.local_rel_l2 < 1e-5) == (name, True)
    assert culprit.looks_like.startswith(f"only head {head}: ")
    assert culprit.worst["head"] == head


@pytest.mark.parametrize("layer", [0, 2])
def test_an_expert_that_is_a_little_off_is_named(tmp_path: Path, layer: int) -> None:
    opened = open_model(FIXTURES / "models" / "qwen3moe-q4_k_m.gguf")
    chosen: list[int] = []

    def plant(scene: Scene) -> Array:
        """The rows of an expert that not all rows chose are off by a part of it."""
        ids, made = scene.inputs[2].astype(int), scene.right.copy()
        counts = np.bincount(ids.reshape(-1), minlength=8)
        expert = int(np.argmin(np.where(counts > 1, counts, 99)))
        chosen.append(expert)
        made[(ids == expert).any(1)] *= 1 + 1.5e-5
        return made

    name = f"layer-{layer}/moe_ffn_out"
    (culprit,) = bisected(tmp_path, opened, {name: plant}).culprits
    assert (str(culprit.key), culprit.local_rel_l2 and culprit.local_rel_l2 < 1e-5) == (name, True)
    assert f"that chose expert {chosen[0]}: " in culprit.looks_like
