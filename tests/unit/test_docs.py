"""docs/: what the code cites is there, and what it lists is what the code has."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from aprtui.compare.mistakes.naming import CATALOGUE
from aprtui.errors import __doc__ as errors_doc
from aprtui.graph.vocabulary import STAGES

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(page.stem for page in DOCS.glob("*.md"))
_ROOMS = ("aprtui", "tests", "contracts", "docs", "examples")
_TEXTS = (".py", ".pyi", ".h", ".c", ".yaml", ".md")
_CITED = re.compile(r"(?<![\w/])docs/([a-z-]+)\.md((?:,? (?:and |to )?D?\d+(?:\.\d+)?(?![\w,%]))*)")
_SECTION = re.compile(r"D?\d+(?:\.\d+)?")


def citations() -> Iterator[tuple[str, str, str]]:
    """(where, page, section) of every citation in code, tests, contracts and pages of their own."""
    rooms = [path for room in _ROOMS for path in sorted((ROOT / room).rglob("*"))]
    for path in (*rooms, ROOT / "README.md", ROOT / "CONTRIBUTING.md"):
        if path.suffix not in _TEXTS or "fixtures" in path.parts:
            continue
        name = path.relative_to(ROOT)
        text = path.read_text(encoding="utf-8")
        if path.parent == DOCS:  # a page cites its neighbours without the folder
            text = re.sub(r"(?<![/\w-])([a-z-]+\.md)", r"docs/\1", text)
        for match in _CITED.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            for section in _SECTION.findall(match[2]) or [""]:
                yield f"{name}:{line}", match[1], section


def sections(page: str) -> set[str]:
    """The numbers of a page's headings, items of numbered lists below them, and decisions' ids."""
    found, heading = {""}, ""
    for line in (DOCS / f"{page}.md").read_text(encoding="utf-8").splitlines():
        if match := re.match(r"#{2,4} (\d+(?:\.\d+)?)\.? ", line):
            heading = match[1]
            found.add(heading)
        elif match := re.match(r"(\d+)\. ", line):
            found.add(f"{heading}.{match[1]}" if heading else match[1])
        elif match := re.match(r"\| (D\d+)((?:, D\d+)*) \|", line):
            found |= set(re.findall(r"D\d+", line.split("|")[1]))
    return found


def test_what_is_cited_is_there() -> None:
    found = list(citations())
    assert len(found) > 50
    there = {page: sections(page) for page in PAGES}
    missing = [
        f"{where}: docs/{page}.md {section}".strip()
        for where, page, section in found
        if section not in there.get(page, set())
    ]
    assert not missing


def test_nothing_cites_a_page_by_its_old_name_or_without_its_folder() -> None:
    names = "|".join(PAGES)
    for name in ("aprtui", "tests", "contracts"):
        for path in (ROOT / name).rglob("*"):
            if path.suffix not in (".py", ".h", ".c", ".yaml") or "fixtures" in path.parts:
                continue
            text = path.read_text(encoding="utf-8")
            found = re.search(rf"specs/[a-z]|(?<![/\w-])(?:{names})\.md\b", text)
            assert found is None or path.name == "test_docs.py", f"{path}: {found[0]}"


@pytest.mark.parametrize("page", [*(f"docs/{p}.md" for p in PAGES), "README.md", "CONTRIBUTING.md"])
def test_links_lead_somewhere(page: str) -> None:
    path = ROOT / page
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), target


def test_the_readme_names_every_page() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [page for page in PAGES if f"docs/{page}.md" not in readme] == []


def test_the_table_of_stages_is_the_vocabularys() -> None:
    text = (DOCS / "stages.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \|", text, re.M)
    assert [name for name, _ in rows] == [stage.name for stage in STAGES]
    letters = {"token": "T", "query": "T", "key": "T", "hidden": "H", "ffn": "F", "head": "A",
               "kv_head": "K", "channel": "d", "expert": "E", "rank": "k", "vocab": "V",
               "gate": "1", "width": "W", "state_head": "N", "row": "R", "gates": "A or A*d",
               "slot": "S", "stream": "S", "qkv": " A*d + 2*K*d"}  # fmt: skip
    for (name, tensor), stage in zip(rows, STAGES, strict=True):
        said = f"[{','.join(letters[axis] for axis in stage.axes)}]"
        assert tensor.startswith((said, "same")), name


def test_the_table_of_mistakes_is_the_catalogues() -> None:
    text = (DOCS / "compare.md").read_text(encoding="utf-8")
    table = text.split("| stage | ids |")[1].split("\n\n")[0]
    named = set(re.findall(r"`(\w+)`", table))
    assert {entry.id for entry in CATALOGUE} <= named


def test_the_tree_of_errors_is_the_codes() -> None:
    tree = re.search(r"    AprtuiError .*?\n\n", errors_doc or "", re.S)
    assert tree is not None
    assert tree[0].strip() in (DOCS / "api.md").read_text(encoding="utf-8")


def test_the_map_names_every_room() -> None:
    text = (DOCS / "map.md").read_text(encoding="utf-8")
    rooms = [
        f"{path.name}/" for path in (ROOT / "aprtui").iterdir() if (path / "__init__.py").is_file()
    ]
    assert [room for room in rooms if f"`{room}`" not in text] == []
    for named in re.findall(r"`((?:[a-z_]+/)+[a-z_]+\.(?:py|h))`", text):
        assert any((ROOT / base / named).exists() for base in ("aprtui", "")), named
