"""Going on with a trace that was stopped: the same job, and what of its files still holds.

A pass can begin anew at a layer whose input was captured: what is before it is kept as it lies
there, the rest is computed and written as in the first run, to the same bytes. No torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aprtui.engine.job import TraceJob
from aprtui.engine.module_job import ModulePlan, module_plan
from aprtui.engine.plan import Plan, PlannedFile, make_plan
from aprtui.errors import BadFileError, UsageError
from aprtui.formats.aprt import read_header, read_values
from aprtui.formats.journal import Journal, read_journal
from aprtui.formats.modelfile import ModelFile
from aprtui.formats.summary import summarise
from aprtui.formats.tracedir import EVENTS, MANIFEST, StageKey, relative_path
from aprtui.text import clean, count

__all__ = ["Kept", "kept_files", "note_of", "resumed_modules", "resumed_plan"]

# Of the engine that computed; the number of threads changes no bit.
_DECIDES = ("name", "version", "device", "device_name", "dtype", "torch", "tf32", "settings")
_AGAIN = "--overwrite traces it anew"


@dataclass(frozen=True)
class Kept:
    """What of a stopped trace is kept: the statistics of each file, and the values to begin with.

    ``begin`` are the stages that the pass begins behind; empty: it begins at the beginning.
    """

    stats: Mapping[StageKey, Mapping[str, Any]] = field(default_factory=dict)
    begin: tuple[StageKey, ...] = ()


def resumed_plan(directory: Path) -> Plan:
    """The plan of the trace that was stopped in ``directory``.

    Raises UsageError when there is none to go on with, or when it would not be the same trace any
    more; BadFileError for a model that is gone or damaged.
    """
    shown = clean(str(directory))
    if (directory / MANIFEST).exists():
        raise UsageError(f"{shown}: the trace is whole: nothing is left to do", hint=_AGAIN)
    journal = read_journal(directory / EVENTS)
    if not journal.job:
        raise UsageError(
            f"{shown}: no trace to go on with: no plan of one in {EVENTS}",
            hint="aprtui trace MODEL makes one",
        )
    job = TraceJob.from_fields(dict(journal.job))
    if job.batch:
        raise UsageError(
            f"{shown}: one of {len(job.batch)} that run together, which do not go on alone",
            hint="trace the batch anew with --overwrite",
        )
    plan = make_plan(dataclasses.replace(job, directory=str(directory), resume=True))
    _check_same(shown, plan, journal)
    return plan


def resumed_modules(directory: Path) -> ModulePlan | None:
    """The plan of a trace of modules or nodes that was stopped in ``directory``, which begins anew;
    None where it was none.

    Raises as ``resumed_plan`` does.
    """
    journal = read_journal(directory / EVENTS)
    if (directory / MANIFEST).exists() or not journal.job:
        return None
    job = TraceJob.from_fields(dict(journal.job))
    plan = module_plan(dataclasses.replace(job, directory=str(directory), overwrite=True))
    if plan is not None:
        _check_digest(clean(str(directory)), plan.file, journal)
    return plan


def _check_digest(shown: str, file: ModelFile, journal: Journal) -> None:
    if journal.planned.get("model", {}).get("digest") != f"sha256:{file.digest}":
        path = clean(str(file.path))
        raise UsageError(f"{shown}: {path} has changed since the trace was begun", hint=_AGAIN)


def _check_same(shown: str, plan: Plan, journal: Journal) -> None:
    """Raises UsageError where the model or the prompt is another one than it was."""
    _check_digest(shown, plan.model.file, journal)
    tokens = journal.planned.get("tokens", {}).get("ids")
    if tokens is None or tuple(tokens) != plan.tokens or journal.files != len(plan.files):
        raise UsageError(f"{shown}: the prompt now makes other tokens or files", hint=_AGAIN)


def kept_files(plan: Plan, engine: Mapping[str, Any]) -> Kept:
    """What of the plan's folder is as it would be written again by ``engine``, read and checked.

    Raises UsageError where another engine, version or device computed it.
    """
    journal = read_journal(plan.directory / EVENTS)
    before = journal.planned.get("engine", {})
    for name in _DECIDES:
        if before.get(name) != engine.get(name):
            was, now = (clean(str(each.get(name))) for each in (before, engine))
            raise UsageError(
                f"{clean(str(plan.directory))}: was begun with {name} {was}, and here it is {now}",
                hint=_AGAIN,
            )
    if plan.job.engine != "aprtui" or plan.stretches:
        return Kept()  # such an engine, and rows that come in passes, run from the beginning
    return _kept(plan, journal)


def _kept(plan: Plan, journal: Journal) -> Kept:
    files = {file.key: file for file in plan.files}
    graph = plan.model.graph.nodes
    stats: dict[StageKey, Mapping[str, Any]] = {}
    kept = Kept()
    for place, node in enumerate(graph[:-1]):
        file = files.get(node.key)
        if file is not None:
            found = _checked(plan.directory, file, journal)
            if found is None:
                break
            stats[node.key] = found
        if graph[place + 1].key.layer == node.key.layer:
            continue  # only where a layer ends is all that follows made of few values
        done = {each.key for each in graph[: place + 1]}
        needed = {key for each in graph[place + 1 :] for key in each.inputs if key in done}
        if needed <= stats.keys():
            kept = Kept(dict(stats), tuple(needed))
    return kept


def _checked(root: Path, file: PlannedFile, journal: Journal) -> Mapping[str, Any] | None:
    """The statistics of a file that is whole and holds what the journal says it wrote."""
    entry = journal.stages.get(file.key)
    path = root / relative_path(file.key)
    try:
        header = read_header(path)
        if entry is None or (header.layer, header.file_bytes) != (file.key.layer, file.bytes):
            return None
        stats = summarise(read_values(path))
    except BadFileError:
        return None
    same = all(stats[name] == said for name, said in entry.stats.items())
    return stats if same else None


def note_of(kept: Kept, plan: Plan) -> str:
    """A line for the manifest: which files are of the run before."""
    return (
        f"went on with a trace that was stopped: {len(kept.stats)} of "
        f"{count(len(plan.files), 'file')} are of the run before"
    )
