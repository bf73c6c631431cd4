"""`aprtui verify A B`: two files that should be one model, and every engine on its own file."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aprtui.cli.output import print_json, print_notes
from aprtui.cli.verify_paths import folder_of, job_of
from aprtui.cli.verify_text import Texts, read_files, show_texts
from aprtui.compare.bisect import bisect
from aprtui.compare.diff import diff_traces
from aprtui.compare.one_model import OneModel
from aprtui.compare.weight_heads import in_order_of
from aprtui.compare.weights import diff_models
from aprtui.compare.worker import Options
from aprtui.engine.plan import DEFAULT_PROMPT, make_plan
from aprtui.errors import UsageError
from aprtui.formats.tracedir import TraceDir
from aprtui.model.open import Model, open_model
from aprtui.text import clean, count, number

if TYPE_CHECKING:
    from aprtui.compare.bisection import Bisection
    from aprtui.compare.verified import Verified
    from aprtui.compare.weight_results import ModelComparison
    from aprtui.engine.plan import Plan

__all__ = ["SCHEMA", "opened", "verify_pair"]

SCHEMA = "aprtui-verify-pair-v1"
_OURS = "aprtui"
_LIST = 20

Trace = Callable[[str, "Plan", argparse.Namespace], TraceDir]
Verify = Callable[[str, Mapping[str, TraceDir], Model], "Verified"]
Engines = Callable[[str | None, Model], tuple[str, ...]]


def verify_pair(
    args: argparse.Namespace, models: tuple[Model, Model], *,
    engines: Engines, trace: Trace, verify: Verify,
) -> int:  # fmt: skip
    """Compare the files, run both and replay B's pass by A's file; other engines are held to the
    file that they read. Print, and tell by the exit code."""
    reading = {side: engines(args.engines, model) for side, model in zip("AB", models, strict=True)}
    foreign = {side: [n for n in names if n != _OURS] for side, names in reading.items()}
    prompt = None if args.tokens is not None else args.prompt or DEFAULT_PROMPT
    texts = read_files(models, foreign, prompt)
    if not args.json:
        show_texts(texts)
    files = diff_models(models[0].path, models[1].path)
    with folder_of(args.output) as folder:
        plans = _plans(args, models, folder)
        traces = [trace(_OURS, plan, args) for plan in plans]
        facing = traces[0], in_order_of(models[0].graph, traces[1], models[1].graph)
        one = OneModel(
            files, models[1].graph, diff_traces(*facing), _replayed(files, models[0], facing)
        )
        others: dict[str, Verified] = {}
        for side, model, plan, ours in zip("AB", models, plans, traces, strict=True):
            for name in foreign[side]:
                job = dataclasses.replace(
                    job_of(args, name, folder / side / name), model=str(model.path), prompt=None,
                    tokens=plan.tokens, logits="all",
                )  # fmt: skip
                captured = {_OURS: ours, name: trace(name, make_plan(job), args)}
                others[f"{side} {name}"] = verify(name, captured, model)
        code = _exit_code(one, others, args, texts)
        if args.json:
            print_json(_json(one, others, args, texts, code))
        else:
            _show(one, others, args)
        if args.report is not None:
            _report(one, facing, models[0], args)
    return code


def _plans(args: argparse.Namespace, models: tuple[Model, Model], folder: Path) -> list[Plan]:
    """Our own pass of either file over the same tokens, those of A's tokenizer. Raises UsageError
    where B has no such token."""
    first = dataclasses.replace(job_of(args, _OURS, folder / "A" / _OURS), logits="all")
    plan = make_plan(dataclasses.replace(first, model=str(models[0].path)))
    second = dataclasses.replace(
        first, model=str(models[1].path), directory=str(folder / "B" / _OURS), prompt=None,
        tokens=plan.tokens,
    )  # fmt: skip
    return [plan, make_plan(second)]


def _replayed(
    files: ModelComparison, model: Model, traces: tuple[TraceDir, TraceDir]
) -> Bisection | None:
    """B's pass by A's file; not where weights were rounded: every product would differ."""
    if files.rounded:
        return None
    return bisect(model, traces[1], traces[0], options=Options(reference=False, whole_heads=True))


def _exit_code(
    one: OneModel, others: Mapping[str, Verified], args: argparse.Namespace, texts: Texts
) -> int:
    if texts.differing:
        return 1
    verdicts = {one.verdict, *(each.verdict for each in others.values())}
    if verdicts & {"fail", "culprits"}:
        return 1
    return 1 if "unmeasured" in verdicts and not args.allow_unmeasured else 0


def _json(
    one: OneModel, others: Mapping[str, Verified], args: argparse.Namespace, texts: Texts, code: int
) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "a": str(args.model),
        "b": str(args.other),
        **one.to_json(),
        "exit_code": code,
        "text": [each.to_json() for each in texts.found],
        "engines": [
            {"file": name[0], "name": name[2:], "verdict": each.verdict,
             "explained_by": each.explained_by,
             "culprits": [str(culprit.key) for culprit in each.replay.culprits]}
            for name, each in others.items()
        ],
    }  # fmt: skip


def _show(one: OneModel, others: Mapping[str, Verified], args: argparse.Namespace) -> None:
    print(one.sentence)
    for name, path in (("A", args.model), ("B", args.other)):
        print(f"  {name}  {clean(str(path))}")
    if one.otherwise:
        print("\ncomputed otherwise, by what the files say:")
        _lines([str(each) for each in one.otherwise])
    if one.seen:
        print("\nB's pass by A's file: the stages that come out otherwise, and no other")
        slight = {seen.culprit.key for seen in one.slight}
        _lines([_seen_line(one, cause.where, cause.text, cause.culprits)
                for cause in (one.replayed.causes if one.replayed else ())
                if not {culprit.key for culprit in cause.culprits} <= slight])  # fmt: skip
    if one.slight:
        print("\nthe same but for what no file says, and numbers hardly feel:")
        _lines(list(dict.fromkeys(str(p) for seen in one.slight for p in seen.parameters)))
    if one.unseen:
        print("\nnothing in this pass shows:")
        _lines([str(each) for each in one.unseen])
    tensors = [r for r in one.files.tensors if r.kind not in ("equal", "same-bytes", "rounding")]
    if tensors:
        print("\ntensors:")
        _lines([f"{r.role}: {r.kind}" + (f", {r.looks_like.text}" if r.looks_like else "")
                for r in tensors])  # fmt: skip
    if one.files.settings:
        print("\nkeys:")
        _lines([f"{s.key} is {s.a} in A, {s.b} in B" + ("" if s.kind == "differs" else
                f" ({s.kind})") for s in one.files.settings])  # fmt: skip
    apart = one.logits_apart
    far = "" if apart is None else f"; the logits are {number(apart, 2)} apart (relative L2)"
    print(f"\nboth passes: {one.passes.headline}{far}")
    if one.replayed is None:
        print("B's weights are rounded: its pass is not replayed by A's file")
    for name, each in others.items():
        print(f"{name[2:]} on {name[0]}: {each.verdict}")
        for cause in each.replay.causes:
            print(f"  {clean(cause.where, 300)}: {clean(cause.text, 300)}")
    print_notes((*one.files.notes, *one.passes.notes))


def _lines(lines: list[str]) -> None:
    for line in lines[:_LIST]:
        print(f"  {clean(line, 300)}")
    if len(lines) > _LIST:
        print(f"  and {count(len(lines) - _LIST)} more (--json lists all)")


def _seen_line(one: OneModel, where: str, text: str, culprits: Any) -> str:
    """A cause, and the parameters or tensors of the files that are why."""
    keys = {culprit.key for culprit in culprits}
    of_cause = [seen for seen in one.seen if seen.culprit.key in keys]
    why = dict.fromkeys(
        name
        for seen in of_cause
        for name in (*(each.parameter for each in seen.parameters), *seen.tensors)
    )
    said = f" [{', '.join(why)}]" if why else " [no key or tensor says why]"
    parameters = dict.fromkeys(each for seen in of_cause for each in seen.parameters)
    if parameters and all(seen.culprit.mistake is None for seen in of_cause):
        text = "; ".join(f"{p.parameter} is {p.b} where A says {p.a}" for p in parameters)
    return f"{where}: {text}{said}"


def _report(
    one: OneModel, traces: tuple[TraceDir, TraceDir], model: Model, args: argparse.Namespace
) -> None:
    from aprtui.cli.report import write_report
    from aprtui.report.build import build_report

    report = build_report(
        traces[0], traces[1], one.passes, model=model, bisection=one.replayed,
        commands=(f"aprtui verify {args.model} {args.other}",),
    )  # fmt: skip
    write_report(report, args.report, overwrite=args.overwrite)


def opened(args: argparse.Namespace) -> tuple[Model, Model]:
    """Both files. Raises UsageError for what a pair has not."""
    if args.paths or args.adapter:
        asked = "--paths" if args.paths else "--adapter"
        raise UsageError(f"{asked} is for one file, and there are two")
    return open_model(Path(args.model)), open_model(Path(args.other))
