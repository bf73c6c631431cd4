"""Reading safetensors: files, shards and the config beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save, save_file

from aprtui.errors import BadFileError
from aprtui.formats.modelfile import tensor_bytes
from aprtui.formats.safetensors import read_safetensors
from tests.support import FIXTURES, needs_fixtures

PYCODE = FIXTURES / "models" / "pycode-5m"
A = np.arange(6, dtype=np.float32).reshape(2, 3)
B = np.arange(4, dtype=np.float16)


def raw_file(header: dict[str, Any] | bytes, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def sharded(folder: Path, **changes: Any) -> None:
    """A folder of two shards; ``changes`` replace parts of its index."""
    save_file({"a": A}, folder / "model-00001-of-00002.safetensors")
    save_file({"b": B}, folder / "model-00002-of-00002.safetensors")
    weight_map = {
        "a": "model-00001-of-00002.safetensors",
        "b": "model-00002-of-00002.safetensors",
    } | changes
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text('{"hidden_size": 3, "rope_scaling": null}')


def refusal(path: Path) -> str:
    with pytest.raises(BadFileError) as caught:
        read_safetensors(path)
    return str(caught.value)


@needs_fixtures
@pytest.mark.parametrize("path", [PYCODE, PYCODE / "model.safetensors"])
def test_tensors_are_those_that_the_library_loads(path: Path) -> None:
    model = read_safetensors(path)
    loaded = load_file(PYCODE / "model.safetensors")
    assert set(model.tensors) == set(loaded)
    for name, entry in model.tensors.items():
        assert (entry.type, entry.shape) == ("F16", loaded[name].shape)
        assert tensor_bytes(entry).tobytes() == loaded[name].tobytes()
    assert model.metadata == json.loads((PYCODE / "config.json").read_text())
    assert (model.notes, model.size_bytes) == ((), 10_111_600)


def test_shards_are_read_as_one_model(tmp_path: Path) -> None:
    sharded(tmp_path)
    model = read_safetensors(tmp_path)
    assert {name: entry.type for name, entry in model.tensors.items()} == {"a": "F32", "b": "F16"}
    assert tensor_bytes(model.tensors["b"]).tobytes() == B.tobytes()
    assert model.metadata == {"hidden_size": 3, "rope_scaling": None}
    assert len(model.files) == len(model.header) == 2
    one = read_safetensors(tmp_path / "model-00001-of-00002.safetensors")
    assert any("one shard of several" in note for note in one.notes)


def test_files_without_an_index_and_config_are_taken_with_notes(tmp_path: Path) -> None:
    save_file({"a": A}, tmp_path / "x.safetensors")
    assert read_safetensors(tmp_path).metadata == {}
    save_file({"b": B}, tmp_path / "y.safetensors")
    notes = read_safetensors(tmp_path).notes
    assert any("taken as one model" in note for note in notes)
    assert any("config.json" in note for note in notes)
    save_file({"b": B}, tmp_path / "z.safetensors")
    assert "tensor b stands in y.safetensors too" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"c": "model-00003.safetensors"}, "names the shard model-00003.safetensors"),
        ({"c": "../other/model.safetensors"}, "outside its folder"),
        ({"c": "/etc/passwd"}, "outside its folder"),
        ({"c": ".."}, "outside its folder"),
        ({"c": "x" * 10_000}, "that no file can have"),
        ({"c": ""}, "outside its folder"),
        ({"c": 7}, "no file name"),
        ({"c": "model-00001-of-00002.safetensors"}, "promises tensor c"),
        ({"a": "model-00002-of-00002.safetensors"}, "promises tensor a"),
    ],
)
def test_an_index_that_points_astray_is_refused(
    tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    sharded(tmp_path, **changes)
    assert says in refusal(tmp_path)


@pytest.mark.parametrize(
    ("index", "says"),
    [("[]", "not an object"), ("{}", "no weight_map"), ('{"weight_map": {}}', "no weight_map")],
)
def test_an_index_of_another_form_is_refused(tmp_path: Path, index: str, says: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(index)
    assert says in refusal(tmp_path)


def test_empty_folders_and_missing_files_are_refused(tmp_path: Path) -> None:
    assert "no .safetensors file" in refusal(tmp_path)
    assert "No such file" in refusal(tmp_path / "absent.safetensors")


@pytest.mark.parametrize(
    ("dtype", "size"), [("F8_E4M3", 1), ("F8_E5M2", 1), ("BOOL", 1), ("U64", 8), ("C64", 8)]
)
def test_a_type_of_whatever_name_is_listed(tmp_path: Path, dtype: str, size: int) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(
        raw_file({"w": {"dtype": dtype, "shape": [1], "data_offsets": [0, size]}}, bytes(size))
    )
    entry = read_safetensors(path).tensors["w"]
    assert (entry.type, entry.shape, entry.size_bytes) == (dtype, (1,), size)


@pytest.mark.parametrize(
    "whole",
    [
        b"",
        b"\1\2\3",
        (2**63).to_bytes(8, "little") + b"{}",
        raw_file(b"not json"),
        raw_file({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, bytes(4)),
        raw_file({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, bytes(3)),
        raw_file(
            {"w": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}}, bytes(4)
        ),
        raw_file({"w": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}, bytes(4)),
        raw_file({"w": {"dtype": "F32", "shape": [1]}}, bytes(4)),
        raw_file(
            b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
            b'"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
            bytes(4),
        ),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, whole: bytes) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(whole)
    assert refusal(path)


def test_a_file_cut_at_any_byte_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    whole = save({"a": A, "b": B})
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert refusal(path)


def test_the_digest_follows_header_and_config_not_the_weights(tmp_path: Path) -> None:
    def digest(values: Any, config: str) -> str:
        save_file({"a": values}, tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_text(config)
        return read_safetensors(tmp_path).digest

    first = digest(A, "{}")
    assert digest(A + 1, "{}") == first
    assert digest(A.T.copy(), "{}") != first
    assert digest(A, '{"a":1}') != first


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=st.lists(st.tuples(st.integers(0, 500), st.integers(1, 255)), min_size=1, max_size=3))
def test_any_mutation_is_refused_or_read_within_bounds(
    tmp_path: Path, edits: list[tuple[int, int]]
) -> None:
    whole = bytearray(save({"a": A, "b": B}))
    for at, flip in edits:
        whole[at % len(whole)] ^= flip
    path = tmp_path / "m.safetensors"
    path.write_bytes(whole)
    try:
        model = read_safetensors(path)
    except BadFileError as error:
        assert error.message
        return
    for entry in model.tensors.values():
        assert len(tensor_bytes(entry)) == entry.size_bytes
