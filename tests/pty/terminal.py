"""A real pseudo-terminal with a program in it, read through pyte."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyte

__all__ = ["APRTUI", "DEADLINE_S", "Terminal", "in_terminal"]

APRTUI = (sys.executable, "-c", "from aprtui.cli.main import entry; entry()")
DEADLINE_S = 30.0


class Terminal:
    """The screen that a person sees, and the bytes that made it."""

    def __init__(
        self, master: int, process: subprocess.Popen[bytes], size: tuple[int, int]
    ) -> None:
        self.master, self.process = master, process
        self.screen = pyte.Screen(*size)
        self._stream = pyte.ByteStream(self.screen)
        self.raw = b""

    def read(self, wait_s: float = 0.1) -> bool:
        """Take in what came; whether anything did."""
        ready, _, _ = select.select([self.master], [], [], wait_s)
        if not ready:
            return False
        try:
            found = os.read(self.master, 1 << 16)
        except OSError:
            return False
        self.take(found)
        return bool(found)

    def take(self, found: bytes) -> None:
        """What came from the app goes to the screen."""
        self.raw += found
        self._stream.feed(found)

    @property
    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self.screen.display)

    def until(
        self, done: Callable[[], bool], wait_s: float = 0.1, within_s: float = DEADLINE_S
    ) -> None:
        """Read until ``done``; fails after ``within_s`` with the screen as it is."""
        end = time.monotonic() + within_s
        while not done():
            self.read(wait_s)
            if time.monotonic() > end:
                raise AssertionError(f"not within {within_s} s:\n{self.text}")

    def until_text(self, text: str, within_s: float = DEADLINE_S) -> None:
        self.until(lambda: text in self.text, within_s=within_s)

    def until_quiet(self) -> None:
        """Read until nothing comes for a while."""
        while self.read(0.5):
            pass

    def press(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    def resize(self, columns: int, rows: int) -> None:
        _set_size(self.master, columns, rows)
        self.screen.resize(rows, columns)
        os.killpg(self.process.pid, signal.SIGWINCH)

    def modes(self) -> list[object]:
        """How the terminal treats what is typed: raw, or a line at a time with an echo."""
        return termios.tcgetattr(self.master)

    def hang_up(self) -> None:
        """The terminal goes away, as when a connection breaks."""
        os.close(self.master)
        self.master = -1

    def wait(self) -> int:
        """Read to the end; the exit code."""
        self.until(lambda: self.process.poll() is not None)
        return int(self.process.returncode)


def _set_size(fd: int, columns: int, rows: int) -> None:
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


@contextmanager
def in_terminal(
    *arguments: str,
    size: tuple[int, int] = (120, 40),
    cwd: Path | None = None,
    first: str = "",
    **environment: str,
) -> Iterator[Terminal]:
    """aprtui in a pseudo-terminal of that size; it is gone afterwards.

    ``first`` is Python that runs before it in the same process.
    """
    master, slave = pty.openpty()
    _set_size(slave, *size)
    known = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
    state = tempfile.TemporaryDirectory()  # a session of its own
    known |= {"XDG_STATE_HOME": state.name}
    known |= {"TERM": "xterm-256color", "LANG": "C.UTF-8", "PYTHONPATH": str(Path.cwd())}
    process = subprocess.Popen(
        [sys.executable, "-c", f"{first}\n{APRTUI[2]}", *arguments],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        cwd=cwd,
        env=known | environment,
        start_new_session=True,
    )
    os.close(slave)
    terminal = Terminal(master, process, size)
    try:
        yield terminal
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if terminal.master >= 0:
            os.close(master)
        state.cleanup()
