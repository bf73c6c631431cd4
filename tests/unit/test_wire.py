"""Findings on one wire: what a process prints is read as the value that it had."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from aprtui.compare import weight_wire
from aprtui.compare.bisection import (
    Bisection,
    Culprit,
    Divergence,
    Explained,
    Mistake,
    Unmeasured,
    Within,
)
from aprtui.compare.causes import Read, causes_of
from aprtui.compare.computation import Otherwise
from aprtui.compare.model_settings import Setting
from aprtui.compare.weight_results import (
    Look,
    ModelComparison,
    ModelSide,
    TensorResult,
    TensorSide,
    WeightMetrics,
)
from aprtui.compare.wire import from_json
from aprtui.formats.rows import Rows
from aprtui.formats.tracedir import StageKey
from aprtui.graph import Role

CONTRACTS = Path(__file__).resolve().parents[2] / "contracts"
SCHEMA = CONTRACTS / "bisect.schema.json"
WEIGHTS = CONTRACTS / "weights.schema.json"
GATE, NORM = StageKey(3, "ffn_gate"), StageKey(None, "final_norm")
READ = Read(GATE, "gate", "ffn_gate", "blk.3.ffn_gate.weight", "Q4_K", product=True, wrong=True)
CULPRITS = (
    Culprit(
        GATE, "differs", ("ffn_norm",), 0.012, 0.3, {"position": 4, "channel": 17}, ("gate",),
        "channel 17 of every position",
        Mistake("bad_block", "a block is doubled", {"row": 17, "factors": [2.0, 0.5]}, 5e-8),
        0.001, Rows((0, 1, 4), (0, 0, 1), 0, 2), "position 4, pass 1", (READ,),
    ),
    Culprit(NORM, "shape", (), None, None, {}, (), "as if head_dim 64 were used", None),
)  # fmt: skip
SIDE = Bisection(
    CULPRITS,
    (Explained(StageKey(0, "q"), "Q8_K", {"q": "Q8_K"}, 1e-9, 1e-3, (), 0.1, 0.02),
     Explained(StageKey(0, "k"), "float32", {}, 1e-9, 1e-9)),
    (Unmeasured(StageKey(1, "q"), "its file is cut short", damaged=True),),
    None, (1e-5, 1e-4), 3, "given", ("a note",), weighted=frozenset({"ffn_gate", "q"}),
    within=(Within(StageKey(1, "attention"), "bfloat16", 0.4, 1.2, 2e-3, ("scores",), None),),
    causes=causes_of(CULPRITS, ()),
)  # fmt: skip
WHOLE = replace(
    SIDE, first_divergence=Divergence(GATE, "differs", "rel_l2 0.2 > 0.1"), reference=SIDE,
    model="m.gguf", a="a", b="b",
)  # fmt: skip


def through(found: Bisection) -> Bisection:
    document = json.loads(json.dumps(found.to_json(), allow_nan=False))
    jsonschema.validate(document, json.loads(SCHEMA.read_text()))
    return from_json(document)


@pytest.mark.parametrize("found", [SIDE, WHOLE, replace(SIDE, culprits=(), causes=())])
def test_a_bisection_comes_through_as_it_was(found: Bisection) -> None:
    read = through(found)
    assert read == found
    assert (read.headline, read.exit_code, read.verdict) == (
        found.headline, found.exit_code, found.verdict,
    )  # fmt: skip
    assert [(c.where, c.proof) for c in read.causes] == [(c.where, c.proof) for c in found.causes]


def test_numbers_that_are_none_come_through() -> None:
    odd = replace(CULPRITS[0], local_rel_l2=float("inf"), worst_row_rel_l2=float("nan"))
    read = through(replace(SIDE, culprits=(odd,), causes=())).culprits[0]
    assert read.local_rel_l2 == float("inf")
    assert read.worst_row_rel_l2 is not None and read.worst_row_rel_l2 != read.worst_row_rel_l2


@pytest.mark.parametrize(
    "wrong",
    [
        {"schema": "another"},
        {"culprits": [3]},
        {"explained": None},
        {"notes": [5]},
        {"bar": {"rel_l2": "high", "worst_row_rel_l2": 1}},
        {"unmeasured": [{"layer": 1, "stage": "../x", "why": "", "damaged": False}]},
    ],
    ids=lambda each: next(iter(each)),
)
def test_what_is_no_bisection_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        from_json({**SIDE.to_json(), **wrong})


def test_text_is_cleaned_where_it_is_read() -> None:
    document = {**SIDE.to_json(), "notes": ["\x1b[31m red"]}
    assert "\x1b" not in from_json(document).notes[0]


# -- two models ------------------------------------------------------------------------------------


STORED = TensorSide("blk.3.ffn_gate.weight", "Q4_K", (512, 256))
MODELS = ModelComparison(
    ModelSide("a.gguf", "gguf", "qwen2", 3_200_000, "1f" * 32, ("F32", "Q4_K"), False),
    ModelSide("b.apr", "apr", "qwen2", 3_100_000, "2f" * 32, ("F32",), True),
    (
        TensorResult(Role("gate", 3), "differs", STORED, STORED, 0.12,
                     WeightMetrics(0.6, 0.9, 2.0, 0.3, (17, 3), 1.2, 17, 0.01, 0, 2),
                     Look("scaled", "A times 2", 5e-8, {"factor": 2.0, "rows": [1, 2]}), "why"),
        TensorResult(Role("up", 1, 4), "missing-b", STORED, None, folded=True),
        TensorResult(Role("embedding"), "shape", STORED, STORED,
                     looks_like=Look("nonfinite", "NaN", None)),
    ),
    (Otherwise("rope.theta", "differs", "1e4", "1e6", ("q_rope", "k_rope"), (0, 1)),),
    (Setting("rope_theta", "differs", "10000", "1000000", "in the key"),),
    (Setting("tokens", "equal", "2048", "2048"),),
    (STORED,), (), ("a note",),
)  # fmt: skip


def models_through(found: ModelComparison) -> ModelComparison:
    document = json.loads(json.dumps(found.to_json(), allow_nan=False))
    jsonschema.validate(document, json.loads(WEIGHTS.read_text()))
    return weight_wire.from_json(document)


def test_a_comparison_of_two_models_comes_through_as_it_was() -> None:
    read = models_through(MODELS)
    assert read == MODELS
    assert (read.verdict, read.counts, read.patterns) == (
        MODELS.verdict, MODELS.counts, MODELS.patterns,
    )  # fmt: skip
    metrics = MODELS.tensors[0].metrics
    assert metrics is not None
    apart = replace(metrics, rel_l2=float("inf"))
    odd = replace(MODELS, tensors=(replace(MODELS.tensors[0], metrics=apart),))
    assert models_through(odd) == odd


@pytest.mark.parametrize(
    "wrong",
    [
        {"schema": "another"},
        {"a": None},
        {"tensors": [3]},
        {"tensors": [{**MODELS.to_json()["tensors"][0], "class": "odd"}]},
        {"unused_a": [{"name": "x", "type": "F32", "shape": [1]}]},
        {"config": [{"key": 5}]},
        {"notes": [5]},
    ],
    ids=["schema", "a", "tensors", "class", "shape", "config", "notes"],
)
def test_what_is_no_comparison_of_models_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        weight_wire.from_json({**MODELS.to_json(), **wrong})


def test_what_a_comparison_names_is_cleaned_where_it_is_read() -> None:
    document = {**MODELS.to_json(), "notes": ["\x1b[31m red"]}
    assert "\x1b" not in weight_wire.from_json(document).notes[0]
