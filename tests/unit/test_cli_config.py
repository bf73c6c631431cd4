"""`aprtui config`: where the settings lie, what they are, what is wrong with them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aprtui.cli.main import main


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "aprtui").mkdir()
    return tmp_path / "aprtui" / "config.toml"


def test_without_a_file_its_place_is_told(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config"]) == 0
    assert f"{file}: not there" in capsys.readouterr().out
    assert main(["config", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {"file": str(file), "there": False, "theme": "", "keys": {}}


def test_settings_are_shown(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text('theme = "textual-light"\n[keys]\nhelp = "f1"\n')
    assert main(["config", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["theme"] == "textual-light" and told["keys"] == {"help": "f1"} and told["there"]
    assert main(["config"]) == 0
    out = capsys.readouterr().out
    assert "textual-light" in out and "help = f1" in out


@pytest.mark.parametrize(
    "text, said",
    [
        ("theme =", "is not TOML"),
        ("theme = 3", "theme is a text"),
        ('theme = "textual-lihgt"', "did you mean textual-light?"),
        ('[keys]\nhelpp = "f1"', "did you mean help?"),
        ("[keys]\nhelp = 1", "[keys] help"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    file: Path, text: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text(text)
    assert main(["config"]) == 3
    error = capsys.readouterr().err
    assert said in error and str(file) in error and error.count("\n") == 1
