"""`aprtui import`: blocks byte for byte where .apr holds them, the rest as chosen and said."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from aprtui.cli.main import main
from aprtui.engine.job import TraceJob
from aprtui.engine.plan import make_plan
from aprtui.engine.run import run_trace
from aprtui.formats.aprt import read_values
from aprtui.formats.modelfile import tensor_bytes
from aprtui.model.open import open_model
from tests.support import FIXTURES, needs_fixtures


def convert(source: Path, out: Path, *options: str) -> int:
    return main(["import", str(source), "-o", str(out), *options])


def logits(model: Path, out: Path) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    job = TraceJob(model=str(model), directory=str(out), prompt="def f(x):", stages="lm_head")
    run_trace(make_plan(job), lambda event: None)
    return np.array(read_values(out / "lm_head.bin"))


def test_q4_k_and_q6_k_are_kept_byte_for_byte(
    qwen2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert(qwen2, tmp_path / "m.apr", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["kept"], said["tensors"], said["converted"]) == (51, 51, {})
    source, copy = open_model(qwen2), open_model(tmp_path / "m.apr")
    for role, matrix in source.weights.items():
        written = copy.weights[role].entry
        assert (written.name, written.shape) == (matrix.entry.name, matrix.entry.shape)
        assert np.array_equal(tensor_bytes(written), tensor_bytes(matrix.entry)), role
    assert np.array_equal(logits(qwen2, tmp_path / "a"), logits(tmp_path / "m.apr", tmp_path / "b"))


@needs_fixtures
@pytest.mark.parametrize(
    "name", ["llama-q4_k_m", "qwen3-q6_k", "qwen3moe-q4_k_m", "gemma3-q4_0", "llamaspm-q4_0"]
)
def test_every_family_computes_the_same_after_import(name: str, tmp_path: Path) -> None:
    """Configuration, row order, windows, tokenizer and weights arrive; f16 rounds by 2^-11."""
    source = FIXTURES / "models" / f"{name}.gguf"
    assert convert(source, tmp_path / "m.apr") == 0
    before, after = open_model(source).graph, open_model(tmp_path / "m.apr").graph
    assert before == after
    assert open_model(source).tokenizer.encode("a = 1") == (
        open_model(tmp_path / "m.apr").tokenizer.encode("a = 1")
    )
    x, y = logits(source, tmp_path / "a"), logits(tmp_path / "m.apr", tmp_path / "b")
    assert np.linalg.norm(x - y) <= 5e-3 * np.linalg.norm(x)


@needs_fixtures
def test_a_safetensors_folder_arrives_whole(tmp_path: Path) -> None:
    source = FIXTURES / "models" / "pycode-5m"
    assert convert(source, tmp_path / "m.apr") == 0
    copy = open_model(tmp_path / "m.apr")
    assert copy.tokenizer_spec.pre == "qwen2"
    assert np.array_equal(
        logits(source, tmp_path / "a"), logits(tmp_path / "m.apr", tmp_path / "b")
    )


@needs_fixtures
@pytest.mark.parametrize(("other", "bar"), [("f32", 0.0), ("bf16", 3e-2), ("q6_k", 0.2)])
def test_other_types_are_what_was_chosen(other: str, bar: float, tmp_path: Path) -> None:
    source = FIXTURES / "models" / "gemma3-q4_0.gguf"
    assert convert(source, tmp_path / "m.apr", "--other", other) == 0
    x, y = logits(source, tmp_path / "a"), logits(tmp_path / "m.apr", tmp_path / "b")
    assert np.linalg.norm(x - y) <= bar * np.linalg.norm(x)


def test_an_existing_file_is_not_touched(
    qwen2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "m.apr").write_text("mine")
    assert convert(qwen2, tmp_path / "m.apr") == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (tmp_path / "m.apr").read_text() == "mine"
    assert convert(qwen2, tmp_path / "m.gguf") == 2


def test_apr_is_not_imported_again(
    qwen2_apr: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert(qwen2_apr, tmp_path / "m.apr") == 2
    assert "already" in capsys.readouterr().err


def test_the_demo_makes_two_traces_that_part_where_the_bug_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "demo"
    for _ in range(2):  # a second run replaces the first
        assert main(["demo", "-o", str(folder), "--json"]) == 0
    made = json.loads(capsys.readouterr().out.split("}\n")[1] + "}")
    assert all(Path(path).exists() for path in made["models"] + made["traces"])
    assert main(["diff", *made["traces"], "--json"]) == 1
    first = json.loads(capsys.readouterr().out)["first_divergence"]
    assert (first["layer"], first["stage"]) == (3, "ffn_gate")


def test_the_demos_bug_is_named_without_saying_which_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both models have one header: the reference's weights are the right ones, and are used."""
    assert main(["demo", "-o", str(tmp_path), "--json"]) == 0
    capsys.readouterr()
    assert main(["bisect", str(tmp_path / "good"), str(tmp_path / "bad"), "--json"]) == 1
    (culprit,) = json.loads(capsys.readouterr().out)["culprits"]
    assert (culprit["layer"], culprit["stage"]) == (3, "ffn_gate")
    assert culprit["mistake"]["id"] == "bad_block"
    assert culprit["mistake"]["parameters"]["row"] == 17
    assert culprit["mistake"]["parameters"]["factor"] == pytest.approx(-16, rel=1e-4)
