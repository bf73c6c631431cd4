"""How a trace directory is laid out: which path is which stage of which layer."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

__all__ = [
    "EVENTS",
    "LAYER_FOLDER",
    "MANIFEST",
    "StageKey",
    "key_of",
    "prompts_in",
    "relative_path",
]

MANIFEST = "trace.json"
EVENTS = "events.jsonl"
LAYER_FOLDER = re.compile(r"layer-(0|[1-9][0-9]{0,8})")
_PROMPT = re.compile(r"prompt-([1-9][0-9]{0,8})")
_STAGE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")


class StageKey(NamedTuple):
    """One stage of one layer; ``layer`` is None for a whole-model stage."""

    layer: int | None
    stage: str

    def __str__(self) -> str:
        return self.stage if self.layer is None else f"layer-{self.layer}/{self.stage}"


def relative_path(key: StageKey) -> str:
    """Where the stage lies in a trace directory, with forward slashes."""
    return f"{key}.bin"


def key_of(relative: str) -> StageKey | None:
    """The stage that a relative path names, or None when it is not a stage file's path."""
    folder, slash, name = relative.rpartition("/")
    if not name.endswith(".bin") or not _STAGE_NAME.fullmatch(name[:-4]):
        return None
    if not slash:
        return StageKey(None, name[:-4])
    layer = _layer_of(folder)
    return None if layer is None else StageKey(layer, name[:-4])


@lru_cache(1024)  # asked for every file in it
def _layer_of(folder: str) -> int | None:
    match = LAYER_FOLDER.fullmatch(folder)
    return int(match[1]) if match else None


def prompts_in(folder: Path) -> dict[str, Path]:
    """The traces that ``aprtui trace --prompts`` wrote there, by name, in order; empty for none."""
    if not folder.is_dir() or (folder / MANIFEST).exists() or (folder / EVENTS).exists():
        return {}
    found = {
        int(name[1]): each
        for each in folder.iterdir()
        if (name := _PROMPT.fullmatch(each.name)) and each.is_dir()
    }
    return {found[number].name: found[number] for number in sorted(found)}
