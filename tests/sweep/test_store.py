"""Where results lie: whole files and folders, in a folder and behind URLs."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from aprtui.errors import BadFileError, EngineError
from aprtui.sweep.store import FolderStore, Store, UrlStore, open_store


@pytest.fixture(params=["folder", "memory", "local"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    where = {
        "folder": str(tmp_path / "results"),
        "memory": "memory://sweep-test/results",
        "local": f"local://{tmp_path}/url",  # one of those where a file is moved into its place
    }[request.param]
    yield open_store(where)
    if request.param == "memory":
        memory: Any = fsspec
        memory.filesystem("memory").store.clear()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "made"
    (made / "layer-0").mkdir(parents=True)
    (made / "trace.json").write_text("{}")
    (made / "layer-0" / "ffn_gate.bin").write_bytes(b"\0" * 1000)
    return made


def test_a_folder_is_there_when_its_list_is(store: Store, folder: Path, tmp_path: Path) -> None:
    assert not store.holds_folder("captures/a")
    store.put_folder("captures/a", folder)
    assert store.holds_folder("captures/a")
    for _ in range(2):  # whoever comes second finds it there
        store.get_folder("captures/a", tmp_path / "copy")
    assert (tmp_path / "copy" / "layer-0" / "ffn_gate.bin").read_bytes() == b"\0" * 1000
    assert sorted(p.name for p in tmp_path.iterdir() if "part" in p.name) == []


def test_a_folder_that_broke_off_is_not_there(
    store: Store, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def goes_away(name: str, path: Path) -> None:
        raise EngineError("the results cannot be reached")

    with monkeypatch.context() as patched, pytest.raises(EngineError):
        patched.setattr(store, "put_file", goes_away)
        store.put_folder("captures/a", folder)
    assert not store.holds_folder("captures/a")
    with pytest.raises(BadFileError, match="no such capture"):
        store.get_folder("captures/a", tmp_path / "copy")
    store.put_folder("captures/a", folder)
    assert store.holds_folder("captures/a")


def test_documents_are_replaced_whole(store: Store) -> None:
    assert store.document("cells/a.json") is None
    store.put_document("cells/a.json", {"n": 1})
    store.put_document("cells/a.json", {"n": 2})
    assert store.document("cells/a.json") == {"n": 2}
    store.write("cells/b.json", b"{")
    with pytest.raises(BadFileError):
        store.document("cells/b.json")


@pytest.mark.parametrize("path", ["../outside", "/etc/passwd", "a//b", "."])
def test_a_list_may_not_name_what_lies_outside(store: Store, tmp_path: Path, path: str) -> None:
    store.put_document("captures/a.json", {"schema": "aprtui-sweep-folder-v1", "files": {path: 1}})
    with pytest.raises(BadFileError, match="damaged"):
        store.get_folder("captures/a", tmp_path / "copy")


def test_a_file_that_was_cut_short_is_no_copy(store: Store, folder: Path, tmp_path: Path) -> None:
    store.put_folder("captures/a", folder)
    store.write("captures/a/layer-0/ffn_gate.bin", b"\0" * 10)
    with pytest.raises(BadFileError, match="cut short"):
        store.get_folder("captures/a", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_a_store_goes_to_another_process(store: Store) -> None:
    assert pickle.loads(pickle.dumps(store)).where == store.where


def test_a_url_that_nothing_opens_is_one_error() -> None:
    with pytest.raises(EngineError, match="nosuch://"):
        UrlStore("nosuch://bucket/results")


def test_a_store_that_goes_away_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    store = UrlStore("memory://sweep-away")

    def gone(*_: object, **__: object) -> None:
        raise ConnectionError("connection refused")

    monkeypatch.setattr(store._fs, "pipe_file", gone)
    with pytest.raises(EngineError, match="--resume"):
        store.write("a", b"")


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("a file")
    with pytest.raises(EngineError, match="cannot be written"):
        FolderStore(tmp_path / "results").write("cells/a.json", b"")
