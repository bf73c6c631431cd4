"""One line of progress on the terminal's stderr, from the first second on; nothing elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from aprtui.cli.streams import CleanText
from aprtui.text import clean, count

__all__ = ["StatusLine", "values_compared"]


class StatusLine:
    """``with StatusLine() as tell: tell("71 % ...")``; the line is gone at the end."""

    def __enter__(self) -> StatusLine:
        self._started, self._shown = time.monotonic(), 0.0
        return self

    def __call__(self, text: str) -> None:
        now = time.monotonic()
        if now - self._started > 1 and now - self._shown > 0.2 and sys.stderr.isatty():
            self._shown = now
            _send(f"\r{clean(text, 76)}\x1b[K")

    def __exit__(self, *_: object) -> None:
        if self._shown:
            _send("\r\x1b[K")


@contextmanager
def values_compared() -> Iterator[Callable[[int], None]]:
    """Counts values, and shows how many on the terminal."""
    compared = 0
    with StatusLine() as tell:

        def add(values: int) -> None:
            nonlocal compared
            compared += values
            tell(f"{count(compared, 'value')} compared")

        yield add


def _send(line: str) -> None:
    """To stderr as it is, past what keeps escape codes off the terminal."""
    if isinstance(sys.stderr, CleanText):
        sys.stderr.write_control(line)
