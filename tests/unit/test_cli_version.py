"""`aprtui --version -v`: which parts in C this installation has."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from aprtui import __version__
from aprtui.cli.main import main
from aprtui.cli.version import IN_C

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
