"""stdout and stderr of a command: what cannot be written is lost, and nothing raw gets through.

A command ends as it would have when its reader is gone, and no character of a name or a message
reaches a terminal that could act on it, whoever prints it (argparse and warnings too).
"""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import TYPE_CHECKING, TextIO

from aprtui.text import clean_lines

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer
    from rich.console import Console

__all__ = ["CleanText", "Outlet", "bar_console", "open_streams"]


class Outlet(io.FileIO):
    """A file that is written until a write fails, and then takes everything and keeps nothing."""

    _failed: OSError | None = None

    def write(self, raw: ReadableBuffer, /) -> int:
        if self._failed is None:
            try:
                return super().write(raw)
            except OSError as error:
                self._failed = error
        return memoryview(raw).nbytes

    @property
    def error(self) -> OSError | None:
        """Why not all was written. A reader that went away has read what it wanted: no error."""
        gone = self._failed is not None and self._failed.errno == errno.EPIPE
        return None if gone else self._failed


class CleanText(io.TextIOWrapper):
    """A text stream that writes every character a terminal could act on as an escape."""

    def write(self, text: str, /) -> int:
        return super().write(clean_lines(text))

    def write_control(self, text: str) -> None:
        """Write our own escape codes; whatever else ``text`` holds is clean already."""
        super().write(text)
        self.flush()


class _Drawn(io.TextIOBase):
    """A stream for who draws on it with escape codes of his own and cleans what he writes."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str, /) -> int:
        if isinstance(self._stream, CleanText):
            self._stream.write_control(text)
        else:
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        self._stream.flush()

    def isatty(self) -> bool:
        return self._stream.isatty()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding


def bar_console() -> Console:
    """stderr as rich draws a bar of progress on it; names in its texts have to be clean."""
    from rich.console import Console

    return Console(file=_Drawn(sys.stderr))  # type: ignore[arg-type]


def open_streams() -> Outlet:
    """Put streams that never raise in the place of sys.stdout and sys.stderr; stdout's outlet.

    One that the caller closed goes nowhere; a character that the encoding lacks becomes ``?``.
    """
    if sys.stdin is None:  # `aprtui ... <&-`
        sys.stdin = open(os.devnull)  # noqa: PTH123, SIM115 - kept until exit
    (sys.stdout, outlet), (sys.stderr, _) = map(_lasting, (sys.stdout, sys.stderr))
    return outlet


def _lasting(stream: TextIO | None) -> tuple[TextIO, Outlet]:
    if isinstance(stream, io.TextIOWrapper):
        outlet = Outlet(stream.fileno(), "w", closefd=False)
        encoding, lines = stream.encoding, stream.line_buffering or stream.write_through
    else:
        outlet, encoding, lines = Outlet(os.devnull, "w"), "utf-8", False
    buffer = io.BufferedWriter(outlet)
    return CleanText(buffer, encoding, "replace", line_buffering=lines), outlet
