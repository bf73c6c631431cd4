"""The long run: every case of a target in one process of its own, with its time and its memory.

Exit code 1 where anything unexpected was raised, a case took over TIME_S, or a target's process
grew by over MEMORY_MB. ``--case`` shows a failure again.
"""

from __future__ import annotations

import argparse
import re
import resource
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

from tests.fuzz.targets import TARGETS, run_case

TIME_S = 5.0
MEMORY_MB = 256
SHOWN = 20  # kinds of failures of one target


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("-n", "--cases", type=int, default=100_000, help="of each target")
    parser.add_argument("--start", type=int, default=0, help="the first case's number")
    parser.add_argument("--case", type=int, help="this one alone, raising what it raises")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    names = args.targets or list(TARGETS)
    if unknown := set(names) - set(TARGETS):
        parser.error(f"no target {', '.join(sorted(unknown))}; there are {', '.join(TARGETS)}")
    if args.case is not None:
        run_case(names[0], args.case, Path(tempfile.mkdtemp(prefix="fuzz-")))
        return 0
    if args.child:
        return _run(names[0], args.start, args.cases)
    print(f"{'target':<12} {'cases':>9} {'time':>8} {'slowest':>9} {'grew by':>9}  failures")
    code = 0
    for name in names:
        line = [sys.executable, "-m", "tests.fuzz", name, "--child"]
        line += ["-n", str(args.cases), "--start", str(args.start)]
        code |= subprocess.run(line, check=False).returncode
    return int(code != 0)


def _run(name: str, start: int, cases: int) -> int:
    """One target's cases, and its line of the table."""
    folder = Path(tempfile.mkdtemp(prefix=f"fuzz-{name}-", dir=_memory_disk()))
    run_case(name, start, folder)  # what is imported only now counts as nobody's
    before, began, slowest, slow_case = _peak_mb(), time.monotonic(), 0.0, start
    failures: Counter[str] = Counter()
    first: dict[str, int] = {}
    for number in range(start, start + cases):
        case_began = time.process_time()  # a machine that is busy otherwise slows no case
        try:
            run_case(name, number, folder)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            kind = _kind(error)
            failures[kind] += 1
            first.setdefault(kind, number)
        elapsed = time.process_time() - case_began
        if elapsed > slowest:
            slowest, slow_case = elapsed, number
    grown = _peak_mb() - before
    total = time.monotonic() - began
    print(
        f"{name:<12} {cases:>9,} {total:>6.0f} s {slowest * 1000:>6.0f} ms {grown:>6.0f} MB  "
        f"{sum(failures.values()) or 'none'}",
        flush=True,
    )
    for kind, count in failures.most_common(SHOWN):
        print(f"    {count:>7,} x {kind} (case {first[kind]})", flush=True)
    if slowest > TIME_S:
        print(f"    case {slow_case} took {slowest:.1f} s", flush=True)
    return int(bool(failures) or slowest > TIME_S or grown > MEMORY_MB)


def _kind(error: BaseException) -> str:
    """Where in the program it was raised, and what, without what differs from case to case."""
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if "aprtui" in frame.filename
    ]
    where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"
    said = re.sub(r"\d+", "N", str(error).split("\n", 1)[0])[:100]
    return f"{type(error).__name__} at {where}: {said!a}"


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _memory_disk() -> str | None:
    """A million files are written: where there is one, to a disk in memory."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


if __name__ == "__main__":
    sys.exit(main())
