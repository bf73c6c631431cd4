"""Every writing command on disks of every size class, from one page to room enough; needs root.

    python -m tests.faults.disks [--only NAME]

Each disk is a tmpfs of a size doubling from 4 KiB, and one with a number of files doubling from 2.
On each the command runs as it is, and again believing that there is room, so that the disk fills
in the middle. It has to end with exit code 4 and one sentence, or to have written everything; no
temporary file remains, no file is half, no manifest is untrue, and what was there before stays.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from aprtui.cli.main import heed_signals
from tests.faults.writers import WRITERS, Inputs, Writer, make_inputs, run, tree, wrong

__all__ = ["main"]

COLUMNS = ("disks", "filled", "room enough", "refused beforehand", "violations")
PAGE = 4096


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.disks")
    parser.add_argument("--only", default="", help="writers whose name has this")
    options = parser.parse_args()
    if os.geteuid():
        print("mounting needs root", file=sys.stderr)
        return 2
    heed_signals()  # and unmount
    print(f"| writer | {' | '.join(COLUMNS)} |\n|{'---|' * 6}")
    total: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="aprtui-faults-") as scratch:
        inputs = make_inputs(Path(scratch))
        for writer in (each for each in WRITERS if options.only in each.name):
            counts = _fill(writer, Path(scratch) / "disk", inputs)
            print(f"| {writer.name} | {' | '.join(str(counts[name]) for name in COLUMNS)} |")
            sys.stdout.flush()
            total += counts
    print(f"| all | {' | '.join(str(total[name]) for name in COLUMNS)} |")
    return 1 if total["violations"] else 0


def _fill(writer: Writer, disk: Path, inputs: Inputs) -> Counter[str]:
    after, counts = _undisturbed(writer, disk, inputs), Counter[str]()
    needed = sum(-(-len(raw) // PAGE) * PAGE for raw in after.values())
    sizes = [f"size={PAGE << step}" for step in range(40) if PAGE << step < 4 * needed + PAGE]
    numbers = [f"nr_inodes={2 << step}" for step in range(20) if 2 << step < 4 * len(after) + 8]
    for kind in (*sizes, *numbers):
        for believing in (False, True):
            with _mounted(disk, kind):
                _on(writer, disk / "place", inputs, after, kind, counts, believing=believing)
    return counts


def _on(
    writer: Writer, place: Path, inputs: Inputs, after: dict[str, bytes], kind: str,
    counts: Counter[str], *, believing: bool,
) -> None:  # fmt: skip
    """One run on one disk, which counts only where what has to be there beforehand fits."""
    try:
        place.mkdir()
        if writer.before is not None:
            writer.before(place, inputs)
    except (OSError, shutil.Error):
        return
    before = tree(place)
    ended = run(writer.begin, place, inputs, first=_believe if believing else lambda: None)
    faults = [*wrong(writer, place, before, after, ended, swept=True)]
    whole = all(name in tree(place) for name in after)
    if ended.code in (0, 1) and not whole:
        faults.append(f"exit code {ended.code} and not everything is there")
    if ended.code not in (0, 1, 4):
        faults.append(f"exit code {ended.code}")
    if ended.code == 4 and not ended.said.strip().splitlines()[-1].startswith("aprtui: "):
        faults.append("no sentence says why")
    counts["disks"] += 1
    full = "are free" in ended.said
    names = {0: "room enough", 1: "room enough", 4: "refused beforehand" if full else "filled"}
    counts[names.get(ended.code, "filled")] += 1
    for fault in faults:
        print(f"  {writer.name}, {kind}{', believing' * believing}: {fault}: {ended.said[-200:]}")
    counts["violations"] += len(faults)


def _undisturbed(writer: Writer, disk: Path, inputs: Inputs) -> dict[str, bytes]:
    with _mounted(disk, f"size={1 << 30}"):
        (disk / "place").mkdir()
        if writer.before is not None:
            writer.before(disk / "place", inputs)
        ended = run(writer.begin, disk / "place", inputs)
        assert ended.code in (0, 1), ended.said
        return tree(disk / "place")


def _believe() -> None:
    """Have the program take every disk for one with room."""
    usage = shutil.disk_usage("/")
    shutil.disk_usage = lambda path: usage._replace(free=1 << 50)
    room: Any = SimpleNamespace(f_bavail=1 << 40, f_frsize=PAGE)
    os.fstatvfs = lambda fd: room


@contextmanager
def _mounted(disk: Path, kind: str) -> Iterator[None]:
    disk.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", kind, "tmpfs", str(disk)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(disk)], check=True)


if __name__ == "__main__":
    sys.exit(main())
