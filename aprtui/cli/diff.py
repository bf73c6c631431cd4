"""Compare traces (of ours or of another program), two stage files, or two models.

Every stage captured on both sides is measured in order of computation and judged by a bar that is
chosen by what is compared; the bar and its reason are printed. Missing, damaged and misshapen
stages are classes of their own and never pass. Two models are compared weight by weight and node by
node, whatever their formats and names. Three traces and more are a matrix, each held against the
first; two folders that `trace --prompts` wrote are one as well, each prompt held against itself.

Exit codes: 0 all pass, 1 a difference or something unmeasured, 2 usage, 3 a bad file.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

from aprtui import api
from aprtui.cli import diff_text
from aprtui.cli.diff_many import run_many
from aprtui.cli.diff_paths import run_paths
from aprtui.cli.dumps import add_import, as_traces
from aprtui.cli.options import add_choice
from aprtui.cli.output import check_new_file, errors_as_events
from aprtui.cli.status_line import values_compared
from aprtui.compare import saved
from aprtui.compare.bars import parse_bar
from aprtui.compare.diff import Comparison, judge_again
from aprtui.errors import UsageError
from aprtui.formats.layout import prompts_in
from aprtui.model.open import is_model_path

__all__ = ["configure", "run"]


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("a", nargs="?", metavar="A", type=Path, help="the reference")
    parser.add_argument("b", nargs="?", metavar="B", type=Path, help="what is tested against it")
    parser.add_argument(
        "more", nargs="*", metavar="DIR", type=Path, help="further ones: a matrix, each against A"
    )
    parser.add_argument(
        "--paths", action="store_true",
        help="the traces are one engine's ways to the same tokens (prefill, chunks, steps, batch): "
        "are they the same numbers, and where does each first part from the first?",
    )  # fmt: skip
    parser.add_argument(
        "--bar",
        action="append",
        default=[],
        metavar="[STAGES:]METRIC=LIMIT",
        help="override a bar: rel_l2=1e-3, 'ffn_*:rel_l2=5e-2', cosine=0.999; may be repeated",
    )
    add_choice(parser)
    add_import(parser)
    parser.add_argument("--positions", choices=("all", "last"), default="all")
    parser.add_argument("--ignore-tokens", action="store_true", help="different prompts are fine")
    parser.add_argument(
        "--allow-unmeasured", action="store_true", help="exit 0 though stages are missing"
    )
    parser.add_argument("--model", type=Path, help="the model: tells shapes of foreign folders")
    for side in ("a", "b"):
        parser.add_argument(
            *(["--adapter"] if side == "a" else []), f"--adapter-{side}", type=Path,
            metavar="PATH", dest=f"adapter_{side}",
            help=f"of two models: a LoRA adapter to lay on {side.upper()}'s weights",
        )  # fmt: skip
    parser.add_argument(
        "--top", type=_top, default=10, metavar="N", help="largest differences kept"
    )
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true")
    output.add_argument("--markdown", action="store_true")
    output.add_argument(
        "--events", action="store_true",
        help="of two models: progress, then the result, as JSON lines on stdout",
    )  # fmt: skip
    parser.add_argument("--save", type=Path, metavar="FILE", help="keep the metrics, as JSON")
    parser.add_argument("--overwrite", action="store_true", help="replace --save's file")
    parser.add_argument("--judge", type=Path, metavar="FILE", help="judge saved metrics again")


def _top(text: str) -> int:
    value = int(text)
    if not 0 <= value <= 100_000:
        raise argparse.ArgumentTypeError("0 to 100000")
    return value


def run(args: argparse.Namespace) -> int:
    """Compare, print, and tell by the exit code."""
    return errors_as_events("diff", _told, args) if args.events else _told(args)


def _told(args: argparse.Namespace) -> int:
    named = [path for path in (args.a, args.b, *args.more) if path is not None]
    traces = as_traces(args, named)
    args.a, args.b, *args.more = (*traces.paths, None, None)[: max(len(named), 2)]
    return max(_run(args), int(traces.doubtful))


def _run(args: argparse.Namespace) -> int:
    models = not args.more and args.b is not None and all(map(is_model_path, (args.a, args.b)))
    if args.events and (args.paths or not models):
        raise UsageError("--events is for two models", hint="captures are told by --json")
    if args.paths:
        return run_paths(args)
    if args.more or (args.b is not None and prompts_in(args.a)):
        return run_many(args)
    if models:
        return _models(args)
    if args.adapter_a is not None or args.adapter_b is not None:
        raise UsageError(
            "--adapter is for two models: a capture says itself what it was made with",
            hint="aprtui diff MODEL MERGED --adapter PATH",
        )
    if args.save is not None:
        check_new_file(args.save, overwrite=args.overwrite)
    if args.judge is not None:
        if args.a is not None:
            raise UsageError("--judge FILE takes no A and B: the saved metrics are judged")
        comparison = judge_again(saved.load(args.judge), map(parse_bar, args.bar))
    else:
        comparison = _compared(args)
    if args.save is not None:
        saved.save(comparison, args.save)
    _show(comparison, args)
    return comparison.exit_code(allow_unmeasured=args.allow_unmeasured)


def _compared(args: argparse.Namespace) -> Comparison:
    if args.a is None:
        raise UsageError(
            "two traces are needed: aprtui diff A B",
            hint="or two stage files, two models, one folder with cpu and gpu in it",
        )
    with values_compared() as progress:
        return api.diff(
            args.a,
            args.b,
            model=args.model,
            stages=args.stages,
            layers=args.layers,
            bars=args.bar,
            positions=args.positions,
            ignore_tokens=args.ignore_tokens,
            top=args.top,
            progress=progress,
        )


def _models(args: argparse.Namespace) -> int:
    from aprtui.cli.diff_models import run_models

    if args.bar or args.save is not None or args.judge is not None:
        raise UsageError(
            "--bar, --save and --judge are for captures",
            hint="two models' weights are held against the rounding of their formats",
        )
    return run_models(
        args.a,
        args.b,
        as_json=args.json,
        as_markdown=args.markdown,
        as_events=args.events,
        allow_unmeasured=args.allow_unmeasured,
        adapters=(args.adapter_a, args.adapter_b),
    )


def _show(comparison: Comparison, args: argparse.Namespace) -> None:
    if args.json:
        found = comparison.to_json(allow_unmeasured=args.allow_unmeasured)
        print(json.dumps(found, allow_nan=False, indent=1))
    elif args.markdown:
        print(diff_text.markdown(comparison))
    else:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        one = comparison.of_files
        print(diff_text.plain_pair(comparison) if one else diff_text.plain(comparison, width))
