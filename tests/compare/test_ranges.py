"""Values beyond a type's range, planted by numpy: held at it, infinite, or zeros of a norm."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from aprtui.compare.bisect import bisect
from aprtui.compare.bisection import Mistake
from tests.compare.planting import TOKENS, Plant, Scene, compute, model_of, write
from tests.support import FIXTURES, needs_fixtures

Array = npt.NDArray[np.float64]
FLOAT16, E4M3, E5M2 = 65_504.0, 448.0, 57_344.0
PLACES = [("llama-q4_k_m.gguf", 1), ("qwen3-q6_k.gguf", 3), ("llamaspm-q4_0.gguf", 0)]

pytestmark = needs_fixtures


def times(factor: float) -> Plant:
    return lambda scene: np.asarray(scene.right * factor)


def grown(largest: float) -> Plant:
    """The stage so large that its few largest values lie beyond a number."""
    return lambda scene: np.asarray(
        scene.right * largest / np.sort(np.abs(scene.right), axis=None)[-20]
    )


def named(root: Path, model: str, stage: str, plants: dict[str, Plant]) -> Mistake:
    opened = model_of(FIXTURES / "models" / model)
    values = compute(opened, plants)
    found = bisect(opened, write(root / "t", values), tokens=TOKENS)
    culprit = next(each for each in found.culprits if str(each.key) == stage)
    assert culprit.mistake is not None
    return culprit.mistake


def weight(scene: Scene) -> Array:
    (part,) = scene.own.parts
    return scene.replay.rows(part.weight, range(part.rows))


@pytest.mark.parametrize(("kind", "largest"), [("float8 e4m3", E4M3), ("float16", FLOAT16)])
@pytest.mark.parametrize(("model", "layer"), PLACES)
def test_outputs_that_are_held_at_the_largest(
    model: str, layer: int, kind: str, largest: float, tmp_path: Path
) -> None:
    def held(scene: Scene) -> Array:
        return np.clip(scene.right, -largest, largest)

    norm, stage = f"layer-{layer}/ffn_norm", f"layer-{layer}/ffn_up"
    opened = model_of(FIXTURES / "models" / model)
    right = compute(opened, {})
    usual = max(np.abs(v).max() for k, v in right.items() if str(k) == stage)
    mistake = named(tmp_path, model, stage, {norm: times(3 * largest / usual), stage: held})
    assert (mistake.id, mistake.parameters["type"]) == ("saturated", kind)
    assert mistake.parameters["what"] == "outputs"
    assert mistake.parameters["largest"] > largest


@pytest.mark.parametrize(("kind", "largest"), [("float8 e4m3", E4M3), ("float8 e5m2", E5M2)])
@pytest.mark.parametrize(("model", "layer"), PLACES)
def test_inputs_that_are_held_at_the_largest(
    model: str, layer: int, kind: str, largest: float, tmp_path: Path
) -> None:
    def held(scene: Scene) -> Array:
        return np.clip(scene.inputs[0], -largest, largest) @ weight(scene).T

    given, stage = f"layer-{layer}/ffn_swigl", f"layer-{layer}/ffn_out"
    mistake = named(tmp_path, model, stage, {given: grown(largest), stage: held})
    assert (mistake.id, mistake.parameters["type"]) == ("saturated", kind)
    assert mistake.parameters["what"] == "values of ffn_swigl"
    assert mistake.parameters["count"] == 19


@pytest.mark.parametrize(("model", "layer"), PLACES)
def test_squares_of_a_norm_beyond_float16_make_zeros(
    model: str, layer: int, tmp_path: Path
) -> None:
    def zeros(scene: Scene) -> Array:
        square = np.square(scene.inputs[0]).astype(np.float32).max(-1, keepdims=True)
        return np.where(square > FLOAT16, 0.0, scene.right)

    def large(scene: Scene) -> Array:
        out = scene.right.copy()
        out[[2, 5]] *= 300.0 / np.abs(out[[2, 5]]).max(-1, keepdims=True)
        return out

    given, stage = f"layer-{layer}/post_attn_residual", f"layer-{layer}/ffn_norm"
    mistake = named(tmp_path, model, stage, {given: large, stage: zeros})
    assert (mistake.id, mistake.parameters["what"]) == ("overflow", "squares")
    assert mistake.parameters["positions"] == [2, 5]


@pytest.mark.parametrize(("model", "layer"), PLACES)
def test_scores_that_overflow_before_they_are_scaled(
    model: str, layer: int, tmp_path: Path
) -> None:
    def overflowed(scene: Scene) -> Array:
        raw = scene.right / scene.own.scale
        return np.where(np.abs(raw) > FLOAT16, np.copysign(np.inf, raw), scene.right)

    query, stage = f"layer-{layer}/q_post_rope", f"layer-{layer}/attn_scores"
    opened = model_of(FIXTURES / "models" / model)
    scores = next(v for k, v in compute(opened, {}).items() if str(k) == stage)
    scale = next(node.op for node in opened.graph if str(node.key) == stage)
    most = np.abs(scores).max() / scale.scale  # type: ignore[attr-defined]
    mistake = named(tmp_path, model, stage, {query: times(2 * FLOAT16 / most), stage: overflowed})
    assert (mistake.id, mistake.parameters["type"]) == ("overflow", "float16")
    assert mistake.parameters["what"] == "scores before their scale"


@pytest.mark.parametrize(("model", "layer"), PLACES)
def test_sums_that_overflow_on_their_way(model: str, layer: int, tmp_path: Path) -> None:
    """The whole sum fits float16, a running one does not: as float16 accumulates, it is lost."""

    def lost(scene: Scene) -> Array:
        x, matrix = scene.inputs[0], weight(scene)
        most = np.stack([np.abs(np.cumsum(row * matrix, axis=1)).max(1) for row in x])
        assert (most > FLOAT16).any() and (np.abs(scene.right) < FLOAT16).all()
        return np.where(most > FLOAT16, np.nan, scene.right)

    def large(scene: Scene) -> Array:
        """At position 3 the first half of a row's terms add up, the second takes it away again."""
        (row,) = scene.replay.rows(scene.op("ffn_out").parts[0].weight, [17])
        signs, half = np.sign(row), len(row) // 2
        first, second = np.abs(row[:half]).sum(), np.abs(row[half:]).sum()
        out = scene.right.copy()
        out[3] = np.concatenate((signs[:half], -signs[half:] * first / second))
        out[3] *= 1.5 * FLOAT16 / first
        return np.asarray(out)

    given, stage = f"layer-{layer}/ffn_swigl", f"layer-{layer}/ffn_out"
    mistake = named(tmp_path, model, stage, {given: large, stage: lost})
    assert (mistake.id, mistake.parameters["type"]) == ("overflow", "float16")
    assert mistake.parameters["what"] in ("products of ffn_out", "sums on their way of ffn_out")
