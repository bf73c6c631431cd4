"""`aprtui trace` on a model that no family file describes: modules of transformers, nodes of
llama.cpp."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from aprtui import api
from aprtui.cli.output import print_json
from aprtui.engine.events import Emit, Stopped
from aprtui.engine.job import TraceJob
from aprtui.engine.module_job import ModulePlan, module_plan
from aprtui.engine.resuming import resumed_modules
from aprtui.errors import UsageError
from aprtui.formats.tracedir import MANIFEST, TraceDir
from aprtui.text import clean, count, duration, quoted, size

__all__ = ["plan_of", "run"]


def plan_of(
    args: argparse.Namespace, job: Callable[[argparse.Namespace], TraceJob]
) -> ModulePlan | None:
    """The plan where modules are what is traced; None where stages are. Raises UsageError."""
    if args.resume is not None:
        return resumed_modules(Path(args.resume))
    if args.model is None:
        return None
    found = module_plan(job(args))
    if found is None:
        return None
    if args.prompts is not None or args.batch is not None or len(args.texts or ()) > 1:
        raise UsageError(
            "modules and nodes are traced of one prompt at a time", hint="--prompt TEXT"
        )
    return found


def run(plan: ModulePlan, args: argparse.Namespace, emit: Emit | None) -> int:
    """Show the plan, or trace and say what was written; with ``emit`` by events alone."""
    from aprtui.engine.stopping import TraceStopped, stopping_on_signals

    if args.dry_run:
        _show_plan(plan, args)
        return 0
    try:
        with stopping_on_signals():
            found = api.trace_modules(plan, emit)
    except TraceStopped as stop:
        if emit is not None and not stop.told:  # before anything was written
            emit(Stopped(files=0, directory=str(plan.directory)))
        where = clean(str(plan.directory))
        print(f"aprtui: stopped; what was written stays in {where}, without a manifest",
              file=sys.stderr)  # fmt: skip
        return 128 + stop.number
    if emit is None:
        _show(plan, found, args)
    return 0


def _show(plan: ModulePlan, found: TraceDir, args: argparse.Namespace) -> None:
    """What was written."""
    manifest = found.manifest or {}
    written = sum(record.size_bytes for record in found.records.values())
    if args.json:
        files = {"files": len(found), "written_bytes": written}
        where = {"directory": str(found.root), "manifest": str(found.root / MANIFEST)}
        print_json({**where, **files, "notes": list(manifest.get("notes", ()))})
        return
    for note in manifest.get("notes", ()):
        print(f"note    {clean(note, 500)}")
    took = duration(float(manifest.get("elapsed_s", 0.0)))
    print(
        f"wrote {count(len(found), 'file')}, {size(written)}, to {clean(str(found.root))} in {took}"
    )
    print(f"look at it: aprtui {quoted(Path(found.root))}")
    if plan.job.engine == "hf" or plan.opened is not None:
        print(f"replay it: aprtui bisect {quoted(Path(found.root))}")


def _show_plan(plan: ModulePlan, args: argparse.Namespace) -> None:
    if args.json or args.events:
        print_json(
            {
                "model": str(plan.model),
                "architecture": plan.architecture,
                "directory": str(plan.directory),
                "tokens": list(plan.tokens),
                "notes": list(plan.notes),
            }
        )
        return
    print(f"model   {clean(str(plan.model))}: {plan.architecture}")
    print(f"tokens  {len(plan.tokens):,}: {plan.tokens[:12]}")
    made = "what each module is given and makes" if plan.job.engine == "hf" else "every named node"
    print(f"writes  {made}, to {clean(str(plan.directory))}")
    print("        (how much is known when the engine has loaded the model)")
    for note in plan.notes:
        print(f"note    {clean(note, 500)}")
