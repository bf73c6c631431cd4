"""Traces that run on their own: telling that one is being written, by which process; stopping it.

A trace's events file is locked for as long as the trace runs (engine/folder.py).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
from pathlib import Path

from aprtui.errors import BadFileError
from aprtui.formats.files import open_file
from aprtui.formats.tracedir import EVENTS

__all__ = ["running_pid", "stop_running"]

_LOCKS = Path("/proc/locks")
_FIRST_BYTES = 1 << 20


def running_pid(directory: Path) -> int | None:
    """The process that writes a trace into ``directory``; None when none does.

    The number is that of the lock's holder where the system lists locks, and what the trace says of
    itself elsewhere: a file found somewhere must not name a process to be stopped.
    """
    path = directory / EVENTS
    try:
        with open_file(path) as events:
            try:
                fcntl.flock(events.fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return None
            except BlockingIOError:
                stat = os.fstat(events.fd)
                if _LOCKS.exists():
                    return _holder(stat.st_dev, stat.st_ino)
                return _stated(events.read(0, _FIRST_BYTES))
    except BadFileError:
        return None


def stop_running(pid: int) -> bool:
    """Ask the process to end, as `x` does on the Trace screen; whether it could be asked."""
    with contextlib.suppress(OSError):
        os.kill(pid, signal.SIGTERM)
        return True
    return False


def _holder(device: int, inode: int) -> int | None:
    """Who holds a write lock on that file, by /proc/locks (``man 5 proc``)."""
    place = f"{os.major(device):02x}:{os.minor(device):02x}:{inode}"
    for line in _LOCKS.read_text().splitlines():
        fields = line.split()
        if len(fields) > 5 and fields[1] == "FLOCK" and fields[3] == "WRITE" and fields[5] == place:
            return int(fields[4]) if int(fields[4]) > 0 else None
    return None


def _stated(lines: bytes) -> int | None:
    """The process number of the ``started`` event among the first lines."""
    for line in lines.splitlines():
        with contextlib.suppress(ValueError, RecursionError):
            event = json.loads(line)
            if isinstance(event, dict) and event.get("event") == "started":
                pid = event.get("pid")
                return pid if isinstance(pid, int) and pid > 1 else None
    return None
