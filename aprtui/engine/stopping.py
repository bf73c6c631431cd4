"""Stopping a pass from outside: a signal asks, and the pass ends at once or at its next stage."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["TraceStopped", "raise_if_stopped", "stopping_on_signals", "uninterrupted"]

_asked = threading.Event()
_held_back = 0  # how many of the main thread's blocks must not be left in the middle


class TraceStopped(Exception):
    """Raised into the pass: end now, keep what is whole."""

    told = False  # whether a Stopped event has been sent


def raise_if_stopped() -> None:
    """Raises TraceStopped once a signal has asked for it.

    The signal's own exception can be lost: one that is raised while an object is finalised is
    printed and forgotten by Python. So the pass asks again at each stage.
    """
    if _asked.is_set():
        raise TraceStopped


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
    """While inside, the first SIGTERM or SIGINT raises TraceStopped in the main thread.

    At once, or after the ``uninterrupted`` block that it falls into.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        for each in before:
            signal.signal(each, signal.SIG_IGN)
        _asked.set()
        if not _held_back:
            raise TraceStopped

    _asked.clear()
    before = {each: signal.signal(each, stop) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
        _asked.clear()
