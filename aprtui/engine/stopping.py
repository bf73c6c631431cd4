"""Stopping a pass from outside: a signal asks, and the pass ends at once or at its next stage."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = [
    "TraceStopped", "ending_with", "raise_if_stopped", "stop_from_inside", "stopping_on_signals",
    "uninterrupted",
]  # fmt: skip

_PARENT_CHECK_S = 0.5
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_asked = threading.Event()
_number = 0  # of the signal that asked
_held_back = 0  # how many of the main thread's blocks must not be left in the middle


class TraceStopped(KeyboardInterrupt):
    """Raised into the pass: end now, keep what is whole."""

    told = False  # whether a Stopped event has been sent

    def __init__(self, number: int = signal.SIGINT) -> None:
        super().__init__()
        self.number = number  # of the signal; 0 where the process asked itself


def raise_if_stopped(*, whole: bool = False) -> None:
    """Raises TraceStopped once a signal has asked for it; or the process itself, but not of what is
    ``whole`` by now.

    The signal's own exception can be lost: one that is raised while an object is finalised is
    printed and forgotten by Python. So the pass asks again at each stage.
    """
    if _asked.is_set() and not (whole and _number == 0):
        raise TraceStopped(_number)


def stop_from_inside() -> None:
    """Ask the pass to end at its next stage, from any thread of this process: ``number`` is 0."""
    global _number
    if not _asked.is_set():
        _number = 0
        _asked.set()


@contextmanager
def uninterrupted() -> Iterator[None]:
    """While the main thread is inside, a signal only asks; ``raise_if_stopped`` raises later.

    Wherever a Condition or a Queue is used: an exception that a signal raises as their lock is
    being taken leaves it taken for ever, and the next thread to want it waits as long.
    """
    global _held_back
    mine = threading.current_thread() is threading.main_thread()
    _held_back += mine
    try:
        yield
    finally:
        _held_back -= mine


@contextmanager
def stopping_on_signals() -> Iterator[None]:
    """While inside, the first SIGTERM, SIGINT or SIGHUP raises TraceStopped in the main thread.

    At once, or after the ``uninterrupted`` block that it falls into. A signal that was ignored (by
    nohup, or of a job in the background) still is.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        global _number
        for each in before:
            signal.signal(each, signal.SIG_IGN)
        _number = number
        _asked.set()
        if not _held_back:
            raise TraceStopped(number)

    _asked.clear()
    heeded = [each for each in _SIGNALS if signal.getsignal(each) != signal.SIG_IGN]
    before = {each: signal.signal(each, stop) for each in heeded}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
        _asked.clear()


@contextmanager
def ending_with(parent: int | None) -> Iterator[None]:
    """While inside, this process asks itself to end (SIGTERM) once ``parent`` is no longer its
    parent; SIGUSR1 says that it goes on alone. None: it always does."""
    done = threading.Event()

    def watch() -> None:
        while not done.wait(_PARENT_CHECK_S):
            if os.getppid() != parent:
                os.kill(os.getpid(), signal.SIGTERM)
                return

    if parent is not None:
        signal.signal(signal.SIGUSR1, lambda number, frame: done.set())
        threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        done.set()
