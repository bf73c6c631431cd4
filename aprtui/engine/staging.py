"""Host memory on its way to a CUDA device: through pinned buffers, on a stream of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle

import torch

from aprtui.engine.processors import processors

__all__ = ["SLOTS", "Slot", "Staging", "off_device", "send", "wait_for"]

SLOTS = 3  # one is expected next, one copied, one read by the device
# Of pinned memory, which takes half a millisecond a MB to have: one piece is filled, one copied.
_PIECE_BYTES = 8 << 20
_PIECES = 4
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
        self._piece_bytes = min(slot_bytes, _PIECE_BYTES)
        self._pieces = cycle([_Piece(self._piece_bytes) for _ in range(_PIECES)])
        self.slots = [Slot(slot_bytes, device, self._stream) for _ in range(SLOTS)]
        self._turn = cycle(self.slots)

    @contextmanager
    def on_device(self, stored: torch.Tensor) -> Iterator[torch.Tensor]:
        """``stored`` [n] uint8 of the file's map on the device, for kernels queued in the body."""
        slot = next(self._turn)
        there = self.upload(slot, stored)
        with self.reading(slot):
            yield there

    def upload(self, slot: Slot, stored: torch.Tensor) -> torch.Tensor:
        """Queue a copy of ``stored`` into the slot's twin, behind what still reads that."""
        there = slot.twin[: stored.numel()]
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(slot.read)
        self._copy(stored, there)
        slot.copied.record(self._stream)
        return there

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
        """Queue the copy of ``stored`` to the device, piece by piece through pinned memory."""
        for first in range(0, stored.numel(), self._piece_bytes):
            last = first + self._piece_bytes
            piece, part = next(self._pieces), stored[first:last]
            piece.copied.synchronize()
            pinned = piece.pinned[: part.numel()]
            _fill(pinned, part)
            with torch.cuda.stream(self._stream):
                there[first:last].copy_(pinned, non_blocking=True)
                piece.copied.record(self._stream)


def _fill(pinned: torch.Tensor, stored: torch.Tensor) -> None:
    """Copy out of the file's map on several of torch's threads: one alone is slower than the bus.

    Threads of ours, which take turns with Python's lock, are slower too.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(_FILL_THREADS)  # of the calling thread alone
    try:
        pinned.copy_(stored)
    finally:
        torch.set_num_threads(before)


def send(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A host tensor on a device. To a CUDA device the copy is queued; the host does not wait.

    A copy from pageable memory would wait until all that is queued before it is done.
    """
    if device.type != "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def off_device(value: torch.Tensor) -> tuple[torch.Tensor, torch.cuda.Event | None]:
    """A copy of ``value`` as float32 in host memory, and the event after which it is there.

    From a CUDA device through pinned memory, while the pass goes on; elsewhere it is there at once
    and the event is None. What is queued after may overwrite ``value``.
    """
    if value.device.type != "cuda":
        return value.to("cpu", torch.float32, copy=True).contiguous(), None
    pinned = torch.empty(value.shape, dtype=torch.float32, pin_memory=True)
    # Widened there: of another dtype torch copies through pageable memory, and waits.
    pinned.copy_(value.to(torch.float32), non_blocking=True)
    copied = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
    copied.record(torch.cuda.current_stream(value.device))
    return pinned, copied


def wait_for(copied: torch.cuda.Event | None) -> None:
    """Wait until a copy off the device is there (None: it is); other threads go on."""
    if copied is not None:
        with torch.cuda.device(copied.device):  # else this thread makes a context on the first GPU
            copied.synchronize()
