"""From a path to what a screen shows: is it a model, a trace, one stage file, a per-op folder?"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

from aprtui.captures.opening import is_dump
from aprtui.compare.opening import open_capture
from aprtui.errors import AprtuiError, BadFileError
from aprtui.formats.aprt import MAGIC
from aprtui.formats.files import first_bytes
from aprtui.formats.layout import prompts_in
from aprtui.formats.locate import holds_model
from aprtui.formats.manifest import read_manifest
from aprtui.formats.perop import is_per_op_side
from aprtui.formats.rows import Rows
from aprtui.formats.tracedir import (
    EVENTS,
    MANIFEST,
    StageKey,
    StageRecord,
    Told,
    TraceDir,
    holds_stage_files,
    key_of,
)
from aprtui.sweep.results import holds_results
from aprtui.text import clean
from aprtui.tui.opened import Opened

__all__ = ["MODEL_SUFFIXES", "Opened", "kind_of", "load_trace", "name_of", "names_of", "title_of"]

MODEL_SUFFIXES = (".apr", ".gguf", ".safetensors")


def kind_of(path: Path) -> Opened:
    """What ``path`` is, from its name and first bytes. Raises BadFileError when it is none."""
    if path.name in ("", ".."):  # ``.`` has no name to be shown by
        path = path.resolve()
    if path.is_dir():
        return Opened(_folder_kind(path), path)
    head = first_bytes(path, 8)
    if head[:4] == MAGIC or (path.suffix == ".bin" and head[:4] not in (b"GGUF", b"APR\0")):
        return Opened("stage", path)
    if holds_model(path):
        return Opened("model", path)
    if path.name in (MANIFEST, EVENTS):
        return Opened("trace", path.parent)
    if is_dump(path):
        return Opened("dump", path)
    raise BadFileError(
        path,
        "neither a model, a trace nor a stage file",
        hint="aprtui opens .apr, .gguf, .safetensors, trace folders and .bin stage files",
    )


def _folder_kind(path: Path) -> str:
    if is_per_op_side(path / "cpu") and is_per_op_side(path / "gpu"):
        return "per-op"
    if is_per_op_side(path):
        return "trace"
    if (path / MANIFEST).is_file() or (path / EVENTS).is_file() or holds_stage_files(path):
        return "trace"
    if holds_results(path):
        return "results"
    if is_dump(path):
        return "dump"
    if holds_model(path):
        return "model"
    if prompts_in(path):
        return "prompts"
    return "trace"  # opening it says what is missing


def load_trace(path: Path, model: str = "", told: Told | None = None) -> TraceDir:
    """The trace at ``path``, or the one stage file there, with every shape that can be known.

    Shapes that no manifest states come from ``model``, where one is given, else by inference;
    ``told`` as for ``list_stage_files``. Raises BadFileError, and UsageError for a model that
    cannot be opened.
    """
    graph = None
    if model:
        from aprtui.model.open import open_model  # the formats' tables: not for a mere look

        graph = open_model(Path(model)).graph
    try:
        return open_capture(path, graph, told)
    except BadFileError:
        if not path.is_file():
            raise
    record = _damaged(path)
    return TraceDir(path.absolute().parent, "file", {record.key: record}, None, None)


def _damaged(path: Path) -> StageRecord:
    """A file that cannot be read as a stage, so that its bytes can be looked at all the same."""
    absolute = path.absolute()
    key = key_of(f"{absolute.parent.name}/{path.name}") or key_of(path.name)
    try:
        return StageRecord(key or StageKey(None, clean(path.stem, 60)), path, path.stat().st_size)
    except OSError as error:
        raise BadFileError(path, f"cannot be read: {error.strerror}") from error


_KEY = re.compile(r"[0-9a-f]{32}")


def name_of(path: Path) -> str:
    """What a trace is called, clean: its folder; where that is the key of a capture in a sweep's
    results, the model and the engine that its manifest names."""
    return (_KEY.fullmatch(path.name) and _stated_name(path)) or clean(
        path.name or str(path.absolute().name), 60
    )


def names_of(a: Path, b: Path) -> tuple[str, str]:
    """What the two sides of a comparison are called: with their folders, where that is the same."""
    names = name_of(a), name_of(b)
    if names[0] != names[1]:
        return names
    far = [clean("/".join(path.absolute().parts[-2:]), 60) for path in (a, b)]
    return far[0], far[1]


@lru_cache(256)
def _stated_name(path: Path) -> str:
    try:
        said = read_manifest(path / MANIFEST) or {}
    except AprtuiError:
        return ""
    model, engine = said.get("model", {}).get("path"), said.get("engine", {}).get("name")
    if not isinstance(model, str) or not isinstance(engine, str):
        return ""
    return f"{clean(Path(model).name, 40)} by {clean(engine, 20)}"


def _made(rows: Rows) -> str:
    """`` in 4 passes of sequence 1``, as far as it is so."""
    passes = len(set(rows.passes))
    said = f" in {passes} passes" if passes > 1 else ""
    return said if rows.sequence is None else f"{said} of sequence {rows.sequence}"


def title_of(trace: TraceDir, path: Path) -> str:
    """Where we are, honestly: name, status, how many files of how many, what was inferred."""
    name = name_of(path)
    found = len(trace.records)
    sources = {record.shape_source for record in trace.records.values()}
    flat = sum(record.shape is None for record in trace.records.values())
    if trace.status == "file":
        parts = [name, "one stage file"]
    elif trace.status == "foreign":
        parts = [name, "foreign: no trace.json"]
    elif trace.status == "complete":
        parts = [name, "complete"]
    else:
        parts = [name, "incomplete"]
    if trace.status != "file":
        of = f"{found} of {trace.expected}" if trace.expected is not None else f"{found} files"
        parts[-1] += f", {of}" if trace.status in ("complete", "incomplete") else ""
    if "inferred" in sources:
        parts.append("shapes inferred")
    if "model" in sources:
        parts.append("shapes from the model")
    if flat:
        parts.append(f"{flat} flat" if found > 1 else "flat")
    if trace.status == "foreign":
        parts.append(f"{found} files")
    tokens, prompt = trace.token_ids, trace.stated.get("prompt")
    if tokens is not None:
        said = f' "{clean(prompt, 30)}"' if isinstance(prompt, str) and prompt else ""
        rows = trace.rows
        made = "" if rows is None or rows.is_plain else _made(rows)
        parts.append(f"{len(tokens)} tokens{said}{made}")
    return " · ".join(parts)
