"""`aprtui diff --paths`, and what `verify --paths` says: one engine's ways to the same rows."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from aprtui import api
from aprtui.cli.output import print_json
from aprtui.compare.paths import SCHEMA, WayFound, compare_paths
from aprtui.errors import UsageError
from aprtui.formats.tracedir import TraceDir
from aprtui.text import clean, quoted

__all__ = ["exit_code", "run_paths", "show_ways"]


def run_paths(args: argparse.Namespace) -> int:
    """Compare the traces with the first of them, print, and tell by the exit code."""
    if args.bar or args.save is not None or args.judge is not None or args.markdown:
        raise UsageError("--paths takes no --bar, --save, --judge and --markdown")
    named = [path for path in (args.a, args.b, *args.more) if path is not None]
    traces = [api.open_trace(path) for path in named]
    found = compare_paths(traces)
    if args.json:
        ways = [way.to_json() for way in found]
        print_json({"schema": SCHEMA, "first": str(traces[0].root), "ways": ways})
    else:
        print(f"against {clean(str(traces[0].root))} ({passes_of(traces[0])})")
        show_ways(found, traces[1:])
    return exit_code(found, allow_unmeasured=args.allow_unmeasured)


def exit_code(found: Sequence[WayFound], *, allow_unmeasured: bool) -> int:
    """0: the same, to the bit or within the bar; 1 otherwise."""
    bad = {"differs"} if allow_unmeasured else {"differs", "unmeasured"}
    return int(any(way.verdict in bad for way in found))


def show_ways(
    found: Sequence[WayFound], traces: Sequence[TraceDir], indent: str = "", *, kept: bool = True
) -> None:
    """A line for each way, and the bar where one was needed; ``kept``: the traces stay."""
    wide = max(len(way.name) for way in found)
    for way, trace in zip(found, traces, strict=True):
        print(f"{indent}{way.name:<{wide}}  {way.verdict}: {clean(way.sentence, 500)}")
        print(f"{indent}{'':<{wide}}  {passes_of(trace)}, {way.tokens} tokens in common")
    for bar in dict.fromkeys(way.bar for way in found if way.first is not None):
        print(f"{indent}bar: {clean(bar, 300)}")
    for way, trace in zip(found, traces, strict=True):
        if way.beyond is not None:
            asked = (
                f"aprtui bisect {quoted(trace.root)}" if kept else "--output DIR keeps it to bisect"
            )
            print(f"{indent}is {way.name} wrong by itself? {asked}")
            return


def passes_of(trace: TraceDir) -> str:
    """``4 rows, then 3 of one``: how a trace's rows came."""
    rows = trace.rows
    if rows is None:
        return "rows unknown"
    sizes = [rows.passes.count(each) for each in dict.fromkeys(rows.passes)]
    if len(sizes) == 1:
        return f"{sizes[0]} rows in one pass"
    return f"{len(rows)} rows in {len(sizes)} passes"
