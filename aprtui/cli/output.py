"""Printing for the commands: aligned tables, JSON, sizes. Everything printed is clean text."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from aprtui.errors import UsageError
from aprtui.text import clean

__all__ = ["check_new_file", "print_json", "print_notes", "print_table"]


def check_new_file(path: Path, *, overwrite: bool) -> None:
    """Raises UsageError for a folder, and for what stands there unless it may be replaced."""
    if path.is_dir():
        raise UsageError(f"{clean(str(path))}: a folder stands there")
    if not overwrite and (path.exists() or path.is_symlink()):
        raise UsageError(f"{clean(str(path))} is there already", hint="--overwrite replaces it")


def print_json(value: Any) -> None:
    """One JSON document on stdout, ASCII only: no character in it can move a terminal's cursor."""
    json.dump(value, sys.stdout, ensure_ascii=True, allow_nan=False, indent=1)
    sys.stdout.write("\n")


def print_table(rows: Iterable[Sequence[str]], header: Sequence[str], right: str = "") -> None:
    """Rows under a header, columns as wide as they need; r in ``right`` aligns one to the right.

    ``right="-r"`` leaves the first column to the left and puts the second to the right.
    """
    table = [list(header), *([clean(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(header))]
    for row in table:
        cells = (
            cell.rjust(width) if right[place : place + 1] == "r" else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        print("  ".join(cells).rstrip())


def print_notes(notes: Iterable[str]) -> None:
    for note in notes:
        print(f"note: {clean(note, 500)}")
