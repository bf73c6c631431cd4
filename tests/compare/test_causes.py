"""One cause, one line: the same mistake of many stages, exchanges, and what their weights share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from aprtui.cli.main import main
from aprtui.compare.bisect import bisect
from aprtui.compare.bisection import Bisection
from aprtui.compare.causes import shared_by
from tests.compare.planting import TOKENS, Plant, Scene, compute, model_of, write
from tests.compare.test_mistakes import LLAMA, QWEN2, QWEN3
from tests.support import FIXTURES, needs_fixtures

Array = npt.NDArray[np.float64]


def found_in(root: Path, model: str, plants: dict[str, Plant]) -> Bisection:
    opened = model_of(FIXTURES / "models" / model)
    return bisect(opened, write(root, compute(opened, plants)), tokens=TOKENS)


def by(layer: int, name: str) -> Plant:
    """A product with the matrix of another place."""
    from aprtui.graph import Role

    def plant(s: Scene) -> Array:
        role = Role(name, layer)
        weight = s.replay.rows(role, range(s.replay.shape(role)[0]))
        return np.asarray(s.inputs[0].reshape(len(s.inputs[0]), -1) @ weight.T)

    return plant


@needs_fixtures
@pytest.mark.parametrize(("model", "layer"), [(QWEN2, 1), (LLAMA, 0), (QWEN3, 3)])
def test_gate_and_up_exchanged_is_one_cause(model: str, layer: int, tmp_path: Path) -> None:
    plants = {
        f"layer-{layer}/ffn_gate": by(layer, "up"),
        f"layer-{layer}/ffn_up": by(layer, "gate"),
    }
    found = found_in(tmp_path, model, plants)
    (cause,) = found.causes
    assert cause.id == "gate_up_swapped"
    assert cause.text == "gate and up are in each other's place"
    assert [each.key.stage for each in cause.culprits] == ["ffn_gate", "ffn_up"]


@needs_fixtures
def test_two_layers_exchanged_is_one_cause(tmp_path: Path) -> None:
    plants = {
        f"layer-{here}/{stage}": by(there, name)
        for here, there in ((1, 2), (2, 1))
        for stage, name in (("ffn_gate", "gate"), ("ffn_up", "up"), ("attn_out", "o"))
    }
    found = found_in(tmp_path, QWEN2, plants)
    (cause,) = found.causes
    assert (cause.id, cause.text) == ("layers_swapped", "layers 1 and 2 are in each other's place")
    assert len(cause.culprits) == 6
    assert all(each.mistake is not None and each.mistake.id == "other_layer"
               for each in found.culprits)  # fmt: skip


@needs_fixtures
def test_what_has_no_name_is_one_line_a_stage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(1)

    def noise(s: Scene) -> Array:
        return s.right * (1 + 1e-2 * rng.standard_normal(s.right.shape))

    found = found_in(tmp_path, QWEN2, {f"layer-{layer}/ffn_gate": noise for layer in range(4)})
    (cause,) = found.causes
    assert (cause.id, cause.where) == ("", "ffn_gate of layers 0-3")
    assert cause.pattern == "every product with gate (4), none of the 25 others"
    model = str(FIXTURES / "models" / QWEN2)
    assert main(["bisect", str(tmp_path), "--model", model]) == 1
    assert "blk.0.ffn_gate.weight (Q4_K)" in capsys.readouterr().out


@needs_fixtures
def test_a_type_beyond_its_range_is_named(tmp_path: Path) -> None:
    """Outputs beyond float16's largest number became Inf, all others are right."""

    def overflowed(s: Scene) -> Array:
        out = s.right.copy()
        out[np.abs(out) > 65504] = np.inf
        return out

    def large(s: Scene) -> Array:
        return np.asarray(s.right * 1e5)

    opened = model_of(FIXTURES / "models" / LLAMA)
    values = compute(opened, {"layer-1/ffn_norm": large, "layer-1/ffn_up": overflowed})
    found = bisect(opened, write(tmp_path, values), tokens=TOKENS)
    culprit = next(each for each in found.culprits if each.key.stage == "ffn_up")
    assert culprit.mistake is not None
    assert culprit.mistake.id == "overflow"
    assert culprit.mistake.parameters["type"] == "float16"
    assert culprit.mistake.parameters["what"] == "outputs"


@pytest.mark.parametrize(
    ("wrong", "right", "said"),
    [
        ([("down", "Q6_K")] * 3, [("down", "Q4_K"), ("head", "Q6_K")], "down of type Q6_K"),
        ([("down", "Q4_K"), ("q", "Q4_K"), ("o", "Q4_K")], [("v", "Q6_K")], "weights of type Q4_K"),
        ([("down", "Q4_K"), ("down", "Q6_K"), ("down", "Q4_K")], [("o", "Q4_K")], "down"),
        ([("down", "Q4_K")] * 2, [("o", "Q6_K")], ""),
        ([("down", "Q4_K")] * 3, [("down", "Q4_K")], ""),
    ],
)
def test_what_parts_the_wrong_from_the_right(
    wrong: list[tuple[str, str]], right: list[tuple[str, str]], said: str
) -> None:
    assert shared_by(wrong, right) == said
