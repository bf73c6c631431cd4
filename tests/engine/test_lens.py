"""The logit lens against other programs' logits: the last residual must say what lm_head says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from aprtui.engine.job import TraceJob
from aprtui.engine.lens import main
from aprtui.engine.plan import make_plan
from aprtui.engine.run import run_trace
from aprtui.formats.aprt import read_values
from tests.support import FIXTURES, needs_fixtures

CASES = [
    ("qwen2-q4_k_m", "layer-3/post_ffn_residual"),
    ("qwen2-q4_k_m", "final_norm"),
    ("gemma3-q4_0", "layer-6/post_ffn_residual"),
]


@needs_fixtures
@pytest.mark.parametrize(("name", "stage"), CASES)
def test_the_last_residual_says_what_the_logits_say(
    name: str, stage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    capture = FIXTURES / "captures" / name / "float64"
    logits = read_values(capture / "lm_head.bin").astype(np.float64)
    wanted = np.exp(logits - logits.max())
    wanted /= wanted.sum()
    model = FIXTURES / "models" / f"{name}.gguf"
    assert main(["--model", str(model), str(capture / f"{stage}.bin")]) == 0
    said = json.loads(capsys.readouterr().out)
    last = said["top"][-1]
    assert [token for token, _, _ in last] == np.argsort(-logits)[: len(last)].tolist()
    assert [p for _, _, p in last] == pytest.approx([wanted[i] for i, _, _ in last], rel=1e-3)


@needs_fixtures
def test_a_file_that_is_not_rows_is_told_and_the_others_go_on(
    capsys: pytest.CaptureFixture[str],
) -> None:
    capture = FIXTURES / "captures" / "qwen2-q4_k_m" / "float64"
    files = [capture / "layer-0" / "attn_scores.bin", Path("/nowhere.bin"),
             capture / "final_norm.bin"]  # fmt: skip
    assert main(["--model", str(FIXTURES / "models" / "qwen2-q4_k_m.gguf"), *map(str, files)]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["event"] for line in lines] == ["error", "error", "lens"]
    assert "rows of 256" in lines[0]["message"]


@needs_fixtures
@pytest.mark.parametrize("place", [0, 5, 1000, -1])
def test_a_token_that_is_asked_about_has_the_rank_and_probability_of_its_logit(
    place: int, capsys: pytest.CaptureFixture[str]
) -> None:
    capture = FIXTURES / "captures" / "qwen2-q4_k_m" / "float64"
    logits = read_values(capture / "lm_head.bin").astype(np.float64)
    wanted = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    token = int(np.argsort(-logits)[place])
    rank = 1 + int((logits > logits[token]).sum())
    model = str(FIXTURES / "models" / "qwen2-q4_k_m.gguf")
    assert main(["--model", model, "--token", str(token), str(capture / "final_norm.bin")]) == 0
    said = json.loads(capsys.readouterr().out)
    assert len(said["asked"]) == len(said["top"])
    assert abs(said["asked"][-1][0] - rank) <= 1  # of two neighbours that float32 may swap
    assert said["asked"][-1][1] == pytest.approx(wanted[token], rel=1e-3)


@needs_fixtures
def test_a_token_that_the_model_does_not_have_is_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = str(FIXTURES / "models" / "qwen2-q4_k_m.gguf")
    assert main(["--model", model, "--token", "99999999", "/nowhere.bin"]) == 2
    assert "token 99999999 is none of" in json.loads(capsys.readouterr().out)["message"]


def test_a_head_that_reads_a_product_of_the_stream_is_given_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """OPT-350m's: no final norm, and a token table that is narrower than the hidden."""
    pytest.importorskip("transformers", reason="transformers is a dev dependency")
    from tests.families import TINY, save_tiny

    save_tiny(TINY["opt-behind"], tmp_path / "model")
    job = TraceJob(str(tmp_path / "model"), str(tmp_path / "trace"), tokens=(5, 9, 33, 71))
    run_trace(make_plan(job), lambda event: None)
    logits = read_values(tmp_path / "trace" / "lm_head.bin")
    residual = tmp_path / "trace" / "layer-2" / "post_ffn_residual.bin"
    assert main(["--model", str(tmp_path / "model"), str(residual)]) == 0
    last = json.loads(capsys.readouterr().out)["top"][-1]
    assert [token for token, _, _ in last] == np.argsort(-logits)[: len(last)].tolist()
