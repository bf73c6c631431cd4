"""Every mistake has a page that says what it is, in the terminal and in docs/."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aprtui.cli.main import main
from aprtui.compare.mistakes.naming import CATALOGUE
from aprtui.compare.mistakes.pages import Page, pages
from tests.benchmarks.mistake_pages import MARK, index, prose

DOCS = Path(__file__).resolve().parents[2] / "docs/mistakes"
INDEX = "index"


def test_every_entry_of_the_catalogue_has_its_page() -> None:
    assert {entry.id for entry in CATALOGUE} <= set(pages())


@pytest.mark.parametrize("page", pages().values(), ids=lambda page: page.id)
def test_the_page_in_docs_is_the_programs_own(page: Page) -> None:
    text = (DOCS / f"{page.id}.md").read_text(encoding="utf-8")
    assert text.split(f"\n{MARK}")[0] == prose(page), "run python -m tests.benchmarks.mistake_pages"


def test_the_list_in_docs_is_the_programs_own() -> None:
    assert (DOCS / f"{INDEX}.md").read_text(encoding="utf-8") == index()
    assert {path.stem for path in DOCS.glob("*.md")} == {INDEX, *pages()}


def test_one_is_told_in_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mistakes", "rope_theta"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    page = pages()["rope_theta"]
    assert said.startswith(f"rope_theta: {page.title} How it looks {page.looks}")
    assert main(["mistakes", "rope_theta", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["check"] == page.check


def test_all_are_listed_without_an_id(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mistakes"]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line.split()[0] for line in lines] == list(pages())
    assert main(["mistakes", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == len(pages())


def test_one_that_is_not_there_is_told_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mistakes", "rope_teta"]) == 2
    assert "did you mean rope_theta?" in capsys.readouterr().err
