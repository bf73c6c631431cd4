"""`aprtui verify --prompts`: many prompts on each engine, a matrix of verdicts.

The traces of an engine lie as `aprtui trace --prompts` writes them, so that two engines' folders
open side by side as a matrix of prompts.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aprtui.cli.output import print_json, print_table
from aprtui.cli.prompt_files import prompt_lines
from aprtui.cli.verify_paths import folder_of, job_of
from aprtui.cli.verify_text import Texts, read_texts
from aprtui.compare.verified import WORST_FIRST, Verified
from aprtui.engine.plan import check_space, make_plans
from aprtui.formats.tracedir import TraceDir, open_trace
from aprtui.model.open import Model
from aprtui.text import clean, count, duration, quoted

__all__ = ["SCHEMA", "Ways", "verify_prompts"]

SCHEMA = "aprtui-verify-prompts-v1"
_SHOWN = 40  # characters of a prompt in the table


@dataclass(frozen=True)
class Ways:
    """How `verify` judges one prompt: each capture, all of them as JSON, their exit code."""

    verify: Callable[[str, Mapping[str, TraceDir], Model], Verified]
    document: Callable[[tuple[Verified, ...], argparse.Namespace, Texts], dict[str, Any]]
    exit_code: Callable[[tuple[Verified, ...], argparse.Namespace, Texts], int]


@dataclass(frozen=True)
class _Row:
    prompt: str
    engines: tuple[Verified, ...]
    texts: Texts


def verify_prompts(args: argparse.Namespace, names: Sequence[str], model: Model, ways: Ways) -> int:
    """Trace every prompt on every engine, judge each, print, and tell by the exit code."""
    prompts = prompt_lines(args.prompts)
    with folder_of(args.output) as folder:
        traces = {name: _traced(name, folder / name, prompts, args) for name in names}
        rows = []
        for at, prompt in enumerate(prompts):
            of_prompt = {name: found[at] for name, found in traces.items()}
            engines = tuple(ways.verify(name, of_prompt, model) for name in names)
            rows.append(_Row(prompt, engines, read_texts(model, names[1:], prompt)))
        code = max(ways.exit_code(row.engines, args, row.texts) for row in rows)
        documents = [
            {"name": f"prompt-{at}", "prompt": row.prompt,
             **ways.document(row.engines, args, row.texts)}
            for at, row in enumerate(rows, 1)
        ]  # fmt: skip
    verdict = min((each["verdict"] for each in documents), key=WORST_FIRST.index)
    if args.json:
        print_json({"schema": SCHEMA, "model": str(args.model), "verdict": verdict,
                    "exit_code": code, "prompts": documents})  # fmt: skip
    else:
        _show(rows, documents, names, args)
    return code


def _traced(
    name: str, folder: Path, prompts: Sequence[str], args: argparse.Namespace
) -> list[TraceDir]:
    from aprtui.engine.run import run_traces
    from aprtui.engine.stopping import stopping_on_signals

    plans = make_plans(job_of(args, name, folder), prompts)
    check_space(plans)
    with stopping_on_signals():
        done = run_traces(plans, lambda event: None)
    if not args.json:
        took = duration(sum(each.elapsed_s for each in done))
        print(f"{name}: {count(len(done), 'prompt')} in {took}", file=sys.stderr)
    return [open_trace(plan.directory) for plan in plans]


def _show(
    rows: Sequence[_Row],
    documents: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    args: argparse.Namespace,
) -> None:
    """A line a prompt, then what is to be said of those that are not well."""
    table = []
    for row, document in zip(rows, documents, strict=True):
        text = "other tokens" if row.texts.differing else ""
        verdicts = [each.verdict for each in row.engines]
        table.append([document["name"], clean(row.prompt, _SHOWN), *verdicts, text])
    heads = ["trace", "prompt", *names, "text"]
    print_table(table, heads, worth=[*heads[2:], "trace", "prompt"])
    for row, document in zip(rows, documents, strict=True):
        for each in row.texts.differing:
            print(f"\n{document['name']}: {clean(each.sentence, 400)}")
        if document["verdict"] in ("culprits", "unmeasured"):
            print(f"\n{document['name']}: {clean(document['sentence'], 500)}")
    if args.output is not None and len(names) > 1:
        folders = " ".join(quoted(args.output / name) for name in names[:2])
        print(f"\nlook at them: aprtui {folders}")
