"""What leaves the screen: text to the terminal's clipboard, values to a file."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from textual.app import App

from aprtui.errors import AprtuiError
from aprtui.formats.atomic import whole_file
from aprtui.state import cache_folder
from aprtui.text import clean, size
from aprtui.tui.stage_table import StageTable

__all__ = ["clipboard_file", "copy", "export", "export_pair", "export_rows", "from_home"]


def clipboard_file() -> Path:
    """Where copied text also goes, for terminals that refuse OSC 52."""
    return cache_folder() / "clipboard"


def from_home(path: Path) -> str:
    """A path as people write it: ``~/models/m.gguf`` below their own folder. Not cleaned."""
    home = Path.home()
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home) else str(path)


def copy(app: App[int], text: str) -> str:
    """Send ``text`` to the terminal by OSC 52 and into a file; an honest note about both.

    The file gets a path's own bytes; the terminal takes only UTF-8.
    """
    try:
        raw = os.fsencode(text)
    except UnicodeEncodeError:  # half a surrogate pair, as JSON can write one
        raw = text.encode("utf-8", "backslashreplace")
    app.copy_to_clipboard(raw.decode("utf-8", "replace"))
    shown = clean(text, 40)
    file = clipboard_file()
    try:
        with whole_file(file, parents=True) as clipboard:
            clipboard.write(raw + b"\n")
    except AprtuiError:
        return f"copied by OSC 52, if the terminal takes it: {shown}"
    where = from_home(file)
    return f"copied to {clean(where)}, and by OSC 52 if the terminal takes it: {shown}"


def export(table: StageTable, target: Path) -> str:
    """Write the table's values to a new .npy or .csv file; a note that says what happened."""

    def write(file: BinaryIO) -> None:
        if target.suffix == ".npy":
            np.save(file, table.values.reshape(table.shape))
        else:
            np.savetxt(file, table.values.reshape(table.shape[0], -1), delimiter=",", fmt="%.9g")

    return _new_file(target, (".npy", ".csv"), write)


def export_rows(rows: Iterable[Sequence[str]], target: Path) -> str:
    """Write rows of text to a new .csv file; a note that says what happened."""

    def write(file: BinaryIO) -> None:
        text = io.StringIO()
        csv.writer(text).writerows(rows)
        file.write(text.getvalue().encode("utf-8", "backslashreplace"))

    return _new_file(target, (".csv",), write)


def export_pair(a: StageTable, b: StageTable, target: Path) -> str:
    """Write both sides and d = b - a to a new .npz file; a note that says what happened."""
    left, other = a.values.reshape(a.shape), b.values.reshape(b.shape)

    def write(file: BinaryIO) -> None:
        if left.shape == other.shape:
            np.savez(file, a=left, b=other, d=other - left)
        else:
            np.savez(file, a=left, b=other)

    return _new_file(target, (".npz",), write)


def _new_file(target: Path, suffixes: tuple[str, ...], write: Callable[[BinaryIO], object]) -> str:
    """Fill a file that is not there yet, its name ending in one of ``suffixes``."""
    if target.suffix not in suffixes:
        return f"{clean(target.name)}: name a {' or '.join(suffixes)} file"
    try:
        if os.path.lexists(target):
            return f"{clean(str(target))} is there already: nothing written"
        with whole_file(target, new=True) as file:
            write(file)
            written = file.tell()
    except AprtuiError as error:
        return error.message
    return f"wrote {clean(str(target))}, {size(written)}"
