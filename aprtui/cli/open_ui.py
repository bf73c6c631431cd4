"""Open the terminal UI on nothing, a model, a trace, a stage file, two of them, many traces, or
a sweep's results."""

from __future__ import annotations

import argparse
import gc
import os
import sys
from pathlib import Path

from aprtui.errors import UsageError
from aprtui.text import clean, quoted
from aprtui.tui.opened import Opened, behind_url

__all__ = ["configure", "run"]


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "paths", nargs="*", type=_place, metavar="PATH",
        help="a model, a trace folder or a stage file; two to compare, of traces also more; "
        "a sweep's results, also behind a URL",
    )  # fmt: skip
    parser.add_argument("--model", type=Path, metavar="MODEL",
                        help="the model of a foreign trace: it tells the shapes")  # fmt: skip


def _place(text: str) -> Path:
    """A path; for a URL a folder that stands for what lies there."""
    return behind_url(text) or Path(text.removeprefix("file://"))


def run(args: argparse.Namespace) -> int:
    """The app's exit code. Raises UsageError without a terminal, BadFileError for a bad path."""
    paths: list[Path] = args.paths
    if len(paths) == 1 and paths[0].is_dir() and _terminal():
        opened: tuple[Opened, ...] = (Opened("folder", paths[0]),)  # looked into behind a frame
    else:
        opened = _opened(paths)
    if not _terminal():
        for one in opened:
            _check(one)
        raise UsageError("no terminal to draw on", hint=_instead([o.kind for o in opened], paths))
    # Textual reads these when it is imported; a person's own settings stand.
    os.environ.setdefault("TEXTUAL_ANIMATIONS", "none")
    os.environ.setdefault("TEXTUAL_FPS", "30")
    gc.disable()  # importing makes a hundred thousand objects and no garbage: 0.06 s
    from aprtui.tui.afterwards import terminal_alone, terminal_restored
    from aprtui.tui.app import AprtuiApp
    from aprtui.tui.config import read_config

    gc.freeze()
    gc.enable()

    app = AprtuiApp(opened, model=str(args.model or ""), config=read_config())
    with terminal_restored(), terminal_alone():
        code = app.run()
    if app.ended_by is not None:
        raise app.ended_by
    return code or 0


def _opened(paths: list[Path]) -> tuple[Opened, ...]:
    from aprtui.tui.source import kind_of

    opened = tuple(kind_of(path) for path in paths)
    if len(opened) > 1:
        for one in opened:
            if one.kind == "per-op":
                raise UsageError(
                    f"{clean(str(one.path))} holds two traces itself: cpu and gpu",
                    hint="open it alone, or name two of its sides",
                )
        kinds = {"trace" if one.kind == "dump" else one.kind for one in opened}
        if len(kinds) > 1:
            other = next(one for one in opened if one.kind != opened[0].kind)
            raise UsageError(
                f"a {opened[0].kind} and a {other.kind} cannot stand side by side",
                hint="give two models, two stage files, or traces",
            )
        if len(opened) > 2 and opened[0].kind not in ("trace", "dump", "prompts"):
            raise UsageError(
                f"{len(opened)} {opened[0].kind}s cannot stand side by side: many are traces",
                hint="give two models, two stage files, or traces",
            )
    return opened


def _check(one: Opened) -> None:
    """Raise what a screen would say of it."""
    from aprtui.captures.opening import refuse_dump  # none of these for a mere look
    from aprtui.compare.infer import open_any
    from aprtui.formats.aprt import read_header
    from aprtui.model.open import read_model_file
    from aprtui.sweep.results import open_results

    if one.kind == "prompts":
        return
    if one.kind == "results":
        open_results(one.path).matrix()
        return
    if one.kind == "model":
        read_model_file(one.path)
    elif one.kind == "stage":
        read_header(one.path)
    elif one.kind == "dump":
        refuse_dump(one.path)
    else:
        open_any(one.path)


def _terminal() -> bool:
    return (
        sys.stdin.isatty()
        and sys.stdout.isatty()
        and os.environ.get("TERM", "") not in ("", "dumb")
    )


def _instead(kinds: list[str], paths: list[Path]) -> str:
    """The command that does without a terminal what was asked for."""
    names = " ".join(map(quoted, paths))
    if len(paths) > 1:
        return f"aprtui diff {names}"
    if kinds == ["model"]:
        return f"aprtui inspect {names}, aprtui trace {names}"
    if kinds:
        return f"aprtui inspect {names}, aprtui stats {names}"
    return "aprtui inspect PATH, aprtui diff A B, aprtui trace MODEL"
