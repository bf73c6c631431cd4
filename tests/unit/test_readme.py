"""What the README and the pages that it leads to say that the program can say itself."""

from __future__ import annotations

import re
import runpy
import tomllib
from pathlib import Path

import pytest

from aprtui.cli.main import COMMANDS, EXIT_CODES, main
from aprtui.engine.adapters import available
from aprtui.tui.keys import markdown

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
URLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]
HOME = URLS["Homepage"]
ENGINES = (ROOT / "docs/engines.md").read_text()


def test_it_is_short() -> None:
    assert len(README.splitlines()) <= 150, "the rest belongs into docs/"


def test_the_table_of_keys_is_the_programs_own() -> None:
    keys = (ROOT / "docs/keys.md").read_text()
    assert markdown().strip() in keys, "paste what `python -m aprtui.tui.keys` prints"


def test_every_command_is_named() -> None:
    for name in COMMANDS:
        assert f"aprtui {name}" in README, name


def test_every_path_is_there_and_is_an_address_where_the_readme_is_read_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """PyPI shows the README without the repository: setup.py makes its paths addresses."""
    paths = re.findall(r"\]\((?!https?:|#)([^)#]+)", README)
    assert "screenshots/diff-120x40.png" in paths and all((ROOT / path).exists() for path in paths)
    given: dict[str, str] = {}
    monkeypatch.setattr("setuptools.setup", given.update)
    monkeypatch.setattr("setuptools.Extension", lambda *args, **options: None)
    monkeypatch.chdir(ROOT)
    runpy.run_path("setup.py")
    alone = given["long_description"]
    assert not re.search(r"\]\((?!https?:|#)", alone)
    for path in paths:
        folder = "raw" if path.endswith(".png") else "blob"
        assert f"({HOME}/{folder}/main/{path}" in alone, path


def test_the_address_of_the_repository_stands_in_one_place() -> None:
    site = tomllib.loads((ROOT / "zensical.toml").read_text())["project"]
    assert (site["repo_url"], site["site_url"]) == (HOME, URLS["Documentation"])
    assert all(url.startswith((HOME, site["site_url"])) for url in URLS.values())
    texts = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob(".github/**/*.yml"),
             *ROOT.glob("aprtui/**/*.py")]  # fmt: skip
    owner = HOME.removesuffix("/aprtui").removeprefix("https://") + "/"
    assert [path for path in texts if owner in path.read_text()] == []


def test_exit_codes_are_those_of_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert EXIT_CODES in capsys.readouterr().out
    assert " ".join(EXIT_CODES.split()) in " ".join(README.split())


def test_engines_are_installed_by_the_words_of_the_hints() -> None:
    assert all(engine.how_to_install in ENGINES for engine in available())
