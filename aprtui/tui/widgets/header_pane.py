"""The Header pane: each of the twelve bytes beside what it says, and what the file's size says."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from textual.containers import VerticalScroll
from textual.content import Content
from textual.widgets import Static

from aprtui.errors import BadFileError
from aprtui.formats.aprt import HEADER_BYTES, MAGIC, WHOLE_MODEL, read_header
from aprtui.formats.tracedir import StageRecord, TraceDir
from aprtui.text import clean, size
from aprtui.tui.stage_table import describe_shape

__all__ = ["HeaderPane", "decoded", "hex_lines"]

Line = tuple[Content, ...] | Content


class HeaderPane(VerticalScroll, can_focus=True):
    """Header bytes decoded, size check, and what the manifest says of the stage."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._text = Static("", markup=False)
        self._shown: tuple[StageRecord, TraceDir] | None = None

    def compose(self):  # type: ignore[no-untyped-def]
        yield self._text

    def show(self, record: StageRecord, trace: TraceDir) -> None:
        self._shown = (record, trace)
        self._draw()

    def on_resize(self) -> None:
        self._draw()

    def _draw(self) -> None:
        if self._shown is None:
            return
        record, trace = self._shown
        head = _first_bytes(record.path, 512)
        lines = decoded(head, record)
        lines += [Content(""), *facts(record, trace)]
        width = max(self.size.width - 2, 20)
        taken = sum(-(-max(line.cell_length, 1) // width) for line in lines)
        room = max(self.size.height - taken - 1, 4)
        per_line = 16 if self.size.width >= 80 else 8
        lines += [Content(""), *hex_lines(head[: room * per_line], per_line)]
        self._text.update(Content("\n").join(lines))


def _first_bytes(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(limit)
    except OSError:
        return b""


def _hex(raw: bytes) -> str:
    return raw.hex(" ")


def decoded(head: bytes, record: StageRecord) -> list[Content]:
    """The header's three fields, and the size check; what is wrong in the error colour."""
    magic, layer_raw, count_raw = head[:4], head[4:8], head[8:12]
    lines = []
    layer = struct.unpack("<I", layer_raw)[0] if len(layer_raw) == 4 else None
    count = struct.unpack("<I", count_raw)[0] if len(count_raw) == 4 else None
    right_magic = magic == MAGIC
    said = clean(magic.decode("latin-1"))
    lines.append(
        _field(magic, said if right_magic else f"{said} is not APRT", "magic", right_magic)
    )
    if layer is None:
        lines.append(_field(layer_raw, "missing", "layer", False))
    else:
        whole = layer == WHOLE_MODEL
        agrees = (record.key.layer is None) == whole and (whole or layer == record.key.layer)
        text = "whole model" if whole else f"layer {layer:,}"
        lines.append(_field(layer_raw, text, "layer" if agrees else "not its folder's", agrees))
    ok = count is not None
    lines.append(_field(count_raw, f"{count:,} values" if ok else "missing", "count", ok))
    lines.append(Content(""))
    try:
        header = read_header(record.path)
    except BadFileError as error:
        said = error.message.partition(": ")[2] or error.message
        lines.append(Content.styled(f" ! {said}", "bold $text-error"))
    else:
        lines.append(
            Content.assemble(
                (" size  ", "$text-primary"),
                f"{header.file_bytes:,} = {HEADER_BYTES} + 4 x {header.values:,}  ",
                ("ok", "$text-success"),
            )
        )
    return lines


def _field(raw: bytes, text: str, name: str, good: bool) -> Content:
    return Content.assemble(
        (f" {_hex(raw):<12}", "bold $text-accent"),
        (f"  {text:<18}", "" if good else "bold $text-error"),
        (name, "dim" if good else "$text-error"),
    )


def facts(record: StageRecord, trace: TraceDir) -> list[Content]:
    """What is known beside the bytes: shape and who says so, positions, engine, prompt."""
    source = {"manifest": "the manifest says so", "model": "from the model",
              "inferred": "inferred: no manifest states it", "": "nothing states it"}  # fmt: skip
    rows: list[tuple[str, str]] = [
        ("shape", f"{describe_shape(record)}  {source.get(record.shape_source, '')}")
    ]
    if record.positions is not None:
        rows.append(("positions", str(record.positions)))
    rows += manifest_rows(trace.manifest or {})
    rows.append(("path", clean(str(record.path), 300)))
    rows += [("note", clean(note)) for note in trace.notes[:6]]
    return [
        Content.assemble((f" {name:<11}", "$text-primary"), value) for name, value in rows if value
    ]


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


def hex_lines(raw: bytes, per_line: int = 16) -> list[Content]:
    """A hex dump; the header's bytes stand out."""
    lines = []
    for start in range(0, len(raw), per_line):
        chunk = raw[start : start + per_line]
        inside = max(0, min(HEADER_BYTES - start, len(chunk)))
        head, rest = chunk[:inside].hex(" "), chunk[inside:].hex(" ")
        gap = " " if head and rest else ""
        pad = " " * (per_line * 3 - 1 - len(head) - len(gap) - len(rest))
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in chunk)
        lines.append(
            Content.assemble(
                (f" {start:08x}  ", "dim"), (head, "bold $text-accent"), gap, rest, pad, "  ",
                (text[:inside], "bold $text-accent"), (text[inside:], "dim"),
            )
        )  # fmt: skip
    return lines
