"""What the letters at the head of a grid stand for: a stage a line, or in columns of names."""

from __future__ import annotations

from collections.abc import Sequence

from textual.content import Content

from aprtui.graph.vocabulary import short_name, stage_of
from aprtui.text import clean

__all__ = ["explained", "in_columns"]


def explained(name: str) -> Content:
    """A stage's letters, its name and what it is."""
    known = stage_of(name)
    return Content.assemble(
        (f"  {_letters(name):<4}", "$text-primary"),
        f"{clean(name, 40):<22}",
        (known.doc if known is not None else "", "dim"),
    ).truncate(400, ellipsis=True)


def in_columns(names: Sequence[str], width: int) -> list[Content]:
    """The letters and names alone, downwards, in as many columns as ``width`` holds."""
    cell = max((len(name) for name in names), default=0) + 6
    each = max(width // cell, 1)
    rows = -(-len(names) // each)
    lines = []
    for row in range(rows):
        parts: list[Content] = [Content("  ")]
        for name in names[row::rows]:
            parts += [Content.styled(f"{_letters(name):<4}", "$text-primary"),
                      Content.styled(f"{clean(name, 40):<{cell - 4}}", "dim")]  # fmt: skip
        lines.append(Content.assemble(*parts))
    return lines


def _letters(name: str) -> str:
    """Empty for a stage that is named in full."""
    return short_name(name) if short_name(name) != name else ""
