"""A report of what is compared, from what the screens have measured already."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from textual.message import Message

from aprtui.errors import AprtuiError
from aprtui.text import clean, size

if TYPE_CHECKING:
    from aprtui.compare.bisection import Bisection
    from aprtui.compare.pairs import PairResult
    from aprtui.formats.tracedir import TraceDir

__all__ = ["Reporting", "Written", "report_to"]


@dataclass(frozen=True)
class Reporting:
    """Both captures, what comparing them found, and what a replay found, where one was run."""

    a: TraceDir
    b: TraceDir
    results: tuple[PairResult, ...]
    found: Bisection | None
    other_prompts: bool


@dataclass
class Written(Message):
    """A report was written, or why not, in clean words."""

    said: str


def report_to(job: Reporting, output: Path) -> str:
    """Write the report; a note that says what happened."""
    from aprtui.compare.diff import faced  # here: a screen comes sooner without a report's rooms
    from aprtui.model.open import open_model
    from aprtui.report.bookmarks import bookmarks_on
    from aprtui.report.build import build_report
    from aprtui.report.write import commands_of, write_report

    where = clean(output.name if output.parent == Path.cwd() else str(output))
    if os.path.lexists(output):
        return f"{where} is there already: nothing written"
    named = job.found.model if job.found is not None else ""
    try:
        model = open_model(Path(named)) if named else None
        comparison = replace(
            faced(job.a, job.b, ignore_tokens=job.other_prompts), results=job.results
        )
        report = build_report(
            job.a, job.b, comparison, model=model, bisection=job.found,
            commands=commands_of(job.a.root, job.b.root, output, Path(named) if named else None),
            marked=bookmarks_on((job.a.root, job.b.root)),
        )  # fmt: skip
        written = write_report(report, output, new=True)
    except AprtuiError as error:
        return f"! {clean(str(error))}"
    marks = f", {len(report.marked)} marked" if report.marked else ""
    return f"wrote {where}, {size(written)}{marks}: {clean(report.headline, 120)}"
