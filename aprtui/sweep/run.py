"""A sweep run: models surveyed, what the results hold taken from there, the rest computed.

What computes is a ``Runner``: this process, cell by cell, or Ray's cluster. The matrix is written
while it grows; in the end it is the same bytes whoever computed it, and however often it stopped.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from aprtui.errors import AprtuiError, UsageError
from aprtui.sweep.cells import CellJob, Planned, Side, pending, plan_cells, scratch_of
from aprtui.sweep.matrix import Cell, Matrix
from aprtui.sweep.plan import SweepPlan
from aprtui.sweep.results import MATRIX, open_results
from aprtui.sweep.scratch import Scratch
from aprtui.sweep.store import Store, open_store
from aprtui.sweep.survey import Surveyed, survey
from aprtui.sweep.work import Outcome, compute, recalled
from aprtui.text import clean

__all__ = [
    "Prepared",
    "Runner",
    "Serial",
    "Surveys",
    "Swept",
    "in_order",
    "prepare",
    "run_sweep",
    "upstream_of",
]

_WRITE_S = 2.0  # between two writings of a matrix that grows

Tell = Callable[[Matrix, Cell | None], None]
Surveys = Mapping[str, Surveyed]


class Runner(Protocol):
    """Who computes."""

    def survey(self, plan: SweepPlan, scratch: str) -> Surveys:
        """Every model of the plan, by its name."""
        ...

    def compute(self, jobs: Sequence[CellJob], known: Mapping[str, Cell]) -> Iterator[Outcome]:
        """Outcomes as they come; ``known`` are cells by their key that need not be computed."""
        ...

    def close(self, scratch: str) -> None:
        """What nodes hold for this sweep is not needed any more."""
        ...


class Serial:
    """This process, one cell after the other."""

    def survey(self, plan: SweepPlan, scratch: str) -> Surveys:
        Scratch(scratch).sweep()
        return {model.name: survey(plan, model, scratch) for model in plan.models}

    def compute(self, jobs: Sequence[CellJob], known: Mapping[str, Cell]) -> Iterator[Outcome]:
        done = dict(known)
        for job in jobs:
            outcome = compute(job, upstream_of(job, done))
            done[job.side.key] = outcome.cell
            yield outcome

    def close(self, scratch: str) -> None:
        Scratch(scratch).remove()


def upstream_of(job: CellJob, done: Mapping[str, Cell]) -> Cell | None:
    """The cell whose capture a job is held against, where it was computed."""
    return done.get(job.reference.key) if isinstance(job.reference, Side) else None


def in_order(jobs: Sequence[CellJob]) -> list[CellJob]:
    """Each behind the one that it is held against."""
    by_key = {job.side.key: job for job in jobs}
    ordered: dict[tuple[str, str, str], CellJob] = {}

    def place(job: CellJob) -> None:
        if job.place in ordered:
            return
        other = by_key.get(job.reference.key) if isinstance(job.reference, Side) else None
        if other is not None and other is not job:
            place(other)
        ordered[job.place] = job

    for job in jobs:
        place(job)
    return list(ordered.values())


@dataclass(frozen=True)
class Prepared:
    """A sweep before its first cell."""

    plan: SweepPlan
    planned: Planned
    matrix: Matrix
    scratch: str
    surveyed: Surveys


@dataclass(frozen=True)
class Swept:
    """What a sweep came to; ``unwritten`` says why the results do not hold its matrix."""

    matrix: Matrix
    unwritten: str = ""


def prepare(plan: SweepPlan, results: str, runner: Runner, against: str | None = None) -> Prepared:
    """Survey the models and lay out the cells. Raises BadFileError, EngineError for results that
    are held against and cannot be read."""
    scratch = scratch_of(plan, results)
    references = {
        said.name
        for engine in plan.engines
        if (said := plan.reference_of(engine)) is not None and said.kind == "results"
    }
    earlier = {where: open_results(where).matrix() for where in sorted(references)}
    held = against or (min(references) if references else None)
    before = None if held is None else earlier.get(held) or open_results(held).matrix()
    surveyed = runner.survey(plan, scratch)
    planned = plan_cells(plan, surveyed, results, earlier)
    matrix = pending(plan, planned)
    if held is not None and before is not None:
        matrix = matrix.against_earlier(before, held)
    return Prepared(plan, planned, matrix, scratch, surveyed)


def run_sweep(
    prepared: Prepared, results: str, runner: Runner, *, resume: bool = False,
    tell: Tell = lambda matrix, cell: None,
) -> Swept:  # fmt: skip
    """Compute what the results do not hold; the whole matrix, which the results hold then, too.

    ``tell`` hears the matrix at the beginning and with each cell that is done. ``resume``: such a
    sweep was begun there. Raises UsageError where it was not, EngineError where the results cannot
    be reached at the beginning; a store that goes away later is told in the matrix.
    """
    try:
        store = open_store(results)
        growing = _Growing(prepared.matrix, store)
        if resume and store.document(growing.name) is None:
            raise UsageError(
                f"{clean(results)}: no sweep of this plan was begun there",
                hint="without --resume it is begun; another plan, model or version is another "
                "sweep",
            )
        jobs, known = [], {}
        for job in in_order(prepared.planned.jobs):
            cell = recalled(job, store)
            if cell is None:
                jobs.append(job)
            else:
                known[job.side.key] = growing.add(cell)
        growing.write()
        tell(growing.matrix, None)
        for outcome in runner.compute(jobs, known):
            growing.costs[" / ".join(outcome.cell.place)] = outcome
            cell = growing.add(outcome.cell)
            growing.write(at_most_every=_WRITE_S)
            tell(growing.matrix, cell)
        return growing.finished()
    finally:
        runner.close(prepared.scratch)


class _Growing:
    """The matrix while cells come in, and its copies in the results."""

    def __init__(self, matrix: Matrix, store: Store) -> None:
        self._matrix, self._store = matrix, store
        self._cells = {cell.place: cell for cell in matrix.cells}
        self._written = 0.0
        self.name = f"runs/{matrix.run}.json"
        self.costs: dict[str, Outcome] = {}

    @property
    def matrix(self) -> Matrix:
        return dataclasses.replace(self._matrix, cells=tuple(self._cells.values()))

    def add(self, cell: Cell) -> Cell:
        """The cell in its place, with what was said of it before."""
        whole = dataclasses.replace(cell, before=self._cells[cell.place].before)
        self._cells[cell.place] = whole
        return whole

    def write(self, at_most_every: float = 0.0) -> None:
        """Write the matrix; while cells come in a store that is away is no reason to end."""
        now = time.monotonic()
        if at_most_every and now - self._written < at_most_every:
            return
        self._written = now
        document = self.matrix.to_json()
        try:
            self._store.put_document(self.name, document)
            self._store.put_document(MATRIX, document)
        except AprtuiError:
            if not at_most_every:
                raise

    def finished(self) -> Swept:
        """The matrix as it is left."""
        try:
            self.write()
            name = f"costs/{self._matrix.run}.json"
            self._store.put_document(name, self._costs(self._store.document(name)))
        except AprtuiError as error:
            return Swept(self.matrix, f"this matrix was not written to the results: {error}")
        return Swept(self.matrix)

    def _costs(self, before: Mapping[str, Any] | None) -> dict[str, Any]:
        """What each cell took: of a sweep that was resumed those of before, too."""
        cells = dict((before or {}).get("cells") or {})
        for name, each in self.costs.items():
            cells[name] = {
                "elapsed_s": each.elapsed_s,
                "node": each.node,
                "peak_memory_bytes": each.peak_memory_bytes,
            }
        return {"schema": "aprtui-sweep-costs-v1", "cells": dict(sorted(cells.items()))}
