"""`aprtui diff`, `stats` and `export` as a shell sees them: output, JSON, exit codes."""

from __future__ import annotations

import csv
import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from safetensors.numpy import load_file

from aprtui.cli import diff_text
from aprtui.cli.main import main
from aprtui.compare.diff import diff_traces
from aprtui.formats.aprt import read_values, write_stage
from aprtui.formats.tracedir import open_trace
from tests.compare.captures import load_json, split_by_position, write_capture
from tests.support import FIXTURES, needs_fixtures

TRACES = FIXTURES / "apr/traces"
FLOAT64 = FIXTURES / "captures/qwen2-q4_k_m/float64"
LLAMACPP = FIXTURES / "captures/qwen2-q4_k_m/llamacpp"
SCHEMA = json.loads(
    (Path(__file__).resolve().parents[2] / "contracts/diff.schema.json").read_text()
)

Capsys = pytest.CaptureFixture[str]


def _run(capsys: Capsys, *words: object) -> tuple[int, str, str]:
    code = main([str(word) for word in words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def _json(capsys: Capsys, *words: object) -> tuple[int, Any]:
    code, out, _ = _run(capsys, *words)
    found = load_json(out)
    if words[0] == "diff":
        jsonschema.validate(found, SCHEMA)
    return code, found


@needs_fixtures
@pytest.mark.parametrize("name", ["layer-0.embedding", "layer-2.ffn_gate", "lm_head"])
def test_a_pair_of_files_keeps_the_public_tools_fields(capsys: Capsys, name: str) -> None:
    told = json.loads((FIXTURES / "apr/diffs" / f"{name}.json").read_text())
    paths = [FIXTURES / "apr" / told[f"path_{side}"] for side in "ab"]
    code, found = _json(capsys, "diff", *paths, "--json")
    assert code == 0
    for field in ("schema", "layer", "dim_product", "max_abs_diff", "max_abs_diff_index"):
        assert found[field] == told[field]
    assert found["rms_diff"] == pytest.approx(told["rms_diff"], rel=1e-7)
    assert found["cosine_sim"] == pytest.approx(told["cosine_sim"], rel=1e-12)
    assert [{k: e[k] for k in ("index", "a", "b", "abs_diff")} for e in found["top_diffs"]] == (
        told["top_diffs"]
    )
    assert found["path_a"] == str(paths[0])


@needs_fixtures
def test_honest_traces_pass_and_a_stricter_bar_fails_them(capsys: Capsys) -> None:
    code, found = _json(capsys, "diff", FLOAT64, LLAMACPP, "--json")
    assert (code, found["verdict"], found["exit_code"]) == (0, "pass", 0)
    code, found = _json(capsys, "diff", FLOAT64, LLAMACPP, "--json", "--bar", "ffn_*:rel_l2=1e-3")
    assert (code, found["verdict"]) == (1, "fail")
    assert found["first_divergence"]["stage"] == "ffn_norm"
    assert "unknown arithmetic" in found["bars"]["reason"]


@needs_fixtures
def test_saved_metrics_are_judged_again_without_the_tensors(capsys: Capsys, tmp_path: Path) -> None:
    shutil.copytree(LLAMACPP, tmp_path / "b")
    kept = tmp_path / "kept.json"
    code, first = _json(capsys, "diff", FLOAT64, tmp_path / "b", "--save", kept, "--json")
    assert code == 0
    shutil.rmtree(tmp_path / "b")
    code, again = _json(capsys, "diff", "--judge", kept, "--json")
    assert (code, again) == (0, first)
    code, strict = _json(capsys, "diff", "--judge", kept, "--bar", "rel_l2=1e-6", "--json")
    assert code == 1
    above = [p for p in first["pairs"] if p["rel_l2"] > 1e-6 or p["worst_row_rel_l2"] > 4e-6]
    assert strict["counts"]["differs"] == len(above) > 60
    kept.write_text(kept.read_text().replace('"class": "equal"', '"class": "fine"'))
    code, _, err = _run(capsys, "diff", "--judge", kept)
    assert code == 3
    assert "damaged" in err


@needs_fixtures
def test_a_file_is_not_replaced_by_saved_metrics_unasked(capsys: Capsys, tmp_path: Path) -> None:
    kept = tmp_path / "model.gguf"
    kept.write_text("precious")
    code, _, err = _run(capsys, "diff", FLOAT64, LLAMACPP, "--save", kept)
    assert (code, kept.read_text()) == (2, "precious") and "--overwrite" in err
    code, _, _ = _run(capsys, "diff", FLOAT64, LLAMACPP, "--save", kept, "--overwrite")
    assert code == 0 and kept.read_text() != "precious"


@needs_fixtures
def test_the_next_step_is_named_where_one_is_open(capsys: Capsys) -> None:
    _, out, _ = _run(capsys, "diff", FLOAT64, LLAMACPP)
    assert " within) within a loose bar" in out
    sides = [str(FLOAT64), str(LLAMACPP)]
    assert shlex.join(["aprtui", "bisect", *sides, "--model", "MODEL"]) in out
    _, out, _ = _run(capsys, "diff", FLOAT64, FLOAT64)
    assert "loose" not in out and "bisect" not in out
    _, out, _ = _run(capsys, "diff", FLOAT64, FIXTURES / "faults/kbias-dropped-L2")
    assert "which stage computes wrongly, and how: aprtui bisect" in out


@needs_fixtures
def test_tables_fit_the_terminal() -> None:
    found = diff_traces(open_trace(FLOAT64), open_trace(FIXTURES / "faults/kbias-dropped-L2"))
    rows = diff_text.plain(found, 80).splitlines()
    tables = rows[next(i for i, row in enumerate(rows) if row.startswith("Not passed")) : -4]
    assert max(map(len, tables)) <= 80 and "rel_l2" in tables[1]
    grid = next(i for i, row in enumerate(rows) if row.startswith("layer "))
    assert max(map(len, rows[grid : grid + 6])) <= 80


@needs_fixtures
def test_nonfinite_numbers_are_strings_in_json_and_named_in_text(capsys: Capsys) -> None:
    reference = FIXTURES / "captures/llama-q4_k_m/float64"
    fault = FIXTURES / "faults/nan-softmax-L1"
    code, found = _json(capsys, "diff", reference, fault, "--json")
    assert code == 1
    assert found["first_divergence"]["class"] == "nonfinite"
    pair = next(p for p in found["pairs"] if p["class"] == "nonfinite")
    assert pair["first_nonfinite"]["b"] == "NaN"
    code, out, _ = _run(capsys, "diff", reference, fault)
    assert code == 1
    assert "First divergence: layer-1/attn_softmax (nonfinite)" in out
    assert "head 3, query 0, key 0" in out
    code, out, _ = _run(capsys, "diff", reference, fault, "--markdown")
    assert out.startswith("**FAIL")
    assert "| layer-1/attn_softmax | nonfinite |" in out


@needs_fixtures
def test_the_grid_has_a_mark_for_every_pair(capsys: Capsys) -> None:
    code, out, _ = _run(capsys, "diff", TRACES / "qwen2-import", TRACES / "qwen2-import-fp32")
    assert code == 0
    assert "PASS (2 equal, 69 within)" in out
    assert "shapes inferred: 9 tokens" in out
    rows = [line for line in out.splitlines() if line[:5].strip() in ("0", "1", "2", "3", "model")]
    assert [sum(line[7:].count(mark) for mark in "=.") for line in rows] == [18, 17, 17, 17, 2]


@needs_fixtures
def test_stages_and_layers_narrow_the_comparison(capsys: Capsys) -> None:
    words = ("diff", FLOAT64, LLAMACPP, "--json", "--stages", "FFN_up, layer_output", "--layers")
    _, found = _json(capsys, *words, "1..3")
    assert [(p["layer"], p["stage"]) for p in found["pairs"]] == [
        (1, "ffn_up"), (1, "post_ffn_residual"), (2, "ffn_up"), (2, "post_ffn_residual"),
    ]  # fmt: skip
    assert _run(capsys, *words, "9")[0] == 2


@needs_fixtures
def test_both_sides_of_a_per_op_folder_are_compared(capsys: Capsys, tmp_path: Path) -> None:
    split_by_position(FLOAT64, tmp_path / "d/cpu", 12, drop=frozenset())
    split_by_position(LLAMACPP, tmp_path / "d/gpu", 12, drop=frozenset({"qkv_matmul", "ffn_up"}))
    code, found = _json(capsys, "diff", tmp_path / "d/cpu", tmp_path / "d/gpu", "--json")
    assert code == 1
    assert found["counts"] == {"equal": 1, "within": 62, "missing-b": 8}
    assert _json(capsys, "diff", tmp_path / "d", "--json")[1]["counts"] == found["counts"]
    code, _, err = _run(capsys, "diff", tmp_path / "d", FLOAT64)
    assert code == 2
    assert "holds two passes" in err
    code, _, _ = _run(capsys, "diff", tmp_path / "d/cpu", tmp_path / "d/gpu", "--allow-unmeasured")
    assert code == 0


def test_bad_input_gets_one_line_and_its_exit_code(capsys: Capsys, tmp_path: Path) -> None:
    good = tmp_path / "good.bin"
    write_stage(good, 0, np.ones(4, dtype=np.float32))
    short = tmp_path / "short.bin"
    short.write_bytes(good.read_bytes()[:-1])
    model = tmp_path / "m.gguf"
    model.write_bytes(b"GGUF" + bytes(20))
    folder = tmp_path / "folder"
    folder.mkdir()
    for words, expected, said in (
        ((good, short), 3, "cut short"),
        ((good, model), 2, f"{shlex.join(['aprtui', 'trace', str(model)])} makes a trace"),
        ((good, folder), 2, "one side is a file"),
        ((folder, folder), 3, "holds no trace"),
        ((good, tmp_path / "none"), 2, "one side is a file"),
        ((tmp_path / "none", tmp_path / "none"), 3, "cannot be read"),
        ((), 2, "two traces are needed: aprtui diff A B"),
        ((folder,), 2, "two traces are needed: aprtui diff A B"),
        ((good, good, "--bar", "cosine"), 2, "--bar"),
        (("--judge", good), 3, "not JSON"),
    ):
        code, _, err = _run(capsys, "diff", *words)
        assert (code, said in err, err.count("\n")) == (expected, True, 1), err


def test_files_of_one_traces_manifests_are_judged_by_the_manifests(
    capsys: Capsys, tmp_path: Path
) -> None:
    values = np.linspace(1, 2, 12, dtype=np.float32).reshape(3, 4)
    for name, factor in (("a", 1.0), ("b", 1.001)):
        tensors = {"layer-0/attn_norm.bin": ((values * np.float32(factor)), ("token", "hidden"))}
        write_capture(tmp_path / name, tensors)
    paths = [tmp_path / name / "layer-0/attn_norm.bin" for name in "ab"]
    code, found = _json(capsys, "diff", *paths, "--json")
    assert (code, found["class"]) == (1, "differs")
    assert "both float32" in found["bar_reason"]
    assert found["worst_row"] is not None


@needs_fixtures
def test_stats_tell_numpys_numbers(capsys: Capsys) -> None:
    code, found = _json(capsys, "stats", FLOAT64, "--stages", "ffn_gate", "--json")
    assert code == 0
    assert [row["layer"] for row in found["stages"]] == [0, 1, 2, 3]
    values = read_values(FLOAT64 / "layer-1/ffn_gate.bin").astype(np.float64)
    row = found["stages"][1]
    assert row["shape"] == [12, 512]
    assert row["std"] == pytest.approx(values.std(), rel=1e-12)
    assert row["percentiles"]["95"] == pytest.approx(np.percentile(values, 95), rel=1e-12)
    code, out, _ = _run(capsys, "stats", TRACES / "pycode-int8")
    assert code == 0
    assert "-2.26e+38" in out


@needs_fixtures
def test_stats_of_a_damaged_trace_show_the_rest_and_exit_3(capsys: Capsys, tmp_path: Path) -> None:
    shutil.copytree(TRACES / "pycode-int8", tmp_path / "t")
    path = tmp_path / "t/layer-0/embedding.bin"
    path.chmod(0o644)
    path.write_bytes(b"APRT")
    code, found = _json(capsys, "stats", tmp_path / "t", "--json")
    assert code == 3
    assert ["error" in row for row in found["stages"]] == [True, False, False, False]


@needs_fixtures
def test_exports_read_back_equal_with_their_shapes(capsys: Capsys, tmp_path: Path) -> None:
    scores = FLOAT64 / "layer-1/attn_scores.bin"
    flat = read_values(scores)
    code, _, err = _run(capsys, "export", scores, "--to", "npy", "-o", tmp_path / "s.npy")
    assert code == 0
    assert "inferred" in err
    assert np.array_equal(np.load(tmp_path / "s.npy"), flat.reshape(8, 12, 12))
    _run(capsys, "export", FLOAT64, "--to", "npz", "-o", tmp_path / "all.npz")
    _run(capsys, "export", FLOAT64, "--to", "safetensors", "-o", tmp_path / "all.safetensors")
    for found in (np.load(tmp_path / "all.npz"), load_file(tmp_path / "all.safetensors")):
        assert len(found.keys()) == 71
        assert np.array_equal(found["layer-1.attn_scores"].reshape(-1), flat)
        assert found["lm_head"].shape == (2048,)
    _run(capsys, "export", scores, scores.with_name("k_post_rope.bin"), "--to", "csv",
         "-o", tmp_path / "csv")  # fmt: skip
    with (tmp_path / "csv/layer-1.attn_scores.csv").open() as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["head", "query", "key", "value"]
    assert rows[1 + 13][:3] == ["0", "1", "1"]
    assert np.array_equal(np.array([float(row[3]) for row in rows[1:]], dtype=np.float32), flat)


def test_an_export_does_not_overwrite_unasked_and_says_what_is_flat(
    capsys: Capsys, tmp_path: Path
) -> None:
    source = tmp_path / "x.bin"
    write_stage(source, 0, np.arange(6, dtype=np.float32))
    target = tmp_path / "x.npy"
    words = ("export", source, "--to", "npy", "-o", target)
    code, _, err = _run(capsys, *words)
    assert code == 0
    assert "flat" in err
    before = target.read_bytes()
    code, _, err = _run(capsys, *words)
    assert (code, target.read_bytes()) == (2, before)
    assert "--overwrite" in err
    assert _run(capsys, *words, "--overwrite")[0] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.bin", "x.npy"]
