"""The manifest of a trace, ``trace.json``: read with every field checked, written whole.

A manifest comes from a file, so nothing in it is taken on trust: kinds, counts that contradict one
another, and text that a terminal could act on. Schema: contracts/manifest.schema.json.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import NoneType
from typing import Any

from aprtui.errors import BadFileError
from aprtui.formats.aprt import HEADER_BYTES
from aprtui.formats.atomic import OpenFolder, whole_file
from aprtui.formats.blocks import MAX_DIMENSIONS, value_count
from aprtui.formats.layout import MANIFEST, StageKey, key_of
from aprtui.formats.rows import Rows
from aprtui.formats.strict_json import read_object
from aprtui.text import clean

__all__ = [
    "SCHEMA",
    "StageEntry",
    "check_parts",
    "read_manifest",
    "rows_of",
    "stage_entries",
    "stage_entry",
    "write_manifest",
]

SCHEMA = "aprtui-trace-v1"
MAX_MANIFEST_BYTES = 64 << 20
_NONFINITE = ("NaN", "Infinity", "-Infinity")


@dataclass(frozen=True)
class StageEntry:
    """What the manifest says of one stage file."""

    key: StageKey
    bytes: int
    shape: tuple[int, ...]
    axes: tuple[str, ...]
    positions: str | tuple[int, ...]
    stats: Mapping[str, Any]


def read_manifest(path: Path) -> dict[str, Any] | None:
    """The manifest's document, its parts of the right kinds; None when there is no such file.

    Raises BadFileError for a damaged one.
    """
    try:
        manifest = read_object(path, "the manifest", MAX_MANIFEST_BYTES, unique=False)
    except BadFileError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        error.hint = "move it away to browse the files without it"
        raise
    if manifest.get("schema") != SCHEMA:
        raise BadFileError(
            path, f"not a manifest that this version reads: its schema is not {SCHEMA}"
        )
    try:
        check_parts(manifest)
    except ValueError as error:
        raise _damaged(path, error) from error
    return manifest


def stage_entries(path: Path, manifest: Mapping[str, Any]) -> tuple[StageEntry, ...]:
    """The checked entries of a manifest read from ``path``. Raises BadFileError."""
    try:
        entries = tuple(stage_entry(raw) for raw in manifest["stages"])
        if len({entry.key for entry in entries}) != len(entries):
            raise ValueError("a stage is named twice")
        return entries
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> BadFileError:
    said = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
    said = f"{error} is missing" if isinstance(error, KeyError) else said
    return BadFileError(path, f"the manifest is damaged: {clean(said, 160)}")


def stage_entry(raw: Mapping[str, Any]) -> StageEntry:
    """One entry, checked. Raises KeyError, TypeError, ValueError or AttributeError."""
    where = clean(str(raw["path"]))
    key = key_of(raw["path"])
    if key is None:
        raise ValueError(f"{where} is a file outside the layout")
    said = StageKey(raw.get("layer", key.layer), raw.get("stage", key.stage))
    if said != key:
        raise ValueError(f"{where} is not where {said} lies")
    shape, axes, positions = raw["shape"], raw["axes"], raw["positions"]
    if not _whole_numbers(shape) or not 0 < len(shape) <= MAX_DIMENSIONS:
        raise ValueError(f"{where}: its shape is not 1 to {MAX_DIMENSIONS} whole numbers")
    if type(raw["bytes"]) is not int or HEADER_BYTES + 4 * value_count(shape) != raw["bytes"]:
        raise ValueError(f"{where}: a shape of {shape} is not {raw['bytes']} bytes")
    if not _texts(axes) or len(axes) != len(shape):
        raise ValueError(f"{where}: its axes are not one name a dimension")
    if positions not in ("all", "last") and not _whole_numbers(positions):
        raise ValueError(f"{where}: positions are all, last or a list")
    stats = raw.get("stats") or {}
    if not isinstance(stats, dict) or not _numbers(stats.values()):
        raise ValueError(f"{where}: its stats are not numbers")
    return StageEntry(
        key,
        raw["bytes"],
        tuple(shape),
        tuple(map(_name, axes)),
        positions if isinstance(positions, str) else tuple(positions),
        {_name(name): value for name, value in stats.items()},
    )


@lru_cache(1024)  # the same few names in every entry
def _name(text: str) -> str:
    return clean(text, 40)


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _whole_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _numbers(values: Collection[Any]) -> bool:
    """Whether all are numbers, or null, or the names of what JSON has no number for."""
    if {type(value) for value in values} <= {float, int, NoneType}:
        return True
    return all(type(v) in (float, int, NoneType) or v in _NONFINITE for v in values)


def check_parts(manifest: Mapping[str, Any]) -> None:
    """Raise ValueError where a part that readers rely on is of another kind than it should be."""
    for name in ("model", "engine", "tokens"):
        if not isinstance(manifest.get(name, {}), dict):
            raise ValueError(f"{name} is not an object")
    tokens = manifest.get("tokens", {})
    for name, kind in (("ids", int), ("text", str)):
        items = tokens.get(name)
        if items is None:
            continue
        if not isinstance(items, list) or not all(isinstance(item, kind) for item in items):
            raise ValueError(f"tokens.{name} is not a list of {kind.__name__}")
    rows, ids = rows_of(manifest), tokens.get("ids")
    if rows is not None and ids is not None and len(ids) != len(rows):
        raise ValueError(f"rows names {len(rows)} rows of {len(ids)} tokens")
    notes = manifest.get("notes", [])
    if not isinstance(notes, list) or not all(isinstance(note, str) for note in notes):
        raise ValueError("notes is not a list of str")
    absent = manifest.get("absent", [])
    if not isinstance(absent, list) or not all(isinstance(item, dict) for item in absent):
        raise ValueError("absent is not a list of objects")


def rows_of(manifest: Mapping[str, Any]) -> Rows | None:
    """Which position and pass each row is of, where the manifest says it. Raises ValueError."""
    said = manifest.get("rows")
    return None if said is None else Rows.read(said)


def write_manifest(root: Path | OpenFolder, manifest: Mapping[str, Any]) -> None:
    """Write ``trace.json`` by atomic rename: from then on the trace counts as complete."""
    document = json.dumps(manifest, ensure_ascii=True, allow_nan=False, indent=1) + "\n"
    within = root if isinstance(root, OpenFolder) else None
    path = root / MANIFEST if isinstance(root, Path) else Path(MANIFEST)
    with whole_file(path, within=within, durable=True) as file:
        file.write(document.encode())
