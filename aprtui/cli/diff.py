"""Compare two traces (of ours or of another program), two stage files, or two models.

Every stage captured on both sides is measured in order of computation and judged by a bar that is
chosen by what is compared; the bar and its reason are printed. Missing, damaged and misshapen
stages are classes of their own and never pass. Two models are compared weight by weight, whatever
their formats and names.

Exit codes: 0 all pass, 1 a difference or something unmeasured, 2 usage, 3 a bad file.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from aprtui.cli import diff_text
from aprtui.cli.options import add_choice
from aprtui.cli.output import check_new_file
from aprtui.cli.status_line import StatusLine
from aprtui.compare import saved
from aprtui.compare.bars import Bars, Override, choose_bars, parse_bar
from aprtui.compare.diff import (
    Comparison,
    comparison_json,
    diff_files,
    diff_traces,
    file_pair_json,
    judge_again,
)
from aprtui.compare.infer import open_any, open_pair, record_in_trace, with_shapes
from aprtui.compare.pairs import DiffOptions, check_tokens
from aprtui.errors import UsageError
from aprtui.formats.aprt import MAGIC
from aprtui.formats.files import first_bytes
from aprtui.formats.perop import PerOpDir, is_per_op_side
from aprtui.formats.tracedir import TraceDir
from aprtui.graph.select import parse_layers, parse_stages
from aprtui.model.open import is_model_path
from aprtui.text import clean, count, quoted

if TYPE_CHECKING:
    from aprtui.graph import Graph

__all__ = ["configure", "open_graph", "run"]

_FILE_BARS = Bars(
    0.1, 0.4, "unknown arithmetic (two files, no manifest): one side may quantise activations"
)
_OTHER_PROMPTS = "trace both with the same --tokens, or compare all the same with --ignore-tokens"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("a", nargs="?", metavar="A", type=Path, help="the reference")
    parser.add_argument("b", nargs="?", metavar="B", type=Path, help="what is tested against it")
    parser.add_argument(
        "--bar",
        action="append",
        default=[],
        metavar="[STAGES:]METRIC=LIMIT",
        help="override a bar: rel_l2=1e-3, 'ffn_*:rel_l2=5e-2', cosine=0.999; may be repeated",
    )
    add_choice(parser)
    parser.add_argument("--positions", choices=("all", "last"), default="all")
    parser.add_argument("--ignore-tokens", action="store_true", help="different prompts are fine")
    parser.add_argument(
        "--allow-unmeasured", action="store_true", help="exit 0 though stages are missing"
    )
    parser.add_argument("--model", type=Path, help="the model: tells shapes of foreign folders")
    parser.add_argument(
        "--top", type=_top, default=10, metavar="N", help="largest differences kept"
    )
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true")
    output.add_argument("--markdown", action="store_true")
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
    if args.a is not None and args.b is not None and all(map(is_model_path, (args.a, args.b))):
        return _models(args)
    overrides = tuple(parse_bar(text) for text in args.bar)
    if args.save is not None:
        check_new_file(args.save, overwrite=args.overwrite)
    if args.judge is not None:
        if args.a is not None:
            raise UsageError("--judge FILE takes no A and B: the saved metrics are judged")
        comparison = judge_again(saved.load(args.judge), overrides)
        is_files = comparison.a.status == "file"
    elif args.a is None or (args.b is None and not is_per_op_side(args.a / "cpu")):
        raise UsageError(
            "two traces are needed: aprtui diff A B",
            hint="or two stage files, two models, one folder with cpu and gpu in it",
        )
    else:
        is_files = args.b is not None and args.a.is_file() and args.b.is_file()
        comparison = (_files if is_files else _traces)(args, overrides)
    if args.save is not None:
        saved.save(comparison, args.save)
    _show(comparison, args, is_files)
    return comparison.exit_code(allow_unmeasured=args.allow_unmeasured)


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
        allow_unmeasured=args.allow_unmeasured,
    )


def _show(comparison: Comparison, args: argparse.Namespace, is_files: bool) -> None:
    if args.json and is_files:
        print(json.dumps(file_pair_json(comparison), allow_nan=False, indent=1))
    elif args.json:
        found = comparison_json(comparison, allow_unmeasured=args.allow_unmeasured)
        print(json.dumps(found, allow_nan=False, indent=1))
    elif args.markdown:
        print(diff_text.markdown(comparison))
    else:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        print(diff_text.plain_pair(comparison) if is_files else diff_text.plain(comparison, width))


def open_graph(path: Path | None) -> Graph | None:
    """The graph of the model named on the command line, if one is: it tells shapes."""
    if path is None:
        return None
    from aprtui.model.open import open_model

    return open_model(path).graph


def _files(args: argparse.Namespace, overrides: tuple[Override, ...]) -> Comparison:
    for path in (args.a, args.b):
        _refuse_model(path)
    graph = open_graph(args.model)
    options = DiffOptions(last_position=args.positions == "last", top=args.top)
    with _progress() as progress:
        a, trace_a = record_in_trace(args.a, graph)
        b, trace_b = record_in_trace(args.b, graph)
        bars = dataclasses.replace(_FILE_BARS, overrides=overrides)
        if trace_a is not None and trace_b is not None:
            if not args.ignore_tokens:
                check_tokens(trace_a, trace_b, _OTHER_PROMPTS)
            bars = choose_bars(trace_a, trace_b, overrides)
        return diff_files(a, b, bars, options, progress=progress)


def _refuse_model(path: Path) -> None:
    """Raise UsageError for a model file: what stands on the other side is none."""
    magic = first_bytes(path, 4)
    if magic == MAGIC:
        return
    if path.suffix in (".apr", ".gguf", ".safetensors") or magic in (b"GGUF", b"APR\0"):
        raise UsageError(
            f"{clean(str(path))}: a model file; a model is compared with a model only",
            hint=f"aprtui trace {quoted(path)} makes a trace",
        )


def _traces(args: argparse.Namespace, overrides: tuple[Override, ...]) -> Comparison:
    if args.b is None:
        a, b = open_pair(args.a)
    else:
        a, b = (_open(path) for path in (args.a, args.b))
    if not args.ignore_tokens:
        check_tokens(a, b, _OTHER_PROMPTS)
    graph = open_graph(args.model)
    a, b = with_shapes(a, graph), with_shapes(b, graph)
    layers = [key.layer for trace in (a, b) for key in trace.records if key.layer is not None]
    options = DiffOptions(
        parse_stages(args.stages),
        parse_layers(args.layers, max(layers, default=-1) + 1) if args.layers else None,
        args.positions == "last",
        args.top,
    )
    with _progress() as progress:
        return diff_traces(
            a, b, options, overrides, ignore_tokens=args.ignore_tokens, progress=progress
        )


def _open(path: Path) -> TraceDir:
    if path.is_file():
        _refuse_model(path)
        raise UsageError(
            f"{clean(str(path))}: one side is a file and the other a folder",
            hint="name two traces or two stage files",
        )
    found = open_any(path)
    if isinstance(found, PerOpDir):
        raise UsageError(
            f"{clean(str(path))}: holds two passes, cpu and gpu",
            hint=f"aprtui diff {quoted(path / 'cpu')} {quoted(path / 'gpu')}",
        )
    return found


@contextmanager
def _progress() -> Iterator[Callable[[int], None]]:
    """Counts values, and shows how many on the terminal."""
    compared = 0
    with StatusLine() as tell:

        def add(values: int) -> None:
            nonlocal compared
            compared += values
            tell(f"{count(compared, 'value')} compared")

        yield add
