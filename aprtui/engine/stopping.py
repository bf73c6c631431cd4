"""Stopping a pass from outside: a signal asks, and the pass ends at once or at its next stage."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["TraceStopped", "raise_if_stopped", "stopping_on_signals"]

_asked = threading.Event()


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
def stopping_on_signals() -> Iterator[None]:
    """While inside, the first SIGTERM or SIGINT raises TraceStopped in the main thread."""

    def stop(number: int, frame: FrameType | None) -> None:
        for each in before:
            signal.signal(each, signal.SIG_IGN)
        _asked.set()
        raise TraceStopped

    _asked.clear()
    before = {each: signal.signal(each, stop) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
        _asked.clear()
