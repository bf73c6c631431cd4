"""`aprtui bisect` through the command line: contracts/culprit-finding-v1.yaml."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aprtui.cli.main import main
from tests.support import SMALL


def bisect(capsys: pytest.CaptureFixture[str], model: Path, name: str) -> tuple[int, object]:
    """The exit code and JSON of a bisection of one capture that another program computed."""
    cases = json.loads((SMALL / "faults" / "cases.json").read_text())
    tokens = next(case["token_ids"] for case in cases if case["capture"] == name)
    words = ["bisect", str(SMALL / "faults" / name), "--model", str(model), "--json"]
    code = main([*words, "--tokens", ",".join(map(str, tokens))])
    return code, json.loads(capsys.readouterr().out)


def test_one_wrong_block_under_honest_rounding_is_named(
    qwen2: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """32 weights doubled in a capture whose activations are rounded as llama.cpp rounds them."""
    code, found = bisect(capsys, qwen2, "bad-block-gate-L3-ggml")
    assert code == 1
    assert isinstance(found, dict)
    (culprit,) = found["culprits"]
    assert (culprit["layer"], culprit["stage"]) == (3, "ffn_gate")
    mistake = culprit["mistake"]
    assert mistake["id"] == "bad_block"
    assert (mistake["parameters"]["row"], mistake["parameters"]["block"]) == (17, 3)
    assert mistake["parameters"]["factor"] == pytest.approx(2.0, rel=1e-5)
    assert mistake["residual_rel_l2"] <= 1e-5


def test_honest_rounding_is_no_culprit(qwen2: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = bisect(capsys, qwen2, "honest-ggml-qwen2")
    assert isinstance(found, dict)
    assert (code, found["culprits"], found["unmeasured"]) == (0, [], [])
    assert any("Q8_K" in stage["by"] for stage in found["explained"])
    assert all(stage["residual_rel_l2"] <= 1e-5 for stage in found["explained"])
