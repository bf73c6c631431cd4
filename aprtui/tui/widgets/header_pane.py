"""The Header pane: each of the twelve bytes beside what it says, and what the file's size says."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from aprtui.errors import BadFileError
from aprtui.formats.aprt import HEADER_BYTES, MAGIC, WHOLE_MODEL, read_header
from aprtui.formats.files import first_bytes
from aprtui.formats.tracedir import StageRecord, TraceDir
from aprtui.text import clean, number, ranges, size
from aprtui.tui.stage_table import describe_shape
from aprtui.tui.widgets.facts import Fact, fact_lines
from aprtui.tui.widgets.lines import Part, RowList, right
from aprtui.tui.widgets.stage_pane import StagePane, StageSeen

__all__ = ["HeaderPane", "decoded", "dump"]

DUMPED = 1024  # bytes of the file that are shown, scrolling included


class HeaderPane(RowList, StagePane):
    """Header bytes decoded, size check, what the manifest says of the stage, the first values."""

    blurred = ""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._lines: list[list[Part]] = []

    def nothing(self, seen: StageSeen) -> None:
        """Bytes there are of the worst file."""

    def show(self, seen: StageSeen) -> None:
        if self.seen is None or self.seen.record.path != seen.record.path:
            self.cursor = self.first = 0
        self.seen = seen
        self._draw()

    def on_resize(self) -> None:
        self._draw()

    def _draw(self) -> None:
        if self.seen is None or not self.size.width:
            return
        record, trace = self.seen.record, self.seen.trace
        width = self.size.width
        head = _first_bytes(record.path, DUMPED)
        self._lines = [
            *decoded(head, record), *_size_check(record, width), [],
            *fact_lines(facts(record, trace), width), [], *dump(head, width),
        ]  # fmt: skip
        self.rows_changed()

    def row_count(self) -> int:
        return len(self._lines)

    def row_parts(self, row: int, width: int) -> list[Part]:
        return self._lines[row]


def _first_bytes(path: Path, limit: int) -> bytes:
    try:
        return first_bytes(path, limit)
    except BadFileError:
        return b""


def decoded(head: bytes, record: StageRecord) -> list[list[Part]]:
    """The header's three fields; what is wrong in the error colour."""
    magic, layer_raw, count_raw = head[:4], head[4:8], head[8:12]
    layer = struct.unpack("<I", layer_raw)[0] if len(layer_raw) == 4 else None
    count = struct.unpack("<I", count_raw)[0] if len(count_raw) == 4 else None
    right_magic = magic == MAGIC
    said = clean(magic.decode("latin-1"))
    lines = [_field(magic, said if right_magic else f"{said} is not APRT", "magic", right_magic)]
    if layer is None:
        lines.append(_field(layer_raw, "missing", "layer", False))
    else:
        whole = layer == WHOLE_MODEL
        agrees = (record.key.layer is None) == whole and (whole or layer == record.key.layer)
        text = "whole model" if whole else f"layer {layer:,}"
        lines.append(_field(layer_raw, text, "layer" if agrees else "not its folder's", agrees))
    ok = count is not None
    lines.append(_field(count_raw, f"{count:,} values" if ok else "missing", "count", ok))
    return lines


def _field(raw: bytes, text: str, name: str, good: bool) -> list[Part]:
    return [
        (f" {raw.hex(' '):<12}", "accent"), (f"  {text:<18}", "" if good else "bad"),
        (name, "dim" if good else "bad"),
    ]  # fmt: skip


def _size_check(record: StageRecord, width: int) -> list[list[Part]]:
    """What the file's size says of the count; or what is wrong with the file."""
    try:
        header = read_header(record.path)
    except BadFileError as error:
        said = error.message.partition(": ")[2] or error.message
        return [[], *fact_lines([Fact("!", said, tone="bad")], width)]
    told = f"{header.file_bytes:,} = {HEADER_BYTES} + 4 x {header.values:,}  "
    return [[(" size          ", "head"), (told, ""), ("ok", "good")]]


def facts(record: StageRecord, trace: TraceDir) -> list[Fact]:
    """What is known beside the bytes: shape and who says so, positions, engine, prompt."""
    source = {"manifest": "the manifest says so", "events": "the trace's events say so",
              "model": "from the model",
              "inferred": "inferred: no manifest states it", "": "nothing states it"}  # fmt: skip
    found = [Fact("shape", describe_shape(record), source.get(record.shape_source, ""))]
    if record.positions is not None:
        found.append(Fact("positions", clean(_positions(record), 60)))
    if record.rows is not None and not record.rows.is_plain:
        found.append(Fact("rows", clean(str(record.rows), 120)))
    found += [Fact(name, value) for name, value in manifest_rows(trace.stated) if value]
    found.append(Fact("path", clean(str(record.path), 300)))
    found += [Fact("note", clean(note, 300)) for note in trace.notes[:6]]
    return found


def _positions(record: StageRecord) -> str:
    said = record.positions
    return ranges(said) if isinstance(said, tuple) else str(said)


def manifest_rows(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Model, engine and prompt as a manifest tells them, cleaned."""

    def part(name: str) -> Mapping[str, Any]:
        found = manifest.get(name)
        return found if isinstance(found, Mapping) else {}

    def words(*values: object) -> str:
        return " · ".join(clean(str(value), 80) for value in values if value not in (None, ""))

    model, engine = part("model"), part("engine")
    rows = []
    if model:
        rows.append(("model", words(model.get("path"), model.get("architecture"))))
        bytes_ = model.get("size", model.get("size_bytes"))
        if isinstance(bytes_, int):
            rows[-1] = ("model", f"{rows[-1][1]} · {size(bytes_)}")
    if engine:
        rows.append(
            ("engine", words(*(engine.get(k) for k in ("name", "version", "device", "dtype"))))
        )
    if manifest.get("prompt"):
        rows.append(("prompt", clean(str(manifest["prompt"]), 300)))
    return rows


def dump(raw: bytes, width: int) -> list[list[Part]]:
    """Bytes in hexadecimal: the header's as text beside them, all others as the values they are."""
    per_line = 16 if width >= 98 else 12 if width >= 76 else 8
    lines = [_dump_line(0, raw[:HEADER_BYTES], _as_text(raw[:HEADER_BYTES]), per_line, "accent")]
    for start in range(HEADER_BYTES, len(raw), per_line):
        chunk = raw[start : start + per_line]
        whole = np.frombuffer(chunk[: len(chunk) // 4 * 4], dtype="<f4")
        values = "".join(right(number(float(value)), 11) for value in whole)
        lines.append(_dump_line(start, chunk, values, per_line, ""))
    return lines if raw else []


def _dump_line(start: int, chunk: bytes, meaning: str, per_line: int, tone: str) -> list[Part]:
    columns = max(per_line, HEADER_BYTES if start == 0 else 0) * 3
    return [
        (f" {start:06x} ", "dim"), (f" {chunk.hex(' '):<{columns}}", tone), (meaning, tone or "dim")
    ]  # fmt: skip


def _as_text(raw: bytes) -> str:
    return " " + "".join(chr(byte) if 32 <= byte < 127 else "." for byte in raw)
