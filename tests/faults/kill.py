"""Every writing command ended at random moments, by SIGKILL, SIGTERM, SIGINT and SIGHUP in turn.

    python -m tests.faults.kill [--kills 1000] [--seed N] [--only NAME]

After each: every file is as it was or as it should become, no manifest is untrue, nothing is left
behind (of SIGKILL temporary files may be), no traceback. After SIGKILL the same command then runs
undisturbed, and has to leave what it leaves in an empty folder and to collect what the killed one
left.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.faults.writers import PART, WRITERS, Ended, Inputs, Writer, make_inputs, run, tree, wrong

__all__ = ["main"]

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
COLUMNS = ("killed while it ran", "done before", "temporary files left", "collected", "violations")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.kill")
    parser.add_argument("--kills", type=int, default=1000, help="in all (default: 1000)")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    parser.add_argument("--only", default="", help="writers whose name has this")
    options = parser.parse_args()
    chance = random.Random(options.seed)
    chosen = [writer for writer in WRITERS if options.only in writer.name]
    print(f"seed {options.seed}\n\n| writer | {' | '.join(COLUMNS)} |\n|{'---|' * 6}")
    total: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="aprtui-faults-") as scratch:
        inputs = make_inputs(Path(scratch))
        for writer in chosen:
            kills = -(-options.kills // len(chosen))
            counts = _kill(writer, Path(scratch) / "place", inputs, kills, chance)
            print(f"| {writer.name} | {' | '.join(str(counts[name]) for name in COLUMNS)} |")
            sys.stdout.flush()
            total += counts
    print(f"| all | {' | '.join(str(total[name]) for name in COLUMNS)} |")
    return 1 if total["violations"] else 0


def _kill(
    writer: Writer, place: Path, inputs: Inputs, kills: int, chance: random.Random
) -> Counter[str]:
    before = _prepared(writer, place, inputs)
    start = time.monotonic()
    ended = run(writer.begin, place, inputs)
    took_s = time.monotonic() - start
    assert ended.code in (0, 1), ended.said  # 1: a difference that was found
    after = tree(place)
    counts: Counter[str] = Counter()
    for number in range(kills):
        _prepared(writer, place, inputs)
        which = SIGNALS[number % len(SIGNALS)]
        moment_s = chance.uniform(0, took_s)
        ended = run(writer.begin, place, inputs, lambda pid: _end(pid, moment_s, which))  # noqa: B023
        swept = which == signal.SIGINT or (writer.a_command and which != signal.SIGKILL)
        faults = [*wrong(writer, place, before, after, ended, swept=swept)]
        faults += _code(ended, which)
        left = _parts(place)
        counts["temporary files left"] += left
        counts["done before" if ended.code in (0, 1) else "killed while it ran"] += 1
        if which == signal.SIGKILL:
            faults += _finished(writer, place, inputs, after)
            counts["collected"] += left - _parts(place)
        for fault in faults:
            print(f"  {writer.name}, {which.name} after {moment_s:.3f} s: {fault}")
        counts["violations"] += len(faults)
    return counts


def _prepared(writer: Writer, place: Path, inputs: Inputs) -> dict[str, bytes]:
    """The folder as it is before; what lies in it."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    if writer.before is not None:
        writer.before(place, inputs)
    return tree(place)


def _end(pid: int, moment_s: float, which: signal.Signals) -> None:
    time.sleep(moment_s)
    os.kill(pid, which)


def _code(ended: Ended, which: signal.Signals) -> list[str]:
    """A command's code says that it was stopped; one that has not begun ends as Python does."""
    if ended.code in (0, 1, -which, 128 + which, 128 + signal.SIGINT):
        return []
    return [f"exit code {ended.code}: {ended.said.strip()[-200:]}"]


def _finished(writer: Writer, place: Path, inputs: Inputs, after: dict[str, bytes]) -> list[str]:
    """What does not hold once the same was done undisturbed."""
    if writer.name.endswith("--resume") and (place / "t" / "trace.json").exists():
        return []  # it was done before
    ended = run(writer.again, place, inputs)
    if ended.code not in (0, 1):
        return [f"cannot be done again: {ended.code} {ended.said.strip()[-200:]}"]
    faults = [*wrong(writer, place, {}, after, ended, swept=True)]
    return faults + [f"not made again: {name}" for name in after if name not in tree(place)]


def _parts(place: Path) -> int:
    return sum(bool(PART.fullmatch(path.name)) for path in place.rglob(".aprtui-*"))


if __name__ == "__main__":
    sys.exit(main())
