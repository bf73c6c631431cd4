"""Folders read in a thread: how far it is, why it cannot be, and again once they have grown."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from textual.message import Message
from textual.screen import Screen
from textual.worker import Worker, get_current_worker

from aprtui.compare.metrics import Cancelled
from aprtui.errors import AprtuiError
from aprtui.formats.layout import EVENTS, LAYER_FOLDER, MANIFEST
from aprtui.formats.tracedir import Told
from aprtui.text import clean, count
from aprtui.tui.messages import LoadFailed, ReadSoFar

__all__ = ["Follower", "counted"]

FOLLOW_S = 1.0
REST, MOST_REST_S = 4.0, 5.0  # between two readings, in times of one: a fifth of a processor
COUNT_S = 0.25  # and not before: most folders are read by then


class Follower:
    """What a screen reads of ``paths``, and whether they are as they were then."""

    def __init__(self, screen: Screen[object], *paths: Path) -> None:
        self.paused = False
        self._screen, self._paths = screen, paths
        self._marks: list[object] = []
        self._worker: Worker[None] | None = None
        self._rest_until = 0.0

    def read(self, work: Callable[[], None]) -> None:
        """Do ``work`` in a thread, in place of what still runs; its errors become LoadFailed."""
        self._marks = self._now()
        self._worker = self._screen.run_worker(
            partial(self._run, work), thread=True, exclusive=True, group="read"
        )

    def follow(self, look: Callable[[], None]) -> None:
        """Have the screen ``look`` now and then whether what it read has ``changed``."""
        self._screen.set_interval(FOLLOW_S, look)

    def _run(self, work: Callable[[], None]) -> None:
        begin = time.monotonic()
        try:
            work()
        except Cancelled:
            pass
        except AprtuiError as error:
            self._fail(error.message, error.hint)
        except OSError as error:  # a network drive went away between two questions
            self._fail(f"cannot be read: {clean(str(error))}")
        end = time.monotonic()
        self._rest_until = end + min(REST * (end - begin), MOST_REST_S)

    def _fail(self, what: str, hint: str = "") -> None:
        if not get_current_worker().is_cancelled:
            self._screen.post_message(LoadFailed(what, hint))

    def forget(self) -> None:
        """Let what was read count as changed."""
        self._marks = []

    @property
    def changed(self) -> bool:
        """Whether the paths are to be read again: they changed, and nothing stands against it."""
        busy = self._worker is not None and not self._worker.is_finished
        if busy or self.paused or not self._screen.is_current:
            return False
        return time.monotonic() >= self._rest_until and self._now() != self._marks

    def _now(self) -> list[object]:
        return [_mark_of(path) for path in self._paths]


def counted(path: Path, post: Callable[[Message], object]) -> Told:
    """To be told how many files were found; raises Cancelled once this worker is."""
    worker, last = get_current_worker(), time.monotonic()

    def told(found: int, expected: int | None) -> None:
        nonlocal last
        if worker.is_cancelled:
            raise Cancelled
        if time.monotonic() - last >= COUNT_S:
            last = time.monotonic()
            of = "" if expected is None else f" of {count(expected)}"
            text = f"Reading {clean(path.name or str(path), 60)} … {count(found)}{of} files"
            post(ReadSoFar(clean(text, 120)))

    return told


def _mark_of(path: Path) -> tuple[tuple[int, int] | None, ...]:
    """A value that changes when a trace directory grows, without listing it whole."""
    mark = [_stamp(path / name) for name in (".", MANIFEST, EVENTS)]
    if mark[1:] == [None, None]:  # another program's: only its layers' folders tell of a file
        with suppress(OSError):
            mark += map(_stamp, sorted(f for f in path.iterdir() if LAYER_FOLDER.fullmatch(f.name)))
    return tuple(mark)


def _stamp(path: Path) -> tuple[int, int] | None:
    with suppress(OSError):
        stat = path.stat()
        return stat.st_mtime_ns, stat.st_size
    return None
