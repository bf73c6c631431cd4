"""`aprtui --version -v`: which parts in C this installation has."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from aprtui import __version__
from aprtui.cli.main import main
from aprtui.cli.version import IN_C
from aprtui.engine import native

SETUP = Path(__file__).resolve().parents[2] / "setup.py"


def test_the_version_alone_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"aprtui {__version__}\n"


def test_every_part_in_c_is_said() -> None:
    built = re.findall(r'in_c\("([\w.]+)"', SETUP.read_text())
    assert list(IN_C) == [f"aprtui.{name}" for name in built]


@pytest.mark.parametrize("absent", IN_C)
def test_what_is_absent_is_said_with_what_that_means(
    absent: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, absent, None)  # importing it raises ImportError
    assert main(["--version", "-v"]) == 0
    told = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines()[2:])
    assert told[absent].startswith("not built") and told[absent].endswith(IN_C[absent])


def test_what_is_switched_off_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("APRTUI_NATIVE", "off")
    assert main(["--version", "--verbose"]) == 0
    out = capsys.readouterr().out
    told = dict(line.split(": ", 1) for line in out.splitlines()[2:])
    assert {name for name in IN_C if told[name] == "in C"} <= {"aprtui.formats._guard"}


def test_version_takes_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version", "--nosuch"]) == 2
    assert "--version -v" in capsys.readouterr().err


def test_a_plan_says_that_no_decoders_were_built(
    qwen2: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where blocks are decoded on the CPU: not of a GPU, not of other engines."""
    words = ["trace", str(qwen2), "--dry-run"]
    assert main(words) == 0
    assert "decoded by torch" not in capsys.readouterr().out or not native.BUILT
    monkeypatch.setattr(native, "BUILT", False)
    assert main(words) == 0
    assert "half as fast and to the same bits: no C compiler" in capsys.readouterr().out
    assert main([*words, "--device", "cuda"]) == 0
    assert "decoded by torch" not in capsys.readouterr().out
