"""Starts a module of ours in a process of its own, with nothing of the current folder as code.

A folder of a stranger's model may hold ``numpy.py`` or ``aprtui/``: Python would import them where
it puts the current folder on its path, so it does not here (``-P``), and the package is the one
that runs already, wherever it was found.
"""

from __future__ import annotations

import os
import runpy
import stat
import sys
import threading
from pathlib import Path

__all__ = ["LOG_BYTES", "command_of", "main"]

LOG_BYTES = 1 << 20
_LOOK_S = 0.5
_START = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); import aprtui.child; del sys.path[0]; "
    "aprtui.child.main()"
)


def command_of(module: str) -> tuple[str, ...]:
    """The command line, before its arguments, that runs ``module`` as a program."""
    root = Path(__file__).resolve().parents[1]
    return (sys.executable, "-P", "-c", _START, str(root), module)


def main() -> None:
    """Run the module that the first argument names, with the others; keep its log short."""
    threading.Thread(target=_keep_short, args=(2,), daemon=True).start()
    runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)


def _keep_short(log: int) -> None:
    """Of a log that grows too long keep the end, as long as this process lives."""
    pause = threading.Event()
    while not pause.wait(_LOOK_S):
        try:
            found = os.fstat(log)
            if stat.S_ISREG(found.st_mode) and found.st_size > LOG_BYTES:
                kept = os.pread(log, LOG_BYTES // 2, found.st_size - LOG_BYTES // 2)
                os.ftruncate(log, 0)  # it is open to be added to: what comes stands behind
                os.write(log, b"[...]\n" + kept)
        except OSError:  # a full disk; or the log was closed
            return
