"""A report as a file, by the ending of its name; and what to type to see the same again."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from aprtui.errors import UsageError
from aprtui.formats.atomic import whole_file
from aprtui.report.html import html_report
from aprtui.report.json import json_report
from aprtui.report.markdown import markdown_report
from aprtui.report.model import Report
from aprtui.text import clean

__all__ = ["check_ending", "commands_of", "write_report"]

_WRITERS = {".html": html_report, ".md": markdown_report, ".json": json_report}


def check_ending(output: Path) -> None:
    """Raises UsageError for an ending that says no kind of report."""
    if output.suffix.lower() not in _WRITERS:
        raise UsageError(
            f"{clean(str(output))}: what kind of report?", hint="*.html, *.md or *.json"
        )


def write_report(report: Report, output: Path, *, new: bool = False) -> int:
    """Write it as its ending says, whole or not at all; how many bytes. ``new``: nothing may stand
    there. Raises UsageError, EngineError."""
    check_ending(output)
    written = _WRITERS[output.suffix.lower()](report).encode("utf-8", "backslashreplace")
    with whole_file(output, needed_bytes=len(written), new=new) as file:
        file.write(written)
    return len(written)


def commands_of(
    a: Path, b: Path, output: Path, model: Path | None, more: Sequence[str] = ()
) -> tuple[str, ...]:
    """What to type: the comparison, the bisection where there is a model, the report. ``more`` are
    options of the replay."""
    pair = [str(a), str(b)]
    if model is None:
        return _line("diff", *pair), _line("report", *pair, "-o", str(output))
    named = ["--model", str(model)]
    return (
        _line("diff", *pair, *(() if "--set" in more else named)),
        _line("bisect", *pair, *named, *more),
        _line("report", *pair, *named, *more, "-o", str(output)),
    )


def _line(*words: str) -> str:
    return shlex.join(["aprtui", *words])
