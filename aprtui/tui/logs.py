"""The logs of the UI's child processes: where they lie, and that they do not become many.

A log is locked as long as its child lives, which has it open as its stderr; how long it may grow is
the child's own business (aprtui/child.py).
"""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from aprtui.state import state_folder

__all__ = ["KEPT", "log_folder", "new_log"]

KEPT = 10  # of children that ended; the oldest go


def log_folder() -> Path:
    """Where the logs lie."""
    return state_folder() / "logs"


def new_log() -> tuple[int, Path]:
    """A new log, open to be added to, and its path; in the temporary folder where that fails."""
    try:
        log_folder().mkdir(parents=True, exist_ok=True)
        for old in sorted(log_folder().glob("engine-*.log"))[:-KEPT]:
            with suppress(OSError):
                _remove_unused(old)
        return _created(log_folder())
    except OSError:
        return _created(Path(tempfile.gettempdir()))


def _created(folder: Path) -> tuple[int, Path]:
    path = folder / f"engine-{time.time_ns()}-{os.getpid()}.log"
    how = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_APPEND | os.O_CLOEXEC
    fd = os.open(path, how, 0o600)
    with suppress(OSError):
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return fd, path


def _remove_unused(path: Path) -> None:
    """Remove a log whose child is gone. Raises OSError where it is not."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
    finally:
        os.close(fd)
