"""Make a small language model and two traces of it, one with a planted bug, and open them.

Everything comes from inside the package: no network. The model (5 million parameters, Python
source) is copied twice; in the second copy one block of 256 weights in one matrix is damaged, as a
bad conversion would leave it. Both are traced, and the two traces are opened side by side.
"""

from __future__ import annotations

import argparse
import sys
from importlib import resources
from pathlib import Path

import numpy as np

from aprtui.cli.output import print_json
from aprtui.engine.job import TraceJob
from aprtui.engine.plan import make_plan
from aprtui.errors import EngineError, UsageError
from aprtui.formats.atomic import whole_file
from aprtui.formats.gguf import read_gguf
from aprtui.formats.tracedir import holds_trace
from aprtui.text import clean, quoted

__all__ = ["configure", "run"]

PROMPT = "import os\n\ndef read(path):\n    with open("
_DAMAGED = "blk.3.ffn_gate.weight"
_ROW, _FACTOR = 17, -16.0  # a power of two: exact in float16
_Q4_K_BYTES = 144
_ELSEWHERE = "choose another folder with -o"


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
    models = (folder / "model.gguf", folder / "model-damaged.gguf")
    traces = (folder / "good", folder / "bad")
    _copy_models(folder, models, traces)
    for source, out in zip(models, traces, strict=True):
        _trace(source, out)
    if args.json:
        print_json({"models": [*map(str, models)], "traces": [*map(str, traces)]})
        return 0
    code = 0
    if not args.no_open and sys.stdout.isatty():
        from aprtui.cli.main import main

        code = main([str(trace) for trace in traces])
    good, bad, model, damaged = (quoted(path) for path in (*traces, *models))
    print(f"models: {model} and {damaged}")
    print(f"look at the traces: aprtui {good} {bad}")
    print(f"name the culprit: aprtui bisect {good} {bad} --model {model}")
    return code


def _copy_models(folder: Path, models: tuple[Path, Path], traces: tuple[Path, Path]) -> None:
    """The package's model, and the same with the scales of one Q4_K block multiplied.

    Raises UsageError where something stands that no demo made, EngineError for the disk.
    """
    good, bad = models
    model = resources.files("aprtui").joinpath("demo", "pycode-5m.gguf").read_bytes()
    try:
        if not (good.is_file() and good.read_bytes() == model):  # not made here before
            for path in (*models, *traces):
                if path.exists() or path.is_symlink():
                    raise UsageError(
                        f"{clean(str(path))}: stands there, and no demo made it", hint=_ELSEWHERE
                    )
        _write(good, model)
        entry = read_gguf(good).tensors[_DAMAGED]
        raw = bytearray(model)
        blocks_in_row = entry.shape[1] // 256
        at = entry.offset + _ROW * blocks_in_row * _Q4_K_BYTES
        scales = np.frombuffer(raw, dtype="<f2", count=2, offset=at)
        raw[at : at + 4] = (scales * np.float16(_FACTOR)).astype("<f2").tobytes()
        _write(bad, raw)
    except OSError as error:
        raise EngineError(
            f"{clean(str(folder))}: cannot be written: {error.strerror or error}", hint=_ELSEWHERE
        ) from error


def _write(path: Path, raw: bytes | bytearray) -> None:
    with whole_file(path, parents=True, hint=_ELSEWHERE) as file:
        file.write(raw)


def _trace(model: Path, out: Path) -> None:
    from aprtui.engine.run import run_trace
    from aprtui.engine.stopping import stopping_on_signals

    job = TraceJob(
        model=str(model),
        directory=str(out),
        prompt=PROMPT,
        overwrite=holds_trace(out),
        device="cpu",
    )
    with stopping_on_signals():
        run_trace(make_plan(job), lambda event: None)
