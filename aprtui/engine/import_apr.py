"""Any model as ``.apr``: blocks that the format can hold byte for byte, the others as chosen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from aprtui.engine.dequantise import Workspace, decode_rows
from aprtui.errors import EngineError, UsageError
from aprtui.families.registry import identify
from aprtui.families.settle import FREQUENCY_TENSORS, settle, sort_tensors
from aprtui.formats.apr_write import TYPE_CODES, OutgoingTensor, write_apr
from aprtui.formats.modelfile import TensorEntry, tensor_bytes
from aprtui.formats.quantise import encode
from aprtui.model.apr_metadata import apr_metadata
from aprtui.model.open import Model
from aprtui.text import clean

__all__ = ["OTHER_TYPES", "Imported", "import_apr"]

OTHER_TYPES = {"f16": "F16", "f32": "F32", "bf16": "BF16", "q6_k": "Q6_K",
               "apr-q4": "APR_Q4", "apr-q8": "APR_Q8"}  # fmt: skip
"""What a tensor that ``.apr`` cannot hold as it is may become; f16 is the nearest in value."""

_CHUNK_BYTES = 8 << 20
_BLOCK_VALUES = 1 << 20
_SMALL_VALUES = 1024  # below this, and for vectors, float32 is kept whatever was chosen


@dataclass(frozen=True)
class Imported:
    """What was written."""

    path: str
    size_bytes: int
    tensors: int
    kept: int  # tensors whose bytes are those of the source
    converted: dict[str, int]  # "Q8_0 -> F16": how many
    notes: tuple[str, ...]


def import_apr(
    model: Model, out: Path, other: str = "f16", progress: Callable[[int, int], None] | None = None
) -> Imported:
    """Write ``model`` as an ``.apr`` file. Memory: one block of rows (for apr-q8 one tensor).

    Tensor names and q/k row order stay the source's; dims are row-major. ``other`` names the type
    (``OTHER_TYPES``) of tensors whose own type the format cannot hold. Raises UsageError for an
    ``.apr`` source, EngineError for a full disk or values that the chosen type cannot hold.
    """
    if model.file.format == "apr":
        raise UsageError(f"{clean(str(model.path))}: is an .apr file already")
    entries = {matrix.entry.name: matrix.entry for matrix in model.weights.values()}
    for name in FREQUENCY_TENSORS & set(model.file.tensors):
        entries[name] = model.file.tensors[name]
    metadata, notes = apr_metadata(model, out.stem)
    _check_carried(model, metadata, entries)
    total = sum(entry.size_bytes for entry in entries.values())
    meter = _Meter(total, progress)
    conversions: Counter[str] = Counter()
    outgoing = []
    for entry in entries.values():
        type_name = _target(entry, OTHER_TYPES[other])
        if type_name != entry.type:
            conversions[f"{entry.type} -> {type_name}"] += 1
        outgoing.append(_outgoing(entry, type_name, meter))
    notes += [
        f"{number} tensors of a type that .apr does not hold were written anew: {change}"
        for change, number in sorted(conversions.items())
    ]
    size = write_apr(out, metadata, outgoing)
    kept = len(outgoing) - sum(conversions.values())
    return Imported(str(out), size, len(outgoing), kept, dict(conversions), tuple(notes))


def _check_carried(
    model: Model, metadata: Mapping[str, Any], entries: Mapping[str, TensorEntry]
) -> None:
    """The file that is about to be written means the same model, stage by stage.

    Raises UsageError that names the first stage which .apr would make another of.
    """
    file = replace(model.file, format="apr", metadata=metadata, tensors=entries)
    who = identify(file)
    again = settle(file, who, sort_tensors(file, who.name)).graph
    for node, other in zip_longest(model.graph, again):
        if node != other:
            key = (node or other).key
            raise UsageError(
                f"{clean(str(model.path))}: .apr has no keys for what its {key.stage} is computed "
                "with; a reader of the file would compute another model",
            )


class _Meter:
    """Counts source bytes as they are read."""

    def __init__(self, total: int, progress: Callable[[int, int], None] | None) -> None:
        self._done = 0
        self._total = total
        self._progress = progress

    def add(self, byte_count: int) -> None:
        self._done += byte_count
        if self._progress is not None:
            self._progress(self._done, self._total)


def _target(entry: TensorEntry, other: str) -> str:
    """The type that ``entry`` is written in."""
    if entry.type in ("F32", "F16", "BF16", "Q4_K", "Q6_K"):
        return entry.type
    small = len(entry.shape) < 2 or int(np.prod(entry.shape)) < _SMALL_VALUES
    target = "F32" if small else other
    if target == "Q6_K" and entry.shape[-1] % 256 and len(entry.shape) != 2:
        return "F16"  # rows of packed experts cannot be padded
    return target


def _outgoing(entry: TensorEntry, type_name: str, meter: _Meter) -> OutgoingTensor:
    assert type_name in TYPE_CODES

    def stored() -> Iterator[npt.NDArray[np.uint8]]:
        whole = tensor_bytes(entry)
        for start in range(0, whole.size, _CHUNK_BYTES):
            chunk = whole[start : start + _CHUNK_BYTES]
            yield chunk
            meter.add(chunk.size)

    def encoded() -> Iterator[npt.NDArray[np.uint8]]:
        for rows in _row_blocks(entry, whole=type_name == "APR_Q8"):
            if not np.isfinite(rows).all():
                raise EngineError(f"{clean(entry.name)} holds NaN or infinity")
            if type_name == "F16" and np.abs(rows).max(initial=0.0) > 65504:
                raise EngineError(
                    f"{clean(entry.name)} holds values that float16 cannot", hint="--other f32"
                )
            yield encode(type_name, rows)
        meter.add(entry.size_bytes)

    return OutgoingTensor(
        entry.name, type_name, entry.shape, stored if type_name == entry.type else encoded
    )


def _row_blocks(entry: TensorEntry, *, whole: bool) -> Iterator[npt.NDArray[np.float32]]:
    """The tensor's values as float32 rows, some at a time (a multiple of 32 rows)."""
    columns = entry.shape[-1] if entry.shape else 1
    rows = int(np.prod(entry.shape)) // max(columns, 1)
    step = rows if whole else max(32, _BLOCK_VALUES // columns // 32 * 32)
    workspace = Workspace()
    for first in range(0, rows, step):
        block = decode_rows(
            entry, first, min(step, rows - first), torch.device("cpu"), workspace=workspace
        )
        yield block.numpy()
