"""Host memory on its way to a CUDA device: through pinned buffers, on a stream of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import cycle

import torch

from aprtui.engine.processors import processors
from aprtui.formats.quantised.coding import padded

__all__ = ["SLOTS", "Slot", "Staging", "send"]

SLOTS = 3  # one is expected next, one copied, one read by the device
# Of pinned memory, which takes half a millisecond a MB to have: one piece is filled, one copied.
# After each piece its thread asks for Python's lock, which the one that computes holds: few, large.
_PIECE_BYTES = 32 << 20
_PIECES = 2
_FILL_THREADS = min(8, processors())  # more wait for memory


class _Piece:
    """Pinned memory, and when it may be overwritten."""

    def __init__(self, size: int) -> None:
        self.pinned = torch.empty(size, dtype=torch.uint8, pin_memory=True)
        self.copied = torch.cuda.Event()  # type: ignore[no-untyped-call]


class Slot:
    """Memory of one block on the device: when it is filled, and when it may be overwritten.

    It is the copying stream's own: nothing that computes was ever given it.
    """

    def __init__(self, size: int, device: torch.device, stream: torch.cuda.Stream) -> None:
        with torch.cuda.stream(stream):
            self.twin = torch.empty(size, dtype=torch.uint8, device=device)
        self.copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self.read = torch.cuda.Event()  # type: ignore[no-untyped-call]


class Staging:
    """Uploads blocks so that copying the next ones overlaps with computing on this one.

    The host never waits for the device but for pinned memory that is still being copied from:
    kernels queue up behind the copy that they need. One thread feeds a device. ``slot_bytes`` is
    the largest block that ``on_device`` will be given.
    """

    def __init__(self, device: torch.device, slot_bytes: int) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._slot_bytes = slot_bytes
        self._piece_bytes = min(slot_bytes, _PIECE_BYTES)

    @cached_property
    def slots(self) -> list[Slot]:
        """What blocks are uploaded into; memory is taken at the first use, for the pieces too."""
        return [Slot(self._slot_bytes, self.device, self._stream) for _ in range(SLOTS)]

    @cached_property
    def _turn(self) -> Iterator[Slot]:
        return cycle(self.slots)

    @cached_property
    def _pieces(self) -> Iterator[_Piece]:
        return cycle([_Piece(self._piece_bytes) for _ in range(_PIECES)])

    @contextmanager
    def on_device(self, pieces: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
        """A block's bytes [n] on the device, as ``upload`` says, for kernels queued in the body."""
        slot = next(self._turn)
        there = self.upload(slot, pieces)
        with self.reading(slot):
            yield there

    def upload(self, slot: Slot, pieces: Sequence[torch.Tensor]) -> torch.Tensor:
        """Queue a copy of ``pieces`` into the slot's twin, behind what still reads that.

        They are uint8 of the file's map, [n] or rows [m,n] that lie apart, and come to lie one
        after the other, each ``padded``: [n].
        """
        self._stream.wait_event(slot.read)
        used = last = 0
        for piece in pieces:
            last = used + piece.numel()
            self._copy(piece, slot.twin[used:last])
            used += padded(piece.numel())
        slot.copied.record(self._stream)
        return slot.twin[:last]

    @contextmanager
    def reading(self, slot: Slot) -> Iterator[None]:
        """Kernels queued in the body read the slot's twin: after its copy, before the next one."""
        computing = torch.cuda.current_stream(self.device)
        computing.wait_event(slot.copied)
        yield
        slot.read.record(computing)

    def kept(self, stored: torch.Tensor) -> torch.Tensor:
        """``stored`` [n] uint8 in device memory of its own, for all that is queued from now on."""
        with torch.cuda.stream(self._stream):
            there = torch.empty(stored.numel(), dtype=torch.uint8, device=self.device)
        self._copy(stored, there)
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        copied.record(self._stream)
        computing = torch.cuda.current_stream(self.device)
        computing.wait_event(copied)
        there.record_stream(computing)  # given back only when what was queued has read it
        return there

    def _copy(self, stored: torch.Tensor, there: torch.Tensor) -> None:
        """Queue the copy of ``stored`` to the device, part by part through pinned memory."""
        first = 0
        with torch.cuda.stream(self._stream), _filling():
            for part in _parts(stored, self._piece_bytes):
                piece, last = next(self._pieces), first + part.numel()
                pinned = piece.pinned[: part.numel()]
                piece.copied.synchronize()
                pinned.view(part.shape).copy_(part)
                there[first:last].copy_(pinned, non_blocking=True)
                piece.copied.record(self._stream)
                first = last


def _parts(stored: torch.Tensor, most: int) -> Iterator[torch.Tensor]:
    """``stored`` in parts of at most so many bytes, in order; of rows that lie apart whole ones
    where they fit."""
    if stored.is_contiguous():
        yield from torch.split(stored.view(-1), most)
    elif stored.shape[1] <= most:
        yield from torch.split(stored, most // stored.shape[1])
    else:
        for row in stored:
            yield from torch.split(row, most)


@contextmanager
def _filling() -> Iterator[None]:
    """In the body copies out of the file's map run on several of torch's threads: one alone is
    slower than the bus, and threads of ours, which take turns with Python's lock, are slower too.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(_FILL_THREADS)  # of the calling thread alone
    try:
        yield
    finally:
        torch.set_num_threads(before)


def send(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A host tensor on a device. To a CUDA device the copy is queued; the host does not wait.

    A copy from pageable memory would wait until all that is queued before it is done.
    """
    if device.type != "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)
