"""Run many models, prompts and engines, and say in one matrix where they differ, and why.

PLAN.toml names models, prompts, engines and what they are held against (docs/sweeps.md). A cell is
a capture, compared with its reference, and replayed where they differ until the stage that computes
wrongly is named. Results are kept by what they were computed from: a second run computes what is
new, a run that was stopped goes on to the same bytes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aprtui.cli.output import check_new_file, print_json
from aprtui.cli.streams import bar_console
from aprtui.cli.sweep_text import show_explained, show_matrix
from aprtui.errors import EngineError, UsageError
from aprtui.formats.atomic import whole_file
from aprtui.sweep.matrix import AXES, ORDERS, Cell, Matrix
from aprtui.sweep.plan import SweepPlan, read_plan
from aprtui.sweep.run import Runner, Serial, Tell, prepare, run_sweep
from aprtui.sweep.store import is_url
from aprtui.text import clean

__all__ = ["configure", "run"]

_RESULTS = "sweep-results"
_EPILOG = """\
examples:
  aprtui sweep nightly.toml --explain
  aprtui sweep nightly.toml -o results
  aprtui sweep nightly.toml -o s3://bucket/results --against s3://bucket/yesterday --json
  aprtui sweep nightly.toml -o results --resume
  aprtui sweep nightly.toml -o results --html sweep.html --junit sweep.xml --sarif sweep.sarif
  aprtui sweep nightly.toml -o /shared/results --ray auto

exit codes: 0 all the same or explained, 1 cells differ, 2 usage, 3 a bad plan, 4 cells failed or
the results cannot be written"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EPILOG
    parser.add_argument("plan", metavar="PLAN.toml", type=Path, help="a file: what to run")
    parser.add_argument(
        "-o", "--output", metavar="DIR|URL", default="",
        help=f"where results are kept: a folder, or any URL that fsspec opens (default: the "
        f"plan's, else {_RESULTS})",
    )  # fmt: skip
    parser.add_argument(
        "--ray", metavar="ADDRESS",
        help="compute on a Ray cluster: local (this machine), auto (the one that runs here) or its "
        "head's address (default: cell by cell in this process)",
    )  # fmt: skip
    parser.add_argument(
        "--resume", action="store_true", help="go on with this sweep, which was begun there"
    )
    parser.add_argument(
        "--against", metavar="DIR|URL", default="",
        help="earlier results: what changed since then comes first",
    )  # fmt: skip
    parser.add_argument(
        "--explain", action="store_true",
        help="print what would run, in bytes, memory and devices, and stop",
    )  # fmt: skip
    show = parser.add_argument_group("the matrix")
    show.add_argument(
        "--rows", metavar="AXES", default="model,prompt",
        help="what goes down, of model, prompt and engine; the others go across (default: "
        "model,prompt)",
    )  # fmt: skip
    show.add_argument(
        "--order", choices=ORDERS, default="changed", help="of the rows (default: changed)"
    )
    for name, what in (
        ("--html", "the matrix as one HTML file"),
        ("--junit", "as JUnit's XML"),
        ("--sarif", "as SARIF 2.1.0, a result for each cell that is wrong"),
    ):
        show.add_argument(
            name, metavar="FILE", type=Path, help=f"also {what}; replaces an older one"
        )
    show.add_argument("--json", action="store_true", help="the matrix as JSON on stdout")


def run(args: argparse.Namespace) -> int:
    rows = tuple(part.strip() for part in args.rows.split(","))
    if not set(rows) < set(AXES) or len(set(rows)) != len(rows):
        raise UsageError(f"--rows {clean(args.rows)}", hint=f"one or two of {','.join(AXES)}")
    for file in (args.html, args.junit, args.sarif):
        if file is not None:
            check_new_file(file, overwrite=True)
    plan = read_plan(args.plan)
    results = _results(args.output, plan)
    with _runner(args.ray) as runner:
        prepared = prepare(plan, results, runner, args.against or None)
        if args.explain:
            runner.close(prepared.scratch)
            show_explained(prepared, results, as_json=args.json)
            return 0 if prepared.planned.jobs else prepared.matrix.exit_code
        with _progress(quiet=args.json) as tell:
            swept = run_sweep(prepared, results, runner, resume=args.resume, tell=tell)
    if args.json:
        print_json(swept.matrix.to_json())
    else:
        show_matrix(swept.matrix, rows, args.order, results)
    _write_files(swept.matrix, args, rows)
    if swept.unwritten:
        raise EngineError(swept.unwritten)
    return swept.matrix.exit_code


def _write_files(matrix: Matrix, args: argparse.Namespace, rows: tuple[str, ...]) -> None:
    """The matrix in the forms that were asked for. Raises EngineError."""
    written: dict[Path, str] = {}
    if args.html is not None:
        from aprtui.sweep.html import html_matrix

        written[args.html] = html_matrix(matrix, rows, args.order)
    if args.junit is not None or args.sarif is not None:
        from aprtui.sweep import ci

        written |= {} if args.junit is None else {args.junit: ci.junit(matrix)}
        written |= {} if args.sarif is None else {args.sarif: ci.sarif(matrix, args.plan)}
    for path, text in written.items():
        with whole_file(path, parents=True) as file:
            file.write(text.encode("utf-8", "backslashreplace"))


def _results(given: str, plan: SweepPlan) -> str:
    where = given or plan.results or _RESULTS
    return where if is_url(where) else str(Path(where).absolute())


@contextmanager
def _runner(address: str | None) -> Iterator[Runner]:
    """Who computes: a cluster, or this process."""
    if address is None:
        yield Serial()
        return
    from aprtui.sweep.cluster import connected
    from aprtui.sweep.on_ray import OnRay

    with connected(address) as ray:
        yield OnRay(ray)


@contextmanager
def _progress(*, quiet: bool) -> Iterator[Tell]:
    """What a person sees while cells come in: a bar with what was found so far."""
    if quiet or not sys.stderr.isatty():
        yield lambda matrix, cell: None
        return
    from rich.progress import (  # fmt: skip
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
        TextColumn("{task.description}", markup=False),
    )  # fmt: skip
    with Progress(*columns, console=bar_console(), transient=True) as bar:
        task = bar.add_task("")

        def tell(matrix: Matrix, cell: Cell | None) -> None:
            left = matrix.counts.get("pending", 0)
            found = ", ".join(f"{n} {v}" for v, n in matrix.counts.items() if v != "pending")
            last = "" if cell is None else f" | {' / '.join(cell.place)}: {cell.finding}"
            total = len(matrix.cells)
            bar.update(task, total=total, completed=total - left, description=clean(found + last))

        yield tell
