"""RESULTS read: the matrix of the last run there, a cell's document, and the captures of a pair.

``matrix.json``         the last run's matrix, also while it runs; ``runs/RUN.json``: each run's
``cells/KEY.json``      one cell: what it was, verdict, comparison, bisection
``captures/KEY/``       a capture that was kept, a trace folder; ``captures/KEY.json`` lists it
``costs/RUN.json``      how long each cell took and where: all that differs from run to run
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from aprtui.errors import BadFileError, UsageError
from aprtui.sweep.matrix import Cell, Matrix
from aprtui.sweep.store import FolderStore, Store, is_url, open_store
from aprtui.text import clean

__all__ = ["MATRIX", "Results", "holds_results", "open_results", "place_for"]

MATRIX = "matrix.json"
_URL = "aprtui-results.url"


class Results:
    """RESULTS, open for reading; ``copies`` is where captures behind a URL are copied to."""

    def __init__(self, store: Store, copies: Path | None = None) -> None:
        self.store, self.copies = store, copies

    @property
    def away(self) -> bool:
        """Whether they lie behind a URL."""
        return not isinstance(self.store, FolderStore)

    def matrix(self) -> Matrix:
        """The matrix as it stands now. Raises BadFileError."""
        found = self.store.document(MATRIX)
        if found is None:
            raise BadFileError(
                self.store.at(MATRIX), "no sweep's results are here",
                hint="aprtui sweep PLAN.toml -o RESULTS makes them",
            )  # fmt: skip
        return Matrix.from_json(found, self.store.at(MATRIX))

    def document(self, cell: Cell) -> dict[str, Any] | None:
        """What was found of a cell: verdict, comparison and bisection; None where nothing was."""
        return self.store.document(f"cells/{cell.key}.json") if cell.key else None

    def capture(self, name: str | None) -> Path:
        """The trace folder of ``cell.capture`` or ``cell.reference``; of a URL a copy of it.

        Raises UsageError where the capture was not kept or there is no place for copies,
        BadFileError, EngineError.
        """
        if name is None:
            raise UsageError(
                "this cell's capture was not kept", hint='keep = "everything" in the plan keeps it'
            )
        if isinstance(self.store, FolderStore):
            return self.store.root / name
        if self.copies is None:
            raise UsageError(f"{clean(self.store.at(name))} has to be copied to be opened")
        folder = self.copies / name.rpartition("/")[2]
        if not folder.is_dir():
            self.store.get_folder(name, folder)
        return folder


def open_results(where: str | Path, copies: Path | None = None) -> Results:
    """The results at a folder, a URL, or a ``place_for`` one.

    Raises EngineError where a URL cannot be reached.
    """
    if not is_url(str(where)) and (pointer := Path(where) / _URL).is_file():
        return Results(open_store(pointer.read_text()), Path(where))
    return Results(open_store(where), copies)


def holds_results(path: str | Path) -> bool:
    """Whether a path looks like the results of a sweep: a name is looked for, nothing is read."""
    return not is_url(str(path)) and any((Path(path) / name).is_file() for name in (MATRIX, _URL))


def place_for(url: str) -> Path:
    """A folder that stands for results behind a URL, while this process lives: what needs a path
    is given it, and captures are copied into it as they are opened."""
    if url not in _PLACES:
        place = tempfile.TemporaryDirectory(prefix="aprtui-results-")
        _PLACES[url] = place
        (Path(place.name) / _URL).write_text(url)
    return Path(_PLACES[url].name)


_PLACES: dict[str, tempfile.TemporaryDirectory[str]] = {}  # removed where the interpreter ends
