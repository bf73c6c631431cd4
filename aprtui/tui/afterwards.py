"""The terminal is the UI's alone while it runs, and as it was before when it is gone.

A process that is killed, or out of memory, runs nothing any more, so another one waits for its end:
a fork that holds one end of a pipe.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

__all__ = ["terminal_alone", "terminal_restored"]

# The mouse, bracketed paste, focus reports, keyboard protocol and alternate screen off, line wrap
# and cursor on, plain colours: whatever textual may have switched.
_RESET = (
    b"\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1006l\x1b[?1015l\x1b[?1016l\x1b[?2004l\x1b[?1004l"
    b"\x1b[?2026l\x1b[?2048l\x1b[<u\x1b[?1049l\x1b[?7h\x1b[?25h\x1b[0m\r"
)


@contextlib.contextmanager
def terminal_restored() -> Iterator[None]:
    """However the process ends in the body, the terminal at stdin is as it was before.

    Nothing is done where there is none, or no process can be forked.
    """
    try:
        import termios

        before = termios.tcgetattr(sys.__stdin__ or 0)
        reading, writing = os.pipe()
        watcher = os.fork()
    except (ImportError, OSError, ValueError, termios.error):
        yield
        return
    if watcher == 0:
        os.close(writing)
        _wait_and_restore(reading, before)
        os._exit(0)
    os.close(reading)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.write(writing, b"1")  # restored already, by what ran in the body
        os.close(writing)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(watcher, 0)


@contextlib.contextmanager
def terminal_alone() -> Iterator[None]:
    """In the body only textual writes to the terminal at stderr.

    Libraries in C and Rust write to file descriptor 2 what they think of a file, its own text
    included; that goes nowhere.
    """
    before = sys.__stderr__
    screen, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        with open(screen, "w", encoding="utf-8", errors="replace") as stream:  # noqa: PTH123
            sys.__stderr__ = stream  # type: ignore[misc]  # textual draws there
            os.dup2(nowhere, 2)
            try:
                yield
            finally:
                os.dup2(screen, 2)
    finally:
        sys.__stderr__ = before  # type: ignore[misc]
        os.close(nowhere)


def _wait_and_restore(reading: int, before: Any) -> None:
    """Until the other process ends; where it ended without a word, do what it could not."""
    import termios

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    try:
        os.setsid()  # what ends the other one's whole group does not end this one
        if os.read(reading, 1):
            return
        os.write(2, _RESET)
        termios.tcsetattr(0, termios.TCSANOW, before)
    except (OSError, termios.error):  # the terminal is gone too
        pass
