"""Say what a model, a trace or a stage file is: header, tensors, completeness, oddities."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from aprtui.cli.inspect_graph import print_graph
from aprtui.cli.options import add_adapter
from aprtui.cli.output import print_json, print_notes, print_table
from aprtui.cli.status_line import StatusLine
from aprtui.compare.infer import open_any, with_shapes
from aprtui.errors import AprtuiError, BadFileError, UsageError
from aprtui.formats.adapters import adapted, read_adapter
from aprtui.formats.aprt import MAGIC, read_header, read_values
from aprtui.formats.files import first_bytes
from aprtui.formats.health import Health
from aprtui.formats.modelfile import ModelFile, TensorEntry
from aprtui.formats.perop import PerOpDir
from aprtui.formats.quantised import assembled
from aprtui.formats.summary import summarise
from aprtui.formats.tracedir import StageKey, TraceDir
from aprtui.graph.words import sizes
from aprtui.model.health import model_health
from aprtui.model.open import Model, is_model_path, list_model_file, open_model
from aprtui.text import clean, count, number, ranges, size

__all__ = ["configure", "run"]

_FOUND = 20  # findings that are listed


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", help="a model file or folder, a trace directory, or a stage file")
    parser.add_argument("--json", action="store_true", help="everything as JSON")
    parser.add_argument("--model", help="the model that a foreign trace is of: tells its shapes")
    add_adapter(parser)
    parser.add_argument(
        "--verify",
        action="store_true",
        help="read the whole file: its checksum, NaN in weights and scales, holes of zeros; exit 1 "
        "for what no sound file has",
    )
    parser.add_argument(
        "--graph", action="store_true",
        help="of a model: every stage in order of computation, with its operation and weights",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    path = Path(args.path)
    if not path.exists():
        raise BadFileError(path, "does not exist")
    is_trace = path.is_dir() and not is_model_path(path)
    is_stage = path.is_file() and _is_stage_file(path)
    if args.adapter and (is_trace or is_stage):
        raise UsageError("--adapter is laid on a model's weights, and this is no model")
    if args.graph and (is_trace or is_stage):
        raise UsageError(
            f"{clean(str(path))}: {'a trace' if is_trace else 'a stage file'}, and a graph is a "
            "model's",
            hint="aprtui inspect MODEL --graph",
        )
    if is_trace:
        found = open_any(path)
        sides = (found.cpu, found.gpu) if isinstance(found, PerOpDir) else (found,)
        graph = open_model(Path(args.model)).graph if args.model else None
        return max(_trace(with_shapes(side, graph), args.json) for side in sides)
    if is_stage:
        return _stage(path, args.json)
    return _model(path, args)


def _is_stage_file(path: Path) -> bool:
    return first_bytes(path, 4) == MAGIC or path.suffix == ".bin"


def _stage(path: Path, as_json: bool) -> int:
    header = read_header(path)
    raw = header.pack()
    stats = summarise(read_values(path))
    if as_json:
        print_json(
            {
                "kind": "stage",
                "path": str(path),
                "header_hex": raw.hex(" "),
                "layer": header.layer,
                "values": header.values,
                "size_bytes": header.file_bytes,
                "stats": stats,
            }
        )
        return 0
    layer = "whole model" if header.layer is None else f"layer {header.layer}"
    print(f"{clean(str(path))}: stage file")
    print(f"  {raw[0:4].hex(' ')}  {raw[0:4].decode()}")
    print(f"  {raw[4:8].hex(' ')}  {layer}")
    print(f"  {raw[8:12].hex(' ')}  {count(header.values, 'value')}")
    print(f"  size {count(header.file_bytes)} = 12 + 4 x {count(header.values)}")
    print("  " + "  ".join(f"{name} {_shown(value)}" for name, value in stats.items()))
    return 0


def _shown(value: float | str) -> str:
    return value if isinstance(value, str) else number(value)


def _trace(trace: TraceDir, as_json: bool) -> int:
    from aprtui.graph.vocabulary import order_of

    damaged: dict[StageKey, str] = {}
    for key, record in trace.records.items():
        try:
            for part in record.parts or (record.path,):
                read_header(part)
        except BadFileError as error:
            damaged[key] = error.message
    keys = sorted(trace.records, key=order_of)
    layers = sorted({key.layer for key in keys if key.layer is not None})
    manifest = trace.manifest or {}
    if as_json:
        print_json(
            {
                "kind": "trace",
                "path": str(trace.root),
                "status": trace.status,
                "files": len(trace.records),
                "expected": trace.expected,
                "layers": layers,
                "stages": list(dict.fromkeys(key.stage for key in keys)),
                "damaged": {str(key): text for key, text in damaged.items()},
                "notes": list(trace.notes),
                "records": [
                    {
                        "layer": key.layer,
                        "stage": key.stage,
                        "size_bytes": trace.records[key].size_bytes,
                        "shape": trace.records[key].shape,
                        "axes": trace.records[key].axes,
                        "positions": trace.records[key].positions,
                    }
                    for key in keys
                ],
                "manifest": {k: v for k, v in manifest.items() if k != "stages"} or None,
                "plan": trace.planned or None,
            }
        )
    else:
        _print_trace(trace, keys, layers, damaged)
    return 3 if damaged else 0


def _print_trace(
    trace: TraceDir, keys: list[StageKey], layers: list[int], damaged: dict[StageKey, str]
) -> None:
    of = f" of {trace.expected} expected" if trace.expected not in (None, len(keys)) else ""
    total = sum(record.size_bytes for record in trace.records.values())
    print(
        f"{clean(str(trace.root))}: trace, {trace.status}, {count(len(keys), 'file')}{of}, "
        f"{size(total)}"
    )
    manifest = trace.manifest or {}
    if trace.stated:
        model, engine = trace.stated.get("model", {}), trace.stated.get("engine", {})
        path, family = (clean(str(model.get(k, "unknown"))) for k in ("path", "architecture"))
        print(f"  model   {path} ({family})")
        words = " ".join(str(engine[k]) for k in _ENGINE_KEYS if engine.get(k))
        print(f"  engine  {clean(words) or 'not stated'}")
    if trace.token_texts:
        print(f"  tokens  {len(trace.token_texts)}: {clean('|'.join(trace.token_texts))}")
    if layers:
        print(f"  layers  {len(layers)}: {ranges(layers)}")
    print(f"  stages  {', '.join(dict.fromkeys(clean(key.stage) for key in keys))}")
    for key, text in damaged.items():
        print(f"damaged: {key}: {text}")
    print_notes([*trace.notes, *manifest.get("notes", ())])


_ENGINE_KEYS = ("name", "version", "device", "dtype")


def _model(path: Path, args: argparse.Namespace) -> int:
    file = list_model_file(path, verify=args.verify)
    if args.graph:
        print_graph(open_model(path, adapter=args.adapter), as_json=args.json)
        return 0
    model: Model | None = None
    why_not = ""
    try:
        file = assembled(file)
        if args.adapter:
            file = adapted(file, read_adapter(Path(args.adapter)))
        model = open_model(path, adapter=args.adapter)
    except AprtuiError as error:
        why_not = str(error)
    health = _health(list_model_file(path), model, why_not) if args.verify else None
    if args.json:
        print_json(_model_json(file, model, why_not, health))
    else:
        _print_model(file, model, why_not, health)
    return 1 if health is not None and not health.sound else 0


def _health(file: ModelFile, model: Model | None, why_not: str) -> Health:
    """Every block of the file looked at, with a line of progress."""
    with StatusLine() as tell:

        def progress(done: int, total: int, name: str) -> None:
            tell(f"{done / max(total, 1):.0%} of {size(total)} looked at: {name}")

        return model_health(file, model, why_not, progress)


def _roles(model: Model | None) -> dict[str, str]:
    """Role by tensor name."""
    if model is None:
        return {}
    return {matrix.entry.name: str(role) for role, matrix in reversed(list(model.weights.items()))}


def _model_json(
    file: ModelFile, model: Model | None, why_not: str, health: Health | None
) -> dict[str, Any]:
    roles = _roles(model)
    return {
        "kind": "model",
        "path": str(file.path),
        "format": file.format,
        "version": file.version,
        "files": [str(part) for part in file.files],
        "size_bytes": file.size_bytes,
        "digest": f"sha256:{file.digest}",
        "traceable": model is not None,
        "why_not": why_not or None,
        "architecture": model.architecture if model else None,
        "config": model.settings if model else None,
        "adapter": file.adapter.to_json() if file.adapter else None,
        "quantisation": file.quantisation.to_json() if file.quantisation else None,
        "header": [
            {
                "name": field.name,
                "offset": field.offset,
                "hex": field.raw.hex(),
                "value": field.value,
            }
            for field in file.header
        ],
        "metadata": {key: _plain(value) for key, value in file.metadata.items()},
        "tensors": [
            {
                "name": entry.name,
                "type": entry.type,
                "shape": entry.shape,
                "offset": entry.offset,
                "size_bytes": entry.size_bytes,
                "role": roles.get(entry.name),
                **_parts(entry),
            }
            for entry in file.tensors.values()
        ],
        "notes": list(model.notes if model else file.notes),
        "health": None if health is None else _health_json(health),
    }


def _health_json(health: Health) -> dict[str, Any]:
    return {
        "sound": health.sound,
        "tensors": health.tensors,
        "bytes": health.bytes,
        "findings": [dataclasses.asdict(finding) for finding in health.findings],
    }


def _parts(entry: TensorEntry) -> dict[str, Any]:
    """The stored tensors of a weight that is several."""
    if entry.coding is None:
        return {}
    return {
        "parts": [
            {
                "name": part.entry.name,
                "type": part.entry.type,
                "shape": part.entry.shape,
                "size_bytes": part.entry.size_bytes,
            }
            for part in entry.coding.parts
        ]
    }


def _plain(value: Any) -> Any:
    """A metadata value for JSON: long lists by their length and first entries."""
    if isinstance(value, str | bool | int | float) or value is None:
        return value
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in list(value.items())[:64]}
    if hasattr(value, "__len__") and hasattr(value, "__getitem__"):
        first = [_plain(_scalar(value[place])) for place in range(min(8, len(value)))]
        return first if len(value) <= 8 else {"length": len(value), "first": first}
    return str(value)


def _scalar(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def _print_model(file: ModelFile, model: Model | None, why_not: str, health: Health | None) -> None:
    parts = f", {len(file.files)} files" if len(file.files) > 1 else ""
    print(
        f"{clean(str(file.path))}: {f'{file.format} {file.version}'.strip()}, "
        f"{size(file.size_bytes)}{parts}, {count(len(file.tensors), 'tensor')}"
    )
    if model is not None:
        print(f"  {clean(model.architecture, 60)}: {', '.join(sizes(model.graph))}")
    else:
        print(f"  cannot be traced: {clean(why_not, 500)}")
    if file.quantisation is not None:
        said = file.quantisation
        runtime = f"; its own runtime rounds activations: {said.activations}"
        print(f"  quantised: {clean(said.method, 60)} ({said.source})"
              f"{runtime if said.activations else ''}")  # fmt: skip
    if health is not None:
        print(f"  {_verified(file)}")
        _print_health(health)
    for field in file.header:
        print(f"  {field.offset:>6}  {field.raw.hex(' '):<24}  {field.name}: {clean(field.value)}")
    roles = _roles(model)
    print()
    print_table(
        (
            (
                entry.name,
                entry.type,
                "x".join(map(str, entry.shape)) or "scalar",
                count(entry.size_bytes),
                roles.get(entry.name, ""),
            )
            for entry in _by_place(file)
        ),
        ("tensor", "type", "shape", "bytes", "role"),
        right="--rr",
    )
    print_notes(model.notes if model else file.notes)


def _print_health(health: Health) -> None:
    looked = f"every block of {count(health.tensors, 'tensor')} looked at ({size(health.bytes)})"
    wrong = [finding for finding in health.findings if finding.wrong]
    print(
        f"  {looked}: " + (f"{count(len(wrong), 'thing')} no sound file has" if wrong else "sound")
    )
    for finding in sorted(health.findings, key=lambda each: not each.wrong)[:_FOUND]:
        print(f"  {'wrong' if finding.wrong else 'note '}  {clean(finding.text, 500)}")
    if len(health.findings) > _FOUND:
        print(f"  and {count(len(health.findings) - _FOUND)} more (--json)")


def _verified(file: ModelFile) -> str:
    """What ``--verify`` can say of a file that was read without an error."""
    if file.format != "apr":
        return f"{file.format} files have no checksum"
    if any("no checksum at its end" in note for note in file.notes):
        return "header checksum verified; the file has none at its end"
    return "checksums of header and file verified"


def _by_place(file: ModelFile) -> list[TensorEntry]:
    """Tensors in a reading order: by name, numbers as numbers."""

    def key(entry: TensorEntry) -> list[tuple[int, str]]:
        parts = entry.name.split(".")
        return [(int(p), "") if p.isascii() and p.isdigit() else (-1, p) for p in parts]

    return sorted(file.tensors.values(), key=key)
