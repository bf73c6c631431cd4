"""Work done behind the caller's back, in order, by one thread: what is captured is written there.

No torch here: a capture of another runtime's arrays uses it too.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

__all__ = ["Behind"]

_MOST_VALUES = 64 << 20  # float32 values that may wait for the disk: 256 MB


class Behind:
    """A thread that does what it is given, one after the other.

    ``failure`` is the first exception that any of it raised; what comes later is still done, and
    has to look whether there is one.
    """

    def __init__(self, name: str) -> None:
        self._queue: queue.SimpleQueue[tuple[int, Callable[[], None]] | None] = queue.SimpleQueue()
        self._room = threading.Condition()
        self._waiting_values = 0
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def do(self, values: int, work: Callable[[], None]) -> None:
        """Queue ``work``, which holds so many float32 values; waits while too many are waiting."""
        with self._room:
            self._room.wait_for(lambda: self._waiting_values < _MOST_VALUES)
            self._waiting_values += values
        self._queue.put((values, work))

    def attempt(self, work: Callable[[], None]) -> None:
        """Do a part of the work; what it raises is kept as ``failure``, the next part begins."""
        try:
            work()
        except BaseException as error:  # raised again by whoever reads ``failure``
            self.failure = self.failure or error

    def end(self) -> None:
        """Wait until all is done."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (given := self._queue.get()) is not None:
            values, work = given
            self.attempt(work)
            del given, work  # what it held goes before more is let in
            with self._room:
                self._waiting_values -= values
                self._room.notify_all()
