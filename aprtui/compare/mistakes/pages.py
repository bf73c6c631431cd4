"""What each id of the catalogue means to a person (``pages.toml``)."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

__all__ = ["Page", "pages"]


@dataclass(frozen=True)
class Page:
    """One mistake: how it shows in a comparison, what is computed to prove it, where it comes from
    most often, and what to look at."""

    id: str
    title: str
    looks: str
    proof: str
    comes: str
    check: str

    @property
    def sections(self) -> tuple[tuple[str, str], ...]:
        """Headings and texts, in the order of reading."""
        return (
            ("How it looks", self.looks),
            ("How it is proved", self.proof),
            ("Where it comes from", self.comes),
            ("What to check", self.check),
        )


@cache
def pages() -> dict[str, Page]:
    """By id, in the order of the stages of a layer."""
    text = files(__package__).joinpath("pages.toml").read_text(encoding="utf-8")
    return {name: Page(name, **said) for name, said in tomllib.loads(text).items()}
