"""Write stage files as npy, npz, safetensors or csv, with the shapes that their trace tells.

A trace directory stands for all its stages. Shapes come from the manifest, or from --model, or are
inferred (and said to be); otherwise the values are written flat, with a note.
"""

from __future__ import annotations

import argparse
import csv
import io
import itertools
import math
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

from aprtui import api
from aprtui.cli.output import check_new_file
from aprtui.errors import UsageError
from aprtui.formats.atomic import whole_file
from aprtui.formats.tracedir import StageRecord
from aprtui.model.open import Model, open_model
from aprtui.text import clean, count

__all__ = ["configure", "run"]

Float32 = npt.NDArray[np.float32]

_FLAT = ("index",)
_NO_ROOM = "free space or choose another place with -o"


@dataclass(frozen=True)
class _Tensor:
    """One stage ready to be written: ``name`` is ``layer-0.attn_norm`` or ``lm_head``."""

    name: str
    values: Float32
    axes: tuple[str, ...]
    inferred: bool = False  # whether its shape is


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("paths", nargs="+", type=Path, metavar="FILE", help="stage files or traces")
    parser.add_argument("--to", required=True, choices=("npy", "npz", "safetensors", "csv"))
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        help="the file (npz, safetensors, or one stage), or the folder; "
        "default: the current folder, named after the trace or the stage",
    )
    parser.add_argument("--model", type=Path, help="the model: tells shapes of foreign folders")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there")


def run(args: argparse.Namespace) -> int:
    """Write, and print what was written."""
    if str(args.output) == "-":
        raise UsageError("-o -: an export is written into files, not to stdout", hint="-o FILE")
    model = None if args.model is None else open_model(args.model)
    tensors = [_tensor(record) for path in args.paths for record in _records(path, model)]
    _tell_shapes(tensors)
    names = [tensor.name for tensor in tensors]
    if len(set(names)) != len(names):
        double = next(name for name in names if names.count(name) > 1)
        raise UsageError(f"two of the files are {clean(double)}", hint="export one trace at a time")
    if args.to == "safetensors" and "__metadata__" in names:
        raise UsageError("safetensors cannot hold a tensor named __metadata__", hint="--to npz")
    targets = _targets(args, tensors)
    for target, _ in targets:
        check_new_file(target, overwrite=args.overwrite)
    for target, chosen in targets:
        with whole_file(target, parents=True, hint=_NO_ROOM) as file:
            _WRITERS[args.to](file, chosen)
        shapes = f"{list(chosen[0].values.shape)}" if len(chosen) == 1 else f"{len(chosen)} tensors"
        print(f"{clean(str(target))}  {shapes}")
    return 0


def _records(path: Path, model: Model | None) -> list[StageRecord]:
    trace = api.open_trace(path, model=model)
    for note in trace.notes:
        print(f"note: {clean(note, 500)}", file=sys.stderr)
    return list(trace.records.values())


def _tensor(record: StageRecord) -> _Tensor:
    values = record.values()
    name = str(record.key).replace("/", ".")
    if record.shape is None or math.prod(record.shape) != values.size:
        return _Tensor(name, values, _FLAT)
    inferred = record.shape_source == "inferred"
    return _Tensor(name, values.reshape(record.shape), record.axes or (), inferred)


def _tell_shapes(tensors: list[_Tensor]) -> None:
    """A note of the shapes that are inferred, and one of those that are not known."""
    for found, noun, what in (
        ([t for t in tensors if t.inferred], "shape", "inferred, not stated"),
        ([t for t in tensors if t.axes == _FLAT], "stage", "written flat, the shape not known"),
    ):
        if found:
            first = f"{clean(found[0].name)} {' x '.join(map(str, found[0].values.shape))}"
            more = ", ..." if len(found) > 1 else ""
            print(f"note: {count(len(found), noun)} {what}: {first}{more}", file=sys.stderr)


def _targets(args: argparse.Namespace, tensors: list[_Tensor]) -> list[tuple[Path, list[_Tensor]]]:
    suffix = f".{args.to}"
    first: Path = args.paths[0]
    output: Path | None = args.output
    if args.to in ("npz", "safetensors"):
        stem = tensors[0].name if len(tensors) == 1 else first.absolute().name.removesuffix(".bin")
        return [(output or Path(stem + suffix), tensors)]
    if output is not None and len(tensors) == 1 and not output.is_dir():
        return [(output, tensors)]
    folder = output or Path()
    return [(folder / (tensor.name + suffix), [tensor]) for tensor in tensors]


def _write_npy(file: BinaryIO, tensors: list[_Tensor]) -> None:
    np.save(file, tensors[0].values, allow_pickle=False)


def _write_npz(file: BinaryIO, tensors: list[_Tensor]) -> None:
    """As np.savez does, which takes no array of the name ``file``."""
    with zipfile.ZipFile(file, "w") as archive:
        for tensor in tensors:
            with archive.open(f"{tensor.name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, tensor.values, allow_pickle=False)


def _write_safetensors(file: BinaryIO, tensors: list[_Tensor]) -> None:
    axes = {tensor.name: ",".join(tensor.axes) for tensor in tensors}
    file.write(save({t.name: np.ascontiguousarray(t.values) for t in tensors}, metadata=axes))


def _write_csv(file: BinaryIO, tensors: list[_Tensor]) -> None:
    """One line a value: its index along each axis, then the shortest text that reads back equal."""
    tensor = tensors[0]
    text = io.TextIOWrapper(file, newline="", encoding="utf-8")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*tensor.axes, "value"])
    places = itertools.product(*(range(extent) for extent in tensor.values.shape))
    flat = tensor.values.reshape(-1)
    for place, value in zip(places, flat, strict=True):
        writer.writerow([*place, np.format_float_scientific(value, unique=True)])
    text.detach()  # which flushes, and leaves the file open


_WRITERS: dict[str, Callable[[BinaryIO, list[_Tensor]], None]] = {
    "npy": _write_npy,
    "npz": _write_npz,
    "safetensors": _write_safetensors,
    "csv": _write_csv,
}
