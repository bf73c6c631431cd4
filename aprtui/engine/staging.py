"""Stored weights on their way to a CUDA device: through pinned memory, on a stream of their own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle

import torch

__all__ = ["Staging"]

_SLOTS = 3  # one is filled by the host, one copied, one read by the device


class _Slot:
    """A pinned buffer, its twin on the device, and when each may be overwritten."""

    def __init__(self, device: torch.device) -> None:
        self.pinned = torch.empty(0, dtype=torch.uint8)
        self.on_device = torch.empty(0, dtype=torch.uint8, device=device)
        self.copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self.read = torch.cuda.Event()  # type: ignore[no-untyped-call]

    def grow(self, size: int) -> None:
        if self.pinned.numel() < size:
            # New memory may be what kernels still queued elsewhere were given before.
            torch.cuda.synchronize(self.on_device.device)
            self.pinned = torch.empty(size, dtype=torch.uint8, pin_memory=True)
            self.on_device = torch.empty(size, dtype=torch.uint8, device=self.on_device.device)


class Staging:
    """Uploads blocks so that copying the next ones overlaps with computing on this one.

    The host never waits for the device but for a slot that is still being copied from: kernels
    queue up behind the copy that they need.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._slots = cycle([_Slot(device) for _ in range(_SLOTS)])

    @contextmanager
    def on_device(self, stored: torch.Tensor) -> Iterator[torch.Tensor]:
        """``stored`` [n] uint8 of the file's map on the device, for kernels queued in the body."""
        slot, size = next(self._slots), stored.numel()
        slot.grow(size)
        slot.copied.synchronize()
        slot.pinned[:size].copy_(stored)
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(slot.read)
            slot.on_device[:size].copy_(slot.pinned[:size], non_blocking=True)
            slot.copied.record(self._stream)
        computing = torch.cuda.current_stream(slot.on_device.device)
        computing.wait_event(slot.copied)
        yield slot.on_device[:size]
        slot.read.record(computing)
