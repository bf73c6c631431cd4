"""Shapes of folders without a manifest: from a model, or where one reading fits every file."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from aprtui.compare.reading import Reading, distinct_experts, readings
from aprtui.errors import BadFileError, UsageError
from aprtui.formats.aprt import read_header
from aprtui.formats.perop import (
    PerOpDir,
    is_per_op_side,
    open_per_op,
    open_per_op_side,
    without_padding,
)
from aprtui.formats.tracedir import (
    StageKey,
    StageRecord,
    Told,
    TraceDir,
    key_of,
    open_trace,
)
from aprtui.graph import Graph
from aprtui.graph.vocabulary import axes_of, facts_of, order_of
from aprtui.text import clean, count, ranges

__all__ = ["open_any", "open_pair", "record_in_trace", "with_shapes"]


def open_any(path: Path, told: Told | None = None) -> TraceDir | PerOpDir:
    """A trace directory, one side of a per-op folder (stacked), or both sides of one.

    ``told`` as for ``list_stage_files``. Raises BadFileError, UsageError for a file.
    """
    if path.is_file():
        raise UsageError(
            f"{clean(str(path))}: a file, where the folder of a trace is due",
            hint="aprtui diff A B compares two stage files",
        )
    if is_per_op_side(path):
        return open_per_op_side(path)
    return open_per_op(path) or open_trace(path, told)


def open_pair(path: Path) -> tuple[TraceDir, TraceDir]:
    """CPU and GPU of a per-op folder. Raises UsageError when ``path`` is not one."""
    sides = open_per_op(path)
    if sides is None:
        raise UsageError(
            f"{clean(str(path))}: not a per-op folder (no cpu/pos-0000 and gpu/pos-0000)",
            hint="name two traces",
        )
    return sides.cpu, sides.gpu


def record_in_trace(path: Path, graph: Graph | None = None) -> tuple[StageRecord, TraceDir | None]:
    """One stage file with the shape that the trace around it tells, and that trace.

    The trace is the folder that the layout puts the file in; a file that lies elsewhere, or whose
    folder tells nothing of it, is flat. Raises BadFileError for a damaged file.
    """
    header = read_header(path)
    in_layer = path.absolute().parent.name.startswith("layer-")
    root = path.absolute().parent.parent if in_layer else path.absolute().parent
    key = key_of(f"{path.absolute().parent.name}/{path.name}" if in_layer else path.name)
    if key is not None and (in_layer or header.layer is None):
        try:
            trace = with_shapes(open_trace(root), graph)
        except BadFileError:
            trace = None
        found = trace.records.get(key) if trace is not None else None
        if found is not None and found.size_bytes == header.file_bytes:
            return dataclasses.replace(found, path=path), trace
    alone = StageKey(header.layer, clean(path.stem, 60))
    return StageRecord(alone, path, header.file_bytes), None


def with_shapes(trace: TraceDir, graph: Graph | None = None) -> TraceDir:
    """``trace`` with shape, axes and positions of the records that state none.

    With the model's ``graph``: its shapes (``shape_source`` "model"), the number of tokens from
    the counts; a file whose count contradicts them stays flat and is noted. Without one: the
    shapes of the only reading that fits every file ("inferred", noted); otherwise all stay flat
    and the note says why. A manifest's own shapes are left alone.
    """
    open_records = {
        key: record
        for key, record in trace.records.items()
        if record.shape_source in ("", "layout") and record.count > 0
    }
    if not open_records or trace.manifest is not None:
        return trace
    if graph is not None:
        return _from_model(trace, open_records, graph)
    return _inferred(trace, open_records)


# -- with a model ----------------------------------------------------------------------------------


def _from_model(trace: TraceDir, records: dict[StageKey, StageRecord], graph: Graph) -> TraceDir:
    widths = {key: math.prod(graph[key].shape(1)) for key in records if key in graph}
    trace = without_padding(trace, widths, "the model tells")
    records = {key: trace.records[key] for key in records}
    votes = Counter(
        tokens for record in records.values() if (tokens := _tokens_in(record, graph)) is not None
    )
    known = _known_tokens(trace)
    tokens = known or (max(votes, key=lambda t: (votes[t], t)) if votes else 0)
    only_last = known is None and tokens == 1 and _experts_only(records)
    shaped = dict(trace.records)
    wrong: dict[str, list[StageRecord]] = {}
    for key in sorted(records, key=order_of):
        record = records[key]
        fitted = _fit(record, graph, tokens, only_last)
        if fitted is None:
            wrong.setdefault(key.stage, []).append(record)
        else:
            shaped[key] = fitted
    notes = [f"shapes from the model: {count(tokens, 'token')}"] if votes else []
    if only_last:
        notes.append("only the experts' stages are there: each holds the last position")
    for stage, found in wrong.items():
        layers = [record.key.layer for record in found if record.key.layer is not None]
        where = f" (layer{'s' * (len(layers) > 1)} {ranges(layers)})" if layers else ""
        notes.append(
            f"{clean(stage)}{where} contradicts the model: {_expectation(found[0], graph, tokens)}"
            "; shown flat"
        )
    outside = {key.layer for key in records if (key.layer or 0) >= graph.num_layers}
    if outside:
        notes.append(
            f"layers {', '.join(map(str, sorted(n for n in outside if n is not None)))} lie "
            f"outside the model, which has {graph.num_layers}"
        )
    return dataclasses.replace(trace, records=shaped, notes=(*trace.notes, *notes))


def _tokens_in(record: StageRecord, graph: Graph) -> int | None:
    """How many tokens the file's count means for this model; None when it cannot tell."""
    if record.key not in graph or graph[record.key].last or graph[record.key].timeless:
        return None
    one = math.prod(graph[record.key].shape(1))
    if one == 0 or record.count % one:
        return None
    tokens = record.count // one
    if facts_of(record.key.stage).scores:
        root = math.isqrt(tokens)
        return root if root * root == tokens else None
    return tokens


def _fit(record: StageRecord, graph: Graph, tokens: int, only_last: bool) -> StageRecord | None:
    """The record with the model's shape when its count allows one, else None."""
    if record.key not in graph:
        return None
    node = graph[record.key]
    for logits, length, positions in (
        ("last", tokens, "last" if node.last or only_last else "all"),
        ("all", tokens, "all"),
        ("last", 1, "last"),
    ):
        shape = node.shape(length, logits)
        if length and record.count == math.prod(shape):
            return dataclasses.replace(
                record,
                shape=shape,
                axes=node.axis_names(logits),
                positions=record.positions if record.parts else positions,
                shape_source="model",
            )
    return None


def _expectation(record: StageRecord, graph: Graph, tokens: int) -> str:
    if axes_of(record.key.stage) is None:
        return "a stage that is not known"
    if record.key not in graph:
        return "it has no such stage there"
    shape = graph[record.key].shape(tokens)
    return (
        f"{count(record.count)} values where {' x '.join(map(str, shape))} = "
        f"{count(math.prod(shape))} were expected"
    )


def _known_tokens(trace: TraceDir) -> int | None:
    """The number of tokens where something other than the counts states it."""
    if trace.token_ids is not None:
        return len(trace.token_ids)
    lengths = {len(record.parts) for record in trace.records.values() if record.parts}
    return max(lengths) if lengths else None


def _experts_only(records: Iterable[StageKey]) -> bool:
    return all(facts_of(key.stage).experts for key in records)


# -- without one -----------------------------------------------------------------------------------


def _inferred(trace: TraceDir, records: dict[StageKey, StageRecord]) -> TraceDir:
    whole = {key: record for key, record in records.items() if record.parts or _is_whole(record)}
    known = _known_tokens(trace)
    fitting, why = readings(whole, known)
    if len(fitting) != 1:
        note = f"shapes cannot be inferred ({why}): shown flat; --model MODEL tells them"
        return dataclasses.replace(trace, notes=(*trace.notes, note))
    reading = fitting[0]
    only_last = known is None and reading.tokens == 1 and _experts_only(whole)
    if only_last and not distinct_experts(whole):
        note = "shapes cannot be inferred (an expert id appears twice in one row): shown flat"
        return dataclasses.replace(trace, notes=(*trace.notes, note))
    shaped = dict(trace.records)
    for key, record in whole.items():
        shaped[key] = _read_as(record, reading, "last" if only_last else "all")
    held = "last position only, " if only_last else ""
    note = f"shapes inferred: {held}{reading}"
    return dataclasses.replace(trace, records=shaped, notes=(*trace.notes, note))


def _is_whole(record: StageRecord) -> bool:
    try:
        record.header()
    except BadFileError:
        return False
    return True


def _read_as(record: StageRecord, reading: Reading, positions: str) -> StageRecord:
    axes = axes_of(record.key.stage)
    if axes is None:
        return record
    extent = {
        "token": reading.tokens,
        "query": reading.tokens,
        "key": reading.tokens,
        "head": reading.heads,
        "kv_head": reading.kv_heads,
        "channel": reading.channel,
        "vocab": reading.vocab,
    }
    if facts_of(record.key.stage).logits:
        axes = ("token", "vocab") if record.parts else axes
        positions = "all" if record.parts else "last"
    shape = tuple(extent.get(axis, record.count // reading.tokens) for axis in axes)
    if 0 in shape:  # the head size is not told: rows are
        axes, shape = ("token", "channel"), (reading.tokens, record.count // reading.tokens)
    if record.parts and record.positions != "all":
        return record
    return dataclasses.replace(
        record, shape=shape, axes=axes, positions=positions, shape_source="inferred"
    )
