"""A trace directory: layout and manifest; reading one that is whole, growing or foreign."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from aprtui.errors import BadFileError, MissingStageError, UsageError
from aprtui.formats.aprt import HEADER_BYTES, MAGIC, StageHeader, read_header, read_values
from aprtui.formats.journal import Journal, read_journal
from aprtui.formats.layout import EVENTS, LAYER_FOLDER, MANIFEST, StageKey, key_of, relative_path
from aprtui.formats.manifest import (
    SCHEMA,
    StageEntry,
    read_manifest,
    rows_of,
    stage_entries,
    write_manifest,
)
from aprtui.formats.rows import Rows
from aprtui.formats.stagearray import StageArray
from aprtui.notebook import html_table
from aprtui.text import clean, count, nearest, quoted, ranges

__all__ = [
    "EVENTS",
    "MANIFEST",
    "SCHEMA",
    "StageKey",
    "StageRecord",
    "Told",
    "TraceDir",
    "clear_trace",
    "holds_stage_files",
    "holds_trace",
    "key_of",
    "list_stage_files",
    "open_trace",
    "relative_path",
    "stage_folders",
    "write_manifest",
]

# Hears how many files were found so far, and of how many, where that is known.
Told = Callable[[int, int | None], None]
_TOLD_FILES = 64  # from one telling to the next


@dataclass(frozen=True)
class StageRecord:
    """What is known of one captured stage without reading its values.

    From a manifest: shape, axes, positions, stats. Without one these are None until a model or an
    inference supplies them (``shape_source`` says which: "manifest", "events" of a trace without
    one, "model", "inferred", "layout" of a folder a position, or ""). ``parts`` are the files of
    such folders, one a position; of each the first ``kept`` values count, the rest is padding.
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
    mtime_ns: int = 0  # of a trace's file: with the size it tells one that was written anew
    rows: Rows | None = None  # of the whole trace, where its manifest says them

    @property
    def count(self) -> int:
        """How many values there are, by the files' sizes; no file is opened."""
        if self.parts and self.shape is not None:
            return math.prod(self.shape)
        return max(0, self.size_bytes - HEADER_BYTES * max(1, len(self.parts))) // 4

    def row_numbers(self) -> tuple[int, ...] | None:
        """Which of the trace's rows it holds; None where that is not known."""
        if self.rows is None or self.positions is None:
            return None
        if isinstance(self.positions, tuple):
            try:
                return self.rows.at(self.positions)
            except KeyError:
                return None
        whole = tuple(range(len(self.rows)))
        return whole[-1:] if self.positions == "last" else whole

    def held(self) -> tuple[int, ...] | None:
        """The position of each of its rows; None where the trace does not say it."""
        numbers = self.row_numbers()
        if numbers is None or self.rows is None:
            return self.positions if isinstance(self.positions, tuple) else None
        return tuple(self.rows.positions[number] for number in numbers)

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

    def array(self) -> StageArray:
        """The values with their axes, flat where no shape fits them. Raises BadFileError."""
        values = self.values().view()
        values.flags.writeable = False
        if self.shape is None or self.axes is None or math.prod(self.shape) != values.size:
            return StageArray(self.key, values, None, self.positions, "")
        shaped = values.reshape(self.shape)
        return StageArray(self.key, shaped, self.axes, self.positions, self.shape_source)

    def header(self) -> StageHeader:
        """The file's header, checked against its size; raises BadFileError."""
        return read_header(self.path)


@dataclass(frozen=True, repr=False)
class TraceDir:
    """A trace directory as it lay there when it was read; looked up by stage it gives arrays.

    ``trace["layer-3/ffn_gate"]`` and ``trace["lm_head"]`` open one stage file each; iterating gives
    the keys and opens none. ``status``: "complete" (its manifest is there and every file that it
    names), "incomplete" (events or a manifest without all files), "foreign" (stage files without
    manifest or events), "file" (one stage file by itself).
    """

    root: Path
    status: str
    records: Mapping[StageKey, StageRecord]
    manifest: Mapping[str, Any] | None
    expected: int | None  # how many files there should be, when something says so
    notes: tuple[str, ...] = ()
    planned: Mapping[str, Any] = field(default_factory=dict)  # without a manifest: by its plan

    @property
    def stated(self) -> Mapping[str, Any]:
        """The manifest; of a trace that has none what of it the plan knew; or nothing."""
        return self.planned if self.manifest is None else self.manifest

    def __getitem__(self, name: str | StageKey) -> StageArray:
        """The stage's values. Raises MissingStageError (a KeyError, too) and BadFileError."""
        key = key_of(f"{name}.bin") if isinstance(name, str) else StageKey(*name)
        if key is None or key not in self.records:
            raise self._missing(str(name), key)
        return self.records[key].array()

    def __iter__(self) -> Iterator[StageKey]:
        return iter(self.records)

    def __len__(self) -> int:
        return len(self.records)

    def __contains__(self, name: object) -> bool:
        return (key_of(f"{name}.bin") if isinstance(name, str) else name) in self.records

    def keys(self) -> Iterable[StageKey]:
        """The stages that are there; opens no file."""
        return self.records.keys()

    def items(self) -> Iterator[tuple[StageKey, StageArray]]:
        """Each stage with its array, opened one after the other. Raises BadFileError."""
        return ((key, record.array()) for key, record in self.records.items())

    def _missing(self, name: str, key: StageKey | None) -> MissingStageError:
        """Why a stage is not there: the manifest may say it, or another name or layer is meant."""
        stage = name.rpartition("/")[2] if key is None else key.stage
        layers = [held.layer for held in self.records if held.stage == stage]
        for item in (self.manifest or {}).get("absent", ()):
            if item.get("stage") == stage and not layers:
                return MissingStageError(f"{clean(name)}: {clean(str(item.get('reason')), 300)}")
        if layers:
            of_layers = [layer for layer in layers if layer is not None]
            where = f"layers {ranges(of_layers)} hold it" if of_layers else "the whole model has it"
            hint = f"{where}: {clean(str(StageKey(layers[0], stage)))!r}"
        else:
            near = nearest(stage, {held.stage for held in self.records})
            hint = f"did you mean {clean(near)}?" if near else "list(trace) names what is there"
        return MissingStageError(f"{clean(name)} is not in {clean(str(self.root))}", hint=hint)

    def __repr__(self) -> str:
        of = f" of {self.expected:,}" if self.expected not in (None, len(self)) else ""
        tokens = "" if self.token_ids is None else f", {count(len(self.token_ids), 'token')}"
        layers = sorted({key.layer for key in self.records if key.layer is not None})
        told = f", layers {ranges(layers)}" if layers else ""
        files = f"{len(self):,}{of} stage files"
        return f"<trace {quoted(self.root)}: {self.status}, {files}{told}{tokens}>"

    def _repr_html_(self) -> str:
        """For notebooks: one row a stage, with its shape and the layers that hold it."""
        alike: dict[tuple[str, tuple[str, ...], tuple[int, ...]], list[StageRecord]] = {}
        for record in self.records.values():
            shape = (record.count,) if record.shape is None else record.shape
            alike.setdefault((record.key.stage, record.axes or (), shape), []).append(record)
        rows = [
            (
                stage,
                ", ".join(axes) or "not known",
                " x ".join(f"{extent:,}" for extent in shape),
                ranges(r.key.layer for r in records if r.key.layer is not None) or "whole model",
            )
            for (stage, axes, shape), records in alike.items()
        ]
        return html_table(repr(self), ("stage", "axes", "shape", "layers"), rows)

    @property
    def may_grow(self) -> bool:
        """Whether files may still come: it is not known to be whole."""
        return self.status in ("incomplete", "foreign")

    @property
    def rows(self) -> Rows | None:
        """Which position and pass each row is of; None where there are no tokens to count.

        Where nothing says it, one pass from position 0 on.
        """
        return _rows(self.stated)

    @property
    def token_ids(self) -> tuple[int, ...] | None:
        ids = self.stated.get("tokens", {}).get("ids")
        return tuple(ids) if ids is not None else None

    @property
    def token_texts(self) -> tuple[str, ...] | None:
        texts = self.stated.get("tokens", {}).get("text")
        return tuple(texts) if texts is not None else None


def list_stage_files(
    root: Path, told: Told | None = None, expected: int | None = None
) -> dict[StageKey, os.stat_result]:
    """Every stage file below ``root`` by the layout, in no order. Raises BadFileError.

    ``told`` hears now and then how many were found; what it raises ends the listing.
    """
    found: dict[StageKey, os.stat_result] = {}
    strangers: dict[StageKey, os.stat_result] = {}
    for key, stat, ours in _stage_files(root):
        (found if ours else strangers)[key] = stat
        if told is not None and len(found) % _TOLD_FILES == 0:
            told(len(found), expected)
    # Beside stage files, a file in their place is a damaged one; alone it is no trace's.
    return found | strangers if found or (root / MANIFEST).is_file() else {}


def holds_stage_files(root: Path) -> bool:
    """Whether there is one stage file at least: the first one answers. Raises BadFileError."""
    return any(ours for _, _, ours in _stage_files(root))


def _stage_files(root: Path) -> Iterator[tuple[StageKey, os.stat_result, bool]]:
    """Every file in a stage's place, and whether it is a stage file by place or by content."""
    try:
        with os.scandir(root) as entries:
            for entry in entries:
                if entry.is_file() and (key := key_of(entry.name)):
                    yield key, entry.stat(), _begins(Path(entry.path))
                elif entry.is_dir() and LAYER_FOLDER.fullmatch(entry.name):
                    with os.scandir(entry.path) as files:
                        for file in files:
                            key = key_of(f"{entry.name}/{file.name}")
                            if key and file.is_file():
                                yield key, file.stat(), True
    except OSError as error:
        raise BadFileError(error.filename or root, f"cannot be read: {error.strerror}") from error


def open_trace(root: Path, told: Told | None = None) -> TraceDir:
    """Read a trace directory: the manifest where there is one, else the layout alone.

    ``told`` as for ``list_stage_files``. Raises BadFileError when the folder cannot be read, holds
    no stage file, or its manifest is damaged.
    """
    # The manifest first: it is written last, so that every file that it names is there by now.
    manifest = read_manifest(root / MANIFEST)
    if manifest is not None:
        entries = stage_entries(root / MANIFEST, manifest)
        files = list_stage_files(root, told, len(entries))
        return _with_manifest(root, manifest, entries, files)
    ours = (root / EVENTS).is_file()
    journal = read_journal(root / EVENTS) if ours else Journal()
    files = list_stage_files(root, told, journal.files)
    if not files and not ours:
        raise BadFileError(
            root,
            "holds no trace: no trace.json and no layer-N/*.bin",
            hint="aprtui trace MODEL makes one",
        )
    records = {key: _journalled(root, key, stat, journal) for key, stat in files.items()}
    notes = (
        ("no trace.json: the trace did not finish, or is still running",)
        if ours
        else ("no trace.json: written by another program; shapes are not stated",)
    )
    status = "incomplete" if ours else "foreign"
    return TraceDir(root, status, records, None, journal.files, notes, journal.planned)


def _rows(stated: Mapping[str, Any]) -> Rows | None:
    """The rows of a trace: as its manifest says, else one pass of its tokens."""
    ids = stated.get("tokens", {}).get("ids")
    return rows_of(stated) or (None if ids is None else Rows.plain(len(ids)))


def _path(root: Path, key: StageKey) -> Path:
    return root / relative_path(key)


def _unstated(root: Path, key: StageKey, stat: os.stat_result) -> StageRecord:
    """A file that no manifest says anything of."""
    return StageRecord(key, _path(root, key), stat.st_size, mtime_ns=stat.st_mtime_ns)


def _journalled(root: Path, key: StageKey, stat: os.stat_result, journal: Journal) -> StageRecord:
    """A file of a trace without manifest, with the shape that its events tell."""
    record = _unstated(root, key, stat)
    entry = journal.stages.get(key)
    if entry is None or entry.bytes != stat.st_size:
        return record
    return replace(
        record,
        shape=entry.shape,
        axes=entry.axes,
        positions=entry.positions,
        shape_source="events",
    )


def _with_manifest(
    root: Path,
    manifest: dict[str, Any],
    entries: tuple[StageEntry, ...],
    files: Mapping[StageKey, os.stat_result],
) -> TraceDir:
    records: dict[StageKey, StageRecord] = {}
    notes: list[str] = []
    rows = _rows(manifest)
    for entry in entries:
        if entry.key not in files:
            notes.append(f"{entry.key} is named by the manifest and missing")
            continue
        size = files[entry.key].st_size
        if size != entry.bytes:
            notes.append(f"{entry.key} has {size:,} bytes where the manifest says {entry.bytes:,}")
        records[entry.key] = StageRecord(
            entry.key,
            _path(root, entry.key),
            size,
            entry.shape,
            entry.axes,
            entry.positions,
            entry.stats,
            "manifest",
            mtime_ns=files[entry.key].st_mtime_ns,
            rows=rows,
        )
    for key in sorted(files.keys() - records.keys(), key=str):
        notes.append(f"{key} is not named by the manifest")
        records[key] = _unstated(root, key, files[key])
    status = "complete" if not notes else "incomplete"
    return TraceDir(root, status, records, manifest, len(entries), tuple(notes))


def holds_trace(root: Path) -> bool:
    """Whether ``root`` already holds a trace or part of one."""
    if not root.is_dir():
        return False
    events = root / EVENTS
    begun = events.is_file() and events.stat().st_size > 0
    return begun or (root / MANIFEST).exists() or bool(_our_files(root))


def clear_trace(root: Path) -> None:
    """Remove what a trace wrote into ``root`` and nothing else: manifest and stage files.

    Not its events file: that is the lock of whoever writes there, who cuts it off. A file that the
    layout could name and that does not begin as a stage file is somebody else's. Everything is
    looked at before the first file goes; the manifest goes first, so that a trace half removed does
    not pass for a whole one. Raises UsageError when a layer's folder is a link into another place,
    or when something cannot be removed.
    """
    links = [f.name for f in root.glob("layer-*") if f.is_symlink()]
    if links:
        raise UsageError(
            f"{clean(str(root))}: {clean(links[0])} is a link: it may hold another trace's files",
            hint="remove the link, or choose another folder with -o DIR",
        )
    try:
        for file in (root / MANIFEST, *_our_files(root)):
            file.unlink(missing_ok=True)
        for folder in stage_folders(root)[1:]:
            if not any(folder.iterdir()):
                folder.rmdir()
    except OSError as error:
        raise UsageError(
            f"{clean(str(root))}: the old trace cannot be removed: {error.strerror}",
            hint="choose another folder with -o DIR",
        ) from error


def stage_folders(root: Path) -> list[Path]:
    """The folders that stage files of a trace lie in: ``root`` and its layers'."""
    layers = (f for f in root.glob("layer-*") if LAYER_FOLDER.fullmatch(f.name))
    return [root, *(layer for layer in layers if layer.is_dir())]


def _our_files(root: Path) -> list[Path]:
    """The stage files below ``root``, empty ones too."""
    found = []
    for folder in stage_folders(root):
        for file in folder.iterdir():
            named = key_of(file.relative_to(root).as_posix())
            if named and file.is_file() and (_begins(file) or file.stat().st_size == 0):
                found.append(file)
    return found


def _begins(file: Path) -> bool:
    """Whether the file begins as a stage file does."""
    try:
        with file.open("rb") as opened:
            return opened.read(len(MAGIC)) == MAGIC
    except OSError:
        return False
