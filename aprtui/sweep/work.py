"""One cell computed: capture, compare, and name the culprit where they differ.

Runs where it is asked to: in the command's own process, or in a worker of a cluster. Whatever goes
wrong is in the cell; nothing is raised.
"""

from __future__ import annotations

import resource
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aprtui import api
from aprtui.compare.bisect import bisect
from aprtui.compare.bisection import Bisection
from aprtui.compare.diff import Comparison
from aprtui.compare.opening import read_capture, unshaped
from aprtui.compare.verified import Verified
from aprtui.compare.worker import Options
from aprtui.crash import told_of
from aprtui.errors import AprtuiError, EngineError
from aprtui.formats.manifest import read_manifest
from aprtui.formats.modulecalls import calls_of
from aprtui.formats.tracedir import MANIFEST, TraceDir
from aprtui.graph.select import only_layers, parse_stages
from aprtui.model.open import Model
from aprtui.sweep.capturing import make_capture, opened, renamed
from aprtui.sweep.cells import CellJob, Side, Stored
from aprtui.sweep.matrix import Cell
from aprtui.sweep.scratch import Scratch
from aprtui.sweep.store import FolderStore, Store, open_store
from aprtui.sweep.survey import digest_once, local_model
from aprtui.sweep.versions import check_version
from aprtui.text import clean

__all__ = ["CELL_SCHEMA", "FINDINGS_SCHEMA", "Outcome", "compute", "recalled"]

CELL_SCHEMA = "aprtui-sweep-cell-v1"
FINDINGS_SCHEMA = "aprtui-sweep-findings-v1"
_DIFFER = ("culprits", "differs", "unmeasured")
_STAGES_TOLD = 4
_SAID = ("verdict", "culprit", "mistake", "text")


@dataclass(frozen=True)
class Outcome:
    """A cell, and what it cost: of this run alone, no part of the results."""

    cell: Cell
    elapsed_s: float = 0.0
    node: str = ""
    peak_memory_bytes: int = 0


def recalled(job: CellJob, store: Store) -> Cell | None:
    """The cell as the results hold it, where they hold all of it. Raises EngineError."""
    found = store.document(f"cells/{job.key}.json")
    if found is None or found.get("schema") != CELL_SCHEMA:
        return None
    said = {name: found.get(name) for name in _SAID}
    if not all(isinstance(value, str) for value in said.values()):
        return None
    for capture in _kept(job, str(said["verdict"])).values():
        if capture is not None and not store.holds_folder(capture):
            return None
    return _cell(job, {name: clean(str(value), 500) for name, value in said.items()})


def compute(job: CellJob, upstream: Cell | None = None) -> Outcome:
    """The cell; ``upstream`` is that of its reference, which was computed before."""
    from aprtui.engine.workers import cores  # torch

    start = time.monotonic()
    try:
        if upstream is not None and upstream.verdict == "failed":
            cell = job.cell("failed", error=f"its reference failed: {upstream.error}")
        else:
            with cores(job.side.engine.cpus):
                cell = _Work(job).cell()
    except Exception as error:
        said = str(told_of(error, "sweep")).replace(str(Scratch(job.scratch).root), "SCRATCH")
        cell = job.cell("failed", error=clean(said, 500))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak *= 1 if sys.platform == "darwin" else 1024
    return Outcome(cell, round(time.monotonic() - start, 3), socket.gethostname(), peak)


def _kept(job: CellJob, verdict: str) -> dict[str, str | None]:
    """Which captures of a cell stay in the results."""
    keeps = job.keep == "everything" or (job.keep == "differing" and verdict in _DIFFER)
    reference = None if job.reference is None else job.reference.capture
    return {
        "capture": job.side.capture if keeps else None,
        "reference": reference if keeps else None,
    }


def _cell(job: CellJob, said: Mapping[str, str]) -> Cell:
    """A cell that was computed, with the captures of it that are kept."""
    whole: dict[str, Any] = {**said, **_kept(job, said["verdict"])}
    return job.cell(**whole)


class _Work:
    """One cell while it is computed."""

    def __init__(self, job: CellJob) -> None:
        self.job, self.side = job, job.side
        self.store = open_store(job.results)
        self.scratch = Scratch(job.scratch)
        self.names: dict[str, str] = {}  # the node's paths, and what they stand for

    def cell(self) -> Cell:
        job, side = self.job, self.side
        with self.scratch.held():
            check_version(side.engine, side.stamp, Path(job.folder))
            ours = self._capture(side)
            theirs = None if job.reference is None else self._capture(job.reference)
            said, comparison, replay = self._judged(ours, theirs)
            kept = _kept(job, said["verdict"])
            try:
                self._keep(said, kept, ours, theirs, comparison, replay)
            except AprtuiError as error:
                found = " ".join(part for part in (said["verdict"], said["culprit"]) if part)
                why = f"computed ({found}), but not kept: {error}"
                return job.cell("failed", error=clean(why, 500))
            if not job.lends:
                self.scratch.forget(f"capture-{side.key}")
            return _cell(job, said)

    # -- captures ------------------------------------------------------------------------------

    def _capture(self, side: Side | Stored) -> Path:
        """A capture on this node: made before, kept in results, or made now."""
        store = open_store(side.where) if isinstance(side, Stored) else self.store
        path = made = self.scratch.root / f"capture-{side.key}"
        if made.exists():
            pass  # equal keys are equal bytes, whoever made them
        elif store.holds_folder(side.capture):
            if isinstance(store, FolderStore):
                path = store.root / side.capture
                self.names[str(path)] = side.capture
                return path
            path = self.scratch.made(made.name, lambda to: store.get_folder(side.capture, to))
        elif isinstance(side, Stored):
            raise EngineError(f"{store.at(side.capture)}: is not there any more")
        else:
            model, folder = self._model(side), Path(self.job.folder)
            path = self.scratch.made(made.name, lambda to: make_capture(side, model, folder, to))
        self.names[str(path)] = side.capture
        return path

    def _model(self, side: Side) -> Path:
        """Its model on this node, of the bytes that the sweep was planned with."""
        path = local_model(side.model, self.scratch)
        self.names[str(path)] = side.model.source
        digest = digest_once(path, self.scratch)
        if digest != side.model_digest:
            raise EngineError(
                f"{clean(side.model.source, 300)}: this node's model is not the one that the sweep "
                "was planned with: its bytes differ",
                hint="copy the same files to every node, and start again",
            )
        return path

    # -- judging -------------------------------------------------------------------------------

    def _judged(
        self, ours: Path, theirs: Path | None
    ) -> tuple[dict[str, str], Comparison | None, Bisection | None]:
        """Verdict, culprit, mistake and text, and what they come from."""
        job = self.job
        path = self._model(self.side)
        model = opened(self.side, path)
        b = read_capture(ours)
        a = None if theirs is None else read_capture(theirs)
        comparison = None
        if a is not None:
            comparison = api.diff(
                a, b, model=model, stages=self.side.how.stages, layers=self.side.how.layers,
                bars=job.bars,
            )  # fmt: skip
        if not self._to_replay(comparison):
            return _of_comparison(job, comparison), comparison, None
        replay = self._replayed(model or path, b, a)
        verified = Verified(self.side.engine.name, b, comparison, replay)
        return _of_replay(job, verified), comparison, replay

    def _to_replay(self, comparison: Comparison | None) -> bool:
        """Whether the stages are replayed; a loose bar says that they agree and proves little."""
        if self.job.bisect != "differing":
            return self.job.bisect == "always"
        if comparison is None:
            return not self.job.is_reference
        return comparison.verdict != "pass" or comparison.may_hide

    def _replayed(self, model: Model | Path, b: TraceDir, a: TraceDir | None) -> Bisection:
        """B's stages; A's too where B has no culprit, unless it is our own pass or another
        model's."""
        how, reference = self.side.how, self.job.reference
        if not self.job.same_model:
            a = None
        if calls_of(b) or not isinstance(model, Model):
            return api.bisect(b, a=a, model=model, stages=how.stages, layers=how.layers)
        ours = isinstance(reference, Side) and reference.engine.kind == "aprtui"
        options = Options(
            parse_stages(how.stages), only_layers(how.layers, model.graph.num_layers),
            reference=not ours,
        )  # fmt: skip
        sides = unshaped(b), None if a is None else unshaped(a)
        return bisect(model, sides[0], sides[1], tokens=self._rows(b), options=options)

    def _rows(self, b: TraceDir) -> tuple[int, ...]:
        """Every token of the capture: decoded ones stand in its manifest alone."""
        return b.token_ids or self.side.tokens

    # -- results -------------------------------------------------------------------------------

    def _keep(
        self,
        said: Mapping[str, str],
        kept: Mapping[str, str | None],
        ours: Path,
        theirs: Path | None,
        comparison: Comparison | None,
        replay: Bisection | None,
    ) -> None:
        """Captures first, then what was found of them, the cell itself last."""
        for name, path in (("capture", ours), ("reference", theirs)):
            place = kept[name]
            if place is not None and path is not None and not self.store.holds_folder(place):
                self.store.put_folder(place, path)
        findings = {
            "schema": FINDINGS_SCHEMA,
            "manifest": read_manifest(ours / MANIFEST),
            "comparison": None if comparison is None else comparison.to_json(),
            "bisection": None if replay is None else replay.to_json(),
        }
        key = self.job.key
        self.store.put_document(f"findings/{key}.json", renamed(findings, self.names))
        document = {"schema": CELL_SCHEMA, **said, "address": self.job.address()}
        self.store.put_document(f"cells/{key}.json", document)


# -- words -----------------------------------------------------------------------------------------


def _of_comparison(job: CellJob, comparison: Comparison | None) -> dict[str, str]:
    """A cell whose stages were not replayed."""
    if comparison is None:
        return _said("reference" if job.is_reference else "unmeasured")
    verdict = {"pass": "same", "fail": "differs"}.get(comparison.verdict, comparison.verdict)
    first = comparison.first_divergence
    where = "" if first is None else f"first differs at {first.key} ({first.kind})"
    return _said(verdict, text=where or comparison.headline)


def _of_replay(job: CellJob, verified: Verified) -> dict[str, str]:
    replay = verified.replay
    wrong = replay.reference if replay.swapped and replay.reference is not None else replay
    if wrong.culprits:
        first, of = wrong.culprits[0], "" if wrong is replay else "the reference: "
        mistake = "" if first.mistake is None else first.mistake.id
        return _said("culprits", str(first.key), mistake, f"{of}{first.text} ({wrong.headline})")
    verdict = verified.verdict
    if verdict == "unmeasured":
        missing = verified.unmeasured_stages
        more = ", ..." * (len(missing) > _STAGES_TOLD)
        return _said(verdict, text=f"{', '.join(missing[:_STAGES_TOLD])}{more} not measured")
    if job.is_reference:
        return _said("reference", text=replay.headline)
    by = "; ".join(verified.explained_by) or "rounding that has grown"
    return _said(verdict, text=f"explained by {by}" if verdict == "explained" else replay.headline)


def _said(verdict: str, culprit: str = "", mistake: str = "", text: str = "") -> dict[str, str]:
    found = zip(_SAID, (verdict, culprit, mistake, text), strict=True)
    return {name: clean(value, 400) for name, value in found}
