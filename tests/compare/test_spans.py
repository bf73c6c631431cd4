"""Spans of a capture with holes: honest rounding inside them is no bug, and hides none."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aprtui.compare.bisect import bisect
from aprtui.compare.bisection import Bisection
from aprtui.compare.infer import open_any
from aprtui.formats.aprt import read_values, write_stage
from aprtui.formats.perop import PerOpDir
from aprtui.formats.tracedir import open_trace
from aprtui.model.open import open_model
from tests.compare.captures import split_by_position
from tests.support import FIXTURES, SMALL, needs_fixtures

CAPTURES = sorted(FIXTURES.glob("captures/*/capture.json"))


def _culprits(found: Bisection) -> list[str]:
    return [str(culprit.key) for culprit in found.culprits]


def _bisect(model: Path, b: Path) -> Bisection:
    return bisect(open_model(model), open_trace(b))


def _change(path: Path, layer: int | None, change: Any) -> None:
    write_stage(path, layer, change(np.array(read_values(path))))


# What a GPU's per-op folder does not hold: the products of qkv, gate and up.
UNSEEN = frozenset({"qkv_matmul", "qkv_bias", "ffn_gate", "ffn_up", "ffn_silu", "attn_scores"})


@needs_fixtures
def test_one_wrong_position_of_a_span_is_a_culprit(tmp_path: Path) -> None:
    """Rounding touches every position; where the others are float32's, one is not rounding."""
    capture = FIXTURES / "captures/qwen2-q4_k_m/float64"
    without_head = frozenset({"lm_head"})
    split_by_position(capture, tmp_path / "cpu", 12, drop=without_head)
    split_by_position(capture, tmp_path / "gpu", 12, drop=without_head | UNSEEN)
    for layer in range(4):
        path = tmp_path / f"gpu/pos-0003/layer-{layer}/ffn_swigl.bin"
        _change(path, layer, lambda values: values * np.float32(1.1))
    sides = open_any(tmp_path)
    assert isinstance(sides, PerOpDir)
    found = bisect(open_model(FIXTURES / "models/qwen2-q4_k_m.gguf"), sides.gpu, sides.cpu)
    stages = ("ffn_swigl", "ffn_out")  # what reads the spoiled file cannot have come from it
    assert _culprits(found) == [f"layer-{n}/{stage}" for n in range(4) for stage in stages]
    assert {c.span for c in found.culprits} == {("ffn_gate", "ffn_silu", "ffn_up"), ()}
    assert {c.worst["position"] for c in found.culprits} == {3}
    assert [str(each.key) for each in found.unmeasured] == ["lm_head"]


@needs_fixtures
@pytest.mark.parametrize(("engine", "culprits"), [("float64", 1), ("llamacpp", 0)])
def test_rounding_excuses_a_span_only_where_the_capture_rounds(
    engine: str, culprits: int, tmp_path: Path
) -> None:
    """Every position 1 % too large: attn_out, with weights of the same type, tells which it is."""
    copy = tmp_path / "capture"
    shutil.copytree(FIXTURES / f"captures/qwen2-q4_k_m/{engine}", copy)
    for stage in UNSEEN:
        for path in copy.glob(f"layer-*/{stage}.bin"):
            path.unlink()
    path = copy / "layer-1/ffn_swigl.bin"
    path.chmod(0o644)
    _change(path, 1, lambda values: values * np.float32(1.01))
    found = _bisect(FIXTURES / "models/qwen2-q4_k_m.gguf", copy)
    assert _culprits(found)[:culprits] == ["layer-1/ffn_swigl"] * culprits
    left = [str(each.key) for each in found.unmeasured if "rounding" in each.why]
    assert left == ["layer-1/ffn_swigl"] * (1 - culprits)


@needs_fixtures
@pytest.mark.parametrize("path", CAPTURES, ids=lambda path: path.parent.name)
def test_an_honest_capture_with_holes_has_no_culprit(path: Path) -> None:
    model = open_model(FIXTURES / "models" / f"{path.parent.name}.gguf")
    tokens = tuple(json.loads(path.read_text())["token_ids"])
    for engine in sorted(folder for folder in path.parent.iterdir() if folder.is_dir()):
        trace = open_trace(engine)
        for holes in (UNSEEN, UNSEEN | {"ffn_norm", "ffn_swigl", "attn_norm", "attention"}):
            kept = {key: r for key, r in trace.records.items() if key.stage not in holes}
            found = bisect(model, dataclasses.replace(trace, records=kept), tokens=tokens)
            assert found.culprits == ()


def test_the_whole_model_is_one_span(tmp_path: Path, qwen2: Path) -> None:
    """Logits are one position: a logit near zero is no position of its own."""
    source = SMALL / "captures/qwen2-q4_k_m/float64"
    for name in ("layer-0/embedding.bin", "lm_head.bin"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(source / name, tmp_path / name)
    found = _bisect(qwen2, tmp_path)
    assert (found.culprits, found.unmeasured, found.exit_code) == ((), (), 0)
    assert [(str(each.key), each.by) for each in found.explained] == [
        ("layer-0/embedding", "float32"),
        ("lm_head", "float32"),
    ]


# Positions 276 to 278 of llama.cpp's pass over 3 i mod 2,000, i < 300, as aprtui trace --engine
# llamacpp wrote them: in the middle one an activation inside an expert lies next to a tie.
TIE = SMALL / "llamacpp/moe-tie"


@needs_fixtures
def test_a_rounding_tie_inside_the_experts_is_explained(tmp_path: Path) -> None:
    model = FIXTURES / "models/qwen3moe-q4_k_m.gguf"
    found = _bisect(model, TIE)
    assert found.culprits == ()
    (experts,) = [each for each in found.explained if each.key.stage == "moe_ffn_out"]
    assert experts.by == "activations rounded to Q8_K, 1 tie inside the other way"
    assert experts.residual_rel_l2 < 1e-6
    copy = tmp_path / "capture"
    shutil.copytree(TIE, copy)

    def spoil(values: Any) -> Any:
        values[256:512] *= np.float32(1.0005)  # as large an error as the tie's
        return values

    _change(copy / "layer-2/moe_ffn_out.bin", 2, spoil)
    assert _culprits(_bisect(model, copy)) == ["layer-2/moe_ffn_out"]
