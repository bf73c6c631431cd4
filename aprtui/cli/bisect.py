"""Name the stages that compute wrongly, and how.

Every stage of capture B is computed again in float64 from B's own inputs and the model's weights.
What honest rounding explains is innocent; what nothing explains is a culprit, with the mistake
that reproduces it where one is known. A, a reference capture, adds where the two first differ.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from aprtui import api
from aprtui.cli.options import (
    add_choice,
    add_overrides,
    add_replay_prompt,
    parse_overrides,
    parse_tokens,
)
from aprtui.cli.output import print_event, print_json, print_notes
from aprtui.compare.bisection import OTHER_MODEL, Bisection, Culprit, Unmeasured
from aprtui.compare.opening import both_captures, read_capture
from aprtui.compare.reference import find_model
from aprtui.crash import told_of
from aprtui.errors import UsageError
from aprtui.formats.perop import is_per_op_side
from aprtui.formats.tracedir import StageKey, TraceDir
from aprtui.text import clean, count, number, ranges

__all__ = ["configure", "run"]

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
_SUMMED = 3  # kinds of mistakes that the summary names

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
    add_overrides(parser)
    parser.add_argument(
        "--bar", dest="bars", action="append", default=[], metavar="[STAGES:]METRIC=LIMIT",
        help="another bar for the local error, as rel_l2=1e-4 or 'ffn_*:rel_l2=1e-3'",
    )  # fmt: skip
    add_choice(parser)
    parser.add_argument("--json", action="store_true", help="the result as JSON on stdout")
    parser.add_argument(
        "--events", action="store_true", help="progress, then the result, as JSON lines on stdout"
    )


def run(args: argparse.Namespace) -> int:
    if not args.events:
        return _run(args)
    try:
        return _run(args)
    except Exception as error:
        told = told_of(error, "bisect")
        print_event("error", message=told.message, hint=told.hint, exit_code=told.exit_code)
        return told.exit_code


def _run(args: argparse.Namespace) -> int:
    a, b = _captures(args.captures)
    path, whose = _model(args.model, a, b)
    with _progress(args) as tell:
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
            progress=tell,
        )
    if args.events:
        print_event("result", **found.to_json())
    elif args.json:
        print_json(found.to_json())
    else:
        _show(found, whose)
    return found.exit_code


def _captures(names: Sequence[str]) -> tuple[TraceDir | None, TraceDir]:
    if len(names) > 2:
        raise UsageError("at most two captures can be named", hint="aprtui bisect [A] B --model M")
    if len(names) == 1 and is_per_op_side(Path(names[0]) / "cpu"):
        return both_captures(Path(names[0]))
    traces = [read_capture(Path(name)) for name in names]
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
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        columns = (TextColumn("{task.description}", markup=False), BarColumn(),
                   MofNCompleteColumn())  # fmt: skip
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("replaying", total=None)
            yield lambda done, total, key: bar.update(
                task, completed=done, total=total, description=f"{key!s:<28}"
            )


# -- for people ------------------------------------------------------------------------------------


def _show(found: Bisection, whose: str) -> None:
    for line in _verdict(found):
        print(line)
    print()
    for name, path in (("A", found.a), ("B", found.b), ("model", found.model)):
        if path is not None:
            print(f"{name:<5}  {clean(path, 500)}{whose if name == 'model' else ''}")
    _show_culprits(found.culprits, "culprits")
    if found.swapped:
        assert found.reference is not None
        _show_culprits(found.reference.culprits, "culprits of A")
    if found.explained:
        print("\ninnocent" + (" in B" if found.swapped else ""))
        for by, stages in found.explanations.most_common():
            left = max(e.residual_rel_l2 for e in found.explained if e.by == by)
            print(f"  {count(stages, 'stage')} explained: {clean(by, 300)} (to {number(left, 2)})")
    if found.unmeasured:
        print("\nunmeasured: nothing is known of these")
        _show_unmeasured(found.unmeasured)
    if found.first_divergence is not None:
        pair = found.first_divergence
        print(f"\nA and B first differ at {clean(str(pair.key))}: {clean(pair.message, 300)}")
    print_notes(found.notes)


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
    yield f"{clean(found.headline)}."
    texts = Counter((culprit.key.stage, culprit.text) for culprit in found.culprits)
    for (stage, text), times in texts.most_common(_SUMMED):
        layers = f" ({times} layers)" if times > 1 else ""
        yield f"  {clean(stage)}{layers}: {clean(text, 300)}"
    if len(texts) > _SUMMED:
        yield f"  and {count(len(texts) - _SUMMED, 'more kind')}"


def _show_culprits(culprits: Sequence[Culprit], title: str) -> None:
    """Each kind once: the same mistake of the same stage in many layers is one entry."""
    alike: dict[tuple[str, tuple[str, ...], str], list[Culprit]] = {}
    for culprit in culprits:
        alike.setdefault((culprit.key.stage, culprit.parts, culprit.text), []).append(culprit)
    if alike:
        print(f"\n{title}, in order of computation")
    for group in alike.values():
        _show_alike(group)


def _show_alike(group: Sequence[Culprit]) -> None:
    """One culprit, or several that differ by nothing but layer and size of the error."""
    culprit = max(group, key=lambda each: each.local_rel_l2 or 0.0)
    names = clean(str(group[0].key))
    if len(group) > 1:
        layers = [each.key.layer for each in group if each.key.layer is not None]
        names = f"{clean(culprit.key.stage)} of layers {ranges(layers)}"
    parts = f" [{', '.join(culprit.parts)}]" if culprit.parts else ""
    span = f" (with {', '.join(culprit.span)}, not captured)" if culprit.span else ""
    print(f"  {names}{parts}{clean(span)}{_error(culprit, 'largest ' * (len(group) > 1))}")
    mistake = culprit.mistake
    if mistake is not None:
        left = f" (leaves {number(mistake.residual_rel_l2, 2)})" if mistake.id != "size" else ""
        print(f"      {mistake.id}: {clean(mistake.text, 300)}{left}")
    if mistake is None or mistake.id != "size":
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


def _show_unmeasured(items: tuple[Unmeasured, ...]) -> None:
    """Those with the same reason on one line."""
    by_reason: dict[str, list[str]] = {}
    for item in items:
        by_reason.setdefault(item.why, []).append(str(item.key))
    for shown, (why, keys) in enumerate(by_reason.items()):
        if shown == _LINES:
            print(f"  and {count(sum(map(len, list(by_reason.values())[_LINES:])))} more (--json)")
            return
        listed = ", ".join(keys[:4]) + (f" and {len(keys) - 4} more" if len(keys) > 4 else "")
        print(f"  {clean(listed, 300)}: {clean(why, 300)}")
