"""Blocks uploaded before they are asked for, in an order that is known, by a thread of their own.

The pass reads the same matrices in the same order every time, but for experts. So one thread copies
their blocks out of the file's map and onto the device while another queues the kernels: neither
waits for the other as long as a slot is free.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from aprtui.engine.staging import Slot, Staging

__all__ = ["Ahead", "Expected"]


@dataclass(frozen=True)
class Expected:
    """A block that will be asked for by its ``key``; ``read`` gives its bytes (Staging.upload)."""

    key: Hashable
    read: Callable[[], Sequence[torch.Tensor]]


class Ahead:
    """A device's expected blocks. What is asked for otherwise has to come by another way."""

    def __init__(self, staging: Staging) -> None:
        self._staging = staging
        self._keys: deque[Hashable] = deque()
        self._free: queue.SimpleQueue[Slot | None] = queue.SimpleQueue()
        self._ready: queue.SimpleQueue[tuple[Slot, torch.Tensor] | BaseException]
        self._filler: threading.Thread | None = None

    def begin(self, blocks: Sequence[Expected]) -> None:
        """Start to upload ``blocks``, in their order; what was expected before is forgotten."""
        self.end()
        self._keys = deque(block.key for block in blocks)
        self._free, self._ready = queue.SimpleQueue(), queue.SimpleQueue()
        for slot in self._staging.slots:
            self._free.put(slot)
        self._filler = threading.Thread(
            target=self._fill, args=(blocks,), name="weights-ahead", daemon=True
        )
        self._filler.start()

    def end(self) -> None:
        """Upload no more. Kernels that are queued keep what they need."""
        self._keys.clear()
        if self._filler is not None:
            self._free.put(None)
            self._filler.join()
            self._filler = None

    def expects(self, key: Hashable) -> bool:
        """Whether the block is the next one."""
        return bool(self._keys) and self._keys[0] == key

    @contextmanager
    def on_device(self) -> Iterator[torch.Tensor]:
        """The next expected block on the device, for kernels queued in the body.

        Raises what reading it raised.
        """
        self._keys.popleft()
        came = self._ready.get()
        if isinstance(came, BaseException):
            raise came
        slot, there = came
        with self._staging.reading(slot):
            yield there
        self._free.put(slot)

    @torch.inference_mode()
    def _fill(self, blocks: Sequence[Expected]) -> None:
        free, ready = self._free, self._ready
        try:
            if self._staging.device.type == "cuda":
                torch.cuda.set_device(self._staging.device)  # a thread begins on the first one
            for block in blocks:
                slot = free.get()
                if slot is None:
                    return
                ready.put((slot, self._staging.upload(slot, block.read())))
        except BaseException as error:  # raised where the block is asked for
            ready.put(error)
