"""The terminal UI's numbers in a real pseudo-terminal, each beside its bar.

    python -m tests.benchmarks.ui [--only NAME ...] [--model MODEL] [--keep FOLDER]

Bars: docs/tui.md section 4 (120x40, 2 cores, nothing else running). Makes a trace directory of
10,000 files and a stage file of 800 MB in a temporary folder, or in FOLDER, where they stay.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aprtui.formats.aprt import create_stage, write_stage
from aprtui.formats.tracedir import SCHEMA, write_manifest
from aprtui.graph.vocabulary import STAGES, WHOLE_MODEL_STAGES
from aprtui.tui.running import running_pid
from aprtui.writer import CaptureWriter
from tests.benchmarks.make_model import SHAPES, write_model
from tests.pty.terminal import DEADLINE_S, Terminal, in_terminal

FILES = 10_000
LARGE_BYTES = 1 << 30
BIG_VALUES = 200_000_000
REPEATS = 15
BETWEEN_FRAMES_S = 0.004  # a frame's bytes come closer together, two frames 33 ms apart
PROMPT = "def softmax(values, axis): return values / sum(values, axis) " * 12


@dataclass(frozen=True)
class Row:
    """One line of the table; ``bar`` and ``found`` in ``unit``."""

    what: str
    found: float
    bar: float
    unit: str

    def __str__(self) -> str:
        verdict = "ok" if self.found <= self.bar else "MISSED"
        return f"{self.what:<58} {self.found:>10.4g} {self.bar:>8g} {self.unit:<6} {verdict}"


# -- what is measured ------------------------------------------------------------------------------


def first_frame(folder: Path) -> Iterator[Row]:
    """From the start of the process to the first words, and to the list of stages."""
    trace = many_files(folder / "many")
    words, stages, cpu, early = [], [], [], []
    for _ in range(5):
        begin = time.monotonic()
        with in_terminal(str(trace)) as terminal:
            terminal.until(lambda: terminal.text.strip() != "", 0.002)
            words.append(time.monotonic() - begin)
            early.append(cpu_s(terminal.process.pid))
            terminal.until(lambda: "10000" in terminal.text and "rms" in terminal.text, 0.002)
            stages.append(time.monotonic() - begin)
            cpu.append(cpu_s(terminal.process.pid))
            quit_app(terminal)
    yield Row("first frame, 10,000 files: words", statistics.median(words), 0.5, "s")
    yield Row("  processor time until then", statistics.median(early), 0.5, "s")
    yield Row("first frame, 10,000 files: stages and panes", statistics.median(stages), 0.5, "s")
    yield Row("  processor time until then", statistics.median(cpu), 0.5, "s")


def keys_and_bytes(folder: Path) -> Iterator[Row]:
    """Key to paint and bytes sent, where a cursor moves in a list, a grid and from stage to stage.

    A move to another stage draws another pane: it is a page, not a cursor move.
    """
    with in_terminal(str(many_files(folder / "many"))) as terminal:
        terminal.until_text("complete")
        terminal.until_quiet()
        yield from moves(terminal, "stage to stage, histogram", "j", "k", 15_000)
        terminal.press("2\t")
        terminal.until_quiet()
        yield from moves(terminal, "cursor in values", "j", "k", 1024)
        terminal.press("\t")
        terminal.until_quiet()
        yield from moves(terminal, "page of stages", "\x04", "\x15", 15_000)
        before = len(terminal.raw)
        idle(terminal, 5.0)
        yield Row("bytes in an idle second", (len(terminal.raw) - before) / 5, 0, "B")
        yield Row("torch in the UI's process", float(has_torch(terminal)), 0, "")
        quit_app(terminal)


def diff_keys(folder: Path) -> Iterator[Row]:
    """The cursor over 10,000 pairs: each move draws the facts of another pair, as a page does."""
    trace = many_files(folder / "many")
    with in_terminal(str(trace), str(trace)) as terminal:
        terminal.until_text("10,000 of 10,000 pairs", within_s=600)
        terminal.until_quiet()
        yield from moves(terminal, "diff, cursor in the grid", "l", "h", 15_000)
        yield from moves(terminal, "diff, page of the grid", "\x04", "\x15", 15_000)
        terminal.press("s")
        terminal.until_text("worst first")
        terminal.until_quiet()
        idle(terminal, 1.0)
        yield from moves(terminal, "diff, cursor in the list", "j", "k", 15_000)
        before = len(terminal.raw)
        idle(terminal, 5.0)
        yield Row("diff, bytes in an idle second", (len(terminal.raw) - before) / 5, 0, "B")
        quit_app(terminal)


def pictures(folder: Path) -> Iterator[Row]:
    """Heatmaps of noise, the dearest there is, and of attention: as over SSH, in true colour."""
    trace = noisy_stages(folder / "noisy")
    far = "10.0.0.1 5022 10.0.0.2 22"
    with in_terminal(str(trace), COLORTERM="truecolor", SSH_CONNECTION=far) as terminal:
        terminal.until_text("attn_softmax")
        terminal.press("j4")
        terminal.until_text("f finer,")
        terminal.until_quiet()
        yield from moves(terminal, "stage to stage, heatmap over SSH", "j", "k", 15_000)
        terminal.press("\t")
        terminal.until_text("j k move")
        terminal.press("jk")
        terminal.until_quiet()
        yield from moves(terminal, "cursor in the heatmap", "l", "h", 1024)
        terminal.press("7")
        terminal.until_text("head 0 of")
        terminal.until_quiet()
        yield from moves(terminal, "cursor in a head", "j", "k", 1024)
        yield from moves(terminal, "head to head", "p", "P", 15_000)
        quit_app(terminal)


def home(folder: Path) -> Iterator[Row]:
    """Home's list and the Overview's grid over SSH, where neighbours look different throughout."""
    for number in range(2):
        deep_trace(folder / "home" / f"t{number}", number)
    far = "10.0.0.1 5022 10.0.0.2 22"
    here = {"COLORTERM": "truecolor", "SSH_CONNECTION": far, "PYTHONPATH": str(Path.cwd())}
    for size in ((120, 40), (80, 24), (200, 60)):
        said = f"{size[0]}x{size[1]}"
        with in_terminal(cwd=folder / "home", size=size, **here) as terminal:
            terminal.until_text("240 stages")
            terminal.until_quiet()
            yield from moves(terminal, f"Home, trace to trace, {said}", "j", "k", 15_000, 2.0)
            quit_app(terminal)
        with in_terminal(str(folder / "home" / "t0"), size=size, cwd=folder, **here) as terminal:
            terminal.until_text("complete")
            terminal.until_quiet()
            before = len(terminal.raw)
            terminal.press("O")
            idle(terminal, 2.0)
            yield Row(f"Overview opened, {said}: bytes", len(terminal.raw) - before, 15_000, "B")
            terminal.press("\t")
            terminal.until_quiet()
            yield from moves(terminal, f"cursor in the Overview, {said}", "l", "h", 15_000)
            yield from moves(terminal, f"Overview, layer to layer, {said}", "j", "k", 15_000)
            yield from moves(terminal, f"Overview, tab out and in, {said}", "\t", "\t", 15_000)
            quit_app(terminal)


def big_file(folder: Path) -> Iterator[Row]:
    """Memory while every pane of an 800 MB file is looked at."""
    file = folder / "layer-0" / "ffn_gate.bin"
    if not file.exists():
        with create_stage(file, 0, (BIG_VALUES,)) as values:
            generator = np.random.default_rng(1)
            for start in range(0, BIG_VALUES, 1 << 22):
                part = values[start : start + (1 << 22)]
                part[:] = generator.standard_normal(part.size, dtype=np.float32)
    with in_terminal(str(file)) as terminal:
        terminal.until_text("ffn_gate")
        peaks = {"RssAnon": 0, "RssFile": 0}
        for pane in "34512":
            terminal.press(pane)
            end = time.monotonic() + 12.0
            while time.monotonic() < end:
                terminal.read(0.05)
                for name in peaks:
                    peaks[name] = max(peaks[name], memory_bytes(terminal.process.pid, name))
        quit_app(terminal)
    yield Row("UI memory, 800 MB file (RssAnon)", peaks["RssAnon"] / 1e6, 120, "MB")
    yield Row("  mapped pages resident at the same time (RssFile)",
              peaks["RssFile"] / 1e6, 400, "MB")  # fmt: skip


def during_a_trace(folder: Path, model: Path | None) -> Iterator[Row]:
    """Keys, bytes, stopping and quitting while the engine computes what takes it a while."""
    copy = folder / (model.name if model is not None else "half-a-billion.gguf")
    if model is None and not copy.exists():
        write_model(copy, SHAPES["0.5b"], "q8_0")
    elif model is not None and not copy.exists():
        copy.symlink_to(model.resolve())
    with running(copy) as terminal:
        begin, before = time.monotonic(), len(terminal.raw)
        idle(terminal, 1.0)
        sent = (len(terminal.raw) - before) / (time.monotonic() - begin)
        times = []
        for key in "jkjkjkjk":
            times.append(key_to_paint(terminal, key))
            idle(terminal, 0.05)
        begin = time.monotonic()
        terminal.press("x")
        terminal.until(lambda: "stop" in "".join(terminal.text.splitlines()[:2]), 0.002)
        stopping = time.monotonic() - begin
    yield Row("bytes in a second of a running trace", sent, 25_000, "B")
    yield Row("key to paint while a trace runs, median",
              1000 * statistics.median(times), 40, "ms")  # fmt: skip
    yield Row("stop visible after x", stopping, 0.2, "s")
    with running(copy) as terminal:
        terminal.press("\x11")
        terminal.until_text("leave it running")
        begin = time.monotonic()
        terminal.press("s")
        terminal.until(lambda: terminal.process.poll() is not None, 0.002)
        quitting = time.monotonic() - begin
        left = running_pid(copy.parent / f"{copy.stem}-trace")
    yield Row("quit during a trace, from the answer to the end", quitting, 0.5, "s")
    yield Row("processes left behind", float(left is not None), 0, "")


# -- how -------------------------------------------------------------------------------------------


def many_files(root: Path) -> Path:
    """A complete trace of FILES small stages."""
    if (root / "trace.json").exists():
        return root
    stages = [kind.name for kind in STAGES if kind.name not in WHOLE_MODEL_STAGES][:16]
    values = np.arange(24, dtype=np.float32)
    entries = []
    for number in range(FILES):
        layer, place = divmod(number, len(stages))
        path = f"layer-{layer}/{stages[place]}.bin"
        write_stage(root / path, layer, values)
        entries.append({
            "path": path, "shape": [3, 8], "axes": ["token", "hidden"], "positions": "all",
            "bytes": 108, "stats": {"min": 0.0, "max": 23.0, "rms": 13.5, "nan": 0, "inf": 0},
        })  # fmt: skip
    write_manifest(root, {"schema": SCHEMA, "stages": entries})
    return root


def deep_trace(root: Path, seed: int) -> None:
    """Forty layers, no two neighbours of which hold values of the same size."""
    if (root / "trace.json").exists():
        return
    rng = np.random.default_rng(seed)
    stages = ("attn_norm", "attn_out", "attn_residual", "ffn_norm", "ffn_gate", "ffn_out")
    with CaptureWriter(root, tokens=[1, 2], engine={"name": "noise"}) as out:
        for layer in range(40):
            for stage in stages:
                size = np.exp(3 * rng.standard_normal())
                out.put(stage, np.full((2, 8), size, np.float32), layer=layer)


def noisy_stages(root: Path) -> Path:
    """A layer of attention of 64 tokens and two stages of 3,584 channels."""
    if (root / "trace.json").exists():
        return root
    rng = np.random.default_rng(2)
    with CaptureWriter(root, tokens=[*range(64)], engine={"name": "noise"}) as out:
        scores = np.exp(2 * rng.standard_normal((8, 64, 64))) * np.tril(np.ones((64, 64)))
        weights = scores / scores.sum(axis=2, keepdims=True)
        out.put("attn_softmax", weights.astype(np.float32), layer=0)
        for stage in ("ffn_gate", "ffn_up"):
            out.put(stage, rng.standard_normal((64, 3584)).astype(np.float32), layer=0)
    return root


@contextlib.contextmanager
def running(model: Path) -> Iterator[Terminal]:
    """The Trace screen with a trace that takes a while, once its first files are there."""
    shutil.rmtree(model.parent / f"{model.stem}-trace", ignore_errors=True)
    with in_terminal(str(model)) as terminal:
        terminal.until_text("Tensors")
        terminal.press("t")
        terminal.until_text("files")
        terminal.press("\r")  # into the form
        terminal.until_text("esc leave")
        if model.stat().st_size < LARGE_BYTES:  # the prompt that is there takes a large one seconds
            terminal.press("\x1b[200~" + PROMPT + "\x1b[201~")
        terminal.press("\r")
        terminal.until_quiet()
        terminal.press("r")
        terminal.until_text("files/s")
        yield terminal


def moves(terminal: Terminal, what: str, there: str, back: str, bar: float, rest_s: float = 0.4
) -> Iterator[Row]:  # fmt: skip
    """Press two keys in turn; the median time to paint, of it the app's on a processor (which
    hardly depends on what else is at work), and the largest number of bytes."""
    times, busy, sent = [], [], []
    for number in range(REPEATS):
        before, ran = len(terminal.raw), on_a_processor_s(terminal.process.pid)
        times.append(key_to_paint(terminal, there if number % 2 == 0 else back))
        busy.append(on_a_processor_s(terminal.process.pid) - ran)
        idle(terminal, rest_s)
        sent.append(len(terminal.raw) - before)
    yield Row(f"{what}: key to paint, median", 1000 * statistics.median(times), 20, "ms")
    yield Row("  on a processor, median", 1000 * statistics.median(busy), 20, "ms")
    yield Row(f"{what}: bytes, most", max(sent), bar, "B")


def key_to_paint(terminal: Terminal, key: str) -> float:
    """Until the last byte of the first frame: reading it into a screen is no part of it."""
    begin = last = time.monotonic()
    found, wait_s = b"", DEADLINE_S
    terminal.press(key)
    while select.select([terminal.master], [], [], wait_s)[0]:
        found += os.read(terminal.master, 1 << 16)
        last, wait_s = time.monotonic(), BETWEEN_FRAMES_S
    terminal.take(found)
    return last - begin


def idle(terminal: Terminal, seconds: float) -> None:
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        terminal.read(left)


def quit_app(terminal: Terminal) -> None:
    terminal.press("\x11")
    terminal.wait()


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def on_a_processor_s(pid: int) -> float:
    """Of the thread that draws, by the scheduler's account."""
    return int(Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()[0]) / 1e9


def memory_bytes(pid: int, name: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return 1024 * int(line.split()[1])
    return 0


def has_torch(terminal: Terminal) -> bool:
    return "libtorch" in Path(f"/proc/{terminal.process.pid}/maps").read_text()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="what is traced, in place of one that is made")
    parser.add_argument("--keep", type=Path, metavar="FOLDER")
    parser.add_argument("--only", nargs="*", default=[])
    options = parser.parse_args()
    parts: dict[str, Callable[[Path], Iterator[Row]]] = {
        "first": first_frame,
        "keys": keys_and_bytes,
        "diff": diff_keys,
        "pictures": pictures,
        "home": home,
        "big": big_file,
        "trace": lambda folder: during_a_trace(folder, options.model),
    }
    print(f"{'what':<58} {'measured':>10} {'bar':>8}   (load {os.getloadavg()[0]:.1f})")
    with contextlib.ExitStack() as stack:
        folder = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        for name, part in parts.items():
            if not options.only or name in options.only:
                for row in part(folder):
                    print(row, flush=True)


if __name__ == "__main__":
    main()
