"""The cells of a plan: what each is computed from, and the names that its results are kept by.

A name is a digest of everything that decides the bytes: the model's own, tokens, engine, settings,
versions. Where any of it changes the name does; where nothing does, nothing is computed again.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from aprtui.sweep.matrix import Cell, Matrix
from aprtui.sweep.plan import EngineSpec, ModelSpec, PromptSpec, SweepPlan
from aprtui.sweep.survey import Estimate, Selection, Surveyed
from aprtui.text import clean

__all__ = ["CellJob", "Planned", "Side", "Stored", "pending", "plan_cells", "scratch_of"]


def _digest(value: Any) -> str:
    canonical = json.dumps(value, sort_keys=True, ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Side:
    """What one capture is computed from. ``model_digest`` is of all the model's bytes."""

    model: ModelSpec
    model_digest: str
    prompt: PromptSpec
    tokens: tuple[int, ...]
    engine: EngineSpec
    stamp: Mapping[str, str]  # versions
    how: Selection
    map_digest: str = ""

    def address(self) -> dict[str, Any]:
        """Everything that decides the capture's bytes; names that people gave do not."""
        engine = self.engine
        return {
            "model": self.model_digest,
            "overrides": dict(self.model.overrides),
            "tokens": list(self.tokens),
            "engine": engine.kind,
            "device": engine.device,
            "dtype": engine.dtype,
            "settings": dict(engine.settings),
            "steps": engine.steps,
            "chunk": engine.chunk,
            "kv": engine.kv,
            "threads": engine.cpus,
            "command": list(engine.command),
            "map": [engine.map, self.map_digest],
            "versions": dict(self.stamp),
            "captured": list(self.how),
        }

    @property
    def key(self) -> str:
        return _digest({"capture": self.address()})

    @property
    def capture(self) -> str:
        """The capture's place in RESULTS."""
        return f"captures/{self.key}"


@dataclass(frozen=True)
class Stored:
    """A capture of earlier results."""

    where: str
    capture: str

    @property
    def key(self) -> str:
        return self.capture.rpartition("/")[2]


@dataclass(frozen=True)
class CellJob:
    """One cell to be computed: a capture, held against its reference where it has one.

    ``is_reference``: it is held against nothing, being what others are held against. ``lends``:
    other cells need its capture. ``folder`` is the plan's: commands run there.
    """

    side: Side
    reference: Side | Stored | None
    is_reference: bool
    lends: bool
    same_model: bool  # whether the reference is a capture of the same weights
    keep: str
    bisect: str
    bars: tuple[str, ...]
    results: str
    scratch: str  # the node's own place, by name
    folder: str
    estimate: Estimate

    @property
    def place(self) -> tuple[str, str, str]:
        return self.side.model.name, self.side.prompt.name, self.side.engine.name

    @property
    def against(self) -> str:
        """What it is held against, in words; empty where nothing is."""
        if isinstance(self.reference, Stored):
            return f"results {self.reference.where}"
        if self.reference is None:
            return ""
        other = self.reference
        same_model = other.model.name == self.side.model.name
        return f"engine {other.engine.name}" if same_model else f"model {other.model.name}"

    @property
    def key(self) -> str:
        return _digest(self.address())

    def address(self) -> dict[str, Any]:
        """What decides the cell's results."""
        return {
            "capture": self.side.address(),
            "reference": None if self.reference is None else self.reference.key,
            "is_reference": self.is_reference,
            "bisect": self.bisect,
            "bars": list(self.bars),
        }

    def cell(self, verdict: str = "pending", **said: Any) -> Cell:
        """The cell of this job, with what is said of it."""
        model, prompt, engine = self.place
        return Cell(model, prompt, engine, verdict, key=self.key, **said)


@dataclass(frozen=True)
class Planned:
    """What a plan comes to: the cells that can be computed, and those that cannot, with why."""

    jobs: tuple[CellJob, ...]
    refused: tuple[Cell, ...]
    notes: tuple[str, ...] = ()
    order: tuple[tuple[str, str, str], ...] = field(default=())


def plan_cells(
    plan: SweepPlan,
    surveyed: Mapping[str, Surveyed],
    results: str,
    earlier: Mapping[str, Matrix] | None = None,
) -> Planned:
    """Every cell of the plan, in its order; ``earlier`` are the matrices of results that captures
    are held against, by their place."""
    notes: list[str] = []
    sides: dict[tuple[str, str, str], Side] = {}
    refused: list[Cell] = []
    estimates: dict[tuple[str, str, str], Estimate] = {}
    order = []
    for model in plan.models:
        for prompt in plan.prompts:
            for engine in model.run_by(plan.engines):
                place = (model.name, prompt.name, engine.name)
                order.append(place)
                estimate = surveyed[model.name].of(prompt, engine)
                if estimate.error:
                    refused.append(Cell(*place, "failed", error=estimate.error))
                    continue
                estimates[place] = estimate
                sides[place] = _side(plan, surveyed[model.name], model, prompt, engine, estimate)
    references: dict[tuple[str, str, str], Side | Stored | None] = {}
    for place, side in sides.items():
        reference, why = _reference(plan, side, sides, earlier or {}, notes)
        if why:
            refused.append(Cell(*place, "failed", error=why))
        else:
            references[place] = reference
    lent = Counter(side.key for side in sides.values())
    lent.update({each.key for each in references.values() if isinstance(each, Side)})
    jobs = []
    for place, reference in references.items():
        side = sides[place]
        is_reference = isinstance(reference, Side) and reference.key == side.key
        same = not isinstance(reference, Side) or reference.model_digest == side.model_digest
        jobs.append(
            CellJob(
                side,
                None if is_reference else reference,
                is_reference,
                lent[side.key] > 1,
                same,
                plan.keep,
                plan.bisect,
                plan.bars,
                results,
                scratch_of(plan, results),
                str(plan.path.absolute().parent),
                estimates[place],
            )
        )
    return Planned(tuple(jobs), tuple(refused), tuple(dict.fromkeys(notes)), tuple(order))


def scratch_of(plan: SweepPlan, results: str) -> str:
    """A name for what a node holds while the plan is run."""
    return _digest({"plan": plan.digest, "results": results})


def pending(plan: SweepPlan, planned: Planned) -> Matrix:
    """The matrix before anything is computed. Its name says what is computed, and for which
    places."""
    cells = {job.place: job.cell() for job in planned.jobs}
    cells |= {cell.place: cell for cell in planned.refused}
    keys = [[*place, cells[place].key] for place in planned.order]
    return Matrix(
        _digest({"cells": keys, "keep": plan.keep}),
        tuple(model.name for model in plan.models),
        tuple(prompt.name for prompt in plan.prompts),
        tuple(engine.name for engine in plan.engines),
        tuple(cells[place] for place in planned.order),
        notes=planned.notes,
    )


def _side(
    plan: SweepPlan, found: Surveyed, model: ModelSpec, prompt: PromptSpec, engine: EngineSpec,
    estimate: Estimate,
) -> Side:  # fmt: skip
    return Side(
        model, found.digest, prompt, estimate.tokens, engine, found.stamps[engine.name],
        Selection(plan.stages, plan.layers, plan.logits), estimate.map_digest,
    )  # fmt: skip


def _reference(
    plan: SweepPlan,
    side: Side,
    sides: Mapping[tuple[str, str, str], Side],
    earlier: Mapping[str, Matrix],
    notes: list[str],
) -> tuple[Side | Stored | None, str]:
    """What a capture is held against, or why it cannot be."""
    said = plan.reference_of(side.engine)
    place = (side.model.name, side.prompt.name, side.engine.name)
    if said is None:
        return None, ""
    if said.kind == "results":
        cell = earlier[said.name].cell(*place)
        if cell is not None and cell.capture is not None:
            return Stored(said.name, cell.capture), ""
        notes.append(
            f"{clean(said.name, 200)} holds no capture of some of these cells: they are replayed "
            "by themselves"
        )
        return None, ""
    other = (
        (said.name, side.prompt.name, side.engine.name)
        if said.kind == "model"
        else (side.model.name, side.prompt.name, said.name)
    )
    if other not in sides:
        return None, f"its reference, {' / '.join(other)}, cannot be computed"
    return sides[other], ""
