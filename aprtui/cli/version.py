"""The version, and what of the parts in C this installation has."""

from __future__ import annotations

import importlib
import os
import platform

from aprtui import __version__

__all__ = ["IN_C", "lines"]

# Module -> what is so without it.
IN_C: dict[str, str] = {
    "aprtui.engine._native": "blocks are decoded half as fast, to the same bits",
    "aprtui.engine._row_sums": "two models' weights are compared more slowly",
    "aprtui.formats._guard": "a file cut short while it is read ends the process",
    "aprtui.formats._stage_file": "stage files are written and measured more slowly",
}


def lines(*, verbose: bool) -> list[str]:
    said = [f"aprtui {__version__}"]
    if verbose:
        said.append(f"Python {platform.python_version()}, {platform.system()} {platform.machine()}")
        said += [f"{name}: {_standing(name, without)}" for name, without in IN_C.items()]
    return said


def _standing(name: str, without: str) -> str:
    try:
        importlib.import_module(name)
    except ImportError:
        return f"not built (no C compiler at installation?): {without}"
    off = os.environ.get("APRTUI_NATIVE") == "off" and name != "aprtui.formats._guard"
    return "left out by APRTUI_NATIVE=off" if off else "in C"
