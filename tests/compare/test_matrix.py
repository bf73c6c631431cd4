"""A matrix of captures: every cell as the pair says it, one reading of a file, exit codes, JSON."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

import aprtui
from aprtui.cli.main import main
from aprtui.compare.diff import comparison_json, diff_traces
from aprtui.compare.matrix import Matrix, labels_of, merged
from aprtui.compare.metrics import Cancelled
from aprtui.errors import UsageError
from aprtui.formats import aprt
from aprtui.formats.tracedir import StageKey, open_trace
from tests.compare.captures import Tensors, load_json, write_capture

ROOT = Path(__file__).resolve().parents[2]
AXES = ("token", "hidden")
Capsys = pytest.CaptureFixture[str]


def _tensors(**changed: float) -> Tensors:
    """Five stages; one of a name in ``changed`` has its first value moved by so much."""
    rng = np.random.default_rng(7)
    found = {}
    for path in ("layer-0/attn_norm.bin", "layer-0/ffn_out.bin", "layer-1/attn_norm.bin",
                 "layer-1/ffn_out.bin", "final_norm.bin"):  # fmt: skip
        values = rng.normal(size=(3, 8)).astype(np.float32)
        name = path.removesuffix(".bin").replace("/", "_").replace("-", "_")
        values[0, 0] += changed.get(name, 0.0)
        found[path] = (values, AXES)
    return found


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, ...]:
    """The first; the same; one that differs from layer 1 on; one without a stage."""
    sides = {
        "first": _tensors(),
        "same": _tensors(),
        "late": _tensors(layer_1_attn_norm=2.0, final_norm=9.0),
        "less": {path: each for path, each in _tensors().items() if "layer-0/ffn" not in path},
    }
    for name, tensors in sides.items():
        write_capture(tmp_path / name, tensors)
    return tuple(tmp_path / name for name in sides)


def _json(capsys: Capsys, *words: object) -> tuple[int, Any]:
    code = main(["diff", *map(str, words), "--json"])
    found = load_json(capsys.readouterr().out)
    jsonschema.validate(found, json.loads((ROOT / "contracts/matrix.schema.json").read_text()))
    pair = json.loads((ROOT / "contracts/diff.schema.json").read_text())
    for column in found["columns"]:
        jsonschema.validate({k: v for k, v in column.items() if k != "label"}, pair)
    return code, found


def test_every_cell_is_what_the_pair_says(folders: tuple[Path, ...], capsys: Capsys) -> None:
    code, found = _json(capsys, *folders)
    assert code == found["exit_code"] == 1 and found["verdict"] == "fail"
    assert [column["label"] for column in found["columns"]] == ["same", "late", "less"]
    assert [column["verdict"] for column in found["columns"]] == ["pass", "fail", "unmeasured"]
    assert len(found["rows"]) == 5 and found["rows"][-1] == {"layer": None, "stage": "final_norm"}
    first = open_trace(folders[0])
    for column, path in zip(found["columns"], folders[1:], strict=True):
        alone = comparison_json(diff_traces(first, open_trace(path)))
        assert {k: v for k, v in column.items() if k != "label"} == json.loads(json.dumps(alone))


def test_the_value_comes_back_from_its_json(folders: tuple[Path, ...]) -> None:
    matrix = aprtui.diff_many(*folders)
    again = Matrix.from_json(json.loads(json.dumps(matrix.to_json())))
    assert again == matrix and again.to_json() == matrix.to_json()
    with pytest.raises(ValueError, match="no matrix"):
        Matrix.from_json({"schema": "aprtui-matrix-v1", "columns": [{}]})


def test_the_first_traces_files_are_read_once_for_all_columns(
    folders: tuple[Path, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: Counter[Path] = Counter()
    whole = aprt.read_values

    def counted(path: Path) -> aprt.Float32:
        read[path] += 1
        return whole(path)

    monkeypatch.setattr("aprtui.formats.tracedir.read_values", counted)
    aprtui.diff_many(*folders)
    assert len(read) == 5 + 5 + 5 + 4 and set(read.values()) == {1}


def test_a_matrix_can_be_given_up(folders: tuple[Path, ...]) -> None:
    told: list[int] = []
    with pytest.raises(Cancelled):
        aprtui.diff_many(*folders, progress=told.append, cancelled=lambda: len(told) > 3)
    assert len(told) == 4


def test_text_names_the_first_divergence_of_each_trace(
    folders: tuple[Path, ...], capsys: Capsys
) -> None:
    assert main(["diff", *map(str, folders)]) == 1
    out = capsys.readouterr().out
    assert "FAIL: 2 of 3 do not pass" in out
    assert "First divergence: layer-1/attn_norm" in out
    rows = {line.split()[0]: line for line in out.splitlines() if line.startswith("  layer-")}
    assert rows.keys() == {"layer-0/ffn_out", "layer-1/attn_norm"}
    assert ">X" in rows["layer-1/attn_norm"] and rows["layer-0/ffn_out"].rstrip().endswith("b")
    assert f"aprtui bisect {folders[0]} {folders[2]}" in out
    assert main(["diff", *map(str, folders), "--markdown"]) == 1
    assert "| final\\_norm |" in (said := capsys.readouterr().out) or "| final_norm |" in said


def test_unmeasured_can_be_allowed_and_a_damaged_file_is_worse(
    folders: tuple[Path, ...], capsys: Capsys
) -> None:
    first, same, _, less = folders
    assert main(["diff", *map(str, (first, same, less))]) == 1
    assert main(["diff", *map(str, (first, same, less)), "--allow-unmeasured"]) == 0
    (same / "layer-0/ffn_out.bin").write_bytes(b"APRT")
    assert main(["diff", *map(str, (first, same, less))]) == 3
    capsys.readouterr()


def test_a_first_trace_that_is_damaged_is_so_in_every_column(folders: tuple[Path, ...]) -> None:
    (folders[0] / "layer-1/ffn_out.bin").write_bytes(b"APRT")
    matrix = aprtui.diff_many(*folders[:3])
    key = StageKey(1, "ffn_out")
    assert [cells[key].kind for cells in matrix.cells] == ["unreadable", "unreadable"]


def test_other_prompts_are_refused_and_named(folders: tuple[Path, ...], tmp_path: Path) -> None:
    write_capture(tmp_path / "other", _tensors(), tokens=(1, 2, 9))
    with pytest.raises(UsageError, match="other: the captures are of different prompts"):
        aprtui.diff_many(*folders[:2], tmp_path / "other")
    assert aprtui.diff_many(*folders[:2], tmp_path / "other", ignore_tokens=True).verdict == "pass"


def test_two_folders_of_prompts_face_one_another(tmp_path: Path, capsys: Capsys) -> None:
    for side in ("one", "two"):
        for number in (1, 2, 10):
            moved = 3.0 if (side, number) == ("two", 10) else 0.0
            write_capture(tmp_path / side / f"prompt-{number}", _tensors(final_norm=moved),
                          tokens=(number, 2, 3))  # fmt: skip
    code, found = _json(capsys, tmp_path / "one", tmp_path / "two")
    assert code == 1
    assert [column["label"] for column in found["columns"]] == ["prompt-1", "prompt-2", "prompt-10"]
    assert [column["verdict"] for column in found["columns"]] == ["pass", "pass", "fail"]
    for path in (tmp_path / "two/prompt-2").rglob("*"):
        path.unlink() if path.is_file() else None
    for path in sorted((tmp_path / "two/prompt-2").rglob("*"), reverse=True):
        path.rmdir()
    (tmp_path / "two/prompt-2").rmdir()
    assert main(["diff", str(tmp_path / "one"), str(tmp_path / "two")]) == 2
    assert "prompt-2 is in one of" in capsys.readouterr().err


def test_names_are_as_short_as_they_can_be() -> None:
    assert labels_of([Path("/a/x/t"), Path("/a/y/t"), Path("/a/y/u")]) == ("x/t", "y/t", "y/u")
    assert labels_of([Path("/a/x"), Path("/b/y")]) == ("x", "y")


def test_rows_that_only_some_have_stand_where_they_are_computed() -> None:
    a, b, c, d = (StageKey(0, name) for name in "abcd")
    assert merged([[a, c], [a, b, c, d]]) == (a, b, c, d)
