"""Captures and models that do not belong together or are damaged: a class or an error, and why."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aprtui import api
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
    assert main(["bisect", trace, "--model", other, "--stages", "attn_norm"]) == 1
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


# -- a capture that contradicts itself or the model ------------------------------------------------


def changed_manifest(root: Path, model: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A trace of ours on six tokens whose manifest says something else."""
    api.trace(model, tokens=(3, 17, 40, 9, 5, 61), directory=root)
    said = json.loads((root / "trace.json").read_text())
    change(said)
    (root / "trace.json").write_text(json.dumps(said))
    return root


def rows_at(*positions: int) -> Callable[[dict[str, Any]], None]:
    return lambda said: said.update(
        rows={"positions": list(positions), "passes": [0] * len(positions)}
    )


def stage_at(stage: str, *positions: int) -> Callable[[dict[str, Any]], None]:
    def change(said: dict[str, Any]) -> None:
        for each in said["stages"]:
            if each["stage"] == stage:
                each["positions"] = list(positions)

    return change


@needs_fixtures
@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        (rows_at(0, 1, 2), 3, "rows names 3 rows of 6 tokens"),
        (rows_at(0, 1, 1, 2, 3, 4), 3, "do not ascend"),
        (rows_at(-1, 0, 1, 2, 3, 4), 3, "not equally many whole numbers"),
        (rows_at(0, 1, 2, 3, 4, 100_000), 2, "stands at position 100,000, and the model has learned"
         " 128 positions"),
        (lambda said: said["tokens"].update(ids=[3, 17, 40]), 2, "holds 6 positions, and 3 tokens"),
        (lambda said: said["tokens"].update(ids=[3, 17, 40, 9, 5, 10**6]), 2,
         "token 1,000,000 lies outside the vocabulary"),
        (stage_at("ffn_out", 0, 77), 3, "names positions that no row of the capture stands at"),
        (stage_at("ffn_out", 0, 1), 3, "names 2 positions and holds 288 values"),
    ],
)  # fmt: skip
def test_positions_and_lengths_that_contradict_are_told(
    change: Callable[[dict[str, Any]], None], code: int, said: str, tmp_path: Path, capsys: Capsys
) -> None:
    model = FIXTURES / "families" / "gpt2"
    trace = changed_manifest(tmp_path / "t", model, change)
    assert main(["bisect", str(trace), "--model", str(model)]) == code
    told = capsys.readouterr()
    assert said in " ".join((told.out + told.err).split())
    assert "Traceback" not in told.err


@needs_fixtures
def test_positions_with_a_gap_are_what_rope_turns_by(tmp_path: Path) -> None:
    """Rows whose positions leave one out: turned as they stand, and the keys of the gap unseen."""
    model = FIXTURES / "families" / "arcee"
    found = api.bisect(
        changed_manifest(tmp_path / "t", model, rows_at(0, 1, 2, 4, 5, 6)), model=model
    )
    turned = [each for each in found.culprits if each.key.stage == "q_post_rope"]
    assert len(turned) == 2 and all(
        each.rows and each.rows.positions == (4, 5, 6) for each in turned
    )
    lost = {each.key.stage for each in found.unmeasured}
    assert lost == {"attn_scores", "attn_softmax", "attention"}
    assert all("the keys of positions 3 are not" in each.why for each in found.unmeasured)


@needs_fixtures
def test_an_arithmetic_that_the_file_cannot_have_is_no_explanation(tmp_path: Path) -> None:
    """Heads of 12 channels are no blocks of 32, whatever the capture says of its cache."""
    model = FIXTURES / "families" / "gpt2"

    def change(said: dict[str, Any]) -> None:
        said["engine"]["settings"] = {"kv": "q8_0", "parameters": {"others": "none"}}

    trace = changed_manifest(tmp_path / "t", model, change)
    path = trace / "layer-1" / "attention.bin"
    values = np.fromfile(path, np.float32)[3:]
    write_stage(path, 1, values * np.float32(1.01))
    (culprit, *_) = api.bisect(trace, model=model).culprits
    assert (str(culprit.key), culprit.mistake and culprit.mistake.id) == (
        "layer-1/attention", "scaled",
    )  # fmt: skip
