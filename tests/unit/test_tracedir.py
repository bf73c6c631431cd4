"""Trace directories: whole, growing, foreign or damaged, each told apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aprtui.errors import BadFileError, UsageError
from aprtui.formats import tracedir
from aprtui.formats.aprt import write_stage
from aprtui.formats.tracedir import (
    EVENTS,
    MANIFEST,
    SCHEMA,
    StageKey,
    clear_trace,
    holds_trace,
    open_trace,
    write_manifest,
)
from tests.support import FIXTURES, needs_fixtures


def make_trace(root: Path) -> dict[str, Any]:
    size = write_stage(root / "layer-0" / "embedding.bin", 0, np.ones(6, dtype=np.float32))
    entry = {
        **{"stage": "embedding", "layer": 0, "path": "layer-0/embedding.bin", "shape": [2, 3]},
        **{"axes": ["token", "hidden"], "positions": "all", "bytes": size, "stats": {}},
    }
    manifest = {"schema": SCHEMA, "tokens": {"ids": [4, 5], "text": ["a", "b"]}, "stages": [entry]}
    write_manifest(root, manifest)
    return manifest


def test_a_manifest_makes_a_trace_complete(tmp_path: Path) -> None:
    make_trace(tmp_path)
    trace = open_trace(tmp_path)
    record = trace.records[StageKey(0, "embedding")]
    assert (trace.status, trace.expected, trace.token_ids) == ("complete", 1, (4, 5))
    assert (record.shape, record.axes, record.shape_source) == (
        (2, 3), ("token", "hidden"), "manifest",
    )  # fmt: skip


def test_what_the_manifest_names_and_is_not_there_is_told(tmp_path: Path) -> None:
    make_trace(tmp_path)
    (tmp_path / "layer-0" / "embedding.bin").unlink()
    trace = open_trace(tmp_path)
    assert trace.status == "incomplete"
    assert trace.notes == ("layer-0/embedding is named by the manifest and missing",)


def test_a_file_that_the_manifest_does_not_name_is_told(tmp_path: Path) -> None:
    make_trace(tmp_path)
    write_stage(tmp_path / "lm_head.bin", None, np.zeros(2, dtype=np.float32))
    trace = open_trace(tmp_path)
    assert trace.status == "incomplete"
    assert "lm_head is not named" in trace.notes[0]


def test_events_without_a_manifest_are_an_unfinished_trace(tmp_path: Path) -> None:
    write_stage(tmp_path / "layer-0" / "embedding.bin", 0, np.ones(6, dtype=np.float32))
    (tmp_path / EVENTS).write_text('{"event":"plan","files":71,"tokens":[1,2]}\n{"event":')
    trace = open_trace(tmp_path)
    assert (trace.status, trace.expected) == ("incomplete", 71)


def test_a_trace_that_is_finished_while_it_is_read_never_lacks_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / EVENTS).write_text("")
    real = tracedir.list_stage_files

    def listed(*arguments: Any) -> Any:
        found = real(*arguments)
        make_trace(tmp_path)  # its last file, and then its manifest
        return found

    monkeypatch.setattr(tracedir, "list_stage_files", listed)
    assert open_trace(tmp_path).manifest is None
    assert open_trace(tmp_path).status == "complete"


def test_files_alone_are_foreign(tmp_path: Path) -> None:
    write_stage(tmp_path / "layer-11" / "ffn_up.bin", 11, np.ones(6, dtype=np.float32))
    trace = open_trace(tmp_path)
    assert trace.status == "foreign"
    assert trace.records[StageKey(11, "ffn_up")].shape is None


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"schema": "other"}', '{"schema": "aprtui-trace-v1"}', "\x00",
     '{"schema": "aprtui-trace-v1", "stages": [{"path": "../../etc/passwd"}]}',
     '{"schema": "aprtui-trace-v1", "stages": [{"path": 3}]}',
     '{"schema": "aprtui-trace-v1", "stages": 3}', "[" * 100_000],
)  # fmt: skip
def test_a_damaged_manifest_is_an_error_that_names_it(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(BadFileError, match=r"trace\.json"):
        open_trace(tmp_path)


def test_a_folder_without_a_trace_says_so(tmp_path: Path) -> None:
    with pytest.raises(BadFileError, match="holds no trace"):
        open_trace(tmp_path)
    assert not holds_trace(tmp_path)
    assert not holds_trace(tmp_path / "nowhere")


def test_clearing_removes_only_what_the_layout_names(tmp_path: Path) -> None:
    make_trace(tmp_path)
    (tmp_path / "readme.txt").write_text("mine")
    (tmp_path / "layer-x").mkdir()
    assert holds_trace(tmp_path)
    clear_trace(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["layer-x", "readme.txt"]


def test_files_that_only_look_like_a_trace_are_somebody_elses(tmp_path: Path) -> None:
    mine = ("pytorch_model.bin", ".download.part", "layer-0/weights.bin")
    (tmp_path / "layer-0").mkdir()
    for name in mine:
        (tmp_path / name).write_bytes(b"PK\x03\x04 a model of mine")
    assert not holds_trace(tmp_path)
    make_trace(tmp_path)
    clear_trace(tmp_path)
    assert all((tmp_path / name).is_file() for name in mine)
    assert not (tmp_path / "layer-0" / "embedding.bin").exists()


def test_a_link_to_another_traces_layer_is_not_followed(tmp_path: Path) -> None:
    make_trace(tmp_path / "other")
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "layer-0").symlink_to(tmp_path / "other" / "layer-0")
    (tmp_path / "t" / MANIFEST).write_text("{}")
    with pytest.raises(UsageError, match="is a link"):
        clear_trace(tmp_path / "t")
    assert (tmp_path / "t" / MANIFEST).exists(), "nothing is removed before all was looked at"
    assert open_trace(tmp_path / "other").status == "complete"


@pytest.mark.parametrize(
    ("field", "value"),
    [("shape", []), ("shape", [-2, -3]), ("shape", [3, 3]), ("shape", [True, 6]),
     ("axes", ["token"]), ("axes", [1, 2]), ("positions", "\x1b]52;c;aGk=\x07"),
     ("positions", [-1]), ("stats", "x"), ("stats", {"rms": "loud"}), ("layer", 1),
     ("stage", "ffn_up"), ("bytes", "36")],
)  # fmt: skip
def test_an_entry_that_contradicts_itself_is_an_error(
    tmp_path: Path, field: str, value: object
) -> None:
    manifest = make_trace(tmp_path)
    manifest["stages"][0][field] = value
    write_manifest(tmp_path, manifest)
    with pytest.raises(BadFileError, match="the manifest is damaged"):
        open_trace(tmp_path)


def test_axes_are_clean_text(tmp_path: Path) -> None:
    manifest = make_trace(tmp_path)
    manifest["stages"][0]["axes"] = ["\x1b]52;c;aGk=\x07", "\u202e"]
    write_manifest(tmp_path, manifest)
    axes = next(iter(open_trace(tmp_path).records.values())).axes
    assert axes is not None
    assert not {"\x1b", "\x07", "\u202e"} & set("".join(axes))


def test_a_manifest_is_never_half_written(tmp_path: Path) -> None:
    manifest = make_trace(tmp_path)
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_manifest(tmp_path, {**manifest, "bad": float("nan")})
    assert json.loads((tmp_path / MANIFEST).read_text()) == manifest


@needs_fixtures
@pytest.mark.parametrize("name", sorted(p.name for p in FIXTURES.glob("apr/traces/*")))
def test_every_folder_of_the_public_apr_opens_as_foreign(name: str) -> None:
    trace = open_trace(FIXTURES / "apr" / "traces" / name)
    assert trace.status == "foreign"
    assert len(trace.records) == len([*trace.root.rglob("*.bin")])
