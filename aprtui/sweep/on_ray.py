"""A sweep's cells on Ray: each asks for the CPUs, GPUs and memory that its plan estimates.

A cell waits for the one that it is held against. One whose node dies runs again elsewhere; what a
node had computed lies in the results. A cell that nobody can run is a row with its error.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from aprtui.sweep.cells import CellJob
from aprtui.sweep.cluster import RETRIES, SHARE, alive_nodes, first_line, on_node, unmet
from aprtui.sweep.matrix import Cell
from aprtui.sweep.plan import ModelSpec, SweepPlan
from aprtui.sweep.run import Surveys, upstream_of
from aprtui.sweep.scratch import remove_scratch, sweep_scratch
from aprtui.sweep.survey import Surveyed, survey
from aprtui.sweep.work import Outcome, compute
from aprtui.text import clean

__all__ = ["OnRay"]

_LOOK_S = 5.0  # between two looks at whether what waits can still run
_GRACE_S = 60.0  # that a node may be away before what needs it is given up
_TIDY_S = 15.0


def _compute(job: CellJob, upstream: Cell | Outcome | None) -> Outcome:
    return compute(job, upstream.cell if isinstance(upstream, Outcome) else upstream)


class OnRay:
    """A cluster that this process is connected to."""

    def __init__(self, ray: Any) -> None:
        self._ray = ray
        self._errors: Any = importlib.import_module("ray.exceptions")

    def survey(self, plan: SweepPlan, scratch: str) -> Surveys:
        self._on_every_node(sweep_scratch, scratch)
        task = self._ray.remote(survey)
        asked: dict[str, Any] = {}
        found: dict[str, Surveyed] = {}
        for model in plan.models:
            needs = {"CPU": 1.0, **_holding(model)}
            if why := unmet(self._ray, needs):
                found[model.name] = Surveyed(error=why)
            else:
                placed = task.options(num_cpus=1, resources=_holding(model), max_retries=RETRIES)
                asked[model.name] = placed.remote(plan, model, scratch)
        for name, ref in asked.items():
            try:
                found[name] = self._ray.get(ref)
            except self._errors.RayError as error:
                found[name] = Surveyed(error=_died(error))
        return found

    def compute(self, jobs: Sequence[CellJob], known: Mapping[str, Cell]) -> Iterator[Outcome]:
        waiting = _Waiting(self._ray, self._errors)
        done: dict[str, Any] = dict(known)
        try:
            for job in jobs:
                why = unmet(self._ray, _needs(job))
                if why:
                    outcome = Outcome(job.cell("failed", error=why))
                    done[job.side.key] = outcome.cell
                    yield outcome
                else:
                    done[job.side.key] = waiting.submit(job, upstream_of(job, done))
            yield from waiting.outcomes()
        finally:
            waiting.cancel()

    def close(self, scratch: str) -> None:
        self._on_every_node(remove_scratch, scratch)

    def _on_every_node(self, task: Any, scratch: str) -> None:
        """A deed whose failure harms nobody: the next sweep there does it."""
        with suppress(self._errors.RayError, ConnectionError):
            refs = [on_node(self._ray, n, task).remote(scratch) for n, _ in alive_nodes(self._ray)]
            self._ray.wait(refs, num_returns=len(refs), timeout=_TIDY_S)


class _Waiting:
    """The cells that were handed to Ray and have not come back."""

    def __init__(self, ray: Any, errors: Any) -> None:
        self._ray, self._errors = ray, errors
        self._task = ray.remote(_compute)  # once: each makes Ray send the function anew
        self._jobs: dict[Any, CellJob] = {}
        self._unmet_since: dict[Any, float] = {}

    def submit(self, job: CellJob, upstream: Any) -> Any:
        engine = job.side.engine
        task = self._task.options(
            num_cpus=engine.cpus,
            num_gpus=engine.gpus,
            memory=job.estimate.memory_bytes,
            resources=_holding(job.side.model),
            max_retries=RETRIES,
            name=" / ".join(job.place),
        )
        ref = task.remote(job, upstream)
        self._jobs[ref] = job
        return ref

    def outcomes(self) -> Iterator[Outcome]:
        """Each as it comes; an end to each, whatever becomes of the cluster."""
        while self._jobs:
            try:
                ready, _ = self._ray.wait(list(self._jobs), timeout=_LOOK_S)
                if not ready:
                    yield from self._given_up()
            except (self._errors.RayError, ConnectionError) as error:
                why = f"the cluster is gone: {clean(str(error), 200)}"
                yield from [self._failed(ref, why) for ref in list(self._jobs)]
                return
            for ref in ready:
                yield self._outcome(ref)

    def cancel(self) -> None:
        for ref in list(self._jobs):
            with suppress(Exception):
                self._ray.cancel(ref, force=True)

    def _outcome(self, ref: Any) -> Outcome:
        try:
            outcome: Outcome = self._ray.get(ref)
        except self._errors.RayError as error:
            return self._failed(ref, _died(error))
        del self._jobs[ref]
        return outcome

    def _failed(self, ref: Any, why: str) -> Outcome:
        return Outcome(self._jobs.pop(ref).cell("failed", error=why))

    def _given_up(self) -> Iterator[Outcome]:
        """Cells that wait for nodes which went away and did not come back."""
        now = time.monotonic()
        for ref, job in list(self._jobs.items()):
            why = unmet(self._ray, _needs(job))
            if not why:
                self._unmet_since.pop(ref, None)
            elif now - self._unmet_since.setdefault(ref, now) >= _GRACE_S:
                self._ray.cancel(ref, force=True)
                yield self._failed(ref, f"the nodes that could run it are gone: {why}")


def _holding(model: ModelSpec) -> dict[str, float]:
    return {model.resource: SHARE} if model.resource else {}


def _needs(job: CellJob) -> dict[str, float]:
    engine = job.side.engine
    needs: dict[str, float] = {"CPU": engine.cpus, "memory": job.estimate.memory_bytes}
    return needs | ({"GPU": engine.gpus} if engine.gpus else {}) | _holding(job.side.model)


def _died(error: Exception) -> str:
    """What Ray says of a task that did not end by itself."""
    said = first_line(getattr(error, "cause", None) or error)
    return f"its process or its node died {RETRIES + 1} times: {said}"
