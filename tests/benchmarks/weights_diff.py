"""Times `aprtui diff MODEL_A MODEL_B` beside reading both files with numpy, and prints the ratios.

    python -m tests.benchmarks.make_model 7b q4_k_m /tmp/7b.gguf
    python -m tests.benchmarks.make_model 7b q8_0 /tmp/7b-like.gguf --values-of q4_k_m
    python -m tests.benchmarks.make_model 7b q8_0 /tmp/7b-other.gguf
    aprtui import /tmp/7b.gguf -o /tmp/7b.apr
    python -m tests.benchmarks.weights_diff /tmp/7b.gguf /tmp/7b.apr /tmp/7b-like.gguf \
        /tmp/7b-other.gguf --rounds 5

Each file after the first is compared with it, in processes of their own, in turn with the reading
and the decoding of the same two files; the first, untimed round brings a pair into the page cache,
which must have room for both.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from aprtui.compare.weight_sides import WeightSide, read_sides
from aprtui.engine.weight_blocks import WeightReader, block_rows, side_by_side
from aprtui.formats.maps import forget_pages
from aprtui.model.operand import Operand

_PIECE = 8 << 20  # bytes read at a time
_COMMAND = [sys.executable, "-c", "from aprtui.cli.main import entry; entry()", "diff"]
_POLL_S = 0.05


@dataclass
class Row:
    """One thing measured, several times over."""

    name: str
    measure: Callable[[], None]
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)

    def run(self) -> None:
        start, cpu = time.perf_counter(), _cpu_s()
        self.measure()
        self.seconds.append(time.perf_counter() - start)
        self.cpu_seconds.append(_cpu_s() - cpu)


@dataclass
class Peak:
    """The most memory that a process held: its own, and with the pages of mapped files."""

    anonymous_kb: int = 0
    resident_kb: int = 0

    def look(self, pid: int) -> None:
        try:
            status = Path(f"/proc/{pid}/status").read_text()
        except OSError:  # not Linux, or it has just ended
            return
        found = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
        for name, key in (("anonymous_kb", "RssAnon"), ("resident_kb", "VmRSS")):
            if key in found:
                held = int(found[key].split()[0])
                setattr(self, name, max(getattr(self, name), held))


def _cpu_s() -> float:
    """Processor time of this process and of those that it has waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def read_with_numpy(paths: tuple[Path, Path]) -> None:
    """Both files' bytes through ``numpy.fromfile``, 8 MiB at a time, one thread."""
    for path in paths:
        with path.open("rb") as file:
            while np.fromfile(file, np.uint8, _PIECE).size:
                pass


def copy_with_numpy(paths: tuple[Path, Path]) -> None:
    """Both files' bytes copied out of ``numpy.memmap``s into memory that is reused, one thread."""
    memory = np.empty(_PIECE, np.uint8)
    for path in paths:
        mapped = np.memmap(path, np.uint8, "r")
        for first in range(0, mapped.size, _PIECE):
            piece = mapped[first : first + _PIECE]
            memory[: piece.size] = piece
            forget_pages(piece)


def decode(sides: tuple[WeightSide, WeightSide]) -> None:
    """Every weight of both decoded in blocks on all threads, and nothing done with it."""
    operands = [Operand(matrix) for side in sides for matrix in side.weights.values()]

    def run(operand: Operand) -> None:
        reader, step = WeightReader(), block_rows(operand.columns)
        for first in range(0, operand.rows, step):
            reader.block(operand, first, min(step, operand.rows - first))
        reader.release()

    side_by_side(run, sorted(operands, key=lambda each: -each.rows * each.columns))


def compare(paths: tuple[Path, Path], peak: Peak) -> None:
    """The command, from the start of Python to its end."""
    running = subprocess.Popen(
        [*_COMMAND, *map(str, paths)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    while running.poll() is None:
        peak.look(running.pid)
        time.sleep(_POLL_S)
    if running.returncode not in (0, 1):
        raise RuntimeError(running.stderr.read().decode() if running.stderr else "")


def measure_pair(paths: tuple[Path, Path], rounds: int) -> None:
    peak, sides = Peak(), read_sides(*paths)
    rows = [
        Row("read both (numpy.fromfile)", lambda: read_with_numpy(paths)),
        Row("copy both (numpy.memmap)", lambda: copy_with_numpy(paths)),
        Row("decode both, all threads", lambda: decode(sides)),
        Row("aprtui diff, whole process", lambda: compare(paths, peak)),
    ]
    for row in rows:
        row.measure()
    loads = [os.getloadavg()[0]]
    for _ in range(rounds):
        for row in rows:
            row.run()
        loads.append(os.getloadavg()[0])
    sizes = " and ".join(f"{path.name} {path.stat().st_size / 1e9:.1f} GB" for path in paths)
    print(f"\n{sizes}; load {min(loads):.1f} to {max(loads):.1f}; medians of {rounds}")
    base = statistics.median(rows[0].seconds)
    for row in rows:
        median, cpu = statistics.median(row.seconds), statistics.median(row.cpu_seconds)
        print(
            f"  {row.name:28} {median:7.2f} s ({min(row.seconds):.2f} - {max(row.seconds):.2f}), "
            f"{cpu:6.2f} s of processor; {median / base:5.2f} x reading"
        )
    print(f"  peak memory: {peak.anonymous_kb / 1e3:.0f} MB anonymous, "
          f"{peak.resident_kb / 1e3:.0f} MB with the pages of mapped files")  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("a", type=Path)
    parser.add_argument("b", type=Path, nargs="+")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    for b in options.b:
        measure_pair((options.a, b), options.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
