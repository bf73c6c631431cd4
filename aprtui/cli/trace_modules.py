"""`aprtui trace` on a model that no family file describes: modules of transformers, nodes of
llama.cpp."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from aprtui import api
from aprtui.cli.output import print_json
from aprtui.engine.job import TraceJob
from aprtui.engine.module_job import ModulePlan, module_plan
from aprtui.errors import UsageError
from aprtui.formats.tracedir import MANIFEST
from aprtui.text import clean, count, duration, quoted, size

__all__ = ["plan_of", "run"]


def plan_of(
    args: argparse.Namespace, job: Callable[[argparse.Namespace], TraceJob]
) -> ModulePlan | None:
    """The plan where modules are what is traced; None where stages are. Raises UsageError."""
    if args.resume is not None or args.model is None:
        return None
    asked = job(args)
    found = module_plan(asked)
    if found is None:
        return None
    if args.prompts is not None or args.batch is not None or len(args.texts or ()) > 1:
        raise UsageError(
            "modules and nodes are traced of one prompt at a time", hint="--prompt TEXT"
        )
    if args.against is not None:
        raise UsageError("a trace of modules is compared when it is whole", hint="aprtui diff A B")
    if args.events:
        raise UsageError("a trace of modules tells no events", hint="--json")
    return found


def run(plan: ModulePlan, args: argparse.Namespace) -> int:
    """Show the plan, or trace and say what was written."""
    if args.dry_run:
        _show_plan(plan, args)
        return 0
    found = api.trace_modules(plan)
    manifest = found.manifest or {}
    written = sum(record.size_bytes for record in found.records.values())
    if args.json:
        files = {"files": len(found), "written_bytes": written}
        where = {"directory": str(found.root), "manifest": str(found.root / MANIFEST)}
        print_json({**where, **files, "notes": list(manifest.get("notes", ()))})
        return 0
    for note in manifest.get("notes", ()):
        print(f"note    {clean(note, 500)}")
    took = duration(float(manifest.get("elapsed_s", 0.0)))
    print(
        f"wrote {count(len(found), 'file')}, {size(written)}, to {clean(str(found.root))} in {took}"
    )
    print(f"look at it: aprtui {quoted(Path(found.root))}")
    if plan.job.engine == "hf" or plan.opened is not None:
        print(f"replay it: aprtui bisect {quoted(Path(found.root))}")
    return 0


def _show_plan(plan: ModulePlan, args: argparse.Namespace) -> None:
    if args.json:
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
