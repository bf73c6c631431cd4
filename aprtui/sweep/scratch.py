"""A node's own place for one sweep: captures while cells need them, and models that were fetched.

``/tmp/aprtui-sweep-UID/RUN`` is locked by whoever computes in it. What nobody holds is of a sweep
that ended, or was killed: the next sweep on the node removes it, unless it is the same one, which
finds what it had made.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from aprtui.errors import EngineError
from aprtui.text import clean

__all__ = ["Scratch", "remove_scratch", "sweep_scratch"]

_LOCK = ".lock"


class Scratch:
    """One run's folder on this node."""

    def __init__(self, run: str) -> None:
        self._all = Path(tempfile.gettempdir()) / f"aprtui-sweep-{os.getuid()}"
        self.root = self._all / run

    @contextmanager
    def held(self) -> Iterator[None]:
        """The folder there, and nobody removes it meanwhile. Raises EngineError."""
        try:
            fd = self._locked()
        except OSError as error:
            raise _unwritable(self.root, error) from error
        try:
            yield
        finally:
            os.close(fd)

    def made(self, name: str, make: Callable[[Path], None]) -> Path:
        """The folder or file ``name``, which ``make`` makes where it is not there: once a node.

        ``make`` is given another path, which takes the name when it is whole.
        """
        target, lock = self.root / name, self.root / f"{name}.lock"
        try:
            with lock.open("wb") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                if not target.exists():
                    partial = self.root / f"{name}.part"
                    _removed(partial)
                    make(partial)
                    partial.rename(target)
        except OSError as error:
            raise _unwritable(target, error) from error
        return target

    def forget(self, name: str) -> None:
        """What ``made`` made is not needed any more."""
        _removed(self.root / name)

    def remove(self) -> None:
        """The whole folder, unless somebody computes in it."""
        _remove_unheld(self.root)

    def sweep(self) -> None:
        """The folders of other runs that nobody holds."""
        with suppress(OSError):
            for other in self._all.iterdir():
                if other != self.root:
                    _remove_unheld(other)

    def _locked(self) -> int:
        self._all.mkdir(mode=0o700, exist_ok=True)
        found = self._all.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            raise OSError(0, "it is somebody else's", str(self._all))
        while True:
            self.root.mkdir(exist_ok=True)
            try:
                fd = os.open(self.root / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except FileNotFoundError:  # removed since
                continue
            fcntl.flock(fd, fcntl.LOCK_SH)
            with suppress(OSError):
                if os.path.samestat(os.fstat(fd), (self.root / _LOCK).stat()):
                    return fd
            os.close(fd)


# What a cluster has done on each node: importing this module is all that it takes there.


def sweep_scratch(run: str) -> None:
    """``Scratch.sweep``, beside the folder of ``run``."""
    Scratch(run).sweep()


def remove_scratch(run: str) -> None:
    """``Scratch.remove``."""
    Scratch(run).remove()


def _remove_unheld(folder: Path) -> None:
    with suppress(OSError):
        fd = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(fd)


def _removed(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _unwritable(path: Path, error: OSError) -> EngineError:
    where = clean(str(error.filename or path))
    return EngineError(
        f"{where}: this node's scratch cannot be written: {error.strerror or clean(str(error))}",
        hint="free space there, or TMPDIR names another place",
    )
