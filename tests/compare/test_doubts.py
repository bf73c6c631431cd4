"""A model that was opened on a person's word accuses nobody of what that word may explain."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from aprtui.compare.bisect import bisect
from aprtui.compare.bisection import Bisection
from aprtui.formats.tracedir import StageKey
from aprtui.model.open import Model, open_model
from aprtui.writer import CaptureWriter
from tests.compare.model_files import small_model
from tests.compare.planting import Scene, compute, write

TOKENS = (3, 14, 15, 9)
SCHEMA = json.loads((Path(__file__).parents[2] / "contracts" / "manifest.schema.json").read_text())


def doubted(root: Path, overrides: dict[str, str], **keys: float) -> Model:
    folder = small_model().folder(root)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **keys}))
    return open_model(folder, overrides)


def wrong(scene: Scene) -> object:
    return scene.right / 8.0


def bisected(root: Path, model: Model, *stages: str) -> Bisection:
    values = compute(model, dict.fromkeys(stages, wrong), tokens=TOKENS)  # type: ignore[arg-type]
    return bisect(model, write(root / "trace", values), tokens=TOKENS)


def test_an_ignored_key_leaves_the_stage_that_it_touches_unmeasured(tmp_path: Path) -> None:
    model = doubted(tmp_path / "m", {"ignore_keys": "logits_scaling"}, logits_scaling=8.0)
    found = bisected(tmp_path, model, "lm_head", "layer-1/ffn_out")
    assert [culprit.key for culprit in found.culprits] == [StageKey(1, "ffn_out")]
    (skipped,) = found.unmeasured
    assert skipped.key == StageKey(None, "lm_head")
    assert "logits_scaling (8.0)" in skipped.why
    assert found.exit_code == 1


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ({"ignore_keys": "residual_multiplier"}, "residual_multiplier (0.2)"),
        ({"rope_theta": "5000"}, "rope_theta (5000, the file says"),
    ],
)
def test_a_key_that_may_touch_any_stage_accuses_none(
    tmp_path: Path, overrides: dict[str, str], told: str
) -> None:
    keys = {"residual_multiplier": 0.2} if "ignore_keys" in overrides else {}
    found = bisected(tmp_path, doubted(tmp_path / "m", overrides, **keys), "layer-1/ffn_out")
    assert found.culprits == ()
    (skipped,) = found.unmeasured
    assert skipped.key == StageKey(1, "ffn_out")
    assert "local error" in skipped.why and told in skipped.why


def test_a_doubted_model_still_explains_what_is_right(tmp_path: Path) -> None:
    model = doubted(tmp_path / "m", {"rope_theta": "5000"})
    found = bisected(tmp_path, model)
    assert found.exit_code == 0 and set(found.explanations) == {"float32"}


def test_a_stage_of_the_wrong_size_is_doubted_too(tmp_path: Path) -> None:
    model = doubted(tmp_path / "m", {"rope_theta": "5000"})
    values = compute(model, {}, tokens=TOKENS)
    key = StageKey(1, "ffn_out")
    values[key] = values[key][:, :-1]
    found = bisect(model, write(tmp_path / "trace", values), tokens=TOKENS)
    assert found.culprits == ()
    assert any(each.key == key and "rope_theta" in each.why for each in found.unmeasured)


def test_the_manifest_carries_what_was_ignored_and_overridden(tmp_path: Path) -> None:
    overrides = {"ignore_keys": "logits_scaling", "rope_theta": "5000"}
    model = doubted(tmp_path / "m", overrides, logits_scaling=8.0)
    values = compute(model, {}, tokens=TOKENS)
    with CaptureWriter(
        tmp_path / "trace", tokens=TOKENS, engine={"name": "mine"}, model=model
    ) as capture:
        capture.put("embedding", values[StageKey(0, "embedding")])
    manifest = json.loads((tmp_path / "trace" / "trace.json").read_text())
    jsonschema.validate(manifest, SCHEMA)
    doubts = {each["key"]: each for each in manifest["model"]["doubts"]}
    assert doubts["logits_scaling"] == {
        "key": "logits_scaling",
        "value": "8.0",
        "stages": ["lm_head"],
    }
    assert doubts["rope_theta"]["stages"] is None
    assert doubts["rope_theta"]["value"].startswith("5000, the file says")
