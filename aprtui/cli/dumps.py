"""Another tool's dump where a trace is due: imported first, or how that is done said."""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from aprtui import api
from aprtui.captures.imported import ImportedTrace
from aprtui.captures.opening import is_dump, trace_beside
from aprtui.cli.options import parse_overrides, parse_tokens
from aprtui.compare.opening import read_capture
from aprtui.compare.reference import named_model
from aprtui.errors import AprtuiError, BadFileError, UsageError
from aprtui.formats.tracedir import holds_trace
from aprtui.state import cache_folder
from aprtui.text import clean, quoted

__all__ = ["Traces", "add_import", "as_traces"]


def add_import(parser: argparse.ArgumentParser) -> None:
    """``--import``, as ``args.imports``."""
    parser.add_argument(
        "--import", dest="imports", action="store_true",
        help="import another tool's dump first, into the cache; import-trace says where to",
    )  # fmt: skip


class Traces:
    """What was named, with a trace in the place of each dump. ``doubtful``: an import found two
    readings, or copies on ranks, that differ."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)
        self.doubtful = False

    def put(self, place: int, done: ImportedTrace) -> None:
        said = clean(str(self.paths[place]))
        print(f"imported {said}: {done}", file=sys.stderr)
        for text in (*done.contradictions, *done.findings):
            print(f"{said}: {clean(text, 500)}", file=sys.stderr)
            self.doubtful = True
        self.paths[place] = Path(done.directory)


def as_traces(args: argparse.Namespace, paths: Sequence[Path]) -> Traces:
    """The paths of a command, dumps among them imported: with ``--import`` into the cache, anew
    each time, else where a person at the terminal says yes.

    Raises BadFileError for a dump that is not to be imported, and what importing raises.
    """
    traces = Traces(paths)
    for place, path in enumerate(paths):
        if not is_dump(path):
            continue
        model = args.model or _model_of([each for each in paths if each != path])
        beside = trace_beside(path)
        if args.imports:
            traces.put(place, _imported(args, path, model, _cached(path), overwrite=True))
        elif not _asked(args, path, beside):
            raise _refused(path, model, beside)
        elif holds_trace(beside):
            traces.paths[place] = beside
        else:
            model = model or _answer("the model that was run: ") or None
            traces.put(place, _imported(args, path, model, beside))
    return traces


def _cached(path: Path) -> Path:
    """Where a dump's trace is made anew each time."""
    whole = path.absolute()
    name = f"{whole.name[:80]}-{hashlib.sha256(os.fsencode(whole)).hexdigest()[:8]}"
    return cache_folder() / "imports" / name


def _imported(
    args: argparse.Namespace,
    path: Path,
    model: Path | str | None,
    into: Path,
    *,
    overwrite: bool = False,
) -> ImportedTrace:
    if model is None:
        raise UsageError(
            f"{clean(str(path))}: the model that was run is needed to import it",
            hint="--model MODEL: it tells the shapes",
        )
    try:
        return api.import_trace(
            path,
            model=model,
            output=into,
            tokens=parse_tokens(getattr(args, "tokens", None)),
            prompt=getattr(args, "prompt", None),
            overrides=parse_overrides(getattr(args, "overrides", ())),
            overwrite=overwrite,
        )
    except UsageError as error:  # its hints speak of options that the importer alone has
        command = f"aprtui import-trace {quoted(path)} --model {quoted(model)}"
        raise UsageError(error.message, hint=f"{error.hint}: {command} takes it") from error


def _model_of(others: Sequence[Path]) -> Path | None:
    """The model that another of the captures names."""
    for path in others:
        try:
            if (named := named_model(read_capture(path))) is not None:
                return named
        except AprtuiError:
            continue  # what is wrong with it is said when it is opened
    return None


def _refused(path: Path, model: Path | str | None, beside: Path) -> BadFileError:
    there = f"{quoted(beside)} is a trace; " if holds_trace(beside) else ""
    kept = f"aprtui import-trace {quoted(path)} --model {quoted(model or 'MODEL')}"
    return BadFileError(
        path,
        "another tool's dump, not a trace",
        hint=f"{there}--import imports it first, into the cache; {kept} beside it",
    )


def _asked(args: argparse.Namespace, path: Path, beside: Path) -> bool:
    """Whether a person at the terminal, where no program reads what is printed, says yes."""
    for_program = any(getattr(args, name, False) for name in ("json", "events", "markdown"))
    if for_program or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    shown = clean(str(beside))
    deed = f"Take {shown}, a trace" if holds_trace(beside) else f"Import it into {shown}"
    said = f"{clean(str(path))} is another tool's dump. {deed}? [y/N] "
    return _answer(said).lower() in ("y", "yes")


def _answer(question: str) -> str:
    print(question, end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip()
