"""Stored weights to float32: blocks of any type, and rows of a tensor straight from its file."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from copy import copy

import torch
from torch import Tensor

from aprtui.engine.adapted import AdaptedRows
from aprtui.engine.block_decoders import BLOCK_DECODERS, Fields, Workspace
from aprtui.engine.coded import CodedRows, Readable
from aprtui.engine.grid_decoders import GRID_DECODERS
from aprtui.engine.kernels import decode_by_kernel
from aprtui.engine.native import decode_blocks
from aprtui.errors import EngineError
from aprtui.formats.blocks import BLOCK_TYPES
from aprtui.formats.modelfile import TensorEntry, whole_bytes
from aprtui.formats.quantised.coding import Adapted
from aprtui.text import clean

__all__ = [
    "StoredRows",
    "Workspace",
    "decode_rows",
    "decode_tensor",
    "dequantise",
    "dequantise_apr_q8",
    "rows_of",
]

_PLAIN: dict[str, torch.dtype] = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "U8": torch.uint8,
}


def dequantise(
    type_name: str,
    blocks: Tensor,
    out: Tensor | None = None,
    workspace: Workspace | None = None,
) -> Tensor:
    """The values [n, block_values] float32 of ``blocks`` [n, block_bytes] uint8, on its device.

    ``out`` (contiguous, that shape) receives them where given. Equal bit for bit to ggml's C code;
    IEEE decides what NaN, infinite and subnormal scales give. APR_Q8 has a scale of its own, see
    dequantise_apr_q8. Raises EngineError for a type that has no decoder.
    """
    workspace = workspace or Workspace()
    workspace.restart()
    return _dequantise(type_name, blocks, out, workspace)


def _dequantise(type_name: str, blocks: Tensor, out: Tensor | None, workspace: Workspace) -> Tensor:
    kind = BLOCK_TYPES.get(type_name)
    if kind is None or type_name == "APR_Q8":
        raise EngineError(f"no decoder for blocks of type {clean(type_name)}")
    n = blocks.shape[0]
    if out is None:
        out = torch.empty((n, kind.values), dtype=torch.float32, device=blocks.device)
    if n == 0 or decode_blocks(type_name, blocks, out):
        return out
    if decode_by_kernel(type_name, blocks, out, _by_torch):
        return out
    fields = Fields(blocks, workspace)
    if type_name in _PLAIN:
        out.copy_(_viewed(fields, _PLAIN[type_name]))
    elif type_name in GRID_DECODERS:
        GRID_DECODERS[type_name](fields, out)
    elif type_name in BLOCK_DECODERS:
        BLOCK_DECODERS[type_name](fields, out)
    else:
        raise EngineError(
            f"no decoder for blocks of type {type_name}",
            hint="llama-quantize --allow-requantize makes a file of a common type from it",
        )
    return out


def _by_torch(type_name: str, blocks: Tensor) -> Tensor:
    """The values [n, block_values] by torch's own operations, on whatever device."""
    shape = (blocks.shape[0], BLOCK_TYPES[type_name].values)
    out = torch.empty(shape, dtype=torch.float32, device=blocks.device)
    BLOCK_DECODERS[type_name](Fields(blocks, Workspace()), out)
    return out


def _viewed(fields: Fields, dtype: torch.dtype) -> Tensor:
    """The blocks as ``dtype``; copied where their address is not a multiple of its size."""
    blocks = fields.blocks
    if blocks.data_ptr() % dtype.itemsize or blocks.storage_offset() % dtype.itemsize:
        blocks = fields.bytes(0, blocks.shape[1])
    return blocks.view(dtype)


def dequantise_apr_q8(scale: float, stored: Tensor, out: Tensor | None = None) -> Tensor:
    """``stored`` (any shape, int8) times the tensor's one float32 scale: float32, same shape."""
    if out is None:
        out = torch.empty(stored.shape, dtype=torch.float32, device=stored.device)
    return out.copy_(stored).mul_(scale)


class StoredRows:
    """A stored tensor seen as rows [prod(shape[:-1]), shape[-1]]: checked once, decoded in parts.

    Raises BadFileError when the tensor's bytes are not what its shape and type need. Threads may
    share it, each with a workspace of its own.
    """

    def __init__(self, entry: TensorEntry) -> None:
        stored = whole_bytes(entry)
        self.entry = entry
        self.columns = entry.shape[-1] if entry.shape else 1
        self.rows = math.prod(entry.shape[:-1])
        self._kind = BLOCK_TYPES[entry.type]
        self.flat = entry.flat or entry.type in ("APR_Q4", "APR_Q8")
        self._scale = 0.0
        if entry.type == "APR_Q8" and stored.size:
            (self._scale,) = struct.unpack("<f", stored[:4].tobytes())
            stored = stored[4:]
        self._stored = Readable.tensor(stored)
        self._gone = 0  # bytes of the tensor before the first that is stored

    @property
    def separate(self) -> bool:
        """Whether each row has bytes of its own."""
        return not self.flat

    def bytes_of(self, first_row: int, rows: int) -> Tensor:
        """The stored bytes [n] uint8 of these rows, whole blocks: a view of where they are.

        Raises EngineError for rows outside the tensor.
        """
        if not (first_row >= 0 and rows >= 0 and first_row + rows <= self.rows):
            raise EngineError(
                f"rows {first_row}..{first_row + rows} of {clean(self.entry.name)}, "
                f"which has {self.rows}"
            )
        first, last = (block * self._kind.bytes for block in self._blocks(first_row, rows))
        return self._stored[first - self._gone : last - self._gone]

    def pieces_of(self, first_row: int, rows: int) -> list[Tensor]:
        """The same, as the one piece that it is."""
        return [self.bytes_of(first_row, rows)]

    def gathered(self, runs: Sequence[tuple[int, int]]) -> Tensor:
        """The bytes of rows in runs, one after the other, of a tensor whose rows are separate."""
        return torch.cat([self.bytes_of(start, count) for start, count in runs])

    def moved(self, first_row: int, rows: int, move: Callable[[Tensor], Tensor]) -> StoredRows:
        """The same tensor with what ``move`` makes of these rows' bytes; it has no other rows."""
        there = copy(self)
        there._stored = move(self.bytes_of(first_row, rows))
        there._gone = self._blocks(first_row, rows)[0] * self._kind.bytes
        return there

    def moved_runs(
        self, runs: Sequence[tuple[int, int]], move: Callable[[Tensor], Tensor]
    ) -> StoredRows:
        """A tensor of what ``move`` makes of the rows in these runs, counted from 0."""
        there = copy(self)
        there._stored, there._gone = move(self.gathered(runs)), 0
        return there

    def decode(self, raw: Tensor, first_row: int, out: Tensor, workspace: Workspace) -> Tensor:
        """The values of rows first_row.. into ``out`` [rows, columns] float32, contiguous.

        ``raw`` is what ``bytes_of`` gave for them, on ``out``'s device. Raises EngineError for a
        type that has no decoder.
        """
        workspace.restart()
        return self._decode(raw, first_row, out, workspace)

    def decode_values(self, raw: Tensor, out: Tensor, workspace: Workspace) -> Tensor:
        """Values of a type that stores each by itself, in whatever order, into ``out``.

        The workspace keeps what was taken from it before.
        """
        kind = self._kind
        _dequantise(self.entry.type, raw.view(-1, kind.bytes), out.view(-1, 1), workspace)
        return out

    def _decode(self, raw: Tensor, first_row: int, out: Tensor, workspace: Workspace) -> Tensor:
        if not out.numel():
            return out
        if self.entry.type == "APR_Q8":
            return dequantise_apr_q8(self._scale, raw.view(torch.int8).view(out.shape), out)
        values = self._kind.values
        blocks = raw.view(-1, self._kind.bytes)
        if blocks.shape[0] * values == out.numel():
            _dequantise(self.entry.type, blocks, out.view(-1, values), workspace)
            return out
        whole = workspace.take((blocks.shape[0], values), torch.float32, out.device)
        _dequantise(self.entry.type, blocks, whole, workspace)
        if not self.flat:
            return out.copy_(whole.view(out.shape[0], -1)[:, : self.columns])
        skipped = first_row * self.columns % values
        out.view(-1).copy_(whole.view(-1)[skipped : skipped + out.numel()])
        return out

    def _blocks(self, first_row: int, rows: int) -> tuple[int, int]:
        """The first block that holds values of these rows, and the one after the last."""
        values = self._kind.values
        if self.flat:
            start = first_row * self.columns
            return start // values, math.ceil((start + rows * self.columns) / values)
        blocks_a_row = math.ceil(self.columns / values)
        return first_row * blocks_a_row, (first_row + rows) * blocks_a_row


def rows_of(entry: TensorEntry) -> StoredRows | CodedRows | AdaptedRows:
    """A stored tensor, or the weight that several are, as rows. Raises as their makers do."""
    if isinstance(entry.coding, Adapted):
        return AdaptedRows(entry, rows_of(entry.coding.base), _decode_here)
    return StoredRows(entry) if entry.coding is None else CodedRows(entry)


def _decode_here(entry: TensorEntry) -> Tensor:
    """``decode_tensor`` on the CPU."""
    return decode_tensor(entry, torch.device("cpu"))


def decode_rows(
    entry: TensorEntry,
    first_row: int,
    rows: int,
    device: torch.device,
    out: Tensor | None = None,
    workspace: Workspace | None = None,
) -> Tensor:
    """Rows of a stored tensor, seen as [prod(shape[:-1]), shape[-1]]: [rows, shape[-1]] float32.

    Reads the bytes of these rows and no others. ``out`` (contiguous, that shape, on ``device``)
    receives them where given. Raises BadFileError when the tensor's bytes are not what its shape
    and type need, EngineError for rows outside the tensor or a type that has no decoder.
    """
    stored = rows_of(entry)
    raw = stored.bytes_of(first_row, rows)
    if out is None:
        out = torch.empty((rows, stored.columns), dtype=torch.float32, device=device)
    return stored.decode(raw.to(device), first_row, out, workspace or Workspace())


def decode_tensor(
    entry: TensorEntry, device: torch.device, workspace: Workspace | None = None
) -> Tensor:
    """A whole stored tensor, [shape] float32. Raises as decode_rows does."""
    rows = math.prod(entry.shape[:-1])
    return decode_rows(entry, 0, rows, device, workspace=workspace).view(entry.shape)
