"""Printing for the commands: aligned tables, JSON, sizes. Everything printed is clean text."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from aprtui.crash import told_of
from aprtui.errors import UsageError
from aprtui.formats.summary import finite_json
from aprtui.text import clean

__all__ = [
    "check_new_file",
    "errors_as_events",
    "print_event",
    "print_json",
    "print_notes",
    "print_table",
]


def check_new_file(path: Path, *, overwrite: bool) -> None:
    """Raises UsageError for a folder, and for what stands there unless it may be replaced."""
    if path.is_dir():
        raise UsageError(f"{clean(str(path))}: a folder stands there")
    if not overwrite and (path.exists() or path.is_symlink()):
        raise UsageError(f"{clean(str(path))} is there already", hint="--overwrite replaces it")


def print_json(value: Any) -> None:
    """One JSON document on stdout, ASCII only: no character in it can move a terminal's cursor.

    Numbers that JSON does not have are text: a file's own may be among them.
    """
    json.dump(finite_json(value), sys.stdout, ensure_ascii=True, allow_nan=False, indent=1)
    sys.stdout.write("\n")


def print_event(event: str, **fields: Any) -> None:
    """One line of JSON on stdout, at once, for whoever follows the work."""
    line = json.dumps({"event": event, **fields}, ensure_ascii=True, allow_nan=False)
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def errors_as_events(
    command: str, run: Callable[[argparse.Namespace], int], args: argparse.Namespace
) -> int:
    """What ``run`` returns; what it raises is the last event, for whoever follows the work."""
    try:
        return run(args)
    except Exception as error:
        told = told_of(error, command)
        print_event("error", message=told.message, hint=told.hint, exit_code=told.exit_code)
        return told.exit_code


def print_table(
    rows: Iterable[Sequence[str]],
    header: Sequence[str],
    right: str = "",
    *,
    worth: Sequence[str] = (),
) -> None:
    """Rows under a header, columns as wide as they need; r in ``right`` aligns one to the right.

    ``right="-r"`` leaves the first column to the left and puts the second to the right. With
    ``worth``, the header's names from the most to the least worth, a terminal that is too narrow
    for all shows those that fit, and a line names the others.
    """
    table = [list(header), *([clean(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(header))]
    shown = _fitting(header, widths, worth) if sys.stdout.isatty() and worth else set(header)
    for row in table:
        cells = (
            cell.rjust(width) if right[place : place + 1] == "r" else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
            if header[place] in shown
        )
        print("  ".join(cells).rstrip())
    if left_out := [name for name in header if name not in shown]:
        print(f"no room for {', '.join(left_out)}: `| less -S` shows them")


def _fitting(header: Sequence[str], widths: Sequence[int], worth: Sequence[str]) -> set[str]:
    """The columns that fit side by side on the terminal, the worthiest first."""
    room = shutil.get_terminal_size().columns
    shown: set[str] = set()
    for name in worth:
        taken = widths[header.index(name)] + 2 * bool(shown)
        if taken <= room or not shown:
            shown.add(name)
            room -= taken
    return shown


def print_notes(notes: Iterable[str]) -> None:
    for note in notes:
        print(f"note: {clean(note, 500)}")
