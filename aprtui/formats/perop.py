"""Per-op folders, ``pos-NNNN/`` one a position, read as one trace stacked along the token axis."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path

from aprtui.errors import BadFileError
from aprtui.formats.aprt import HEADER_BYTES
from aprtui.formats.tracedir import StageKey, StageRecord, TraceDir, list_stage_files

__all__ = ["PerOpDir", "is_per_op_side", "open_per_op", "open_per_op_side", "without_padding"]

PADDING = 256  # the GPU writes k_post_rope in multiples of this many values
SIDES = ("cpu", "gpu")
_POSITION = re.compile(r"pos-([0-9]{1,9})")
_SCORES = frozenset({"attn_scores", "attn_softmax"})


@dataclass(frozen=True)
class PerOpDir:
    """A folder that ``apr parity --per-op --out D`` wrote: the CPU's pass and the GPU's."""

    root: Path
    cpu: TraceDir
    gpu: TraceDir


def is_per_op_side(path: Path) -> bool:
    """Whether ``path`` holds one folder a position. Raises BadFileError."""
    return bool(_position_folders(path))


def open_per_op(root: Path) -> PerOpDir | None:
    """Both sides of a per-op folder; None when ``root`` is not one. Raises BadFileError."""
    cpu, gpu = (root / side for side in SIDES)
    if not (is_per_op_side(cpu) and is_per_op_side(gpu)):
        return None
    return PerOpDir(root, open_per_op_side(cpu), open_per_op_side(gpu))


def open_per_op_side(root: Path) -> TraceDir:
    """One side as a foreign trace whose records are stacked along the token axis.

    Padding of the GPU's k_post_rope is cut off where the CPU's folder beside it tells the true
    size, and a note says so. Raises BadFileError.
    """
    trace = _stack(root)
    reference = root.parent / SIDES[0]
    if root.name != SIDES[1] or not is_per_op_side(reference):
        return trace
    sizes = {
        key: record.count // len(record.parts) for key, record in _stack(reference).records.items()
    }
    return without_padding(trace, sizes, "the CPU's folder tells")


def without_padding(trace: TraceDir, widths: dict[StageKey, int], because: str) -> TraceDir:
    """``trace`` with each padded k_post_rope cut to its true width (values of one position)."""
    records = dict(trace.records)
    trimmed = []
    for key, record in trace.records.items():
        width = widths.get(key, 0)
        if key.stage != "k_post_rope" or not record.parts or not width:
            continue
        found = record.count // len(record.parts)
        if found != width and found == -(-width // PADDING) * PADDING:
            records[key] = dataclasses.replace(
                record, kept=width, shape=(len(record.parts), width), axes=("token", "channel")
            )
            trimmed.append((found, width))
    if not trimmed:
        return trace
    found, width = trimmed[0]
    note = f"k_post_rope is padded to {found} values a position: cut to {width}, as {because}"
    return dataclasses.replace(trace, records=records, notes=(*trace.notes, note))


def _position_folders(root: Path) -> dict[int, Path]:
    try:
        if not root.is_dir():
            return {}
        return {
            int(match[1]): entry
            for entry in root.iterdir()
            if (match := _POSITION.fullmatch(entry.name)) and entry.is_dir()
        }
    except OSError as error:
        raise BadFileError(root, f"cannot be read: {error.strerror}") from error


def _stack(root: Path) -> TraceDir:
    folders = _position_folders(root)
    files: dict[StageKey, dict[int, tuple[Path, int]]] = {}
    for position in sorted(folders):
        for key, stat in list_stage_files(folders[position]).items():
            path = folders[position] / f"{key}.bin"
            files.setdefault(key, {})[position] = (path, stat.st_size)
    if not files:
        raise BadFileError(root, "holds position folders and no stage file in them")
    notes = [f"one folder a position, stacked along the token axis: {len(folders)} positions"]
    if sorted(folders) != list(range(len(folders))):
        notes.append("the positions are not 0, 1, 2 ... without a gap")
    records = {key: _stacked(key, parts, len(folders)) for key, parts in files.items()}
    for key, record in records.items():
        if len(record.parts) < len(folders):
            notes.append(f"{key} is there for {len(record.parts)} of {len(folders)} positions")
    return TraceDir(root, "foreign", records, None, None, tuple(notes))


def _stacked(key: StageKey, files: dict[int, tuple[Path, int]], total: int) -> StageRecord:
    positions = sorted(files)
    paths = tuple(files[position][0] for position in positions)
    sizes = [files[position][1] for position in positions]
    counts = [max(0, size - HEADER_BYTES) // 4 for size in sizes]
    whole = positions == list(range(total))
    record = StageRecord(
        key,
        paths[0],
        sum(sizes),
        positions="all" if whole else tuple(positions),
        parts=paths,
    )
    if key.stage in _SCORES:
        heads = counts[0]
        if whole and all(count == heads * (query + 1) for query, count in enumerate(counts)):
            return dataclasses.replace(
                record,
                shape=(heads, total, total),
                axes=("head", "query", "key"),
                shape_source="layout",
            )
        return record
    if len(set(counts)) != 1:
        return record
    last = "vocab" if key.stage == "lm_head" else "channel"
    return dataclasses.replace(
        record, shape=(len(paths), counts[0]), axes=("token", last), shape_source="layout"
    )
