"""Places that a person marked, each with a note: kept beside the session, never in a capture.

``$XDG_STATE_HOME/aprtui/bookmarks.json``. A capture may be read-only, someone else's or evidence,
so nothing is written into it; a report takes in the notes on what it compares.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from aprtui.errors import BadFileError, UsageError
from aprtui.formats.atomic import whole_file
from aprtui.formats.strict_json import read_object
from aprtui.formats.tracedir import StageKey, key_of, relative_path
from aprtui.state import state_folder
from aprtui.text import clean

__all__ = ["Bookmark", "add", "bookmarks", "bookmarks_file", "bookmarks_on", "remove"]

SCHEMA = "aprtui-bookmarks-v1"
MOST, MAX_BYTES, MAX_NOTE = 1000, 4 << 20, 500


@dataclass(frozen=True)
class Bookmark:
    """A place on a screen (tui.jumps: "browse", "pair", "model" ...) over absolute ``paths``, its
    stage or its tensor, and the note; ``made`` is the day."""

    screen: str
    paths: tuple[str, ...]
    key: StageKey | None
    tensor: str
    note: str
    made: str

    @property
    def what(self) -> str:
        """The stage or the tensor, in clean words."""
        return clean(str(self.key) if self.key is not None else self.tensor or "all of it", 120)


def bookmarks_file() -> Path:
    return state_folder() / "bookmarks.json"


def bookmarks() -> tuple[Bookmark, ...]:
    """All of them, the newest last. Raises BadFileError for a file that is damaged."""
    file = bookmarks_file()
    if not file.exists():
        return ()
    found = read_object(file, "the bookmarks", MAX_BYTES)
    try:
        if found["schema"] != SCHEMA:
            raise ValueError(f"schema {found['schema']!r}")
        return tuple(_read(each) for each in found["bookmarks"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadFileError(
            file, f"the bookmarks are damaged: {clean(repr(error), 100)}", hint="move it away"
        ) from error


def bookmarks_on(paths: Iterable[Path]) -> tuple[Bookmark, ...]:
    """Those on these captures or models and on nothing else."""
    known = {str(path.absolute()) for path in paths}
    return tuple(each for each in bookmarks() if each.paths and known >= set(each.paths))


def add(bookmark: Bookmark) -> None:
    """Keep it; another note on the same place takes the place of the one before.

    Raises BadFileError where the file is damaged, UsageError for too many, EngineError.
    """
    kept = [each for each in bookmarks() if replace(each, note="", made="") != replace(
        bookmark, note="", made="")]  # fmt: skip
    if len(kept) >= MOST:
        raise UsageError(f"there are {MOST} bookmarks: remove some first")
    _write([*kept, replace(bookmark, note=clean(bookmark.note.strip(), MAX_NOTE))])


def remove(bookmark: Bookmark) -> None:
    """Forget it. Raises as ``add``."""
    _write([each for each in bookmarks() if each != bookmark])


def _write(kept: Iterable[Bookmark]) -> None:
    document = {"schema": SCHEMA, "bookmarks": [asdict(each) for each in kept]}
    with whole_file(bookmarks_file(), parents=True) as file:
        file.write((json.dumps(document, indent=1) + "\n").encode())


def _read(said: Any) -> Bookmark:
    key = None if said["key"] is None else StageKey(*said["key"])
    if key is not None and key_of(relative_path(key)) != key:
        raise ValueError(f"no stage: {key}")
    texts = [said[name] for name in ("screen", "tensor", "note", "made")]
    paths = tuple(said["paths"])
    if not all(isinstance(text, str) for text in (*texts, *paths)):
        raise TypeError("a text is none")
    screen, tensor, note, made = texts
    return Bookmark(screen, paths, key, tensor, clean(note, MAX_NOTE), clean(made, 20))
