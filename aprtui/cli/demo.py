"""Make a small language model and two traces of it, one with a planted bug, and open them.

Everything comes from inside the package: no network. The model (5 million parameters, Python
source) is copied twice; in the second copy one block of 256 weights in one matrix is damaged, as a
bad conversion would leave it. Both are traced, and the two traces are opened side by side.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from importlib import resources
from pathlib import Path

import numpy as np

from aprtui.cli.output import print_json
from aprtui.engine.job import TraceJob
from aprtui.engine.plan import make_plan
from aprtui.errors import EngineError
from aprtui.formats.gguf import read_gguf
from aprtui.formats.tracedir import holds_trace
from aprtui.text import clean

__all__ = ["configure", "run"]

PROMPT = "import os\n\ndef read(path):\n    with open("
_DAMAGED = "blk.3.ffn_gate.weight"
_ROW, _FACTOR = 17, -16.0  # a power of two: exact in float16
_Q4_K_BYTES = 144


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-o",
        "--output",
        default="aprtui-demo",
        metavar="DIR",
        help="where to (default: %(default)s)",
    )
    parser.add_argument(
        "--no-open", action="store_true", help="make the files and print their paths"
    )
    parser.add_argument("--json", action="store_true", help="the paths as JSON; implies --no-open")


def run(args: argparse.Namespace) -> int:
    folder = Path(args.output)
    good, bad = folder / "model.gguf", folder / "model-damaged.gguf"
    traces = (folder / "good", folder / "bad")
    _copy_models(folder, good, bad)
    for model, out in zip((good, bad), traces, strict=True):
        _trace(model, out)
    if args.json:
        print_json({"models": [str(good), str(bad)], "traces": [str(trace) for trace in traces]})
        return 0
    if args.no_open or not sys.stdout.isatty():
        print(f"models: {clean(str(good))} and {clean(str(bad))}")
        print(f"look at the traces: aprtui {clean(str(traces[0]))} {clean(str(traces[1]))}")
        print(
            f"name the culprit: aprtui bisect {clean(str(traces[0]))} {clean(str(traces[1]))} "
            f"--model {clean(str(good))}"
        )
        return 0
    from aprtui.cli.main import main

    return main([str(trace) for trace in traces])


def _copy_models(folder: Path, good: Path, bad: Path) -> None:
    """The package's model, and the same with the scales of one Q4_K block multiplied."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        packaged = resources.files("aprtui").joinpath("demo", "pycode-5m.gguf")
        with resources.as_file(packaged) as source:
            shutil.copyfile(source, good)
        entry = read_gguf(good).tensors[_DAMAGED]
        raw = bytearray(good.read_bytes())
        blocks_in_row = entry.shape[1] // 256
        at = entry.offset + _ROW * blocks_in_row * _Q4_K_BYTES
        scales = np.frombuffer(raw, dtype="<f2", count=2, offset=at)
        raw[at : at + 4] = (scales * np.float16(_FACTOR)).astype("<f2").tobytes()
        bad.write_bytes(raw)
    except OSError as error:
        raise EngineError(
            f"{clean(str(folder))}: cannot be written: {error.strerror or error}",
            hint="choose another folder with -o",
        ) from error


def _trace(model: Path, out: Path) -> None:
    from aprtui.engine.run import run_trace

    job = TraceJob(
        model=str(model),
        directory=str(out),
        prompt=PROMPT,
        overwrite=holds_trace(out),
        device="cpu",
    )
    run_trace(make_plan(job), lambda event: None)
