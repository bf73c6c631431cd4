"""Write a GGUF or safetensors model as one .apr file.

Float tensors and Q4_K and Q6_K blocks are kept byte for byte. Other block types and quantised
checkpoints have no code that every reader of .apr takes: they are decoded and written as --other
says, with a note.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from aprtui.cli.options import add_overrides, parse_overrides
from aprtui.cli.output import check_new_file, print_json, print_notes
from aprtui.cli.streams import bar_console
from aprtui.errors import UsageError
from aprtui.text import clean, size

__all__ = ["configure", "run"]

_OTHER = ("f16", "f32", "bf16", "q6_k", "apr-q4", "apr-q8")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", help="a .gguf or .safetensors file, or a checkpoint folder")
    parser.add_argument("-o", "--output", help="the .apr file (default: SOURCE's name with .apr)")
    parser.add_argument(
        "--other", choices=_OTHER, default="f16",
        help="what tensors become whose type .apr does not hold (default: f16, the nearest)",
    )  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace OUTPUT if it is there")
    add_overrides(parser)
    parser.add_argument("--json", action="store_true", help="the summary as JSON")


def run(args: argparse.Namespace) -> int:
    from aprtui.model.open import open_model

    source = Path(args.source)
    out = Path(args.output) if args.output else source.with_name(f"{source.stem}.apr")
    if out.suffix != ".apr":
        raise UsageError(f"{clean(str(out))}: the output's name must end in .apr")
    check_new_file(out, overwrite=args.overwrite)
    model = open_model(source, parse_overrides(args.overrides))
    from aprtui.engine.import_apr import import_apr

    with _progress() as advance:
        done = import_apr(model, out, args.other, advance)
    notes = (*model.notes, *done.notes)
    if args.json:
        print_json({**dataclasses.asdict(done), "notes": notes})
        return 0
    print(
        f"wrote {clean(done.path)}: {size(done.size_bytes)}, {done.tensors} tensors, "
        f"{done.kept} of them byte for byte"
    )
    print_notes(notes)
    return 0


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None] | None]:
    """A bar on stderr when it is a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

    with Progress(
        BarColumn(), DownloadColumn(), TimeRemainingColumn(),
        console=bar_console(), transient=True,
    ) as bar:  # fmt: skip
        task = bar.add_task("import")
        yield lambda done, total: bar.update(task, completed=done, total=total)
