"""Times a trace and the physical floors under it, in one run, and prints a table of ratios.

    python -m tests.benchmarks.trace_speed /tmp/7b.gguf --repeats 5
    python -m tests.benchmarks.trace_speed /tmp/7b.gguf --device cuda --no-process
    python -m tests.benchmarks.trace_speed /tmp/two-layers.gguf --tokens 2000 --no-process

Everything is measured in turn, ``--repeats`` times over, so that what else the machine does weighs
on every row alike. The file should be in the page cache: the first, untimed round reads it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch

from aprtui.engine.capture import Capture
from aprtui.engine.codecs import Codec, codec_of
from aprtui.engine.device import deterministic, resolve_device
from aprtui.engine.folder import trace_folder
from aprtui.engine.forward import BlockSink, forward
from aprtui.engine.job import TraceJob
from aprtui.engine.ops import Pass
from aprtui.engine.plan import PlannedFile, make_plan
from aprtui.engine.weights import BLOCK_VALUES, WeightStream
from aprtui.engine.workers import for_each, one_core
from aprtui.formats.tracedir import StageKey
from aprtui.model.open import Matrix, Model, open_model

_PIECE = 8 << 20  # bytes that a copy moves at a time


@dataclass
class Row:
    """One thing measured: seconds, and which row it is compared with."""

    name: str
    measure: Callable[[], None]
    floor: str = ""
    seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


class Unwatched:
    """A tap that wants nothing."""

    def put(self, key: StageKey, value: torch.Tensor) -> None:
        return None

    def open_blocks(self, key: StageKey) -> BlockSink | None:
        return None


class Bench:
    """The things to measure on one model."""

    def __init__(self, path: Path, device: torch.device, tokens: int, scratch: Path) -> None:
        self.path = path
        self.model: Model = open_model(path)
        self.device = device
        self.tokens = tuple(i * 37 % self.model.graph.vocab_size for i in range(tokens))
        self.scratch = scratch
        self._numbers = itertools.count()
        self.stream = WeightStream(self.model, device, torch.float32)
        widest = max(matrix.columns for matrix in self.matrices())
        self._ones = torch.ones(max(2 * BLOCK_VALUES, 128 * widest, tokens * widest))
        self.peak_memory_bytes: list[int] = []
        self._planned: dict[tuple[str, str], tuple[PlannedFile, ...]] = {}

    def matrices(self) -> list[Matrix]:
        """The matrices that a pass multiplies with."""
        return [
            matrix
            for role, matrix in self.model.weights.items()
            if len(matrix.entry.shape) > 1 and role.name != "embedding"
        ]

    def spans(self, matrix: Matrix) -> list[tuple[int, int]]:
        return self.stream.spans(matrix, len(self.tokens))

    def read_bytes(self) -> None:
        """Every matrix's bytes copied by numpy into memory that is reused."""
        memory = np.empty(_PIECE, np.uint8)
        for matrix in self.matrices():
            stored = codec_of(matrix).bytes_of(0, matrix.rows).numpy()
            for first in range(0, stored.size, _PIECE):
                piece = stored[first : first + _PIECE]
                memory[: piece.size] = piece

    def copy_to_device(self) -> None:
        """The same bytes copied to the device, as torch does it."""
        for matrix in self.matrices():
            codec_of(matrix).bytes_of(0, matrix.rows).to(self.device)
        self._wait()

    def decode(self) -> None:
        """Every matrix dequantised, by blocks, on all threads; nothing multiplied."""
        with one_core():
            for matrix in self.matrices():
                decode = partial(self._decode, codec_of(matrix))
                for_each(decode, self.spans(matrix), self.device)

    def _decode(self, stored: Codec, span: tuple[int, int]) -> None:
        self.stream.decode(stored, *span)

    def multiply(self) -> None:
        """Every product, each with one block that is already decoded and stays in the cache."""
        with one_core():
            for matrix in self.matrices():
                multiply = partial(self._multiply, matrix.columns)
                for_each(multiply, self.spans(matrix), self.device)

    def _multiply(self, columns: int, span: tuple[int, int]) -> None:
        torch.mm(
            self._ones[: len(self.tokens) * columns].view(-1, columns),
            self._ones[: span[1] * columns].view(-1, columns).T,
            out=torch.empty(len(self.tokens), span[1]),
        )

    def untraced(self) -> None:
        self._pass(Unwatched())
        self._wait()

    def traced(self, layers: str, stages: str = "all") -> None:
        with self.capture(layers, stages) as capture:
            self._pass(capture)
            capture.close()

    @contextmanager
    def capture(self, layers: str, stages: str = "all") -> Iterator[Capture]:
        """A capture into a new folder."""
        with trace_folder(self._new_folder()) as folder:
            yield Capture(folder, self.files(layers, stages), lambda event: None, lambda: 0)

    def _new_folder(self) -> Path:
        """As a trace is written: where older files are replaced, ext4 flushes them to the disk."""
        return self.scratch / f"trace-{next(self._numbers)}"

    def files(self, layers: str, stages: str = "all") -> tuple[PlannedFile, ...]:
        """The files of a trace; planned once, which opens the model a second time."""
        if (layers, stages) not in self._planned:
            job = TraceJob(str(self.path), tokens=self.tokens, layers=layers, stages=stages)
            only = {0} if layers == "0" else None  # nor what follows the layers
            self._planned[layers, stages] = tuple(
                file for file in make_plan(job).files if only is None or file.key.layer in only
            )
        return self._planned[layers, stages]

    def process(self) -> None:
        """``aprtui trace --save-tensor all``, from the start of Python to its end."""
        ids = ",".join(map(str, self.tokens))
        prompt = ["--tokens", ids] if len(self.tokens) != 7 else []  # the default one has seven
        command = [sys.executable, "-c", "from aprtui.cli.main import entry; entry()", "trace"]
        options = ["--json", "--device", str(self.device), *prompt]
        where = ["-o", str(self._new_folder())]
        done = subprocess.run(
            [*command, str(self.path), *where, *options], check=True, capture_output=True
        )
        self.peak_memory_bytes.append(json.loads(done.stdout)["peak_memory_bytes"])

    def _pass(self, tap: Unwatched | Capture) -> None:
        with torch.inference_mode():
            forward(self.model.graph, Pass(self.stream, self.tokens), tap)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _run(*command: str) -> Callable[[], None]:
    def measure() -> None:
        subprocess.run([sys.executable, "-c", *command], check=True, capture_output=True)

    return measure


def rows_of(bench: Bench, *, process: bool) -> list[Row]:
    """What is measured, floors first."""
    if bench.device.type == "cuda":
        floor = "copy the bytes to the device"
        rows = [Row(floor, bench.copy_to_device)]
    else:
        floor = "decode alone"
        rows = [
            Row("read the bytes (numpy, one thread)", bench.read_bytes),
            Row("products alone", bench.multiply),
            Row("decode alone", bench.decode),
        ]
    rows += [
        Row("pass, untraced", bench.untraced, floor),
        Row("pass, layer 0 traced", lambda: bench.traced("0"), "pass, untraced"),
        Row("pass, all traced", lambda: bench.traced("all"), "pass, untraced"),
    ]
    if process:
        help_page = "import sys; sys.argv[1:] = ['--help']; from aprtui.cli.main import entry; "
        rows += [
            Row("python -c pass", _run("pass")),
            Row("aprtui --help", _run(help_page + "entry()"), "python -c pass"),
            Row("import torch", _run("import torch"), "python -c pass"),
            Row("aprtui trace, whole process", bench.process, "pass, untraced"),
        ]
    return rows


def report(bench: Bench, rows: Sequence[Row]) -> None:
    known = {row.name: row.median for row in rows}
    print(f"{'':36} {'median':>9} {'min':>8} {'max':>8}   compared with")
    for row in rows:
        versus = f"{row.median / known[row.floor]:.2f} x {row.floor}" if row.floor else ""
        low, high = min(row.seconds), max(row.seconds)
        print(f"{row.name:36} {row.median:7.3f} s {low:8.3f} {high:8.3f}   {versus}")
    if bench.peak_memory_bytes:
        print(f"peak anonymous memory of the process: {max(bench.peak_memory_bytes) / 1e6:.0f} MB")


@deterministic()
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--tokens", type=int, default=7, help="length of the prompt (default: 7)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--no-process", action="store_true", help="measure inside this one alone")
    options = parser.parse_args(arguments)
    device, name = resolve_device(options.device)
    threads = torch.get_num_threads()
    print(f"{options.model.name}, {options.tokens} tokens, {name}, {threads} threads")
    scratch = Path(tempfile.mkdtemp(prefix="aprtui-benchmark-"))
    try:
        bench = Bench(options.model, device, options.tokens, scratch)
        rows = rows_of(bench, process=not options.no_process)
        loads = [os.getloadavg()[0]]
        for repeat in range(options.repeats + 1):
            for row in rows:
                start = time.perf_counter()
                row.measure()
                if repeat:
                    row.seconds.append(time.perf_counter() - start)
            loads.append(os.getloadavg()[0])
        print(f"load average {min(loads):.1f} to {max(loads):.1f}")
        report(bench, rows)
    finally:
        shutil.rmtree(scratch)
    return 0


if __name__ == "__main__":
    sys.exit(main())
