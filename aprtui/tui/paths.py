"""Paths as people type them: what they mean, and what completes them."""

from __future__ import annotations

import os
from pathlib import Path

from textual.suggester import Suggester

from aprtui.text import clean

__all__ = ["PathSuggester", "completed", "meant", "paths_after"]

MOST = 40


def meant(text: str) -> Path:
    """The path that was typed or pasted: without blanks and quotes around it, ``~`` and ``$HOME``
    as the shell reads them, ``..`` gone where it leads."""
    text = text.strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        text = text[1:-1]
    path = _expanded(text.removeprefix("file://"))
    return path.resolve() if ".." in path.parts else path


def _expanded(text: str) -> Path:
    path = Path(os.path.expandvars(text))
    try:
        return path.expanduser()
    except RuntimeError:  # ~nobody: a user whom the system does not know
        return path


def paths_after(text: str, most: int = MOST) -> list[str]:
    """What lies where the path that is typed so far leads to, folders with a slash at their end."""
    slash = text.rfind("/") + 1
    folder, begins = text[:slash], text[slash:]
    try:
        with os.scandir(_expanded(folder or ".")) as scan:
            entries = sorted((entry.name, entry.is_dir()) for entry in scan)
    except (OSError, ValueError):  # not a folder, or no name that a file can have
        return []
    fit = [each for each in entries if each[0].startswith(begins)]
    fit = [each for each in fit if begins or not each[0].startswith(".")]
    return [folder + name + "/" * is_dir for name, is_dir in fit[:most]]


def completed(text: str) -> tuple[str, list[str]]:
    """``text`` as far as there is one way on, and the names that are possible then."""
    found = paths_after(text, most=1000)
    names = [clean(Path(each).name, 60) for each in found]
    first, last = (found[0], found[-1]) if found else (text, text)  # sorted: these differ most
    same = next((n for n, pair in enumerate(zip(first, last, strict=False)) if len({*pair}) > 1),
                min(len(first), len(last)))  # fmt: skip
    return (first[:same] if same > len(text) else text), names


class PathSuggester(Suggester):
    """Shows the first path that goes on from what is typed; the right arrow takes it."""

    def __init__(self) -> None:
        super().__init__(use_cache=False, case_sensitive=True)

    async def get_suggestion(self, value: str) -> str | None:
        found = paths_after(value, most=1) if value else []
        return found[0] if found and found[0] != value else None
