"""Folders and the GGUFs that llama.cpp's own converter made of them (shared/fixtures/families): the
pairs that do not mean the same are told by what parts them, the others are the same model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import jsonschema
import pytest

from aprtui.cli.main import main
from aprtui.compare.weight_results import ModelComparison
from aprtui.compare.weights import diff_models
from tests.families import TINY
from tests.support import FIXTURES, needs_fixtures

SCHEMA = Path(__file__).parents[2] / "contracts" / "weights.schema.json"
CASES = sorted({name for tiny in TINY.values() for name in tiny.fixtures})


@dataclass(frozen=True)
class Defect:
    """What parts a pair, as about.json's note tells it: the ``lines`` of what is computed
    otherwise, and the ``keys`` that differ with what A and B say."""

    lines: tuple[str, ...] = ()
    keys: tuple[tuple[str, str, str], ...] = ()
    note: str = ""


DEFECTS = {
    "deepseek_v2_groups": Defect(
        ("moe_router_indices of layers 1-2: choose.best is 1 in A, 2 in B",),
        (("architecture", "deepseek_v2", "deepseek_v3"),),
        "topk_method group_limited_greedy",
    ),
    "deepseek_v3_nofunc": Defect(
        (
            "moe_router_indices of layers 1-2: choose.score is sigmoid in A, softmax in B",
            "moe_router of layers 1-2: route.score is sigmoid in A, softmax in B",
        ),
        note="expert_gating_func is not stated",
    ),
    "exaone4_swa": Defect(
        (
            "attn_scores, attn_softmax of layers 0-2: mask.window is 4 in A, None in B",
            "q_post_rope, k_post_rope of layer 3: the stage is none in A, rope in B",
        ),
        (
            ("sliding_window", "4", "None"),
            ("window_layers", "4 values: yes, yes, yes, no", "no"),
            ("rope_layers", "4 values: yes, yes, yes, no", "4 values: yes, yes, yes, yes"),
        ),
        "sliding_window 4 is not computed",
    ),
    "gemma2_q20": Defect(
        ("attn_scores of layers 0-1: scores.scale is 0.2236068 in A, 0.2041241 in B",),
        (("query_pre_attn_scalar", "20", "24"), ("score_scale", "0.2236068", "0.2041241")),
    ),
    "gemma3n_text": Defect(
        ("ffn_sparse of layers 0-1: outliers.unbiased is no in A, yes in B",),
    ),
    "gemma4_nocap": Defect(
        ("lm_head: product.cap is None in A, 30 in B",),
        (("logit_softcap", "None", "30"),),
        "gemma4's default 30.0 is used",
    ),
    "glm_eps": Defect(
        ("attn_norm, ffn_norm, final_norm: norm.eps is 1.5625e-07 in A, 1e-05 in B",),
        (("rms_norm_eps", "1.5625e-07", "1e-05"),),
    ),
    "gpt_oss": Defect(
        (
            "q_post_rope, k_post_rope of layers 0-1: table.divisors is "
            "8 values: 1, 1, 1, 1.685695, 5.656254, 32, 32, 32 in A, "
            "8 values: 1, 1, 1, 1.476923, 2.823529, 32, 32, 32 in B",
        ),
        (
            ("rope_truncate", "no", "yes"),
            (
                "rope_divisors",
                "8 values: 1, 1, 1, 1.685695, 5.656254, 32, 32, 32",
                "8 values: 1, 1, 1, 1.476923, 2.823529, 32, 32, 32",
            ),
        ),
    ),
    "mellum": Defect(
        ("q_post_rope, k_post_rope of layers 0, 2: table.theta is 10000 in A, 500000 in B",),
        note="rope_theta_local 10000 is not computed",
    ),
    "phimoe": Defect(
        (
            "attn_norm, ffn_norm, final_norm: norm.centred is yes in A, no in B",
            "moe_router_indices of layers 0-1: choose.score is none in A, softmax in B",
            "moe_router of layers 0-1: route.score is mixer in A, softmax in B",
            "moe_router of layers 0-1: route.renormalise is no in A, yes in B",
            "moe_router of layers 0-1: route.jitter is 0.01 in A, 0 in B",
        ),
        note="LayerNorm and SparseMixer",
    ),
    # The router of the fixture is all zeros: the logits cannot show it. config.json has no
    # route_norm, so the GGUF has no expert_weights_norm, and llama.cpp divides by no sum.
    "afmoe": Defect(
        ("moe_router of layers 1-3: route.renormalise is yes in A, no in B",),
        (("norm_topk_prob", "yes", "no"),),
    ),
    "bamba": Defect(
        ("q_post_rope, k_post_rope of layers 1, 3: rope.pair_distance is 2 in A, 4 in B",),
        (("architecture", "bamba", "granitemoehybrid"),),
    ),
    # No GGUF says from where on a step counts: llama.cpp bounds none.
    "nemotron_h": Defect(("ssm_dt of layer 0: steps.low is 0.001 in A, 0 in B",)),
    # The logits agree; where a reply ends does not.
    "hunyuan_v1_dense": Defect(keys=(("eos_id", "2", "3"),)),
}
"""The pairs that do not mean the same; all others do."""
OTHERS = [name for name in CASES if name not in DEFECTS]


def assert_same_tensors(found: ModelComparison) -> None:
    assert set(found.counts) <= {"equal", "same-bytes", "rounding"}
    rounded = [each.metrics for each in found.tensors if each.kind == "rounding"]
    assert all(each is not None and each.rel_l2 < 1e-6 for each in rounded)  # exp, of a decay


def compared(name: str) -> ModelComparison:
    folder = FIXTURES / "families" / name
    return diff_models(folder, folder / "model.gguf")


@needs_fixtures
def test_the_table_holds_every_pair_that_the_two_programs_compute_otherwise() -> None:
    known = {
        name for name in CASES
        if json.loads((FIXTURES / "families" / name / "about.json").read_text())["verdict"]
        .startswith("disagree")
    }  # fmt: skip
    assert known == set(DEFECTS) - {"afmoe", "hunyuan_v1_dense", "nemotron_h"}


@needs_fixtures
@pytest.mark.parametrize("name", DEFECTS)
def test_what_parts_a_pair_is_named_and_nothing_else(name: str) -> None:
    found, due = compared(name), DEFECTS[name]
    assert (found.verdict, found.exit_code()) == ("fail", 1)
    assert_same_tensors(found)
    assert tuple(str(each) for each in found.computation if each.kind == "differs") == due.lines
    keys = {(each.key, each.a, each.b) for each in found.settings if each.kind == "differs"}
    assert keys == set(due.keys)
    assert {each.kind for each in found.settings} <= {"differs", "no-effect"}
    assert any(due.note in note for note in found.notes) or not due.note


@needs_fixtures
@pytest.mark.parametrize("name", OTHERS)
def test_a_pair_that_agrees_is_the_same_model(name: str) -> None:
    found = compared(name)
    assert (found.verdict, found.exit_code()) == ("pass", 0)
    assert_same_tensors(found)
    assert all(each.kind == "slight" for each in found.computation)
    assert all(each.kind == "no-effect" for each in found.settings)


QUANTISED = ("deepseek_v3-q8_0", "glm4-q5_0", "minimax_m2-q4_0", "qwen3_5_moe_text-q8_0")


@needs_fixtures
@pytest.mark.parametrize("name", QUANTISED)
def test_what_llama_cpp_quantised_is_the_folder_but_for_its_rounding(name: str) -> None:
    case, kind = name.split("-")
    folder = FIXTURES / "families" / case
    found = diff_models(folder, folder / f"model-{kind}.gguf")
    assert (found.verdict, found.exit_code()) == ("pass", 0)
    assert set(found.counts) == {"equal", "rounding"}


@needs_fixtures
def test_the_command_says_what_is_computed_otherwise_under_the_verdict(
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = FIXTURES / "families" / "mellum"
    pair = [str(folder), str(folder / "model.gguf")]
    assert main(["diff", *pair]) == 1
    text = capsys.readouterr().out
    assert "FAIL: not the same model\n\nComputed otherwise:\n  q_post_rope, k_post_rope of" in text
    assert main(["diff", *pair, "--json"]) == 1
    printed = json.loads(capsys.readouterr().out)
    jsonschema.validate(printed, json.loads(SCHEMA.read_text()))
    assert printed["computation"] == [{
        "parameter": "table.theta", "kind": "differs", "a": "10000", "b": "500000",
        "stages": ["q_post_rope", "k_post_rope"], "layers": [0, 2],
    }]  # fmt: skip
