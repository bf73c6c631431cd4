"""Write a comparison of two traces as one file to attach to an issue: HTML, Markdown or JSON.

With --model every stage of B is replayed, and the report names the culprits and explains the rest.
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from aprtui.cli.trace import parse_overrides
from aprtui.compare.diff import diff_traces
from aprtui.compare.infer import open_any, with_shapes
from aprtui.errors import UsageError
from aprtui.formats.atomic import whole_file
from aprtui.formats.perop import PerOpDir
from aprtui.formats.tracedir import TraceDir
from aprtui.report.build import build_report
from aprtui.report.html import html_report
from aprtui.report.json import json_report
from aprtui.report.markdown import markdown_report
from aprtui.text import clean, size

__all__ = ["configure", "run"]

_WRITERS = {".html": html_report, ".md": markdown_report, ".json": json_report}
_EPILOG = """\
examples:
  aprtui report reference suspect --model model.gguf -o report.html
  aprtui report reference suspect -o report.md

exit codes: 0 no culprit (without --model: no difference), 1 otherwise, 2 usage, 3 a bad file,
4 the engine failed or the report cannot be written"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.epilog = _EPILOG
    parser.add_argument("a", metavar="A", type=Path, help="the reference")
    parser.add_argument("b", metavar="B", type=Path, help="what is tested against it")
    parser.add_argument("--model", type=Path, help="the model that B computed: names the culprits")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FILE", help="*.html, *.md or *.json"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an older report")
    prompt = parser.add_mutually_exclusive_group()
    prompt.add_argument("--tokens", metavar="1,2,3", help="the token ids, where B does not say")
    prompt.add_argument("--prompt", metavar="TEXT", help="the prompt that the tokens came from")
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE",
        help="say what the model's file does not say; may be repeated",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Compare, write, and tell by the exit code."""
    write = _WRITERS.get(args.output.suffix.lower())
    if write is None:
        raise UsageError(
            f"{clean(str(args.output))}: what kind of report?", hint="*.html, *.md or *.json"
        )
    _refuse_old(args)
    if args.model is None and (args.prompt is not None or args.tokens is not None):
        raise UsageError("--tokens and --prompt are for replaying", hint="add --model MODEL")
    a, b = (_open(path) for path in (args.a, args.b))
    model, bisection, tokens = None, None, None
    if args.model is not None:
        from aprtui.compare.bisect import bisect
        from aprtui.model.open import open_model

        model = open_model(args.model, parse_overrides(args.overrides))
        tokens = _ids(args.tokens)
        if args.prompt is not None:
            tokens = tuple(model.tokenizer.encode(args.prompt))
        bisection = bisect(model, b, a, tokens=tokens)
    config = None if model is None else model.config
    comparison = diff_traces(with_shapes(a, config), with_shapes(b, config))
    report = build_report(
        a, b, comparison, model=model, bisection=bisection, token_ids=tokens,
        commands=_commands(args),
    )  # fmt: skip
    written = write(report).encode("utf-8")
    _refuse_old(args)
    with whole_file(args.output, needed_bytes=len(written)) as file:
        file.write(written)
    print(f"{clean(report.headline, 500)}\n{clean(str(args.output))}: {size(len(written))}")
    return comparison.exit_code() if bisection is None else bisection.exit_code


def _refuse_old(args: argparse.Namespace) -> None:
    if args.output.is_dir():
        raise UsageError(f"{clean(str(args.output))}: a folder stands there")
    if args.output.exists() and not args.overwrite:
        raise UsageError(f"{clean(str(args.output))}: stands there already", hint="--overwrite")


def _open(path: Path) -> TraceDir:
    if path.is_file():
        raise UsageError(f"{clean(str(path))}: a file; a report compares two trace directories")
    found = open_any(path)
    if isinstance(found, PerOpDir):
        raise UsageError(
            f"{clean(str(path))}: a per-op folder holds two captures",
            hint="name its cpu and its gpu folder",
        )
    return found


def _ids(text: str | None) -> tuple[int, ...] | None:
    try:
        return None if text is None else tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--tokens {clean(text or '', 60)} cannot be read", hint="1,2,3") from None


def _commands(args: argparse.Namespace) -> tuple[str, ...]:
    """What to type to see the same: the comparison, the bisection, the report."""
    pair = [str(args.a), str(args.b)]
    if args.model is None:
        return (_line("diff", *pair), _line("report", *pair, "-o", str(args.output)))
    model = ["--model", str(args.model)]
    more = [word for text in args.overrides for word in ("--set", text)]
    for option, value in (("--tokens", args.tokens), ("--prompt", args.prompt)):
        more += [option, value] if value is not None else []
    return (
        _line("diff", *pair, *model),
        _line("bisect", *pair, *model, *more),
        _line("report", *pair, *model, *more, "-o", str(args.output)),
    )


def _line(*words: str) -> str:
    return shlex.join(["aprtui", *words])
