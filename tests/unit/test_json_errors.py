"""With --json, every command says what went wrong as one JSON object."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from aprtui.cli import stats
from aprtui.cli.commands import COMMANDS
from aprtui.cli.main import main
from tests.support import SMALL

CAPTURE = str(SMALL / "captures" / "qwen2-q4_k_m" / "float64")

FAILING = [
    ("trace gone.gguf --json", 3),
    ("trace --json", 2),
    ("trace gone.gguf --json --dtype int3", 2),
    ("trace gone.gguf --json --tokens x", 2),
    ("trace damaged.gguf --js", 3),
    ("inspect --json gone", 3),
    ("inspect --json", 2),
    ("inspect --json --nosuch .", 2),
    ("import damaged.gguf --json", 3),
    ("import-trace gone --model gone.gguf --json", 3),
    ("diff gone-a gone-b --json", 3),
    ("diff one --json", 2),
    ("diff one --json --markdown", 2),
    ("bisect gone --json", 3),
    ("bisect --json", 2),
    ("report gone-a gone-b -o report.html --json", 2),
    ("verify gone.gguf --json", 3),
    ("mistakes nosuch --json", 2),
    ("sweep gone.toml --json", 3),
    ("sweep gone.toml --rows stage --json", 2),
    ("stats gone --json", 3),
    ("stats CAPTURE --stages nosuch --json", 2),
    ("export CAPTURE --to npz --json", 2),
    ("contract validate gone --json", 2),
    ("contract status gone --json", 2),
    ("contract --json", 2),
    ("demo -o damaged.gguf --json", 4),
    ("completion tcsh --json", 2),
    ("man --json", 2),
    ("config --json", 3),
    ("nosuch --json", 2),
    ("inspct --json", 2),
]


def told(capsys: pytest.CaptureFixture[str], words: list[str]) -> tuple[int, str, str]:
    code = main(words)
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.mark.parametrize("line, code", FAILING)
def test_an_error_is_one_json_object_on_stderr(
    line: str,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("damaged.gguf").write_bytes(b"GGUF\3\0\0\0" + b"\xff" * 40)
    Path("aprtui").mkdir()
    Path("aprtui/config.toml").write_text("theme =")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    words = [CAPTURE if word == "CAPTURE" else word for word in line.split()]
    ended, out, error = told(capsys, words)
    assert error.count("\n") == 1, error
    said = json.loads(error)["error"]
    assert (ended, said["exit_code"], out) == (code, code, ""), error
    assert said.keys() == {"message", "hint", "exit_code"} and said["message"]
    if "--json" not in said["message"]:  # what was wrong is wrong without it
        again, _, text = told(capsys, [word for word in words if word not in ("--json", "--js")])
        assert (again, text.startswith(f"aprtui: {said['message']}")) == (code, True), text


def test_every_command_is_tried() -> None:
    assert {line.split()[0] for line, _ in FAILING} >= set(COMMANDS)


def test_an_unforeseen_fault_is_json_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fault(args: argparse.Namespace) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(stats, "run", fault)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    code, out, error = told(capsys, ["stats", CAPTURE, "--json"])
    said = json.loads(error)["error"]
    assert (code, said["exit_code"], out) == (4, 4, "") and "ZeroDivisionError" in said["message"]


def test_a_signal_is_json_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(args: argparse.Namespace) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(stats, "run", stopped)
    code, _, error = told(capsys, ["stats", CAPTURE, "--json"])
    assert code == 128 + signal.SIGINT
    assert json.loads(error) == {"error": {"message": "stopped", "hint": "", "exit_code": code}}


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")  # noqa: PTH110
def test_a_full_disk_under_stdout_is_json_too() -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "aprtui", "stats", CAPTURE, "--json"],
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert done.returncode == 4
    assert json.loads(done.stderr)["error"]["exit_code"] == 4
