"""Name the stages that compute wrongly, and how.

Every stage of capture B is computed again in float64 from B's own inputs and the model's weights.
What honest rounding explains is innocent; what nothing explains is a culprit, with the mistake
that reproduces it where one is known. A, a reference capture, adds where the two first differ.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from aprtui import api
from aprtui.cli.dumps import add_import, as_traces
from aprtui.cli.options import (
    add_adapter,
    add_choice,
    add_overrides,
    add_replay_prompt,
    parse_overrides,
    parse_tokens,
)
from aprtui.cli.output import errors_as_events, print_event, print_json, print_notes
from aprtui.cli.streams import bar_console
from aprtui.compare.bisection import OTHER_MODEL, Bisection, Culprit, Unmeasured, Within
from aprtui.compare.causes import Cause
from aprtui.compare.opening import both_captures, read_capture
from aprtui.compare.reference import find_model
from aprtui.errors import UsageError
from aprtui.formats.perop import is_per_op_side
from aprtui.formats.tracedir import StageKey, TraceDir
from aprtui.text import clean, count, number

if TYPE_CHECKING:
    from aprtui.compare.bisect import Replayer  # torch

__all__ = ["configure", "run", "show_unmeasured"]

_EPILOG = """\
examples:
  aprtui bisect trace --model model.gguf
  aprtui bisect reference suspect --model model.apr --json
  aprtui bisect apr-trace --model model.apr --prompt "What is 2+2?"

local error: a stage against float64 from B's own inputs. inherited: what A's inputs would have made
of it, against B's. leaves: what of the error remains when the mistake is made on purpose.

Where B has no culprit and A differs all the same, A is replayed too.

exit codes: 0 no culprit and everything measured, 1 otherwise, 2 usage, 3 a bad file, 4 the engine
failed"""

_LINES = 12  # of one kind, before the rest is counted
_SUMMED = 3  # causes that the summary names
_TENSORS = 4  # of a cause that are listed

Tell = Callable[[int, int, StageKey], None]


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EPILOG
    parser.add_argument("captures", nargs="+", metavar="[A] B", help="trace directories")
    parser.add_argument(
        "--model",
        metavar="MODEL",
        help="the model that B should have computed (default: the one that the trace names)",
    )
    add_replay_prompt(parser)
    add_adapter(parser)
    add_overrides(parser)
    parser.add_argument(
        "--bar", dest="bars", action="append", default=[], metavar="[STAGES:]METRIC=LIMIT",
        help="another bar for the local error, as rel_l2=1e-4 or 'ffn_*:rel_l2=1e-3'",
    )  # fmt: skip
    add_choice(parser)
    add_import(parser)
    parser.add_argument(
        "--ray", metavar="ADDRESS",
        help="replay layers on a Ray cluster, as sweep --ray: the findings of one process",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="the result as JSON on stdout")
    parser.add_argument(
        "--events", action="store_true", help="progress, then the result, as JSON lines on stdout"
    )


def run(args: argparse.Namespace) -> int:
    return errors_as_events("bisect", _run, args) if args.events else _run(args)


def _run(args: argparse.Namespace) -> int:
    traces = as_traces(args, [Path(name) for name in args.captures])
    return max(_found(args, traces.paths), int(traces.doubtful))


def _found(args: argparse.Namespace, captures: Sequence[Path]) -> int:
    a, b = _captures(captures)
    path, whose = _model(args.model, a, b)
    with _progress(args) as tell, _replayer(args.ray) as replayer:
        found = api.bisect(
            b,
            a=a,
            model=path,
            prompt=args.prompt,
            tokens=parse_tokens(args.tokens),
            stages=args.stages,
            layers=args.layers,
            bars=args.bars,
            overrides=parse_overrides(args.overrides),
            adapter=args.adapter,
            progress=tell,
            replayer=replayer,
        )
    if args.events:
        print_event("result", **found.to_json())
    elif args.json:
        print_json(found.to_json())
    else:
        _show(found, whose)
    return found.exit_code


@contextmanager
def _replayer(address: str | None) -> Iterator[Replayer | None]:
    """Who measures the stages: a cluster, or this process."""
    if address is None:
        yield None
        return
    from aprtui.sweep.bisecting import over_ray
    from aprtui.sweep.cluster import connected

    with connected(address) as ray:
        yield over_ray(ray)


def _captures(names: Sequence[Path]) -> tuple[TraceDir | None, TraceDir]:
    if len(names) > 2:
        raise UsageError("at most two captures can be named", hint="aprtui bisect [A] B --model M")
    if len(names) == 1 and is_per_op_side(names[0] / "cpu"):
        return both_captures(names[0])
    traces = [read_capture(name) for name in names]
    return (traces[0] if len(traces) == 2 else None), traces[-1]


def _model(given: str | None, a: TraceDir | None, b: TraceDir) -> tuple[Path, str]:
    """The model to replay with, and who says that it is this one."""
    if given is not None:
        return Path(given), ""
    path, says = find_model(a, b)
    return path, f", as {says} says"


# -- progress --------------------------------------------------------------------------------------


@contextmanager
def _progress(args: argparse.Namespace) -> Iterator[Tell | None]:
    """How progress is told: JSON lines, a bar on a terminal, or not at all."""
    if args.events:
        yield lambda done, total, key: print_event(
            "progress", done=done, total=total, layer=key.layer, stage=key.stage
        )
    elif args.json or not sys.stderr.isatty():
        yield None
    else:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        columns = (TextColumn("{task.description}", markup=False), BarColumn(),
                   MofNCompleteColumn())  # fmt: skip
        with Progress(*columns, console=bar_console(), transient=True) as bar:
            task = bar.add_task("replaying", total=None)
            yield lambda done, total, key: bar.update(
                task, completed=done, total=total, description=f"{clean(str(key), 60):<28}"
            )


# -- for people ------------------------------------------------------------------------------------


def _show(found: Bisection, whose: str) -> None:
    for line in _verdict(found):
        print(line)
    print()
    for name, path in (("A", found.a), ("B", found.b), ("model", found.model)):
        if path is not None:
            print(f"{name:<5}  {clean(path, 500)}{whose if name == 'model' else ''}")
    _show_culprits(found.causes, "culprits")
    if found.swapped:
        assert found.reference is not None
        _show_culprits(found.reference.causes, "culprits of A")
    if found.explained:
        print("\ninnocent" + (" in B" if found.swapped else ""))
        for by, stages in found.explanations.most_common():
            left = max(e.residual_rel_l2 for e in found.explained if e.by == by)
            print(f"  {count(stages, 'stage')} explained: {clean(by, 300)} (to {number(left, 2)})")
        if found.floor is not None:
            off = number(found.floor.hidden_weight or 0.0, 2)
            where = clean(str(found.floor.key))
            print(f"  one weight off by more than {off} of a typical one of its matrix would be "
                  f"seen (least in {where})")  # fmt: skip
    if found.within:
        _show_within(found)
    if found.unmeasured:
        print("\nunmeasured: nothing is known of these")
        show_unmeasured(found.unmeasured)
    if found.first_divergence is not None:
        pair = found.first_divergence
        print(f"\nA and B first differ at {clean(str(pair.key))}: {clean(pair.message, 300)}")
    print_notes(found.notes)


def _show_within(found: Bisection) -> None:
    """Fused stages of 16 bits, with the one that has most of its bar."""
    print(
        "\nwithin rounding: fused steps of 16 bits; what is left is noise of the size of roundings"
    )
    by_stage: dict[str, list[Within]] = {}
    for item in found.within:
        by_stage.setdefault(item.key.stage, []).append(item)
    for stage, items in by_stage.items():
        most = max(items, key=lambda each: each.units / each.bar_units)
        where = f" at most, in {clean(str(most.key))}" if len(items) > 1 else ""
        print(f"  {count(len(items), 'stage')} {clean(stage)}: {most.text}{where}")


def _verdict(found: Bisection) -> Iterator[str]:
    if found.culprits:
        yield from _summary(found)
    else:
        of_b = "" if found.reference is None else " in B"
        yield f"{found.headline.replace('No culprit', f'No culprit{of_b}', 1)}."
    yield from _verdict_of_a(found)


def _verdict_of_a(found: Bisection) -> Iterator[str]:
    """What A has to do with it, where B has no culprit and they differ."""
    other = found.reference
    if other is None:
        return
    if other.culprits:
        yield "But A, the reference, is wrong:"
        yield from _summary(other)
    elif other.unmeasured:
        left = len(other.unmeasured)
        yield f"Nor in A, but {left} of its stages could not be replayed."
    else:
        yield "Nor in A: what they differ by is rounding that has grown."


def _summary(found: Bisection) -> Iterator[str]:
    """What computes wrongly, in few lines."""
    yield from (f"{note}." for note in found.notes if note[2:].startswith(OTHER_MODEL))
    if found.other_model:
        yield "Nearly every stage that uses weights is wrong: is this the model that was run?"
    causes = found.causes
    if len(causes) == 1:
        yield f"{clean(found.headline)}: {_cause(causes[0], where=len(found.culprits) > 1)}."
        return
    yield f"{clean(found.headline)}."
    for cause in causes[:_SUMMED]:
        yield f"  {_cause(cause, where=True)}"
    if len(causes) > _SUMMED:
        yield f"  and {count(len(causes) - _SUMMED, 'more cause')}"


def _cause(cause: Cause, *, where: bool) -> str:
    """What is wrong, where, and how sure that is."""
    said = clean(cause.text, 300)
    if where and not cause.pattern:
        said = f"{clean(cause.where, 300)}: {said}"
    pattern = f"; {clean(cause.pattern, 200)}" if cause.pattern else ""
    proof = f" ({cause.proof})" if cause.proof else ""
    return f"{said}{pattern}{proof}"


def _show_culprits(causes: Sequence[Cause], title: str) -> None:
    """Each cause once, in the order of its first culprit."""
    if causes:
        print(f"\n{title}, in order of computation")
    for cause in causes:
        _show_cause(cause)
    if named := [cause.id for cause in causes if cause.id]:
        print(f"  aprtui mistakes {named[0]} says where it comes from, and what to check")


def _show_cause(cause: Cause) -> None:
    """One culprit, or several that differ by nothing but place and size of the error."""
    group = cause.culprits
    culprit = max(group, key=lambda each: each.local_rel_l2 or 0.0)
    names = clean(cause.where if len(group) > 1 else str(culprit.key), 500)
    parts = f" [{', '.join(culprit.parts)}]" if culprit.parts else ""
    span = f" (with {', '.join(culprit.span)}, not captured)" if culprit.span else ""
    print(f"  {names}{parts}{clean(span)}{_error(culprit, 'largest ' * (len(group) > 1))}")
    reads = list(dict.fromkeys((each.tensor, each.type) for one in group for each in one.reads))
    if reads:
        listed = ", ".join(f"{tensor} ({kind})" for tensor, kind in reads[:_TENSORS])
        more = f" and {len(reads) - _TENSORS} more" if len(reads) > _TENSORS else ""
        print(f"      weights: {clean(listed, 400)}{more}")
    if cause.pattern:
        print(f"      pattern: {clean(cause.pattern, 300)}")
    if cause.id:
        left = f" ({cause.proof})" if cause.proof else ""
        print(f"      {clean(cause.id)}: {clean(cause.text, 300)}{left}")
    if not cause.id or not (cause.id == "size" or culprit.looks_like.startswith("spread")):
        print(f"      looks like: {clean(culprit.looks_like, 300)}")


def _error(culprit: Culprit, largest: str) -> str:
    if culprit.local_rel_l2 is None or culprit.kind == "nonfinite":
        return ""
    where = f" in {clean(str(culprit.key))}" if largest else ""
    place = ", ".join(f"{axis} {i}" for axis, i in culprit.worst.items())
    error = f"  {largest}local error {number(culprit.local_rel_l2, 3)}{where}, worst at {place}"
    if culprit.where:
        error += f", wrong in {culprit.where}"
    if culprit.inherited_rel_l2 is not None:
        error += f"; inherited {number(culprit.inherited_rel_l2, 2)}"
    return error


def show_unmeasured(items: Sequence[Unmeasured], before: str = "") -> None:
    """Those with the same reason on one line."""
    by_reason: dict[str, list[str]] = {}
    for item in items:
        by_reason.setdefault(item.why, []).append(str(item.key))
    for shown, (why, keys) in enumerate(by_reason.items()):
        if shown == _LINES:
            print(f"  and {count(sum(map(len, list(by_reason.values())[_LINES:])))} more (--json)")
            return
        listed = ", ".join(keys[:4]) + (f" and {len(keys) - 4} more" if len(keys) > 4 else "")
        print(f"  {before}{clean(listed, 300)}: {clean(why, 300)}")
