"""`aprtui verify FOLDER GGUF`: each pair of llama.cpp's own converter that does not mean the same
is told by the key or tensor that parts it and by every stage that shows it, and by nothing else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from aprtui.cli.main import main
from tests.compare.test_converted import DEFECTS, OTHERS
from tests.gguf_keys import with_keys
from tests.support import FIXTURES, needs_fixtures

UNSEEN = {"afmoe", "hunyuan_v1_dense"}  # what parts these no number of the prompt shows

SEEN = {  # where the numbers part, as about.json proves the cause
    "bamba": {f"layer-{layer}/{part}_post_rope" for layer in (1, 3) for part in "qk"},
    "nemotron_h": {"layer-0/ssm_dt"},
}
ORDERED = ("smollm3", "granitemoehybrid")
"""Layers whose q and k nothing turns, and which the converter ordered all the same."""
DEALT = ("qwen3_5_text", "qwen3_5_moe_text")
"""The converter dealt their value heads round the key heads."""


def verified(
    name: str, capsys: pytest.CaptureFixture[str], other: Path | None = None
) -> tuple[int, dict[str, Any]]:
    folder = FIXTURES / "families" / name
    with np.load(folder / "expected.npz") as expected:
        tokens = ",".join(str(int(token)) for token in expected["tokens"])
    pair = [str(folder), str(other or folder / "model.gguf")]
    code = main(["verify", *pair, "--engines", "aprtui", "--tokens", tokens, "--json"])
    return code, json.loads(capsys.readouterr().out)


@needs_fixtures
@pytest.mark.parametrize("name", DEFECTS)
def test_what_parts_a_pair_is_seen_where_the_files_say_it_and_nowhere_else(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found = verified(name, capsys)
    assert (code, found["verdict"]) == (1, "fail")
    due = DEFECTS[name].lines
    due = due or tuple(f"{key} is {a} in A, {b} in B" for key, a, b in DEFECTS[name].keys)
    assert found["sentence"].startswith(f"not one model: {due[0]}")
    assert all(each["parameters"] for each in found["seen"]), "a stage that no file accounts for"
    assert bool(found["seen"]) == (name not in UNSEEN)
    stages = {f"layer-{each['layer']}/{each['stage']}" for each in found["seen"]}
    assert stages == SEEN.get(name, stages)


@needs_fixtures
@pytest.mark.parametrize("name", dict.fromkeys((*OTHERS[::4], *ORDERED, *DEALT)))
def test_of_a_pair_that_agrees_nothing_is_said(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found = verified(name, capsys)
    assert (code, found["verdict"], found["unseen"]) == (0, "pass", [])
    assert found["seen"] == []
    assert found["passes"]["logits_rel_l2"] < (1e-3 if found["slight"] else 1e-5)  # the GELU's form


@needs_fixtures
def test_a_quantised_file_is_one_model_with_its_folder(capsys: pytest.CaptureFixture[str]) -> None:
    quantised = FIXTURES / "families" / "glm4" / "model-q5_0.gguf"
    code, found = verified("glm4", capsys, quantised)
    assert (code, found["verdict"], found["seen"]) == (0, "pass", None)


@needs_fixtures
def test_a_key_that_was_changed_is_named_with_the_stages_that_show_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = FIXTURES / "families" / "seed_oss" / "model.gguf"
    other = with_keys(source, tmp_path / "model.gguf", {"rope.freq_base": 500.0})
    code, found = verified("seed_oss", capsys, other)
    assert (code, found["verdict"]) == (1, "fail")
    assert "table.theta" in found["sentence"]
    assert {each["stage"] for each in found["seen"]} == {"q_post_rope", "k_post_rope"}
    assert {each["mistake"] for each in found["seen"]} == {"rope_theta"}


@needs_fixtures
@pytest.mark.parametrize(("tensor", "stage"), [
    ("blk.1.ssm_dt.bias", "delta_decay"),
    ("blk.1.ssm_beta.weight", "delta_beta"),
    ("blk.1.ssm_out.weight", "attn_out"),
])  # fmt: skip
def test_of_value_heads_that_lie_otherwise_the_one_that_was_spoilt_is_the_only_culprit(
    tensor: str, stage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoilt = Path(shutil.copy(FIXTURES / "families" / DEALT[0] / "model.gguf", tmp_path))
    (values,) = (e.data for e in gguf.GGUFReader(spoilt, "r+").tensors if e.name == tensor)
    values[1] *= 1.5  # the second head; of ssm_out a row, which holds of all heads

    code, found = verified(DEALT[0], capsys, spoilt)
    assert (code, found["verdict"]) == (1, "fail")
    assert [(each["layer"], each["stage"]) for each in found["seen"]] == [(1, stage)]
    assert all(each["tensors"] for each in found["seen"])


@needs_fixtures
def test_other_engines_are_held_to_the_file_that_they_read(
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("transformers", reason="transformers is a dev dependency")
    folder = FIXTURES / "families" / "gemma2_q20"
    pair = ["verify", str(folder), str(folder / "model.gguf"), "--engines", "aprtui,hf"]
    assert main([*pair, "--tokens", "1,2,3,4,5", "--json"]) == 1
    (engine,) = json.loads(capsys.readouterr().out)["engines"]
    assert (engine["file"], engine["name"], engine["culprits"]) == ("A", "hf", [])
    assert engine["verdict"] in ("same", "explained")


@needs_fixtures
def test_the_verdict_stands_first_and_what_a_pair_has_not_is_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = FIXTURES / "families" / "mellum"
    pair = ["verify", str(folder), str(folder / "model.gguf")]
    assert main([*pair, "--engines", "aprtui", "--tokens", "1,2,3,4,5"]) == 1
    text = capsys.readouterr().out
    assert text.startswith("not one model: q_post_rope, k_post_rope of layers 0, 2: table.theta")
    assert "base 500000 where the model says 10000 [table.theta]" in text
    assert main([*pair, "--paths"]) == 2
    assert "--paths is for one file" in capsys.readouterr().err
