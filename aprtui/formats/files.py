"""Opening what a path names for reading: a regular file or an error at once; bytes by pread.

A fifo would block, a device may do anything when it is opened, a socket cannot be read. Bytes that
are read are copies: a file that becomes shorter meanwhile is an error here, not a SIGBUS.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from aprtui.errors import BadFileError
from aprtui.text import clean

__all__ = ["OpenFile", "cut_short", "first_bytes", "open_file", "read_whole"]

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a fifo",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class OpenFile:
    """A regular file that is open for reading, and how large it was when it was opened."""

    def __init__(self, path: Path, fd: int, found: os.stat_result) -> None:
        self.path = path
        self.fd = fd
        self.size = found.st_size
        self.mtime_ns = found.st_mtime_ns

    def read(self, offset: int, size: int) -> bytes:
        """Up to ``size`` bytes from ``offset`` on; fewer where the file ends. Raises OSError."""
        parts: list[bytes] = []
        while size and (part := os.pread(self.fd, size, offset)):
            if len(part) == size and not parts:
                return part
            parts.append(part)
            offset, size = offset + len(part), size - len(part)
        return b"".join(parts)

    def array(self, offset: int, size: int) -> npt.NDArray[np.uint8]:
        """Exactly those bytes [size] uint8. Raises BadFileError where the file ends before them."""
        found = np.empty(size, dtype=np.uint8)
        view, done = found.data, 0
        while done < size:
            count = os.preadv(self.fd, [view[done:]], offset + done)
            if not count:
                raise cut_short(self.path)
            done += count
        return found


@contextmanager
def open_file(path: Path) -> Iterator[OpenFile]:
    """``path`` open for reading. Raises BadFileError for what cannot be opened or is no file."""
    fd = -1
    try:
        _check_regular(path, path.stat().st_mode)
        # Whatever took its place since is not waited for.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        found = os.fstat(fd)
        _check_regular(path, found.st_mode)
        yield OpenFile(path, fd, found)
    except OSError as error:
        why = error.strerror or clean(str(error))
        raise BadFileError(path, f"cannot be read: {why}") from error
    finally:
        if fd >= 0:
            os.close(fd)


def read_whole(path: Path, most: int, what: str) -> bytes:
    """All bytes of a file that has at most ``most``; ``what`` names it ("a manifest").

    Raises BadFileError.
    """
    with open_file(path) as file:
        raw = file.read(0, most + 1)
    if len(raw) > most:
        raise BadFileError(path, f"{what} of over {most:,} bytes is refused")
    return raw


def first_bytes(path: Path, size: int) -> bytes:
    """Up to ``size`` bytes at the start of a file. Raises BadFileError."""
    with open_file(path) as file:
        return file.read(0, size)


def cut_short(path: Path) -> BadFileError:
    """What a file is that ended before the bytes that it held when it was opened."""
    return BadFileError(
        path,
        "became shorter while it was read, or its disk failed",
        hint="something else writes to it, or removes it: read it again when that is done",
    )


def _check_regular(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "no regular file")
        raise BadFileError(path, f"{kind}, not a file that can be read")
