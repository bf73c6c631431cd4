"""Captures and models that do not belong together or are damaged: a class or an error, and why."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from aprtui.cli.main import main
from aprtui.compare.bisect import bisect
from aprtui.formats.aprt import write_stage
from aprtui.formats.tracedir import open_trace
from aprtui.model.open import open_model
from tests.compare.captures import write_capture
from tests.support import FIXTURES, needs_fixtures

Capsys = pytest.CaptureFixture[str]


def norm_trace(root: Path, rows: int, columns: int, tokens: tuple[int, ...] = (1, 2, 3)) -> Path:
    values = np.ones((rows, columns), dtype=np.float32)
    tensors = {"layer-0/attn_norm.bin": (values, ("token", "hidden"))}
    return write_capture(root, tensors, tokens=tokens).root


@pytest.mark.parametrize(
    ("shape", "offered"), [((1, 8), True), ((3, 16), False), ((3, 4), False), ((2, 8), False)]
)
def test_the_last_position_is_offered_only_where_one_side_may_be_it(
    tmp_path: Path, capsys: Capsys, shape: tuple[int, int], offered: bool
) -> None:
    """Half the width divides the values too, and is no position."""
    a, b = norm_trace(tmp_path / "a", 3, 8), norm_trace(tmp_path / "b", *shape)
    assert main(["diff", str(a), str(b)]) == 1
    out = capsys.readouterr().out
    assert f"[3, 8] against [{shape[0]}, {shape[1]}]" in out
    assert ("--positions last" in out) == offered


@pytest.mark.parametrize("command", ["diff", "bisect", "report"])
def test_other_prompts_are_refused_with_what_that_command_can_do(
    tmp_path: Path, capsys: Capsys, command: str
) -> None:
    a = norm_trace(tmp_path / "a", 3, 8)
    b = norm_trace(tmp_path / "b", 2, 8, tokens=(1, 9))
    output = ["-o", str(tmp_path / "r.md")] if command == "report" else []
    model = ["--model", str(FIXTURES / "models/qwen2-q4_k_m.gguf")] if command == "bisect" else []
    if command == "bisect" and not FIXTURES.is_dir():
        pytest.skip("no fixtures")
    assert main([command, str(a), str(b), *output, *model]) == 2
    err = capsys.readouterr().err
    assert "3 and 2 tokens, different from token 1 on" in err
    assert ("--ignore-tokens" in err) == (command == "diff")


def test_a_manifest_with_a_path_outside_is_told_in_words(tmp_path: Path, capsys: Capsys) -> None:
    a = norm_trace(tmp_path / "a", 3, 8)
    manifest = a / "trace.json"
    for old, new, said in (
        ("layer-0/attn_norm.bin", "../attn_norm.bin", "../attn_norm.bin is a file outside"),
        ('"axes"', '"taxes"', "'axes' is missing"),
    ):
        text = manifest.read_text()
        manifest.write_text(text.replace(old, new))
        assert main(["diff", str(a), str(a)]) == 3
        err = capsys.readouterr().err
        assert f"the manifest is damaged: {said}" in err and "Error(" not in err
        manifest.write_text(text)


def test_a_stage_file_where_a_trace_is_due(tmp_path: Path, capsys: Capsys) -> None:
    path = norm_trace(tmp_path / "a", 3, 8) / "layer-0" / "attn_norm.bin"
    assert main(["bisect", str(path), "--model", "m.gguf"]) == 2
    assert "a file, where the folder of a trace is due" in capsys.readouterr().err


@needs_fixtures
def test_a_model_that_the_capture_is_not_of_is_said_first(tmp_path: Path, capsys: Capsys) -> None:
    source = FIXTURES / "models" / "llama-q4_k_m.gguf"
    trace = str(tmp_path / "t")
    assert main(["trace", str(source), "--tokens", "1,2", "--layer", "0", "-o", trace]) == 0
    capsys.readouterr()
    other = str(FIXTURES / "models" / "qwen2-q4_k_m.gguf")
    assert main(["bisect", trace, "--model", other, "--layers", "0"]) == 1
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith("B says that it was captured from another model file")
    assert "llama-q4_k_m.gguf" in first


@needs_fixtures
def test_nan_in_inputs_beside_wrong_weights_ends_in_a_verdict(tmp_path: Path) -> None:
    """The fit over permuted heads takes finite values only; LAPACK refuses others."""
    root = tmp_path / "b"
    shutil.copytree(FIXTURES / "captures" / "qwen2-q4_k_m" / "float64", root)
    for stage, change in (("attention", np.nan), ("attn_out", 7.0)):
        path = root / "layer-1" / f"{stage}.bin"
        values = np.fromfile(path, np.float32)[3:]
        values[300:310] = change
        values[600:] *= np.float32(1.5 if stage == "attn_out" else 1)
        write_stage(path, 1, values)
    found = bisect(open_model(FIXTURES / "models" / "qwen2-q4_k_m.gguf"), open_trace(root))
    assert {str(each.key) for each in found.culprits} == {
        "layer-1/attention", "layer-1/attn_out", "layer-1/post_attn_residual",
    }  # fmt: skip
