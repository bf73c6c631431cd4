"""Files that appear whole or not at all: a temporary name beside them, renamed at the end."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
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

__all__ = ["whole_file", "write_whole"]


def write_whole(path: Path, header: bytes, values: memoryview, *, hint: str = "") -> None:
    """A whole file of two parts, made as ``whole_file`` makes one; its folders too.

    Hundreds a trace: in C without Python's lock where that was compiled. Raises EngineError.
    """
    check_maps()  # no file is made of bytes that were no longer there
    if _HAS_C:
        try:
            if write_in_c(_unfinished(path), path, header, values):
                return
        except OSError as error:
            raise _cannot_be_written(path, error, hint) from error
    with whole_file(path, parents=True, hint=hint) as file:
        file.write(header)
        file.write(values)


@contextmanager
def whole_file(
    path: Path,
    *,
    needed_bytes: int = 0,
    durable: bool = False,
    parents: bool = False,
    hint: str = "",
) -> Iterator[BinaryIO]:
    """A new file, open for reading and writing, that takes the name ``path`` when the body ends.

    When the body raises, nothing remains and an older file stays as it was; where ``path`` is a
    link, what it names is replaced. ``needed_bytes`` are checked against the free space first;
    ``durable`` waits until the bytes are on the disk; ``parents`` makes the folders above. Raises
    EngineError, with ``hint``, for a full disk or a folder that cannot be written, and for a
    device or whatever else stands there and is no file.
    """
    temporary: Path | None = None
    try:
        path = _replaceable(path)
        unfinished = _unfinished(path)
        fd = _created(unfinished, parents=parents)
        temporary = unfinished
        with os.fdopen(fd, "w+b") as file:
            if needed_bytes:
                _check_room(fd, needed_bytes)
            yield file
            check_maps()  # nothing is kept that was made of bytes which were no longer there
            if durable:
                file.flush()
                os.fsync(fd)
        temporary.replace(path)
        temporary = None
    except OSError as error:
        raise _cannot_be_written(path, error, hint) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _unfinished(path: Path) -> Path:
    """The name of a file until it is whole."""
    return path.parent / f".{path.name}.{secrets.token_hex(4)}.part"


def _cannot_be_written(path: Path, error: OSError, hint: str) -> EngineError:
    return EngineError(
        f"{clean(str(path))}: cannot be written: {error.strerror or error}",
        hint=hint or "free space or choose another folder",
    )


def _replaceable(path: Path) -> Path:
    """The file to write, links followed. Raises OSError for what is no file."""
    try:
        mode = os.lstat(path).st_mode
        if stat.S_ISLNK(mode):
            path = Path(os.path.realpath(path))
            mode = os.lstat(path).st_mode
    except OSError:  # not there; or the attempt to write will say what is wrong
        return path
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "a folder or a device stands there, not a file")
    return path


def _created(path: Path, *, parents: bool) -> int:
    """A new file, open for reading and writing, with the permissions that the umask leaves."""
    how = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC
    try:
        return os.open(path, how, 0o666)
    except FileNotFoundError:
        if not parents:
            raise
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, how, 0o666)


def _check_room(fd: int, needed_bytes: int) -> None:
    """Meet a full disk before the work, not after it."""
    room = os.fstatvfs(fd)
    free = room.f_bavail * room.f_frsize
    if needed_bytes > free:
        raise OSError(28, f"{needed_bytes:,} bytes are needed and {free:,} are free")
