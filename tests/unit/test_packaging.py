"""What is published beside the code: the archive of sources, constraints, the wheels' recipes."""

from __future__ import annotations

import re
import tomllib
from itertools import chain
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
RECIPES = [ROOT / ".pre-commit-config.yaml", *sorted((ROOT / ".github").rglob("*.yml"))]


def test_the_constraints_hold_every_dependency_that_is_asked_for() -> None:
    project = PROJECT["project"]
    asked = chain(project["dependencies"], *project["optional-dependencies"].values())
    names = {re.split(r"[<>=;\[ ]", one)[0].lower() for one in asked} - {"aprtui"}
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    held = {line.split("==")[0] for line in lines if "==" in line}
    assert {name.replace("_", "-") for name in names} <= held, "its first lines say how it is made"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_recipes_are_yaml(path: Path) -> None:
    assert yaml.safe_load(path.read_text(encoding="utf-8"))


def test_what_is_in_c_keeps_to_the_stable_interface() -> None:
    """One wheel serves every Python from the lowest that is asked for."""
    lowest = PROJECT["project"]["requires-python"].removeprefix(">=3.")
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    assert f'"0x03{int(lowest):02X}0000"' in setup
    assert f'"py_limited_api": "cp3{lowest}"' in setup
    for path in [*ROOT.glob("aprtui/**/*.c"), *ROOT.glob("aprtui/**/*.h")]:
        unsafe = re.findall(r"\bPy\w+_(?:GET|SET|AS)_[A-Z]+\b", path.read_text(encoding="utf-8"))
        assert not unsafe, f"{path.name}: macros of CPython's inside"


def test_every_page_has_its_place_in_the_site() -> None:
    site = (ROOT / "zensical.toml").read_text(encoding="utf-8")
    assert [
        page.name for page in (ROOT / "docs").glob("*.md") if f'"{page.name}"' not in site
    ] == []


def test_the_archive_of_sources_holds_what_its_tests_need() -> None:
    manifest = (ROOT / "MANIFEST.in").read_text(encoding="utf-8")
    for path in (".ci", "tests", "docs", "contracts", "zensical.toml", "constraints.txt"):
        assert path in manifest, path
