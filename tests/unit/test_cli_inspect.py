"""`aprtui inspect` says what a file is, and nothing from the file reaches the terminal raw."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aprtui.cli.main import main
from aprtui.formats.aprt import write_stage
from tests.support import FIXTURES, SMALL, needs_fixtures
from tests.tiny import write_tiny


def inspect(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main(["inspect", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_model_in_words_and_as_json(qwen2: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text, _ = inspect(capsys, qwen2)
    assert code == 0
    assert (
        "qwen2: 4 layers, hidden 256, heads 8/2 x 32, ffn 512, vocab 2,048, rope 1e6 halves" in text
    )
    assert "47 47 55 46" in text
    said = json.loads(inspect(capsys, qwen2, "--json")[1])
    assert (said["kind"], said["traceable"], len(said["tensors"])) == ("model", True, 51)
    roles = {tensor["name"]: tensor["role"] for tensor in said["tensors"]}
    assert roles["blk.2.ffn_gate.weight"] == "layer 2 gate"
    assert said["metadata"]["tokenizer.ggml.tokens"]["length"] == 2048


def test_a_model_that_cannot_be_traced_still_shows_its_tensors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_tiny(tmp_path / "m.apr", metadata={"architecture": "mamba"})
    code, text, _ = inspect(capsys, path)
    assert code == 0
    assert "cannot be traced" in text and "'mamba'" in text
    assert "model.layers.1.mlp.up_proj.weight" in text


def test_a_checksum_that_does_not_match_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_tiny(tmp_path / "m.apr")
    assert "verified" in inspect(capsys, path, "--verify")[1]
    raw = bytearray(path.read_bytes())
    raw[-100] ^= 1
    path.write_bytes(raw)
    code, _, error = inspect(capsys, path, "--verify")
    assert code == 3
    assert "checksum" in error


def test_names_from_files_do_not_reach_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile = "model.layers.0.\x1b]52;c;aGk=\x07[/x]\u202e"
    path = write_tiny(
        tmp_path / "m.apr", extra={hostile: np.zeros(2, dtype=np.float32)},
        metadata={"name": "\x1b[2J"},
    )  # fmt: skip
    for options in ((), ("--json",)):
        _, text, error = inspect(capsys, path, *options)
        assert not {"\x1b", "\x07", "\u202e"} & set(text + error)


def test_a_stage_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "ffn_up.bin"
    write_stage(path, 7, np.array([1, -2, np.nan], dtype=np.float32))
    said = json.loads(inspect(capsys, path, "--json")[1])
    assert (said["layer"], said["values"], said["size_bytes"]) == (7, 3, 24)
    assert said["header_hex"] == "41 50 52 54 07 00 00 00 03 00 00 00"
    assert (said["stats"]["nan"], said["stats"]["min"]) == (1, -2)
    path.write_bytes(path.read_bytes()[:-1])
    code, _, error = inspect(capsys, path)
    assert code == 3
    assert "24 bytes promised by its header, 23 there" in error


def test_a_foreign_trace_and_a_damaged_file_in_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "t"
    shutil.copytree(SMALL / "captures" / "qwen2-q4_k_m" / "float64", root)
    code, text, _ = inspect(capsys, root)
    assert code == 0
    assert "foreign, 71 files" in text
    assert "shapes inferred: 12 tokens, hidden 256, heads 8/2 x 32" in text
    assert "layers  4: 0-3\n" in text
    (root / "layer-2" / "ffn_up.bin").write_bytes(b"APRT")
    code, text, _ = inspect(capsys, root)
    assert code == 3
    assert "damaged: layer-2/ffn_up" in text
    shutil.rmtree(root / "layer-1")
    assert "layers  3: 0, 2-3\n" in inspect(capsys, root)[1]


@pytest.mark.parametrize("unreadable", ["t", "t/layer-2"])
def test_a_folder_that_cannot_be_read_is_named(
    unreadable: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As the system refuses it: the tests may run as root, whom nothing is refused."""
    root, refused = tmp_path / "t", tmp_path / unreadable
    shutil.copytree(SMALL / "captures" / "qwen2-q4_k_m" / "float64", root)
    scandir, stat = os.scandir, Path.stat

    def refusing_scandir(path: Any) -> Any:
        if Path(path) == refused:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return scandir(path)

    def refusing_stat(self: Path, **options: Any) -> os.stat_result:
        if self.parent == refused:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))
        return stat(self, **options)

    monkeypatch.setattr(os, "scandir", refusing_scandir)
    monkeypatch.setattr(Path, "stat", refusing_stat)
    code, _, error = inspect(capsys, root)
    assert (code, error) == (3, f"aprtui: {refused}: cannot be read: Permission denied\n")


def test_what_is_nothing_of_ours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.txt").write_text("hello")
    for path, says in (
        (tmp_path / "nowhere", "does not exist"),
        (tmp_path / "x.txt", "not a model file"),
        (tmp_path, "holds no trace"),
    ):
        code, _, error = inspect(capsys, path)
        assert code == 3
        assert says in error


@needs_fixtures
@pytest.mark.parametrize("name", sorted(p.name for p in FIXTURES.glob("apr/models/*.apr")))
def test_every_file_of_the_public_apr_is_inspected(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = FIXTURES / "apr" / "models" / name
    said = json.loads(inspect(capsys, path, "--json", "--verify")[1])
    assert said["version"] == "2.0"
    assert said["traceable"] == (name != "qwen3moe-preserve.apr"), said["why_not"]
