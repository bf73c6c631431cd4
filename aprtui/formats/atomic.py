"""Files that appear whole or not at all: a temporary name beside them, renamed at the end.

The temporary file is locked while it is written. One that nobody holds was left by a process that
was killed, and is removed by the next that writes into the folder.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from aprtui.errors import EngineError
from aprtui.formats.maps import check_maps
from aprtui.text import clean

try:
    from aprtui.formats._stage_file import write as write_in_c
except ImportError:  # there was no compiler when aprtui was installed
    _HAS_C = False
else:
    _HAS_C = os.environ.get("APRTUI_NATIVE") != "off"

__all__ = ["OpenFolder", "sweep", "whole_file", "write_whole"]

# Not made of the file's own name, which may have 255 bytes already.
_PARTIAL = re.compile(r"\.aprtui-[0-9a-f]{16}\.part")
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)
_swept: set[Path] = set()


@dataclass(frozen=True)
class OpenFolder:
    """A folder held by its descriptor: it stays the same one wherever it is moved meanwhile."""

    path: Path  # where it was when it was opened
    fd: int


def write_whole(
    path: Path,
    header: bytes,
    values: memoryview,
    *,
    within: OpenFolder | None = None,
    hint: str = "",
) -> None:
    """A whole file of two parts, made as ``whole_file`` makes one; its folders too.

    Hundreds a trace: in C without Python's lock where that was compiled. Raises EngineError.
    """
    check_maps()  # no file is made of bytes that were no longer there
    if _HAS_C:
        try:
            folder = -1 if within is None else within.fd
            if write_in_c(folder, _unfinished(path), path, header, values):
                return
        except OSError as error:
            raise _cannot_be_written(path, within, error, hint) from error
    with whole_file(path, within=within, parents=True, hint=hint) as file:
        file.write(header)
        file.write(values)


@contextmanager
def whole_file(
    path: Path,
    *,
    within: OpenFolder | None = None,
    new: bool = False,
    needed_bytes: int = 0,
    durable: bool = False,
    parents: bool = False,
    hint: str = "",
) -> Iterator[BinaryIO]:
    """A new file, open for reading and writing, that takes the name ``path`` when the body ends.

    When the body raises, nothing remains and an older file stays as it was; where ``path`` is a
    link, what it names is replaced. ``within`` is the folder that a relative ``path`` lies in; a
    link there is replaced itself. ``new`` files never replace one that is there. ``needed_bytes``
    are checked against the free space first; ``durable`` waits until the bytes are on the disk;
    ``parents`` makes the folders above. Raises EngineError, with ``hint``, for a full disk or a
    folder that cannot be written, and for a device or whatever else stands there and is no file.
    """
    temporary: Path | None = None
    fd_of_folder = None if within is None else within.fd
    try:
        if within is None:
            path = _replaceable(path)
            _sweep_once(path.parent)
        temporary = _unfinished(path)
        fd = _created(temporary, fd_of_folder, parents=parents)
        with os.fdopen(fd, "w+b") as file:
            if needed_bytes:
                _check_room(fd, needed_bytes)
            yield file
            check_maps()  # nothing is kept that was made of bytes which were no longer there
            if durable:
                file.flush()
                os.fsync(fd)
        _take_name(temporary, path, fd_of_folder, new=new)
        temporary = None
    except OSError as error:
        raise _cannot_be_written(path, within, error, hint) from error
    finally:
        if temporary is not None:
            with suppress(FileNotFoundError, NotADirectoryError):  # it may never have been made
                os.unlink(temporary, dir_fd=fd_of_folder)


def _unfinished(path: Path) -> Path:
    """A name beside ``path`` until the file is whole."""
    return path.parent / f".aprtui-{secrets.token_hex(8)}.part"


def _cannot_be_written(
    path: Path, within: OpenFolder | None, error: OSError, hint: str
) -> EngineError:
    shown = path if within is None else within.path / path
    return EngineError(
        f"{clean(str(shown))}: cannot be written: {error.strerror or error}",
        hint=hint or "free space or choose another folder",
    )


def sweep(folder: Path) -> None:
    """Remove what killed processes left of files that they were writing into ``folder``."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if _PARTIAL.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                with suppress(OSError):
                    _remove_abandoned(Path(entry.path))


def _sweep_once(folder: Path) -> None:
    """A folder into which one process writes many files is looked through for the first."""
    if folder not in _swept:
        _swept.add(folder)
        sweep(folder)


def _remove_abandoned(path: Path) -> None:
    """Remove a temporary file that no process holds. Raises OSError where one does."""
    fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
    finally:
        os.close(fd)


def _replaceable(path: Path) -> Path:
    """The file to write, links followed. Raises OSError for what is no file."""
    try:
        mode = os.lstat(path).st_mode
        if stat.S_ISLNK(mode):
            path = Path(os.path.realpath(path))
            mode = os.lstat(path).st_mode
    except OSError as error:  # not there; or the attempt to write will say what is wrong
        if error.errno == errno.ENAMETOOLONG:  # that attempt has another name, and the last word
            raise
        return path
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "a folder or a device stands there, not a file")
    return path


def _created(path: Path, folder: int | None, *, parents: bool) -> int:
    """A new file, open and locked, with the permissions that the umask leaves."""
    how = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC
    try:
        fd = os.open(path, how, 0o666, dir_fd=folder)
    except FileNotFoundError:
        if not parents:
            raise
        if folder is None:
            path.parent.mkdir(parents=True, exist_ok=True)
        else:
            with suppress(FileExistsError):
                os.mkdir(path.parent, dir_fd=folder)
        fd = os.open(path, how, 0o666, dir_fd=folder)
    with suppress(OSError):  # where files cannot be locked nobody sweeps either
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return fd


def _take_name(temporary: Path, path: Path, folder: int | None, *, new: bool) -> None:
    """Give the finished file its name. Raises FileExistsError where a ``new`` one's is taken."""
    if new:
        try:
            os.link(temporary, path, src_dir_fd=folder, dst_dir_fd=folder)
        except OSError as error:
            if error.errno not in _NO_LINKS or os.path.lexists(path):
                raise
        else:
            os.unlink(temporary, dir_fd=folder)
            return
    os.replace(temporary, path, src_dir_fd=folder, dst_dir_fd=folder)


def _check_room(fd: int, needed_bytes: int) -> None:
    """Meet a full disk before the work, not after it."""
    room = os.fstatvfs(fd)
    free = room.f_bavail * room.f_frsize
    if needed_bytes > free:
        raise OSError(errno.ENOSPC, f"{needed_bytes:,} bytes are needed and {free:,} are free")
