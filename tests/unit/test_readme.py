"""What the README says that the program can say itself."""

from __future__ import annotations

from pathlib import Path

from aprtui.cli.main import COMMANDS
from aprtui.tui.keys import markdown

README = (Path(__file__).resolve().parents[2] / "README.md").read_text()


def test_the_table_of_keys_is_the_programs_own() -> None:
    assert markdown().strip() in README, "paste what `python -m aprtui.tui.keys` prints"


def test_every_command_is_named() -> None:
    for name in COMMANDS:
        assert f"aprtui {name}" in README, name


def test_every_picture_is_there() -> None:
    root = Path(__file__).resolve().parents[2]
    pictures = [line.split("](")[1].rstrip(")") for line in README.splitlines() if line[:2] == "!["]
    assert pictures
    assert all((root / picture).is_file() for picture in pictures)
