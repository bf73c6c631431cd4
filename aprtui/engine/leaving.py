"""Values that leave a device while it goes on: small ones together, through pinned memory.

A copy off a device costs the host pinned memory, a launch and an event, whatever its size; a copy
on the device costs a launch. So small values are gathered there, and all of them leave at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from aprtui.engine.behind import Behind

__all__ = ["Leaving"]

_GATHERED_VALUES = 1 << 20  # float32 values that leave together: 4 MB
_LARGE_VALUES = _GATHERED_VALUES // 4  # these leave alone
_LONGEST_S = 0.2  # that a value waits for the next ones

Land = Callable[[Tensor], None]
"""Takes the values where they are wanted: float32 in host memory, contiguous."""


class Leaving:
    """What leaves the devices, in the order in which it was given.

    What is to be done with it there is done behind the caller's back, in order; it has to look
    whether anything before it failed. ``leave`` sends off what was gathered: it must be called at
    the end. One thread gives.
    """

    def __init__(self, behind: Behind) -> None:
        self._behind = behind
        self._gathered: Tensor | None = None  # [_GATHERED_VALUES] float32 on a device
        self._stream: torch.cuda.Stream | None = None  # on which it is filled
        self._used = 0
        self._since = 0.0
        self._landings: list[Land] = []  # of what was gathered: each is given all of it
        self._works: list[Callable[[], None]] = []  # those among them that want none of it

    def take(self, value: Tensor, land: Land) -> None:
        """A copy of ``value`` as float32 on its way to the host, and what is done with it there.

        What is queued after may overwrite ``value``; the caller does not wait for the device.
        """
        if not _on_cuda(value):
            values = value.to("cpu", torch.float32, copy=True).contiguous()
            self._behind.do(values.numel(), partial(land, values))
        elif value.numel() > _LARGE_VALUES:
            self.leave()
            # Widened there: of another dtype torch copies through pageable memory, and waits.
            self._send(value.to(torch.float32).contiguous(), value.numel(), [land])
        else:
            self._gather(value, land)

    def then(self, values: int, work: Callable[[], None]) -> None:
        """Work that is done behind what was given before; ``values`` of host memory wait for it."""
        if not self._landings:
            self._behind.do(values, work)
            return
        self._works.append(work)
        self._landings.append(lambda _: work())

    def leave(self) -> None:
        """Send off what was gathered."""
        if self._gathered is None:
            return
        gathered, landings = self._gathered[: self._used], self._landings
        with torch.cuda.stream(self._stream):
            self._send(gathered, _GATHERED_VALUES, landings)
        self._gathered, self._landings, self._works = None, [], []

    def abandon(self) -> None:
        """Drop what was gathered; only the work behind it is done."""
        works = self._works
        self._gathered, self._landings, self._works = None, [], []
        for work in works:
            self._behind.do(0, work)

    def _gather(self, value: Tensor, land: Land) -> None:
        count, now = value.numel(), time.monotonic()
        stream = torch.cuda.current_stream(value.device)
        full = self._used + count > _GATHERED_VALUES
        if full or stream != self._stream or now - self._since > _LONGEST_S:
            self.leave()
        if self._gathered is None:
            self._gathered = torch.empty(_GATHERED_VALUES, device=value.device)
            self._stream, self._since, self._used = stream, now, 0
        first, last, shape = self._used, self._used + count, value.shape
        self._gathered[first:last].view(shape).copy_(value)
        self._used = last
        self._landings.append(lambda all_of_it: land(all_of_it[first:last].view(shape)))

    def _send(self, values: Tensor, room: int, landings: Sequence[Land]) -> None:
        """Queue the copy of float32 ``values`` on the current stream, and their landings.

        ``room``: of pinned memory, which torch keeps for the next that wants as much.
        """
        pinned = torch.empty(room, dtype=torch.float32, pin_memory=True)[: values.numel()]
        pinned = pinned.view(values.shape)
        pinned.copy_(values, non_blocking=True)
        copied = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        copied.record(torch.cuda.current_stream(values.device))

        def wait() -> None:
            with torch.cuda.device(copied.device):  # else a context is made on the first GPU
                copied.synchronize()

        def land() -> None:
            self._behind.attempt(wait)
            for each in landings:
                self._behind.attempt(partial(each, pinned))

        # One piece of work for all: the thread is woken once, and asks for Python's lock less.
        self._behind.do(values.numel(), land)


def _on_cuda(value: Tensor) -> bool:
    return value.is_cuda
