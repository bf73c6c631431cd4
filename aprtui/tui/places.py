"""Models, traces and sweeps' results on the disk: where they lie, and what each says of itself."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from aprtui.errors import AprtuiError, UsageError
from aprtui.formats.journal import read_journal
from aprtui.formats.manifest import read_manifest
from aprtui.formats.perop import is_per_op_side
from aprtui.formats.tracedir import (
    EVENTS,
    MANIFEST,
    StageKey,
    clear_trace,
    list_stage_files,
    open_trace,
)
from aprtui.sweep.results import MATRIX, open_results
from aprtui.text import clean, count, size
from aprtui.tui.messages import Known, Place
from aprtui.tui.running import running_pid
from aprtui.tui.session import left_running
from aprtui.tui.source import MODEL_SUFFIXES
from aprtui.tui.trace_cells import Held, holdings_of

__all__ = [
    "delete_trace",
    "held_of",
    "known_of",
    "known_of_results",
    "left_places",
    "model_words",
    "places_below",
    "rename_trace",
]

MAX_DEPTH = 4
MAX_FOLDERS = 4000
_SKIPPED = frozenset({"node_modules", "__pycache__", "site-packages"})


def places_below(root: Path) -> Iterator[Place]:
    """Models, traces and results under ``root``, MAX_DEPTH folders deep, not in hidden folders.

    What lies in one of them belongs to it, but what lies in ``root`` is shown whatever that is.
    """
    queue = [(root, 0)]
    looked = 0
    while queue and looked < MAX_FOLDERS:
        folder, depth = queue.pop(0)
        looked += 1
        try:
            with os.scandir(folder) as scan:
                entries = sorted(scan, key=lambda entry: entry.name)
        except OSError:
            continue
        names = {entry.name for entry in entries}
        sides = [side for side in ("cpu", "gpu") if side in names and is_per_op_side(folder / side)]
        if len(sides) == 2 or is_per_op_side(folder):
            what = "per-op, cpu and gpu" if len(sides) == 2 else "per-op"
            yield Place(str(folder), "trace", what, folder.stat().st_mtime)
            continue
        if names & {MANIFEST, EVENTS} or any(_is_layer(entry) for entry in entries):
            yield _trace_place(folder, names, entries)
            if depth:
                continue
        if MATRIX in names and "runs" in names:
            yield Place(str(folder), "results", "of a sweep", folder.stat().st_mtime)
            if depth:
                continue
        models = [entry for entry in entries if entry.name.endswith(MODEL_SUFFIXES)]
        if "config.json" in names and any(e.name.endswith(".safetensors") for e in models):
            total = sum(entry.stat().st_size for entry in models)
            yield Place(str(folder), "model", size(total), folder.stat().st_mtime)
            if depth:
                continue
            models = []  # one place, the folder
        for entry in models:
            if entry.is_file():
                stat = entry.stat()
                yield Place(entry.path, "model", size(stat.st_size), stat.st_mtime)
        if depth < MAX_DEPTH:
            queue += [
                (Path(entry.path), depth + 1)
                for entry in entries
                if entry.is_dir(follow_symlinks=False)
                and not entry.name.startswith(".")
                and entry.name not in _SKIPPED
                and not _is_layer(entry)
            ]


def left_places() -> Iterator[Place]:
    """Traces that were left running and still run, wherever they are."""
    for folder in left_running():
        if running_pid(folder) is not None:
            yield Place(str(folder), "trace", "running", folder.stat().st_mtime)


def _is_layer(entry: os.DirEntry[str]) -> bool:
    return entry.name.startswith("layer-") and entry.name[6:].isdigit() and entry.is_dir()


def _trace_place(folder: Path, names: set[str], entries: list[os.DirEntry[str]]) -> Place:
    layers = sum(_is_layer(entry) for entry in entries)
    remark = count(layers, "layer")  # whether every file is there, only opening it tells
    if MANIFEST not in names:
        writing = EVENTS in names and running_pid(folder) is not None
        ended = ", unfinished" if EVENTS in names else ", foreign"
        remark += ", running" if writing else ended
    return Place(str(folder), "trace", remark, folder.stat().st_mtime)


def known_of(path: Path) -> Known:
    """What a trace says of itself, and how it stands now; what is damaged says so."""
    try:
        manifest = read_manifest(path / MANIFEST)
        if manifest is not None:
            entries = manifest.get("stages") or ()
            written = sum(int(entry.get("bytes") or 0) for entry in entries)
            return _stated(manifest, "complete", len(entries), written)
        journal = read_journal(path / EVENTS) if (path / EVENTS).is_file() else None
        files = list_stage_files(path)
    except (AprtuiError, TypeError, ValueError) as error:
        return Known("damaged", note=clean(str(error), 300))
    written = sum(stat.st_size for stat in files.values())
    if journal is None:
        return Known("foreign", files=len(files), size_bytes=written)
    state = "running" if running_pid(path) is not None else "stopped"
    return _stated(journal.planned, state, len(files), written, journal.files)


def held_of(path: Path) -> dict[StageKey, Held]:
    """What a trace's files hold, as far as their writer told; of a damaged trace nothing."""
    try:
        records = open_trace(path).records
    except AprtuiError:
        return {}
    return {
        key: holdings_of(record.stats, record.size_bytes, record.shape or ())
        for key, record in records.items()
    }


def model_words(path: Path) -> tuple[str, ...]:
    """What a model is, a line each, or why it cannot be read."""
    from aprtui.model.open import open_model, read_model_file  # Home is drawn before these are here
    from aprtui.tui.screens.model_text import summary

    try:
        file = read_model_file(path)
    except AprtuiError as error:
        return (f"! {clean(str(error), 400)}",)
    try:
        said = summary(file, open_model(path), "")
    except AprtuiError as error:
        said = summary(file, None, error.message)
    return tuple(said.plain.split("\n"))


def known_of_results(path: Path) -> Known:
    """What a sweep came to so far."""
    try:
        matrix = open_results(path).matrix()
    except AprtuiError as error:
        return Known("damaged", note=clean(str(error), 300))
    state = "done" if matrix.done else "unfinished"
    return Known(state, verdict=clean(matrix.headline, 300), right=not matrix.exit_code)


def _stated(
    said: Mapping[str, Any], state: str, files: int, written: int, of: int | None = None
) -> Known:
    model, engine = (part if isinstance(part := said.get(name), dict) else {}
                     for name in ("model", "engine"))  # fmt: skip
    tokens = said.get("tokens")
    ids = tokens.get("ids") if isinstance(tokens, dict) else None
    prompt = said.get("prompt")
    return Known(
        state,
        prompt=clean(" ".join(prompt.split()), 2000) if isinstance(prompt, str) else "",
        tokens=len(ids) if isinstance(ids, list) else 0,
        engine=_text(engine, "name"),
        device=_text(engine, "device"),
        dtype=_text(engine, "dtype"),
        model=Path(_text(model, "path", 1000)).name,
        architecture=_text(model, "architecture"),
        created=_text(said, "created"),
        files=files,
        expected=of,
        size_bytes=written,
    )


def _text(said: Mapping[str, Any], name: str, limit: int = 40) -> str:
    value = said.get(name)
    return clean(value, limit) if isinstance(value, str) else ""


def delete_trace(path: Path) -> str:
    """Remove what a trace wrote, and its folder where nothing else lies there; what happened.

    Raises UsageError where a trace is running there, or something cannot be removed.
    """
    _refuse_running(path)
    clear_trace(path)
    try:
        (path / EVENTS).unlink(missing_ok=True)
        if any(path.iterdir()):
            return f"deleted the trace in {clean(path.name)}; other files lie there and stay"
        path.rmdir()
    except OSError as error:
        raise UsageError(f"{clean(str(path))} cannot be removed: {error.strerror}") from error
    return f"deleted {clean(path.name)}"


def rename_trace(path: Path, name: str) -> Path:
    """Give a trace's folder another name beside it; the new path. Raises UsageError."""
    _refuse_running(path)
    target = path.with_name(name) if name not in ("", ".", "..") and os.sep not in name else None
    if target is None:
        raise UsageError(f"{clean(name, 60)!r} is no name of a folder")
    if os.path.lexists(target):
        raise UsageError(f"{clean(name, 60)} is there already: nothing renamed")
    try:
        return path.rename(target)
    except (OSError, ValueError) as error:
        raise UsageError(f"{clean(path.name)} cannot be renamed: {clean(str(error))}") from error


def _refuse_running(path: Path) -> None:
    if running_pid(path) is not None:
        raise UsageError(f"{clean(path.name)} is being written: x in Browse stops that first")
