"""What a sweep comes to, as one frozen value: a cell for each model, prompt and engine."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from aprtui.errors import BadFileError, UsageError
from aprtui.text import clean, count

__all__ = ["AXES", "ORDERS", "SCHEMA", "VERDICTS", "Cell", "Matrix", "Table"]

SCHEMA = "aprtui-sweep-v1"
AXES = ("model", "prompt", "engine")
VERDICTS = (
    "failed", "culprits", "differs", "unmeasured", "pending", "explained", "same", "reference",
)  # fmt: skip
"""The worst first. "failed": the cell has an error and no result. "differs": it was not asked which
stage is to blame. "pending": not computed yet. "reference": others are compared with it."""
ORDERS = ("changed", "plan", "worst", "name")
_WRONG = ("culprits", "differs", "unmeasured")
_MOST_TEXT = 500
_KEY = re.compile(r"[0-9a-f]{32}|")
_CAPTURE = re.compile(r"captures/[0-9a-f]{32}")


@dataclass(frozen=True)
class Cell:
    """One model with one prompt on one engine, by the names that the plan gives them.

    ``culprit`` is the first stage that computes wrongly ("layer-3/ffn_gate"), ``mistake`` the id of
    what it does, where one is proven; ``text`` says it in words, ``error`` why there is no result.
    ``key`` names its document in RESULTS (``cells/KEY.json``), ``capture`` and ``reference`` the
    folders there of the pair that was compared, None where they were not kept. ``before`` is what
    the run that this one is held against said, in ``finding``'s words; None where it had no such
    cell, or nothing is held against it.
    """

    model: str
    prompt: str
    engine: str
    verdict: str
    culprit: str = ""
    mistake: str = ""
    text: str = ""
    error: str = ""
    key: str = ""
    capture: str | None = None
    reference: str | None = None
    before: str | None = None

    @property
    def place(self) -> tuple[str, str, str]:
        return self.model, self.prompt, self.engine

    @property
    def finding(self) -> str:
        """Verdict, culprit and mistake in one line: what changes from run to run."""
        return " ".join(part for part in (self.verdict, self.culprit, self.mistake) if part)

    @property
    def changed(self) -> bool:
        """Whether the earlier run said something else of it."""
        return self.before is not None and self.before != self.finding


@dataclass(frozen=True)
class Table:
    """A matrix laid out: a row a label, a column a label, and the cell at each, if there is one."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: tuple[tuple[Cell | None, ...], ...]


@dataclass(frozen=True, repr=False)
class Matrix:
    """Every cell of a sweep; ``models``, ``prompts`` and ``engines`` are in the plan's order.

    ``run`` tells one sweep from another: equal plans of equal models and versions have the same.
    ``against`` names the earlier results that ``before`` speaks of.
    """

    run: str
    models: tuple[str, ...]
    prompts: tuple[str, ...]
    engines: tuple[str, ...]
    cells: tuple[Cell, ...]
    against: str = ""
    notes: tuple[str, ...] = ()

    @property
    def counts(self) -> dict[str, int]:
        """How many cells are of each verdict that there is, the worst first."""
        found = Counter(cell.verdict for cell in self.cells)
        return {verdict: found[verdict] for verdict in VERDICTS if found[verdict]}

    @property
    def done(self) -> bool:
        return "pending" not in self.counts

    @property
    def changed(self) -> tuple[Cell, ...]:
        """What the earlier run said otherwise."""
        return tuple(cell for cell in self.cells if cell.changed)

    @property
    def exit_code(self) -> int:
        """4 where cells failed (or are not computed), 1 where they differ, 0 otherwise."""
        if {"failed", "pending"} & self.counts.keys():
            return 4
        return 1 if self.counts.keys() & set(_WRONG) else 0

    @property
    def headline(self) -> str:
        """The whole sweep in one line."""
        said = ", ".join(f"{count(n)} {verdict}" for verdict, n in self.counts.items())
        changed = f"; {count(len(self.changed))} changed" if self.against else ""
        return f"{count(len(self.cells), 'cell')}: {said or 'none'}{changed}"

    def cell(self, model: str, prompt: str, engine: str) -> Cell | None:
        return self._by_place.get((model, prompt, engine))

    @cached_property
    def _by_place(self) -> Mapping[tuple[str, str, str], Cell]:
        return {cell.place: cell for cell in self.cells}

    def names(self, axis: str) -> tuple[str, ...]:
        """The names along "model", "prompt" or "engine", in the plan's order."""
        return {"model": self.models, "prompt": self.prompts, "engine": self.engines}[axis]

    def table(self, rows: Sequence[str] = ("model", "prompt"), order: str = "changed") -> Table:
        """The matrix with these axes down and the others across.

        ``order`` of the rows: "changed" (what changed since the earlier run first), "plan",
        "worst" or "name". Raises UsageError for axes and orders that there are not.
        """
        _check_axes(rows, order)
        across = tuple(axis for axis in AXES if axis not in rows)
        cells = self._by_place
        places = list(itertools.product(*(self.names(axis) for axis in rows)))
        heads = list(itertools.product(*(self.names(axis) for axis in across)))
        lines = []
        for place in places:
            named = dict(zip(rows, place, strict=True))
            found = []
            for head in heads:
                whole = named | dict(zip(across, head, strict=True))
                found.append(cells.get(tuple(whole[axis] for axis in AXES)))  # type: ignore[arg-type]
            lines.append((_label(place), tuple(found)))
        lines = _ordered([line for line in lines if any(line[1])], order)
        return Table(
            tuple(label for label, _ in lines),
            tuple(map(_label, heads)),
            tuple(found for _, found in lines),
        )

    def against_earlier(self, earlier: Matrix, name: str) -> Matrix:
        """The same with what ``earlier`` said of each cell."""
        said = {cell.place: cell.finding for cell in earlier.cells if cell.verdict != "pending"}
        cells = tuple(dataclasses.replace(c, before=said.get(c.place)) for c in self.cells)
        return dataclasses.replace(self, cells=cells, against=name)

    def to_json(self) -> dict[str, Any]:
        """What ``aprtui sweep --json`` prints and RESULTS holds: contracts/sweep.schema.json."""
        return {
            "schema": SCHEMA,
            "run": self.run,
            "headline": self.headline,
            "exit_code": self.exit_code,
            "counts": self.counts,
            "models": list(self.models),
            "prompts": list(self.prompts),
            "engines": list(self.engines),
            "against": self.against,
            "notes": list(self.notes),
            "cells": [dataclasses.asdict(cell) for cell in self.cells],
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any], where: Path | str = "matrix.json") -> Matrix:
        """A matrix that a file holds, every text cleaned. Raises BadFileError."""
        if document.get("schema") != SCHEMA:
            raise BadFileError(
                where, f"not a sweep that this version reads: its schema is not {SCHEMA}"
            )
        try:
            axes = [_texts(document[name]) for name in ("models", "prompts", "engines")]
            found = cls(
                _text(document["run"]), axes[0], axes[1], axes[2],
                tuple(map(_cell, document["cells"])),
                _text(document["against"]), _texts(document["notes"]),
            )  # fmt: skip
            found._check()
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BadFileError(
                where, f"the sweep's matrix is damaged: {clean(repr(error), 160)}"
            ) from error
        return found

    def _check(self) -> None:
        """Raises ValueError where cells and axes contradict one another."""
        places = Counter(cell.place for cell in self.cells)
        if doubled := [place for place, n in places.items() if n > 1]:
            raise ValueError(f"{doubled[0]} stands twice")
        known = set(itertools.product(self.models, self.prompts, self.engines))
        if strange := places.keys() - known:
            raise ValueError(f"{sorted(strange)[0]} is on no axis")

    def __repr__(self) -> str:
        return f"<sweep of {self.headline}>"


def _check_axes(rows: Sequence[str], order: str) -> None:
    if not rows or len(set(rows)) != len(rows) or not set(rows) < set(AXES):
        raise UsageError(
            f"rows by {clean(', '.join(rows) or 'nothing')}",
            hint=f"one or two of {', '.join(AXES)}; the others are columns",
        )
    if order not in ORDERS:
        raise UsageError(f"no order {clean(order)!r}", hint=f"one of {', '.join(ORDERS)}")


def _label(names: Iterable[str]) -> str:
    return " / ".join(names)


_Line = tuple[str, tuple[Cell | None, ...]]


def _ordered(lines: list[_Line], order: str) -> list[_Line]:
    def worst(line: _Line) -> int:
        return min(VERDICTS.index(cell.verdict) for cell in line[1] if cell is not None)

    def changed(line: _Line) -> tuple[bool, int]:
        some = any(cell is not None and cell.changed for cell in line[1])
        return not some, worst(line) if some else 0

    if order == "name":
        return sorted(lines)
    if order == "worst":
        return sorted(lines, key=worst)
    return sorted(lines, key=changed) if order == "changed" else lines


def _cell(raw: Mapping[str, Any]) -> Cell:
    fields = {field.name: raw[field.name] for field in dataclasses.fields(Cell)}
    if raw.keys() != fields.keys():
        raise ValueError(f"a cell has the field {sorted(raw.keys() - fields.keys())[0]}")
    if fields["verdict"] not in VERDICTS:
        raise ValueError(f"no verdict {fields['verdict']!r}")
    optional = ("capture", "reference", "before")
    if not _KEY.fullmatch(fields["key"]):  # files are opened by these names
        raise ValueError(f"no key {fields['key']!r}")
    for name in ("capture", "reference"):
        if fields[name] is not None and not _CAPTURE.fullmatch(fields[name]):
            raise ValueError(f"no capture {fields[name]!r}")
    said: dict[str, Any] = {
        name: None if value is None and name in optional else _text(value)
        for name, value in fields.items()
    }
    return Cell(**said)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no text")
    return clean(value, _MOST_TEXT)


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ValueError(f"{value!r} is no list")
    return tuple(map(_text, value))
