"""What is compared, opened from its path: one capture, two, or one stage file and its trace."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from aprtui.captures.opening import refuse_dump
from aprtui.compare.infer import open_any, open_pair, record_in_trace, with_shapes
from aprtui.errors import BadFileError, UsageError
from aprtui.formats.aprt import MAGIC
from aprtui.formats.files import first_bytes
from aprtui.formats.perop import PerOpDir, is_per_op_side
from aprtui.formats.tracedir import StageRecord, Told, TraceDir
from aprtui.graph import Graph
from aprtui.graph.vocabulary import order_of
from aprtui.text import clean, quoted

__all__ = ["both_captures", "open_capture", "open_stage_file", "read_capture", "unshaped"]


def open_capture(path: Path, graph: Graph | None = None, told: Told | None = None) -> TraceDir:
    """The trace at ``path``, every shape known that can be: a folder, or the one stage file there.

    Shapes that no manifest states come from the model's ``graph``, where one is given, else by
    inference, which the notes say. Raises as ``read_capture`` and ``open_stage_file`` do.
    """
    if path.is_file():
        record, _ = open_stage_file(path, graph)
        return TraceDir(path.absolute().parent, "file", {record.key: record}, None, None)
    return with_shapes(read_capture(path, told), graph)


def read_capture(path: Path, told: Told | None = None) -> TraceDir:
    """A trace folder or one side of a per-op folder as it lies, stages in order of computation.

    ``told`` as for ``list_stage_files``. Raises BadFileError, and UsageError for a file and for a
    folder of two captures.
    """
    try:
        found = open_any(path, told)
    except (BadFileError, UsageError):
        refuse_dump(path)
        raise
    if isinstance(found, PerOpDir):
        raise UsageError(
            f"{clean(str(path))}: holds two passes, cpu and gpu",
            hint=f"name {quoted(path / 'cpu')} or {quoted(path / 'gpu')}",
        )
    ordered = {key: found.records[key] for key in sorted(found.records, key=order_of)}
    return dataclasses.replace(found, records=ordered)


def both_captures(a: Path, b: Path | None = None) -> tuple[TraceDir, TraceDir]:
    """Two trace folders as they lie; of a per-op folder alone its cpu and its gpu.

    Raises BadFileError, UsageError for a file and for what is no pair.
    """
    if b is None:
        if not is_per_op_side(a / "cpu"):
            raise UsageError(
                "two traces are needed: aprtui diff A B",
                hint="or two stage files, two models, one folder with cpu and gpu in it",
            )
        return open_pair(a)
    for path in (a, b):
        if path.is_file():
            _refuse_model(path)
            raise UsageError(
                f"{clean(str(path))}: one side is a file and the other a folder",
                hint="name two traces or two stage files",
            )
    return read_capture(a), read_capture(b)


def unshaped(trace: TraceDir) -> TraceDir:
    """The trace without shapes that were inferred, for a model to say them."""
    inferred = any(record.shape_source == "inferred" for record in trace.records.values())
    return read_capture(trace.root) if inferred and trace.status != "file" else trace


def open_stage_file(path: Path, graph: Graph | None = None) -> tuple[StageRecord, TraceDir | None]:
    """One stage file, and the trace around it where there is one.

    Raises BadFileError for a damaged one, UsageError for a model file.
    """
    _refuse_model(path)
    return record_in_trace(path, graph)


def _refuse_model(path: Path) -> None:
    """Raise UsageError for a model file."""
    magic = first_bytes(path, 4)
    if magic == MAGIC:
        return
    refuse_dump(path)
    if path.suffix in (".apr", ".gguf", ".safetensors") or magic in (b"GGUF", b"APR\0"):
        raise UsageError(
            f"{clean(str(path))}: a model file, where a trace or a stage file is due",
            hint=f"aprtui trace {quoted(path)} makes a trace",
        )
