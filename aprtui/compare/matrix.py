"""Many captures held against one, or each against its own: one value, measured cell by cell.

A column is a comparison of two captures, a row a stage, a cell what ``aprtui diff`` says of a pair.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from aprtui.compare.bars import Override
from aprtui.compare.diff import Comparison, comparison_json, faced
from aprtui.compare.pairs import (
    CLASSES,
    PASSED,
    DiffOptions,
    Pair,
    PairResult,
    compare_pair,
    pair_up,
)
from aprtui.compare.saved import comparison_of
from aprtui.errors import BadFileError, UsageError
from aprtui.formats.tracedir import StageKey, StageRecord, TraceDir
from aprtui.notebook import html_table
from aprtui.text import clean, count

__all__ = [
    "SCHEMA", "Column", "Faced", "Matrix", "labels_of", "line_up", "matrix_of", "measure", "merged",
]  # fmt: skip

SCHEMA = "aprtui-matrix-v1"
_WORST = ("fail", "unmeasured", "pass")

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Faced:
    """Two captures that face one another in a column, and what the column is called."""

    label: str
    a: TraceDir
    b: TraceDir


@dataclass(frozen=True)
class Column:
    """A column that nothing of is measured yet: ``head`` has its sides, bars and notes."""

    label: str
    head: Comparison
    pairs: tuple[Pair, ...]


@dataclass(frozen=True, repr=False)
class Matrix:
    """Stages by captures. ``labels`` name the columns, in order; all text is clean."""

    labels: tuple[str, ...]
    columns: tuple[Comparison, ...]

    @cached_property
    def rows(self) -> tuple[StageKey, ...]:
        """Every stage of any column, in order of computation."""
        return merged([r.key for r in column.results] for column in self.columns)

    @cached_property
    def cells(self) -> tuple[Mapping[StageKey, PairResult], ...]:
        """Of each column what every stage of it came to."""
        return tuple({r.key: r for r in column.results} for column in self.columns)

    @property
    def counts(self) -> dict[str, int]:
        """How many cells are of each class; classes without one are left out."""
        found = Counter(r.kind for column in self.columns for r in column.results)
        return {kind: found[kind] for kind in CLASSES if found[kind]}

    @property
    def one_reference(self) -> bool:
        """Whether all columns are held against the same capture."""
        return len({column.a.path for column in self.columns}) == 1

    @property
    def verdict(self) -> str:
        """The worst of any column: "fail", "unmeasured" or "pass"."""
        return min((column.verdict for column in self.columns), key=_WORST.index)

    def exit_code(self, *, allow_unmeasured: bool = False) -> int:
        """0 all pass, 1 a difference or something unmeasured, 3 a damaged file: the worst."""
        how = allow_unmeasured
        return max(column.exit_code(allow_unmeasured=how) for column in self.columns)

    @property
    def headline(self) -> str:
        """The answer in one line."""
        said = {"fail": "FAIL", "unmeasured": "UNMEASURED", "pass": "PASS"}[self.verdict]
        bad = [column for column in self.columns if column.verdict != "pass"]
        counts = ", ".join(f"{count(n)} {kind}" for kind, n in self.counts.items())
        of = count(len(self.columns))
        what = f"{count(len(bad))} of {of} do not pass" if bad else f"all {of} pass"
        return f"{said}: {what} ({counts})"

    def to_json(self, *, allow_unmeasured: bool = False) -> dict[str, Any]:
        """What ``aprtui diff A B C --json`` prints: contracts/matrix.schema.json."""
        return {
            "schema": SCHEMA,
            "verdict": self.verdict,
            "exit_code": self.exit_code(allow_unmeasured=allow_unmeasured),
            "counts": self.counts,
            "rows": [{"layer": key.layer, "stage": key.stage} for key in self.rows],
            "columns": [
                {"label": label, **comparison_json(column, allow_unmeasured=allow_unmeasured)}
                for label, column in zip(self.labels, self.columns, strict=True)
            ],
        }

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Matrix:
        """What ``to_json`` wrote. Raises ValueError for anything else."""
        try:
            if found["schema"] != SCHEMA or not found["columns"]:
                raise ValueError(f"its schema is not {SCHEMA}, or it has no column")
            labels = tuple(clean(str(column["label"])) for column in found["columns"])
            return cls(labels, tuple(map(comparison_of, found["columns"])))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"no matrix: {clean(repr(error), 120)}") from error

    def __repr__(self) -> str:
        return f"<matrix: {self.headline}>"

    def _repr_html_(self) -> str:
        """For notebooks: the stages that do not pass everywhere, a column a capture."""
        rows = (
            (str(key), *(cells[key].kind if key in cells else "" for cells in self.cells))
            for key in self.rows
            if any(key in cells and cells[key].kind not in PASSED for cells in self.cells)
        )
        return html_table(self.headline, ("stage", *self.labels), rows)


def labels_of(paths: Sequence[Path]) -> tuple[str, ...]:
    """A name for each path, as short as can be: the end of it where no two end alike."""
    parts = [path.absolute().parts for path in paths]
    most = max(map(len, parts), default=1)
    for length in range(1, most + 1):
        names = [str(Path(*each[-length:])) for each in parts]
        if len(set(names)) == len(names):
            break
    return tuple(clean(name, 120) for name in names) if paths else ()


def line_up(
    sides: Iterable[Faced],
    options: DiffOptions | None = None,
    overrides: Sequence[Override] = (),
    *,
    ignore_tokens: bool = False,
) -> tuple[Column, ...]:
    """What is to be measured of each column. Raises UsageError as ``faced`` does, with its name."""
    found = []
    for side in sides:
        try:
            head = faced(side.a, side.b, options, overrides, ignore_tokens=ignore_tokens)
            found.append(Column(side.label, head, pair_up(side.a, side.b, options)))
        except UsageError as error:
            raise UsageError(f"{clean(side.label)}: {error.message}", hint=error.hint) from error
    return tuple(found)


def measure(
    columns: Sequence[Column],
    options: DiffOptions | None = None,
    known: Collection[tuple[int, StageKey]] = (),
    *,
    cancelled: Callable[[], bool] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Iterator[tuple[int, PairResult]]:
    """The number of its column with each cell, row by row; what is ``known`` is passed over.

    A file is read once for all columns of its row. ``progress`` is told how many values were
    compared since. Raises metrics.Cancelled.
    """
    pairs = [{pair.key: pair for pair in column.pairs} for column in columns]
    for key in merged(pairs):
        read: dict[Path, Float32] = {}
        for number, (column, of_column) in enumerate(zip(columns, pairs, strict=True)):
            pair = of_column.get(key)
            if pair is None or (number, key) in known:
                continue
            yield (
                number,
                compare_pair(
                    pair, column.head.bars, options, left=_values(pair.a, read),
                    cancelled=cancelled, progress=progress,
                ),
            )  # fmt: skip


def matrix_of(columns: Sequence[Column], found: Iterable[tuple[int, PairResult]]) -> Matrix:
    """The matrix of all cells that ``measure`` gave."""
    cells: list[dict[StageKey, PairResult]] = [{} for _ in columns]
    for number, result in found:
        cells[number][result.key] = result
    return Matrix(
        tuple(clean(column.label) for column in columns),
        tuple(
            dataclasses.replace(
                column.head, results=tuple(had[p.key] for p in column.pairs if p.key in had)
            )
            for column, had in zip(columns, cells, strict=True)
        ),
    )


def _values(record: StageRecord | None, read: dict[Path, Float32]) -> Float32 | None:
    """A side's values, read where no other column has; None where the pair shall say why not."""
    if record is None:
        return None
    if record.path not in read:
        try:
            read[record.path] = record.values()
        except BadFileError:
            return None
    return read[record.path]


def merged(orders: Iterable[Iterable[StageKey]]) -> tuple[StageKey, ...]:
    """One order of all keys: the first's; what others have more stands behind its neighbour."""
    found: list[StageKey] = []
    for order in map(list, orders):
        have = set(found)
        if have.issuperset(order):
            continue
        behind = 0
        for key in order:
            if found[behind : behind + 1] == [key]:  # nearly all
                behind += 1
            elif key in have:
                behind = found.index(key) + 1
            else:
                found.insert(behind, key)
                behind += 1
    return tuple(found)
