"""`aprtui verify --paths`: each engine's prefill, chunks, decode steps and batch compared."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from aprtui.cli.diff_paths import exit_code, show_ways
from aprtui.cli.options import parse_overrides, parse_tokens
from aprtui.cli.output import print_json
from aprtui.compare.paths import SCHEMA, WayFound, compare_paths
from aprtui.engine.job import TraceJob
from aprtui.engine.plan import check_space, make_batch, make_plan
from aprtui.formats.tracedir import TraceDir, open_trace
from aprtui.text import clean

if TYPE_CHECKING:
    from aprtui.engine.plan import Plan
    from aprtui.model.open import Model

__all__ = ["folder_of", "job_of", "verify_paths"]

_STEPS = 4
_CHUNKS = 3
_ORDER = ("differs", "unmeasured", "within", "same")
_SAID = {
    "same": "the same bits on every path",
    "within": "the same numbers on every path, within the bar",
    "unmeasured": "not every stage could be compared",
    "differs": "not the same on every path",
}


def job_of(args: argparse.Namespace, engine: str, directory: Path) -> TraceJob:
    """What `verify` asks of an engine."""
    foreign = engine == "llamacpp"
    return TraceJob(
        model=args.model,
        directory=str(directory),
        prompt=args.prompt,
        tokens=parse_tokens(args.tokens),
        device="auto" if foreign else args.device,
        dtype="float32" if foreign else args.dtype,
        overwrite=args.overwrite,
        engine=engine,
        adapter=args.adapter or "",
        engine_args=parse_overrides(args.engine_args, "--engine-arg") if foreign else {},
    )


@contextmanager
def folder_of(output: Path | None) -> Iterator[Path]:
    """Where the traces go: the user's folder, or one that is removed at the end."""
    if output is not None:
        yield output
        return
    with tempfile.TemporaryDirectory(prefix="aprtui-verify-") as temporary:
        yield Path(temporary)


def verify_paths(args: argparse.Namespace, engines: Sequence[str], model: Model) -> int:
    """Trace every path of every engine, compare, print, and tell by the exit code."""
    told: dict[str, tuple[WayFound, ...]] = {}
    with folder_of(args.output) as folder:
        for engine in engines:
            traces = _ways(args, engine, folder / engine, model)
            found = compare_paths(list(traces.values()), list(traces))
            told[engine] = found
            if not args.json:
                print(f"{engine}: {_SAID[_worst(found)]}")
                others = list(traces.values())[1:]
                show_ways(found, others, indent="  ", kept=args.output is not None)
    ways = [way for found in told.values() for way in found]
    if args.json:
        engines_json = [
            {"name": name, "verdict": _worst(found), "ways": [way.to_json() for way in found]}
            for name, found in told.items()
        ]
        print_json({"schema": SCHEMA, "model": str(args.model), "engines": engines_json})
    return exit_code(ways, allow_unmeasured=args.allow_unmeasured)


def _worst(found: Sequence[WayFound]) -> str:
    return min((way.verdict for way in found), key=_ORDER.index)


def _ways(args: argparse.Namespace, engine: str, folder: Path, model: Model) -> dict[str, TraceDir]:
    """The prompt decoded, and what came out once more in one pass, in chunks and in a batch."""
    asked = dataclasses.replace(job_of(args, engine, folder), logits="all")
    steps = args.steps or _STEPS

    def at(name: str, **how: object) -> TraceJob:
        return dataclasses.replace(asked, directory=str(folder / name), **how)  # type: ignore[arg-type]

    decoded = _traced(engine, "decoded", [make_plan(at("decoded", steps=steps), model)], args)
    ids = decoded.token_ids or ()
    whole, rows = {"prompt": None, "tokens": ids}, len(ids)
    once = _traced(engine, "prefill", [make_plan(at("prefill", **whole, chunk=rows), model)], args)
    pieces = max(1, -(-rows // _CHUNKS))
    chunked = make_plan(at("chunked", **whole, chunk=pieces), model)
    prompt = ids[: rows - steps]
    longest = model.graph.longest
    more = prompt[:2] if longest is None or rows + 2 <= longest else ()  # pads the prompt itself
    others = ((*prompt[::-1], *more), prompt[: max(1, len(prompt) // 2)])
    batch = make_batch(
        at("batched", prompt=None, tokens=None, steps=steps), (prompt, *others), model
    )
    return {
        "prefill": once,
        "chunked": _traced(engine, "chunked", [chunked], args),
        "decoded": decoded,
        "batched": _traced(engine, "batched", batch, args),
    }


def _traced(engine: str, name: str, plans: Sequence[Plan], args: argparse.Namespace) -> TraceDir:
    """The first of the traces that run together."""
    from aprtui.engine.run import run_traces
    from aprtui.engine.stopping import stopping_on_signals

    check_space(plans)
    if not args.json:
        print(f"{clean(engine)}: {name}", file=sys.stderr)
    with stopping_on_signals():
        run_traces(plans, lambda event: None)
    return open_trace(plans[0].directory)
