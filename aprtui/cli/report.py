"""Write a comparison of two traces as one file to attach to an issue: HTML, Markdown or JSON.

With --model every stage of B is replayed, and the report names the culprits and explains the rest.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from aprtui import api
from aprtui.cli.options import (
    add_overrides,
    add_replay_prompt,
    parse_overrides,
    parse_tokens,
)
from aprtui.cli.output import check_new_file
from aprtui.cli.status_line import StatusLine
from aprtui.compare.opening import read_capture
from aprtui.compare.pairs import check_tokens
from aprtui.compare.reference import named_adapter
from aprtui.errors import UsageError
from aprtui.formats.tracedir import TraceDir
from aprtui.report.bookmarks import bookmarks_on
from aprtui.report.build import build_report
from aprtui.report.model import Report
from aprtui.report.write import check_ending, commands_of
from aprtui.report.write import write_report as write
from aprtui.text import clean, size

__all__ = ["check_output", "configure", "run", "write_report"]

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
    add_replay_prompt(parser)
    add_overrides(parser)


def run(args: argparse.Namespace) -> int:
    """Compare, write, and tell by the exit code."""
    check_output(args.output, overwrite=args.overwrite)
    if args.model is None and (args.prompt is not None or args.tokens is not None):
        raise UsageError("--tokens and --prompt are for replaying", hint="add --model MODEL")
    a, b = (_folder(path) for path in (args.a, args.b))
    check_tokens(a, b)  # diff's hint would name an option that a report does not have
    model, bisection, tokens = None, None, parse_tokens(args.tokens)
    if args.model is not None:
        from aprtui.model.open import open_model

        adapter = named_adapter(b, Path(args.model))
        model = open_model(args.model, parse_overrides(args.overrides), adapter=adapter)
        if args.prompt is not None:
            tokens = tuple(model.tokenizer.encode(args.prompt))
        with StatusLine() as tell:
            bisection = api.bisect(
                b, a=a, model=model, tokens=tokens,
                progress=lambda done, total, key: tell(f"replaying {done} of {total}: {key}"),
            )  # fmt: skip
    comparison = api.diff(a, b, model=model)
    report = build_report(
        a, b, comparison, model=model, bisection=bisection, token_ids=tokens,
        commands=commands_of(args.a, args.b, args.output, args.model, _more(args)),
        marked=bookmarks_on((args.a, args.b)),
    )  # fmt: skip
    written = write_report(report, args.output, overwrite=args.overwrite)
    print(f"{clean(report.headline, 500)}\n{clean(str(args.output))}: {size(written)}")
    return comparison.exit_code() if bisection is None else bisection.exit_code


def check_output(output: Path, *, overwrite: bool) -> None:
    """Raises UsageError for an ending that says no kind of report, and for what stands there."""
    check_ending(output)
    check_new_file(output, overwrite=overwrite)


def write_report(report: Report, output: Path, *, overwrite: bool) -> int:
    """Write it as its ending says, whole or not at all; how many bytes. Raises UsageError."""
    check_output(output, overwrite=overwrite)
    return write(report, output)


def _folder(path: Path) -> TraceDir:
    if path.is_file():
        raise UsageError(f"{clean(str(path))}: a file; a report compares two trace directories")
    return read_capture(path)


def _more(args: argparse.Namespace) -> list[str]:
    """The options of the replay, as they were given."""
    more = [word for text in args.overrides for word in ("--set", text)]
    for option, value in (("--tokens", args.tokens), ("--prompt", args.prompt)):
        more += [option, value] if value is not None else []
    return more
