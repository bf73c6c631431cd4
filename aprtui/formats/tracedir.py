"""A trace directory: layout and manifest; reading one that is whole, growing or foreign."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from aprtui.errors import BadFileError, UsageError
from aprtui.formats.aprt import HEADER_BYTES, StageHeader, read_header, read_values
from aprtui.formats.atomic import whole_file
from aprtui.text import clean

__all__ = [
    "EVENTS",
    "MANIFEST",
    "StageKey",
    "StageRecord",
    "TraceDir",
    "key_of",
    "list_stage_files",
    "open_trace",
    "relative_path",
    "write_manifest",
]

MANIFEST = "trace.json"
EVENTS = "events.jsonl"
SCHEMA = "aprtui-trace-v1"
MAX_MANIFEST_BYTES = 256 * 1024 * 1024
_LAYER_FOLDER = re.compile(r"layer-(0|[1-9][0-9]{0,8})")
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
    match = _LAYER_FOLDER.fullmatch(folder)
    return StageKey(int(match[1]), name[:-4]) if match else None


@dataclass(frozen=True)
class StageRecord:
    """What is known of one captured stage without reading its values.

    From a manifest: shape, axes, positions, stats. Without one these are None until a model or an
    inference supplies them (``shape_source`` says which: "manifest", "model", "inferred",
    "layout" of a folder a position, or ""). ``parts`` are the files of such folders, one a
    position; of each the first ``kept`` values count, the rest is padding.
    """

    key: StageKey
    path: Path
    size_bytes: int
    shape: tuple[int, ...] | None = None
    axes: tuple[str, ...] | None = None
    positions: str | tuple[int, ...] | None = None  # "all", "last" or a list
    stats: Mapping[str, Any] = field(default_factory=dict)
    shape_source: str = ""
    parts: tuple[Path, ...] = ()
    kept: int | None = None

    @property
    def count(self) -> int:
        """How many values there are, by the files' sizes; no file is opened."""
        if self.parts and self.shape is not None:
            return math.prod(self.shape)
        return max(0, self.size_bytes - HEADER_BYTES * max(1, len(self.parts))) // 4

    def values(self) -> npt.NDArray[np.float32]:
        """The values [n] float32, flat: a memory map, or the parts joined along the token axis.

        Scores of single positions ([heads, position + 1] each) become [head, query, key] with 0.0
        where masked. Raises BadFileError.
        """
        if not self.parts:
            return read_values(self.path)
        rows = [read_values(part)[: self.kept] for part in self.parts]
        if self.axes != ("head", "query", "key") or self.shape is None:
            return np.concatenate(rows)
        joined = np.zeros(self.shape, dtype=np.float32)
        heads = self.shape[0]
        for query, row in enumerate(rows):
            if row.size != heads * (query + 1):
                raise BadFileError(
                    self.parts[query],
                    f"{row.size:,} scores where {heads} heads x {query + 1} keys were expected",
                )
            joined[:, query, : query + 1] = row.reshape(heads, -1)
        return joined.reshape(-1)

    def header(self) -> StageHeader:
        """The file's header, checked against its size; raises BadFileError."""
        return read_header(self.path)


@dataclass(frozen=True)
class TraceDir:
    """A trace directory as it lay there when it was read.

    ``status``: "complete" (its manifest is there and every file it names), "incomplete" (events or
    a manifest without all files), "foreign" (stage files without manifest or events).
    """

    root: Path
    status: str
    records: Mapping[StageKey, StageRecord]
    manifest: Mapping[str, Any] | None
    expected: int | None  # how many files there should be, when something says so
    notes: tuple[str, ...] = ()
    planned_tokens: tuple[int, ...] | None = None  # of a trace without manifest: from its plan

    @property
    def token_ids(self) -> tuple[int, ...] | None:
        ids = (self.manifest or {}).get("tokens", {}).get("ids")
        return tuple(ids) if ids is not None else self.planned_tokens

    @property
    def token_texts(self) -> tuple[str, ...] | None:
        texts = (self.manifest or {}).get("tokens", {}).get("text")
        return tuple(texts) if texts is not None else None


def list_stage_files(root: Path) -> dict[StageKey, os.stat_result]:
    """Every stage file below ``root`` by the layout, in no order. Raises BadFileError."""
    found: dict[StageKey, os.stat_result] = {}
    try:
        with os.scandir(root) as entries:
            for entry in entries:
                if entry.is_file() and (key := key_of(entry.name)):
                    found[key] = entry.stat()
                elif entry.is_dir() and _LAYER_FOLDER.fullmatch(entry.name):
                    with os.scandir(entry.path) as files:
                        for file in files:
                            key = key_of(f"{entry.name}/{file.name}")
                            if key and file.is_file():
                                found[key] = file.stat()
    except OSError as error:
        raise BadFileError(root, f"cannot be read: {error.strerror}") from error
    return found


def open_trace(root: Path) -> TraceDir:
    """Read a trace directory: the manifest where there is one, else the layout alone.

    Raises BadFileError when the folder cannot be read, holds no stage file, or its manifest is
    damaged.
    """
    files = list_stage_files(root)
    manifest = _read_manifest(root / MANIFEST)
    if manifest is None and not files and not (root / EVENTS).is_file():
        raise BadFileError(
            root,
            "holds no trace: no trace.json and no layer-N/*.bin",
            hint="aprtui trace MODEL makes one; aprtui inspect tells what a file is",
        )
    if manifest is not None:
        return _with_manifest(root, manifest, files)
    records = {key: StageRecord(key, _path(root, key), stat.st_size) for key, stat in files.items()}
    ours = (root / EVENTS).is_file()
    notes = (
        ("no trace.json: the trace did not finish, or is still running",)
        if ours
        else ("no trace.json: written by another program; shapes are not stated",)
    )
    plan = _read_plan(root / EVENTS) if ours else {}
    status = "incomplete" if ours else "foreign"
    files_planned, tokens = plan.get("files"), plan.get("tokens")
    return TraceDir(
        root,
        status,
        records,
        None,
        files_planned if isinstance(files_planned, int) else None,
        notes,
        tuple(tokens)
        if isinstance(tokens, list) and all(isinstance(token, int) for token in tokens)
        else None,
    )


def _path(root: Path, key: StageKey) -> Path:
    return root / relative_path(key)


def _read_plan(events: Path) -> dict[str, Any]:
    """The plan among the first lines of the events file; empty when there is none."""
    try:
        with events.open("rb") as lines:
            for line in lines.readlines(1 << 20)[:20]:
                event = json.loads(line)
                if isinstance(event, dict) and event.get("event") == "plan":
                    return event
    except (OSError, ValueError):
        pass
    return {}


def _read_manifest(path: Path) -> dict[str, Any] | None:
    try:
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise BadFileError(path, f"a manifest of over {MAX_MANIFEST_BYTES:,} bytes is refused")
        manifest = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BadFileError(path, f"cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise BadFileError(
            path,
            f"the manifest is damaged: {clean(str(error), 120)}",
            hint="move it away to browse the files without it",
        ) from error
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        raise BadFileError(
            path, f"not a manifest that this version reads: its schema is not {SCHEMA}"
        )
    return manifest


def _with_manifest(
    root: Path, manifest: dict[str, Any], files: Mapping[StageKey, os.stat_result]
) -> TraceDir:
    records: dict[StageKey, StageRecord] = {}
    notes: list[str] = []
    try:
        for entry in manifest["stages"]:
            key = key_of(entry["path"])
            if key is None:
                raise BadFileError(
                    root / MANIFEST, f"names a file outside the layout: {clean(entry['path'])}"
                )
            if key not in files:
                notes.append(f"{key} is named by the manifest and missing")
                continue
            if files[key].st_size != entry["bytes"]:
                notes.append(
                    f"{key} has {files[key].st_size:,} bytes where the manifest says "
                    f"{entry['bytes']:,}"
                )
            positions = entry["positions"]
            records[key] = StageRecord(
                key,
                _path(root, key),
                files[key].st_size,
                tuple(int(extent) for extent in entry["shape"]),
                tuple(str(axis) for axis in entry["axes"]),
                positions if isinstance(positions, str) else tuple(positions),
                entry.get("stats") or {},
                "manifest",
            )
        expected = len(manifest["stages"])
        _check_parts(manifest)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadFileError(
            root / MANIFEST, f"the manifest is damaged: {clean(repr(error), 120)}"
        ) from error
    for key in sorted(files.keys() - records.keys(), key=str):
        notes.append(f"{key} is not named by the manifest")
        records[key] = StageRecord(key, _path(root, key), files[key].st_size)
    status = "complete" if not notes else "incomplete"
    return TraceDir(root, status, records, manifest, expected, tuple(notes))


def _check_parts(manifest: Mapping[str, Any]) -> None:
    """Raise ValueError where a part that readers rely on is of another kind than it should be."""
    for name in ("model", "engine", "tokens"):
        if not isinstance(manifest.get(name, {}), dict):
            raise ValueError(f"{name} is not an object")
    tokens = manifest.get("tokens", {})
    for name, kind in (("ids", int), ("text", str)):
        items = tokens.get(name) or []
        if not isinstance(items, list) or not all(isinstance(item, kind) for item in items):
            raise ValueError(f"tokens.{name} is not a list of {kind.__name__}")
    absent = manifest.get("absent", [])
    if not isinstance(absent, list) or not all(isinstance(item, dict) for item in absent):
        raise ValueError("absent is not a list of objects")


def write_manifest(root: Path, manifest: Mapping[str, Any]) -> None:
    """Write ``trace.json`` by atomic rename: from then on the trace counts as complete."""
    document = json.dumps(manifest, ensure_ascii=True, allow_nan=False, indent=1) + "\n"
    with whole_file(root / MANIFEST, durable=True) as file:
        file.write(document.encode())


def holds_trace(root: Path) -> bool:
    """Whether ``root`` already holds a trace or part of one."""
    if not root.is_dir():
        return False
    return any((root / name).exists() for name in (MANIFEST, EVENTS)) or bool(
        list_stage_files(root)
    )


def clear_trace(root: Path) -> None:
    """Remove what a trace wrote into ``root`` and nothing else: the layout's files, then the rest.

    The manifest goes first, so that a trace half removed does not pass for a whole one.
    """
    try:
        for name in (MANIFEST, EVENTS):
            (root / name).unlink(missing_ok=True)
        keys: Iterable[StageKey] = list_stage_files(root)
        for key in keys:
            _path(root, key).unlink(missing_ok=True)
        for partial in [*root.glob(".*.part"), *root.glob("layer-*/.*.part")]:
            partial.unlink(missing_ok=True)
        for folder in root.glob("layer-*"):
            if (
                _LAYER_FOLDER.fullmatch(folder.name)
                and folder.is_dir()
                and not any(folder.iterdir())
            ):
                folder.rmdir()
    except OSError as error:
        raise UsageError(
            f"{clean(str(root))}: the old trace cannot be removed: {error.strerror}",
            hint="choose another folder with --save-tensor-dir",
        ) from error
