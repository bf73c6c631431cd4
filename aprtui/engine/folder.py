"""A trace's folder held open while it is written: locked, and still the same one at the end.

The folder is held by its descriptor, so that all files of a trace land in one folder whatever is
done to its name meanwhile, and its events file is locked: it is the one file that no trace removes
from under another, since an older trace's events are cut off and not unlinked. No torch.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from aprtui.engine.arrays import Float32
from aprtui.engine.events import Event
from aprtui.errors import EngineError, UsageError
from aprtui.formats.aprt import create_stage, write_stage
from aprtui.formats.atomic import OpenFolder, sweep
from aprtui.formats.tracedir import (
    EVENTS,
    MANIFEST,
    StageKey,
    clear_trace,
    holds_trace,
    relative_path,
    stage_folders,
    write_manifest,
)
from aprtui.text import clean

__all__ = ["TraceFolder", "check_folder", "trace_folder"]

_LOCK_TRIES, _LOCK_REST_S = 10, 0.02  # whoever only asks who writes holds the lock for a moment
_NO_FILE = "a link or a device stands there, not a file"


class TraceFolder:
    """One trace's folder: what is written into it, and whether it is still there."""

    def __init__(self, folder: OpenFolder, events: int) -> None:
        self.path = folder.path
        self._place = folder.path.absolute()  # whatever becomes the current folder meanwhile
        self._folder = folder
        self._events = events
        self._written: dict[StageKey, tuple[int, ...]] = {}
        self._mapped: set[StageKey] = set()

    def tell(self, event: Event) -> None:
        """Add a line to the events file, whole or not at all. Raises EngineError."""
        left = f"{event.line()}\n".encode()
        before = os.fstat(self._events).st_size
        try:
            while left:
                left = left[os.write(self._events, left) :]
        except OSError as error:
            os.ftruncate(self._events, before)
            raise _unwritable(self.path / EVENTS, error) from error

    def write_stage(self, key: StageKey, values: Float32) -> int:
        """A whole stage file; its bytes. Raises EngineError."""
        with self._said_why():
            written = write_stage(_relative(key), key.layer, values, within=self._folder)
        self._landed(key)
        return written

    @contextmanager
    def create_stage(self, key: StageKey, shape: tuple[int, ...]) -> Iterator[Float32]:
        """A writable map [shape] that becomes a stage file on leaving. Raises EngineError."""
        making = create_stage(_relative(key), key.layer, shape, within=self._folder)
        with self._said_why(), making as values:
            yield values
        self._mapped.add(key)
        self._landed(key)

    def keep(self, key: StageKey) -> None:
        """Count a file that is there already among the trace's own."""
        self._landed(key)

    def finish(self, manifest: Mapping[str, Any]) -> None:
        """Write the manifest, which says that every file is there: so each is looked at first.

        Raises EngineError when the folder or a file is not the one that was written.
        """
        self.check()
        for key, identity in self._written.items():
            if self._identity(key) != identity:
                raise self._changed(_relative(key))
        write_manifest(self._folder, manifest)

    def check(self) -> None:
        """Raises EngineError when the folder's name leads elsewhere by now."""
        try:
            here, held = self._place.stat(), os.fstat(self._folder.fd)
        except OSError:
            raise self._gone() from None
        if not os.path.samestat(here, held):
            raise self._gone()
        try:
            named = os.stat(EVENTS, dir_fd=self._folder.fd, follow_symlinks=False)
        except FileNotFoundError:
            named = None
        if named is None or not os.path.samestat(named, os.fstat(self._events)):
            raise self._changed(Path(EVENTS))

    def _landed(self, key: StageKey) -> None:
        self.check()
        identity = self._identity(key)
        if identity is None:
            raise self._changed(_relative(key))
        self._written[key] = identity

    def _identity(self, key: StageKey) -> tuple[int, ...] | None:
        """What tells a stage's file from another in its place; None when there is none.

        Device, inode, size, and the time of the last write: a new file can have the inode of one
        just removed. Of a mapped file a file system may set that time when it pleases.
        """
        try:
            found = os.stat(_relative(key), dir_fd=self._folder.fd, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return None
        written_ns = 0 if key in self._mapped else found.st_mtime_ns
        return found.st_dev, found.st_ino, found.st_size, written_ns

    @contextmanager
    def _said_why(self) -> Iterator[None]:
        """A file that cannot be written because the folder is gone: that is what is said."""
        try:
            yield
        except EngineError:
            self.check()
            raise

    def _changed(self, relative: Path) -> EngineError:
        return EngineError(
            f"{clean(str(self.path / relative))}: was removed or replaced while the trace ran",
            hint="no manifest was written; trace again",
        )

    def _gone(self) -> EngineError:
        return EngineError(
            f"{clean(str(self.path))}: the folder was moved, removed or replaced while the trace "
            "ran",
            hint="no manifest was written; what was written went where the folder went",
        )


@contextmanager
def trace_folder(
    directory: Path, *, overwrite: bool = False, resume: bool = False
) -> Iterator[TraceFolder]:
    """The folder ready for one trace, locked as long as the trace runs.

    A trace that is there is removed (``overwrite``) or stays to be gone on with (``resume``).
    Raises UsageError when one is there and neither is asked for, or when one is being written,
    EngineError when the folder cannot be written.
    """
    check_folder(directory, overwrite=overwrite or resume)
    with ExitStack() as held:
        try:
            folder = _opened(directory, held)
            events = _locked_events(folder, held)
            for each in stage_folders(directory):
                sweep(each)
            if overwrite:
                clear_trace(directory)
                os.ftruncate(events, 0)
            elif not resume and holds_trace(directory):  # one that began since it was looked at
                raise _there_already(directory)
        except OSError as error:
            raise _unwritable(directory, error) from error
        yield TraceFolder(folder, events)


def _opened(directory: Path, held: ExitStack) -> OpenFolder:
    directory.mkdir(parents=True, exist_ok=True)
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    held.callback(os.close, fd)
    return OpenFolder(directory, fd)


def _locked_events(folder: OpenFolder, held: ExitStack) -> int:
    """The events file's descriptor, open to be added to.

    Raises UsageError when another process holds it.
    """
    how = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        fd = os.open(EVENTS, how, 0o666, dir_fd=folder.fd)
    except OSError as error:
        said = _NO_FILE if error.errno == errno.ELOOP else error.strerror
        raise OSError(error.errno, f"{EVENTS}: {said}") from error
    held.callback(os.close, fd)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        raise OSError(errno.EINVAL, f"{EVENTS}: {_NO_FILE}")
    if not _lock(fd, fcntl.LOCK_EX):
        raise _running(folder.path)
    TraceFolder(folder, fd).check()  # it may have been removed before it was locked
    return fd


def _lock(fd: int, kind: int) -> bool:
    """Whether the lock could be had, with some patience."""
    for _ in range(_LOCK_TRIES):
        try:
            fcntl.flock(fd, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_LOCK_REST_S)
        else:
            return True
    return False


def check_folder(directory: Path, *, overwrite: bool) -> None:
    """Raises as ``trace_folder`` does for what can be seen beforehand; changes nothing."""
    try:
        if directory.is_symlink() and not directory.exists():
            raise UsageError(f"{clean(str(directory))}: is a link to a place that is not there")
        if directory.exists() and not directory.is_dir():
            raise UsageError(
                f"{clean(str(directory))}: is a file, not a folder",
                hint="choose another folder with -o DIR",
            )
        if holds_trace(directory):
            if not overwrite:
                raise _there_already(directory)
            _refuse_running(directory)
    except OSError as error:
        raise _unwritable(directory, error) from error


def _there_already(directory: Path) -> UsageError:
    whole = (directory / MANIFEST).exists()
    go_on = "" if whole else ", --resume DIR goes on with it"
    return UsageError(
        f"{clean(str(directory))}: a trace is there already",
        hint=f"--overwrite replaces it{go_on}, -o DIR writes elsewhere",
    )


def _unwritable(directory: Path, error: OSError) -> EngineError:
    return EngineError(
        f"{clean(str(directory))}: cannot be written: {error.strerror or error}",
        hint="choose another folder with -o DIR",
    )


def _refuse_running(directory: Path) -> None:
    """Raises UsageError when another process is writing a trace into ``directory``."""
    try:
        fd = os.open(directory / EVENTS, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        if not _lock(fd, fcntl.LOCK_SH):
            raise _running(directory)
    finally:
        os.close(fd)


def _running(directory: Path) -> UsageError:
    return UsageError(
        f"{clean(str(directory))}: another process is writing a trace there",
        hint="wait for it, stop it, or write elsewhere with -o DIR",
    )


def _relative(key: StageKey) -> Path:
    return Path(relative_path(key))
