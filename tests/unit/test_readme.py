"""What the README and the pages that it leads to say that the program can say itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from aprtui.cli.main import COMMANDS, EXIT_CODES, main
from aprtui.engine.adapters import available
from aprtui.tui.keys import markdown

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
RAW = "https://raw.githubusercontent.com/aprtui/aprtui/main/"
ENGINES = (ROOT / "docs/engines.md").read_text()


def test_it_is_short() -> None:
    assert len(README.splitlines()) <= 150, "the rest belongs into docs/"


def test_the_table_of_keys_is_the_programs_own() -> None:
    keys = (ROOT / "docs/keys.md").read_text()
    assert markdown().strip() in keys, "paste what `python -m aprtui.tui.keys` prints"


def test_every_command_is_named() -> None:
    for name in COMMANDS:
        assert f"aprtui {name}" in README, name


def test_every_picture_is_there_and_shows_where_the_readme_is_read_alone() -> None:
    """PyPI shows the README without the repository: its pictures have whole addresses."""
    pictures = [line.split("](")[1].rstrip(")") for line in README.splitlines() if line[:2] == "!["]
    assert pictures
    for picture in pictures:
        assert picture.startswith(RAW), picture
        assert (ROOT / picture.removeprefix(RAW)).is_file(), picture


def test_exit_codes_are_those_of_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert EXIT_CODES in capsys.readouterr().out
    assert " ".join(EXIT_CODES.split()) in " ".join(README.split())


def test_engines_are_installed_by_the_words_of_the_hints() -> None:
    assert all(engine.how_to_install in ENGINES for engine in available())
