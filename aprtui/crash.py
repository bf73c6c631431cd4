"""What nobody foresaw, as one sentence and a file to attach to a report.

The file says where in the code it happened and nothing of what was read: no path, no name of a
tensor, no value; not even the error's own words, which may hold any of them.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import linecache
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from aprtui import __version__
from aprtui.errors import AprtuiError, EngineError
from aprtui.state import state_folder
from aprtui.text import clean, quoted

__all__ = ["KEPT", "UnforeseenError", "crash_folder", "told_of"]

KEPT = 20  # files; the oldest go
_FRAMES = 30  # at each end of a long traceback
_OURS = Path(__file__).resolve().parent
_PACKAGES = ("numpy", "torch", "textual", "gguf", "safetensors", "tokenizers", "transformers")


class UnforeseenError(AprtuiError):
    """A fault of aprtui's own."""


def told_of(error: BaseException, doing: str) -> AprtuiError:
    """The error to tell of ``error``: itself where it is one of ours, else one sentence.

    A file that cannot be read or written is named; of anything else a crash file is written, and
    the hint names it. ``doing`` is a word or two of ours: the command, the screen.
    """
    if isinstance(error, AprtuiError):
        return error
    if isinstance(error, OSError):
        where = clean(str(error.filename)) if error.filename else "a file"
        why = error.strerror or type(error).__name__
        return EngineError(f"{where} cannot be read or written: {clean(why)}")
    hint = "please report it"
    with contextlib.suppress(OSError):
        file = _written("\n".join(_lines(error, doing)) + "\n")
        hint = f"please report it with {quoted(file)}, which holds nothing of your files"
    memory = "out of memory" if isinstance(error, MemoryError) else "a fault of aprtui's own"
    return UnforeseenError(f"{memory}: {type(error).__name__} at {_place(error)}", hint=hint)


def crash_folder() -> Path:
    """Where the files lie."""
    return state_folder() / "crashes"


def _written(text: str) -> Path:
    """Put ``text`` into a new file, in the temporary folder where there is no other place."""
    name = time.strftime(f"crash-%Y%m%d-%H%M%S-{os.getpid()}-{time.monotonic_ns() % 10**6}.txt")
    try:
        folder = crash_folder()
        folder.mkdir(parents=True, exist_ok=True)
        for old in sorted(folder.glob("crash-*.txt"))[: -KEPT + 1]:
            old.unlink(missing_ok=True)
        return _new_file(folder / name, text)
    except OSError:
        return _new_file(Path(tempfile.gettempdir()) / f"aprtui-{name}", text)


def _new_file(path: Path, text: str) -> Path:
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        file.write(text)
    return path


def _lines(error: BaseException, doing: str) -> Iterator[str]:
    yield f"aprtui {__version__}, {doing}"
    yield f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    yield ", ".join(_versions())
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield ""
        yield f"{type(link).__module__}.{type(link).__qualname__}"
        yield from _shortened([f"  {line}" for line in _frames(link.__traceback__)])
        link = link.__cause__ or link.__context__


def _versions() -> Iterator[str]:
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            yield f"{package} {importlib.metadata.version(package)}"


def _shortened(lines: list[str]) -> list[str]:
    if len(lines) <= 2 * _FRAMES:
        return lines
    left_out = f"  ... {len(lines) - 2 * _FRAMES} more ..."
    return [*lines[:_FRAMES], left_out, *lines[-_FRAMES:]]


def _frames(trace: TracebackType | None) -> Iterator[str]:
    """``cli/main.py:62 main: return _dispatch(words)``; of other people's code without the line."""
    while trace is not None:
        code = trace.tb_frame.f_code
        file, ours = _short(code.co_filename)
        line = f": {linecache.getline(code.co_filename, trace.tb_lineno).strip()}" if ours else ""
        yield f"{file}:{trace.tb_lineno} {code.co_name}{line}"
        trace = trace.tb_next


def _place(error: BaseException) -> str:
    """The last line of our own code that it went through."""
    place, trace = "an unknown place", error.__traceback__
    while trace is not None:
        file, ours = _short(trace.tb_frame.f_code.co_filename)
        if ours:
            place = f"{file}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place


def _short(filename: str) -> tuple[str, bool]:
    """A source file without the folders above its package, and whether it is ours."""
    path = Path(filename)
    if path.is_relative_to(_OURS):
        return path.relative_to(_OURS).as_posix(), True
    parts = path.parts
    for root in ("site-packages", "dist-packages"):
        if root in parts:
            return "/".join(parts[parts.index(root) + 1 :]), False
    return path.name, False
