"""Weights by role, streamed: blocks of rows are dequantised straight into the product."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import cache, partial

import torch

from aprtui.engine.ahead import Ahead, Expected
from aprtui.engine.block_decoders import Workspace
from aprtui.engine.codecs import Codec, codec_of
from aprtui.engine.placement import Placement
from aprtui.engine.staging import SLOTS, Staging, send
from aprtui.engine.workers import for_each
from aprtui.formats.modelfile import block_bytes
from aprtui.graph import Role
from aprtui.model.open import Matrix, Model

__all__ = ["WeightStream", "largest_block_bytes", "working_bytes"]

# float32 values of one block of rows: 4 MiB stay in the cache between dequantising and multiplying
# (docs/numerics.md 5). Whole groups of rows: of others the products' kernels round the last rows
# in another order than the rest.
BLOCK_VALUES = 1 << 20
# On another device each block costs the host some launches, which its arithmetic must outlast:
# most matrices are one block (tests/benchmarks/README.md).
DEVICE_BLOCK_VALUES = 1 << 26
_ROW_GROUP = 32
# Beyond some tokens the activations no longer fit the cache: wider blocks read them less often.
_FEW_TOKENS = 64
_WIDE_ROWS = 128

_CPU = torch.device("cpu")


def _block_rows(matrix: Matrix, tokens: int, device: torch.device) -> int:
    least = _ROW_GROUP if tokens <= _FEW_TOKENS else _WIDE_ROWS
    values = BLOCK_VALUES if device.type == "cpu" else DEVICE_BLOCK_VALUES
    rows = max(least, values // matrix.columns // _ROW_GROUP * _ROW_GROUP)
    if device.type == "cpu":
        return rows
    count = max(1, round(matrix.rows / rows))  # of one size: a small last block costs as much
    return max(least, -(-matrix.rows // (count * _ROW_GROUP)) * _ROW_GROUP)


def _most_rows(matrix: Matrix, device: torch.device) -> int:
    """Rows of its largest block, whatever the prompt."""
    most = max(_block_rows(matrix, tokens, device) for tokens in (1, _FEW_TOKENS + 1))
    return min(matrix.rows, most)


def largest_block_bytes(model: Model, device: torch.device) -> int:
    """Stored bytes of the largest block that a product reads."""
    largest = 0
    for matrix in model.weights.values():
        rows = _most_rows(matrix, device)
        stored = replace(matrix.entry, shape=(matrix.rows, matrix.columns))
        entry = stored if matrix.transposed else matrix.entry
        largest = max(largest, block_bytes(entry, rows))
    return largest


def working_bytes(model: Model, device: torch.device) -> int:
    """What a stream needs on a device beside the weights that it keeps there: blocks on their way,
    and one block's values in float32 and in a dtype of half the size. Codes of quantisers are
    widened on their way."""
    weights = model.weights.values()
    values = max(_most_rows(matrix, device) * matrix.columns for matrix in weights)
    widened = 12 * values if any(matrix.entry.coding is not None for matrix in weights) else 0
    return 2 * SLOTS * largest_block_bytes(model, device) + 6 * values + widened


class _Scratch(threading.local):
    """Memory of one thread that is used for every block, on each device."""

    def __init__(self) -> None:
        self.workspace = Workspace()
        self._values: dict[torch.device, torch.Tensor] = {}

    def room(self, rows: int, columns: int, device: torch.device) -> torch.Tensor:
        """[rows, columns] float32 of unspecified values."""
        size = rows * columns
        values = self._values.get(device)
        if values is None or values.numel() < size:
            values = torch.empty(size, dtype=torch.float32, device=device)
            self._values[device] = values
        return values[:size].view(rows, columns)


def _runs(indices: Sequence[int], most: int) -> Iterator[tuple[int, int, int]]:
    """(place among the indices, first index, how many) of those that follow one another."""
    first = 0
    for place in range(1, len(indices) + 1):
        goes_on = place < len(indices) and indices[place] == indices[place - 1] + 1
        if not goes_on or place - first == most:
            yield first, indices[first], place - first
            first = place


class WeightStream:
    """One model's weights in one dtype, a block of rows at a time, each on its layer's device.

    What the placement keeps is uploaded, as it is stored, at its first use; norms and biases are
    kept on every device but the CPU.
    """

    def __init__(self, model: Model, where: torch.device | Placement, dtype: torch.dtype) -> None:
        self.model = model
        self.placement = where if isinstance(where, Placement) else Placement.whole(model, where)
        self.device = self.placement.layers[0]  # of the token table's rows
        self.dtype = dtype
        self._scratch = _Scratch()
        self._vectors: dict[Role, torch.Tensor] = {}
        self._sources: dict[Role, Codec] = {}
        cuda = [device for device in self.placement.devices if device.type == "cuda"]
        slot_bytes = largest_block_bytes(model, self.device) if cuda else 0
        self._staging = {device: Staging(device, slot_bytes) for device in cuda}
        self._ahead = {device: Ahead(Staging(device, slot_bytes)) for device in cuda}

    def device_of(self, layer: int | None) -> torch.device:
        """Where a layer is computed; None: final norm and head."""
        return self.placement.device_of(layer)

    def spans(self, matrix: Matrix, tokens: int = 1) -> list[tuple[int, int]]:
        """(first row, rows) of each block of a matrix for a product with so many tokens."""
        step = _block_rows(matrix, tokens, self.device)
        return [(first, min(step, matrix.rows - first)) for first in range(0, matrix.rows, step)]

    @contextmanager
    def expecting(self, roles: Sequence[Role], tokens: int) -> Iterator[None]:
        """In the body products with the matrices of these roles come, in this order; roles that
        are no matrix of the model's are passed over, and other products may come between.

        The blocks are uploaded before they are asked for.
        """
        try:
            for device, ahead in self._ahead.items():
                here = [role for role in roles if self._streams(role, device)]
                ahead.begin([block for role in here for block in self._expected(role, tokens)])
            yield
        finally:
            for ahead in self._ahead.values():
                ahead.end()

    def _streams(self, role: Role, device: torch.device) -> bool:
        """Whether the device is given a matrix of this role block by block."""
        matrix = self.model.weights.get(role)
        if matrix is None or matrix.rows == 1 or role in self.model.graph.tables:
            return False
        return self.device_of(role.layer) == device and role.layer not in self.placement.kept

    def _expected(self, role: Role, tokens: int) -> Iterator[Expected]:
        matrix = self.model.weights[role]
        source = cache(partial(self._source, role))  # looked at when the first block is read

        def read(first: int, rows: int) -> list[torch.Tensor]:
            return source().pieces_of(first, rows)

        for first, rows in self.spans(matrix, tokens):
            yield Expected((role, first, rows), partial(read, first, rows))

    def blocks(self, role: Role) -> Iterator[tuple[int, torch.Tensor]]:
        """(first row, block [rows, columns] in the stream's dtype) of a matrix, in order of rows.

        A block is valid until the next one is asked for.
        """
        matrix = self.model.weights[role]
        stored, device = self._source(role), self.device_of(role.layer)
        for first, rows in self.spans(matrix):
            yield first, self.decode(stored, first, rows, device, role)

    def vector(self, role: Role) -> torch.Tensor:
        """A norm's weight or a bias [columns] in the stream's dtype."""
        device = self.device_of(role.layer)
        if device.type == "cpu":
            return self._vector(role)
        if role not in self._vectors:
            self._vectors[role] = send(self._vector(role), device)
        return self._vectors[role]

    def _vector(self, role: Role) -> torch.Tensor:
        stored = codec_of(self.model.weights[role])
        return self.decode(stored, 0, 1, _CPU).reshape(-1).clone()

    def rows(self, role: Role, indices: tuple[int, ...]) -> torch.Tensor:
        """Chosen rows [len(indices), columns] of a matrix in the stream's dtype, on ``device``.

        They are few: read and decoded by the host, wherever they are used.
        """
        stored = codec_of(self.model.weights[role])
        table = torch.empty((len(indices), stored.columns), dtype=self.dtype)
        most = max(1, BLOCK_VALUES // stored.columns)
        for place, index, count in _runs(indices, most):
            table[place : place + count] = self.decode(stored, index, count, _CPU)
        return send(table, self.device)

    def linear(self, x: torch.Tensor, role: Role) -> torch.Tensor:
        """x [n, columns] times the matrix transposed: [n, rows], in the stream's dtype."""
        matrix = self.model.weights[role]
        device = self.device_of(role.layer)
        out = torch.empty((x.shape[0], matrix.rows), dtype=self.dtype, device=device)

        def multiply(first: int, block: torch.Tensor) -> None:
            torch.mm(x, block.T, out=out[:, first : first + block.shape[0]])

        self.for_blocks(role, multiply, x.shape[0])
        return out

    def for_blocks(
        self, role: Role, use: Callable[[int, torch.Tensor], None], tokens: int = 1
    ) -> None:
        """Call ``use`` with what ``blocks`` yields, on all threads, in no order."""
        matrix = self.model.weights[role]
        stored, device = self._source(role), self.device_of(role.layer)

        def decode(span: tuple[int, int]) -> None:
            first, rows = span
            use(first, self.decode(stored, first, rows, device, role))

        for_each(decode, self.spans(matrix, tokens), device)

    def _source(self, role: Role) -> Codec:
        """The codec of a matrix: its bytes in the file's map, or kept on the device."""
        if role not in self._sources:
            stored = codec_of(self.model.weights[role])
            if role.layer in self.placement.kept:
                stored = stored.moved(partial(self._keep, self.device_of(role.layer)))
            self._sources[role] = stored
        return self._sources[role]

    def _keep(self, device: torch.device, raw: torch.Tensor) -> torch.Tensor:
        if device in self._staging:
            return self._staging[device].kept(raw)
        return raw.clone().to(device)

    def decode(
        self,
        stored: Codec,
        first: int,
        rows: int,
        device: torch.device | None = None,
        role: Role | None = None,
    ) -> torch.Tensor:
        """Rows of a weight in the stream's dtype, valid until this thread's next block.

        ``role`` says whose they are, for those that are expected.
        """
        device = device or self.device
        out = self._scratch.room(rows, stored.columns, device)
        with self._on_device(stored, first, rows, device, role) as raw:
            stored.decode(raw, first, out, self._scratch.workspace)
        return out.to(self.dtype)

    def _on_device(
        self, stored: Codec, first: int, rows: int, device: torch.device, role: Role | None
    ) -> AbstractContextManager[torch.Tensor]:
        """The rows' bytes where they are decoded."""
        if device in self._ahead and self._ahead[device].expects((role, first, rows)):
            return self._ahead[device].on_device()
        if device in self._staging:
            pieces = stored.pieces_of(first, rows)
            if pieces[0].is_cpu:
                return self._staging[device].on_device(pieces)
        return nullcontext(stored.bytes_of(first, rows).to(device))
