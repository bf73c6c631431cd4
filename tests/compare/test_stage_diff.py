"""`aprtui diff` sees a planted fault and passes nothing unmeasured: contract tests 003 and 009."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from aprtui.cli.main import main
from aprtui.formats.aprt import read_values, write_stage
from tests.compare.captures import write_capture
from tests.support import SMALL

FLOAT64 = SMALL / "captures" / "qwen2-q4_k_m" / "float64"
HONEST = SMALL / "faults" / "honest-ggml-qwen2"
FAULTY = SMALL / "faults" / "bad-block-gate-L3-ggml"


def diff(*arguments: object) -> int:
    return main(["diff", *map(str, arguments)])


def test_planted_fault_is_seen(capsys: pytest.CaptureFixture[str]) -> None:
    """The honest and the faulty capture share their arithmetic and part at layer 3, ffn_gate."""
    a, b = HONEST / "layer-3" / "ffn_gate.bin", FAULTY / "layer-3" / "ffn_gate.bin"
    assert diff(a, b, "--bar", "rel_l2=1e-5", "--json") == 1
    said = json.loads(capsys.readouterr().out)
    assert said["max_abs_diff"] / float(np.std(read_values(a))) > 0.05
    assert diff(HONEST, FAULTY, "--bar", "rel_l2=1e-5", "--json") == 1
    whole = json.loads(capsys.readouterr().out)
    assert (whole["first_divergence"]["layer"], whole["first_divergence"]["stage"]) == (
        3, "ffn_gate",
    )  # fmt: skip


def test_only_equal_pairs_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Identical files pass; another count, another layer and a model beside a file do not."""
    stage = FLOAT64 / "layer-2" / "ffn_up.bin"
    values = np.array(read_values(stage))
    same, short, moved, changed = (tmp_path / f"{n}.bin" for n in ("same", "short", "moved", "x"))
    shutil.copy(stage, same)
    write_stage(short, 2, values[:-1])
    write_stage(moved, 1, values)
    values[700] += np.float32(1.0)
    write_stage(changed, 2, values)
    assert diff(stage, same) == 0
    assert diff(stage, changed, "--bar", "rel_l2=1e-5") == 1
    assert diff(stage, short) == 1
    assert diff(stage, moved) == 2
    assert diff(stage, SMALL / "models" / "qwen2-q4_k_m.gguf") in (2, 3)
    assert "\n" in capsys.readouterr().err


def test_what_one_side_lacks_is_unmeasured_and_not_a_pass(tmp_path: Path) -> None:
    shutil.copytree(FLOAT64, tmp_path / "b")
    (tmp_path / "b" / "layer-1" / "ffn_up.bin").unlink()
    assert diff(FLOAT64, tmp_path / "b") == 1
    assert diff(FLOAT64, tmp_path / "b", "--allow-unmeasured") == 0


def test_an_honest_capture_is_within_the_bar_of_its_arithmetic() -> None:
    assert diff(FLOAT64, HONEST) == 0


def test_a_bar_of_no_stage_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    stage = FLOAT64 / "layer-2" / "ffn_up.bin"
    for pair in ((FLOAT64, HONEST), (stage, stage)):
        assert diff(*pair, "--bar", "fnn_gate:rel_l2=1") == 2
        assert "did you mean ffn_gate?" in capsys.readouterr().err


def test_files_of_different_prompts_are_not_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As traces are not: the manifests around the two files tell."""
    values = np.ones((3, 4), dtype=np.float32)
    files = []
    for name, tokens in (("a", (1, 2, 3)), ("b", (1, 5, 3))):
        path = "layer-0/ffn_up.bin"
        write_capture(tmp_path / name, {path: (values, ("token", "ffn"))}, tokens=tokens)
        files.append(tmp_path / name / path)
    assert diff(*files) == 2
    assert "different from token 1 on" in capsys.readouterr().err
    assert diff(*files, "--ignore-tokens") == 0
