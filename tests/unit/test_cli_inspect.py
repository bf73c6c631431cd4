"""`aprtui inspect` says what a file is, and nothing from the file reaches the terminal raw."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aprtui.cli.main import main
from aprtui.formats.aprt import write_stage
from aprtui.formats.tracedir import StageKey
from aprtui.model.open import open_model
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
    path = write_tiny(tmp_path / "m.apr", metadata={"architecture": "unheard_of"})
    code, text, _ = inspect(capsys, path)
    assert code == 0
    assert "cannot be traced" in text and "'unheard_of'" in text
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


# -- the graph -------------------------------------------------------------------------------------


def test_the_graph_is_every_stage_with_what_it_computes(
    qwen2: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = json.loads(inspect(capsys, qwen2, "--graph", "--json")[1])
    graph = open_model(qwen2).graph
    keys = [StageKey(node["layer"], node["stage"]) for node in said["nodes"]]
    assert keys == [node.key for node in graph]
    nodes = dict(zip(keys, said["nodes"], strict=True))
    gate = nodes[StageKey(2, "ffn_gate")]
    assert gate["inputs"] == [{"layer": 2, "stage": "ffn_norm"}]
    assert (gate["axes"], gate["shape"]) == (["token", "ffn"], [None, 512])
    assert gate["weights"] == [{
        "role": "layer 2 gate", "tensor": "blk.2.ffn_gate.weight", "type": "Q4_K", "first_row": 0,
        "shape": [512, 256], "size_bytes": 73_728, "counted": True,
    }]  # fmt: skip
    rope = nodes[StageKey(0, "k_post_rope")]["operation"]
    assert rope["name"] == "rope" and rope["table"]["theta"] == 1e6
    assert rope["heads"] == {"first": 256, "count": 2, "size": 32, "period": 0}
    assert "experts" in {item["stage"]: item["reason"] for item in said["absent"]}["moe_router"]


@pytest.mark.parametrize("name", ["qwen2-q4_k_m", "llama-q4_k_m", "gemma3-q4_0", "qwen3moe-q4_k_m"])
def test_parameters_of_the_graph_sum_to_the_model_s(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = SMALL / "models" / f"{name}.gguf"
    path = path if path.is_file() else FIXTURES / "models" / path.name
    if not path.is_file():
        pytest.skip(f"the large fixtures are not at {FIXTURES}")
    held = sum(math.prod(entry.shape) for entry in open_model(path).file.tensors.values())
    said = json.loads(inspect(capsys, path, "--graph", "--json")[1])
    assert said["parameters"] == held == sum(node["parameters"] for node in said["nodes"])
    text = inspect(capsys, path, "--graph")[1]
    assert f"{held:,} parameters" in text and "no stage reads" not in text


def test_a_tied_head_is_counted_at_the_embedding(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_tiny(
        tmp_path / "m.apr", metadata={"tie_word_embeddings": True}, without=("lm_head.weight",)
    )
    said = json.loads(inspect(capsys, path, "--graph", "--json")[1])
    head = said["nodes"][-1]
    assert head["parameters"] == 0 and not head["weights"][0]["counted"]
    text = inspect(capsys, path, "--graph")[1]
    (told,) = (line for line in text.splitlines() if line.startswith("lm_head"))
    assert told.endswith("shared")
    assert "what several stages share is counted at the first" in text


@pytest.mark.parametrize("columns", [80, 120])
def test_the_graph_s_table_keeps_to_the_terminal_and_folds_layers_that_are_alike(
    qwen2: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = inspect(capsys, qwen2, "--graph")[1].splitlines()
    assert max(map(len, lines)) <= columns
    assert "layers 0-3, alike: 557,952 parameters each" in lines
    assert sum(line.lstrip().startswith("ffn_gate") for line in lines) == 1
    wide = any("norm eps 1e-06" in line and "attn norm 256 F32" in line for line in lines)
    assert wide == (columns == 120)


def test_a_graph_is_a_model_s(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_stage(tmp_path / "x.bin", 0, np.ones(3, dtype=np.float32))
    code, _, error = inspect(capsys, tmp_path / "x.bin", "--graph")
    assert code == 2 and "a stage file, and a graph is a model's" in error
