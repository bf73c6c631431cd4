"""A trace's directory made ready to be written: emptied, locked, its events file open. No torch."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from aprtui.errors import EngineError, UsageError
from aprtui.formats.tracedir import EVENTS, clear_trace, holds_trace
from aprtui.text import clean

__all__ = ["check_folder", "trace_folder"]


@contextmanager
def trace_folder(directory: Path, *, overwrite: bool) -> Iterator[IO[str]]:
    """The folder ready for one trace; its events file, locked as long as the trace runs.

    Raises UsageError when a trace is there already (unless ``overwrite``) or is being written,
    EngineError when the folder cannot be written.
    """
    check_folder(directory, overwrite=overwrite)
    try:
        if holds_trace(directory):
            clear_trace(directory)
        directory.mkdir(parents=True, exist_ok=True)
        with (directory / EVENTS).open("a", encoding="utf-8") as events:
            fcntl.flock(events, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield events
    except BlockingIOError:
        raise _running(directory) from None
    except OSError as error:
        raise _unwritable(directory, error) from error


def check_folder(directory: Path, *, overwrite: bool) -> None:
    """Raises as ``trace_folder`` does for what can be seen beforehand; changes nothing."""
    if directory.is_symlink() and not directory.exists():
        raise UsageError(f"{clean(str(directory))}: is a link to a place that is not there")
    if directory.exists() and not directory.is_dir():
        raise UsageError(
            f"{clean(str(directory))}: is a file, not a folder",
            hint="choose another folder with --save-tensor-dir",
        )
    try:
        if holds_trace(directory):
            if not overwrite:
                raise UsageError(
                    f"{clean(str(directory))}: a trace is there already",
                    hint="--overwrite replaces it, --save-tensor-dir DIR writes elsewhere",
                )
            _refuse_running(directory)
    except OSError as error:
        raise _unwritable(directory, error) from error


def _unwritable(directory: Path, error: OSError) -> EngineError:
    return EngineError(
        f"{clean(str(directory))}: cannot be written: {error.strerror or error}",
        hint="choose another folder with --save-tensor-dir",
    )


def _refuse_running(directory: Path) -> None:
    """Raises UsageError when another process is writing a trace into ``directory``."""
    try:
        with (directory / EVENTS).open("rb") as events:
            fcntl.flock(events, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        pass
    except BlockingIOError:
        raise _running(directory) from None


def _running(directory: Path) -> UsageError:
    return UsageError(
        f"{clean(str(directory))}: another process is writing a trace there",
        hint="wait for it, stop it, or write elsewhere with --save-tensor-dir",
    )
