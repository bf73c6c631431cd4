"""`aprtui demo` makes its files, again if asked, and never touches what it did not make."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aprtui.cli.main import main

Capsys = pytest.CaptureFixture[str]


def test_a_demo_is_made_twice_in_one_folder_and_tells_where(tmp_path: Path, capsys: Capsys) -> None:
    for _ in range(2):
        assert main(["demo", "-o", str(tmp_path / "a demo"), "--json"]) == 0
    made = json.loads(capsys.readouterr().out.rpartition("}\n{")[2].join(["{", ""]))
    assert all(Path(path).exists() for path in (*made["models"], *made["traces"]))
    assert main(["demo", "-o", str(tmp_path / "a demo"), "--no-open"]) == 0
    assert f"aprtui '{tmp_path}/a demo/good' '{tmp_path}/a demo/bad'" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["model.gguf", "model-damaged.gguf", "good", "bad"])
def test_what_no_demo_made_is_left_as_it_is(name: str, tmp_path: Path, capsys: Capsys) -> None:
    (tmp_path / name).write_text("precious")
    assert main(["demo", "-o", str(tmp_path), "--no-open"]) == 2
    assert f"{name}: stands there, and no demo made it" in capsys.readouterr().err
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "precious")]
