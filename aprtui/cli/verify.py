"""Run a model on several engines, compare what they computed, and say one verdict.

Our own pass is the reference. Every other engine's capture is compared with it, and every capture
is replayed: each stage computed again in float64 from its own inputs. The verdict is one of

  same        every stage agrees within the bars of float32
  explained   they differ, and honest rounding accounts for every stage
  culprits    some stage of some engine computes wrongly: which, and how
  unmeasured  no culprit, and not everything could be compared or replayed

Before any number the prompt's token ids are compared with what each engine's own tokenizer makes of
it (a BOS that is missing or stands twice, special tokens read as text); all engines run on ours.

Of two files (a folder, and the GGUF that was made of it) it says whether they are one model: which
key is lost, which tensor differs and how, which stage of which layer computes otherwise. Each file
keeps its own meaning, and every other engine is held to the file that it reads.

With --paths each engine is asked about itself: are prefill, chunks, decode steps and a batch the
same numbers, and which stage of which layer parts first?
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aprtui.cli.bisect import show_unmeasured
from aprtui.cli.options import add_adapter, whole
from aprtui.cli.output import print_json, print_notes
from aprtui.cli.report import check_output, write_report
from aprtui.cli.verify_pair import opened, verify_pair
from aprtui.cli.verify_paths import folder_of, job_of, verify_paths
from aprtui.cli.verify_prompts import Ways, verify_prompts
from aprtui.cli.verify_text import Texts, read_texts, show_texts
from aprtui.compare.diff import diff_traces
from aprtui.compare.verified import WORST_FIRST, Verified, verdict_of
from aprtui.engine.adapters import available, suits
from aprtui.engine.job import DTYPES
from aprtui.engine.plan import DEFAULT_PROMPT, check_space, make_plan
from aprtui.errors import UsageError
from aprtui.formats.tracedir import TraceDir, open_trace
from aprtui.model.open import Model, open_model
from aprtui.text import clean, count, duration, quoted

if TYPE_CHECKING:
    from aprtui.engine.plan import Plan

__all__ = ["SCHEMA", "configure", "run"]

SCHEMA = "aprtui-verify-v1"
_OURS = "aprtui"
_STAGES_TOLD = 4
_EPILOG = """\
examples:
  aprtui verify model.gguf
  aprtui verify model.gguf --engine-arg kv=f16 --report verify.html
  aprtui verify checkpoint/ --engines aprtui,hf --json
  aprtui verify model.gguf --paths --steps 8
  aprtui verify checkpoint/ model.gguf
  aprtui verify model.gguf --prompts prompts.txt -o traces; aprtui traces/aprtui traces/llamacpp

exit codes: 0 same or explained, 1 a culprit, something unmeasured or other tokens, 2 usage, 3 a bad
file, 4 an engine failed"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.epilog = _EPILOG
    parser.add_argument("model", help="a GGUF file (for llamacpp) or a checkpoint folder (for hf)")
    parser.add_argument(
        "other", nargs="?", help="the same model in another file: are they one model?"
    )
    parser.add_argument(
        "--engines", metavar="aprtui,llamacpp,hf",
        help="what to run (default: every engine that is installed and reads this model)",
    )  # fmt: skip
    prompt = parser.add_mutually_exclusive_group()
    prompt.add_argument("-p", "--prompt", help=f"text to run (default: {DEFAULT_PROMPT!r})")
    prompt.add_argument("--tokens", metavar="1,2,3", help="token ids instead of text")
    prompt.add_argument(
        "--prompts", metavar="FILE",
        help="a file with a prompt on each line; - is stdin: a matrix of prompts by engines",
    )  # fmt: skip
    parser.add_argument("--device", default="auto", help="for aprtui and hf (default: auto)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="for aprtui and hf")
    add_adapter(parser)
    parser.add_argument(
        "--engine-arg", dest="engine_args", action="append", default=[], metavar="KEY=VALUE",
        help="a setting of llamacpp: kv=f16, flash=on, threads=N, gpu_layers=N; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "-o", "--output", type=Path, metavar="DIR", help="keep the traces there, one folder each"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace traces and report")
    parser.add_argument(
        "--allow-unmeasured", action="store_true", help="exit 0 though stages are missing"
    )
    paths = parser.add_argument_group("one engine's own ways")
    paths.add_argument(
        "--paths", action="store_true",
        help="prefill, chunked, decoded and batched: the same numbers on each engine?",
    )  # fmt: skip
    paths.add_argument(
        "--steps",
        type=whole,
        metavar="N",
        help="with --paths: tokens that are decoded (default: 4)",
    )
    parser.add_argument("--json", action="store_true", help="the verdict as JSON on stdout")
    parser.add_argument(
        "--report", type=Path, metavar="FILE", help="also a report: *.html, *.md or *.json"
    )


def run(args: argparse.Namespace) -> int:
    """Trace, compare, replay, and tell by the exit code."""
    if args.report is not None:
        check_output(args.report, overwrite=args.overwrite)
    if args.steps is not None and not args.paths:
        raise UsageError("--steps decodes tokens for --paths", hint="add --paths")
    if args.prompts is not None and (args.other or args.paths or args.report):
        raise UsageError("--prompts takes no other model, no --paths and no --report")
    if args.other is not None:
        return verify_pair(args, opened(args), engines=_beside, trace=_trace, verify=_verify)
    model = open_model(Path(args.model), adapter=args.adapter)
    names = _engines(args.engines, model, alone=args.paths)
    if args.paths:
        return verify_paths(args, names, model)
    if args.prompts is not None:
        return verify_prompts(args, names, model, Ways(_verify, _json, _exit_code))
    texts = Texts()
    if args.tokens is None:
        foreign = [name for name in names if name != _OURS]
        texts = read_texts(model, foreign, args.prompt or DEFAULT_PROMPT)
        if not args.json:
            show_texts(texts)
    with folder_of(args.output) as folder:
        plans = {name: make_plan(job_of(args, name, folder / name)) for name in names}
        traces = {name: _trace(name, plan, args) for name, plan in plans.items()}
        engines = tuple(_verify(name, traces, model) for name in names)
        if args.json:
            print_json(_json(engines, args, texts))
        else:
            _show(engines, args)
        if args.report is not None:
            _report(engines, traces, model, args)
    return _exit_code(engines, args, texts)


# -- what is run -----------------------------------------------------------------------------------


def _engines(text: str | None, model: Model, *, alone: bool) -> tuple[str, ...]:
    """The engines to run, ours first: the reference. Raises UsageError when one is left, unless
    it may be ``alone``."""
    choices = {choice.name: choice for choice in available()}
    if text is not None:
        names = [name.strip().lower() for name in text.split(",")]
        for name in names:
            if name not in choices:
                raise UsageError(f"unknown engine {clean(name)!r}", hint=", ".join(choices))
        chosen = sorted(set(names), key=list(choices).index)
    else:
        chosen = [n for n, choice in choices.items() if choice.installed and not suits(n, model)]
    if len(chosen) < 2 and not alone:
        missing = [
            choice.how_to_install
            for name, choice in choices.items()
            if not choice.installed and not suits(name, model)
        ]
        raise UsageError(
            "two engines are needed, and there is one for this model",
            hint="; ".join(missing) or "llamacpp reads GGUF files, hf Hugging Face folders",
        )
    return tuple(chosen)


def _beside(text: str | None, model: Model) -> tuple[str, ...]:
    """Of the engines that were asked for, or of all, those that read the model, ours first."""
    names = _engines(text, model, alone=True)
    reading = {choice.name for choice in available() if not suits(choice.name, model)}
    return tuple(name for name in names if name in reading)


def _trace(name: str, plan: Plan, args: argparse.Namespace) -> TraceDir:
    from aprtui.engine.run import run_trace
    from aprtui.engine.stopping import stopping_on_signals

    check_space([plan])
    with stopping_on_signals():
        done = run_trace(plan, lambda event: None)
    if not args.json:
        print(f"{name}: {count(done.files)} stages in {duration(done.elapsed_s)}", file=sys.stderr)
    return open_trace(plan.directory)


def _verify(name: str, traces: Mapping[str, TraceDir], model: Model) -> Verified:
    """One capture against the first one, and replayed."""
    from aprtui.compare.bisect import bisect
    from aprtui.compare.worker import Options

    reference = next(iter(traces.values()))
    trace = traces[name]
    if trace is reference:
        return Verified(name, trace, None, bisect(model, trace))
    comparison = diff_traces(reference, trace)
    replayed = bisect(model, trace, reference, options=Options(reference=False))  # or each time
    return Verified(name, trace, comparison, replayed)


def _exit_code(engines: tuple[Verified, ...], args: argparse.Namespace, texts: Texts) -> int:
    verdict = verdict_of(engines)
    if texts.differing:
        return 1
    if verdict == "unmeasured":
        return 0 if args.allow_unmeasured else 1
    return 1 if verdict == "culprits" else 0


# -- what is told ----------------------------------------------------------------------------------


def _engine_words(verified: Verified) -> str:
    engine = (verified.trace.manifest or {}).get("engine", {})
    words = (engine.get(key) for key in ("name", "version", "device", "dtype"))
    return clean(" ".join(str(word) for word in words if word), 200)


def _sentence(engines: tuple[Verified, ...]) -> str:
    """The verdict in one line."""
    verdict = verdict_of(engines)
    if verdict == "same":
        return "same: every stage of every engine agrees"
    if verdict == "explained":
        how = dict.fromkeys(by for each in engines for by in each.explained_by)
        return f"explained by {clean('; '.join(how) or 'rounding that has grown', 500)}"
    concerned = [each for each in engines if each.verdict == verdict]
    names = ", ".join(_engine_words(each) for each in concerned)
    if verdict == "culprits":
        number_of = sum(len(each.replay.culprits) for each in concerned)
        first = concerned[0].replay.culprits[0]
        stages = f"{number_of} stage{'s' * (number_of != 1)}"
        return f"culprits: {stages} of {names}, the first {first.key}: {clean(first.text, 300)}"
    missing = dict.fromkeys(stage for each in concerned for stage in each.unmeasured_stages)
    told = ", ".join(list(missing)[:_STAGES_TOLD]) + ", ..." * (len(missing) > _STAGES_TOLD)
    return f"unmeasured: no culprit, but {told} of {names} could not be compared and replayed"


def _show(engines: tuple[Verified, ...], args: argparse.Namespace) -> None:
    print(_sentence(engines))
    for each in engines:
        print(f"\n{each.engine}: {_engine_words(each)}: {each.verdict}")
        if each.comparison is not None:
            drifts = each.comparison.verdict == "fail" and each.verdict == "explained"
            headline = each.comparison.headline
            if drifts:  # the replay's verdict stands
                headline = f"drifts {headline.removeprefix('FAIL ')} (rounding makes it)"
            print(f"  against {engines[0].engine}: {headline}")
            print(f"  bar: {clean(str(each.comparison.bars), 300)}")
        replay = each.replay
        print(f"  replayed: {replay.replayed - len(replay.culprits)} stages as the model says")
        for by, stages in each.explained_by.items():
            print(f"    {stages} of them with {clean(by, 300)}")
        for cause in replay.causes:
            blamed = count(len(cause.culprits), "culprit")
            print(f"  {blamed} {clean(cause.where, 300)}: {clean(cause.text, 300)}")
        show_unmeasured(replay.unmeasured, "unmeasured ")
        print_notes((each.trace.manifest or {}).get("notes", ()))
    if args.output is not None:
        folders = " ".join(quoted(each.trace.root) for each in engines[:2])
        print(f"\nlook at them: aprtui {folders}")


def _json(engines: tuple[Verified, ...], args: argparse.Namespace, texts: Texts) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "model": str(args.model),
        "verdict": verdict_of(engines),
        "sentence": _sentence(engines),
        "exit_code": _exit_code(engines, args, texts),
        "text": [each.to_json() for each in texts.found],
        "reference": engines[0].engine,
        "engines": [_engine_json(each, engines[0], args) for each in engines],
    }


def _engine_json(each: Verified, first: Verified, args: argparse.Namespace) -> dict[str, Any]:
    manifest, comparison = each.trace.manifest or {}, each.comparison
    root = None if args.output is None else str(each.trace.root)
    reference = None if args.output is None or each is first else str(first.trace.root)
    return {
        "name": each.engine,
        "engine": manifest.get("engine", {}),
        "directory": root,
        "verdict": each.verdict,
        "explained_by": each.explained_by,
        "comparison": None
        if comparison is None
        else {
            "verdict": comparison.verdict,
            "bar": str(comparison.bars),
            "counts": comparison.counts,
            "largest_rel_l2": max(
                (p.metrics.rel_l2 for p in comparison.results if p.metrics), default=None
            ),
        },
        "replay": {**each.replay.to_json(), "a": reference, "b": root},
    }


def _adapter(args: argparse.Namespace) -> list[str]:
    return ["--adapter", args.adapter] if args.adapter else []


def _report(
    engines: tuple[Verified, ...],
    traces: Mapping[str, TraceDir],
    model: Model,
    args: argparse.Namespace,
) -> None:
    """A report of the engine with the worst verdict, against our own pass."""
    from aprtui.report.build import build_report

    worst = min(engines[1:], key=lambda each: WORST_FIRST.index(each.verdict))
    if worst.comparison is None:
        return
    report = build_report(
        traces[engines[0].engine],
        worst.trace,
        worst.comparison,
        model=model,
        bisection=worst.replay,
        commands=(shlex.join(["aprtui", "verify", args.model, *_adapter(args)]),),
    )
    write_report(report, args.report, overwrite=args.overwrite)
    if not args.json:
        print(f"\nreport: {clean(str(args.report))}")
