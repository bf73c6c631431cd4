"""Times a trace on a CUDA device against the floor of copying the file's bytes there, in one run.

    python -m tests.benchmarks.make_model 7b q4_k_m /tmp/7b.gguf
    python -m tests.benchmarks.gpu /tmp/7b.gguf --repeats 5
    python -m tests.benchmarks.gpu /tmp/7b.gguf --device cuda:0,cuda:1
    python -m tests.benchmarks.gpu /tmp/7b.gguf --dtype bfloat16 --tokens 512 --no-compare

Every row is measured in turn, ``--repeats`` times over, after an untimed round that reads the file
into the page cache and compiles the kernels. Then the values are compared with the CPU's: decoded
weights bit for bit, stages by relative RMS. The exit code is 1 where they differ by more than the
bar. ``--device cpu`` runs the same, to try the script out; its rows then have no meaning.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from aprtui.engine.codecs import codec_of
from aprtui.engine.device import Devices, deterministic, resolve_devices
from aprtui.engine.forward import forward
from aprtui.engine.job import DTYPES
from aprtui.engine.kernels import decoder_name, same_bits
from aprtui.engine.ops import Pass
from aprtui.engine.placement import Placement, Room, layer_bytes, place
from aprtui.engine.staging import Staging
from aprtui.engine.weights import WeightStream, largest_block_bytes, working_bytes
from aprtui.errors import UsageError
from aprtui.formats.tracedir import StageKey
from aprtui.graph import Role
from tests.benchmarks.trace_speed import Bench, Row, report
from tests.engine.test_unchanged import Keeping

_BAR = 1e-5  # relative RMS of a stage, device against CPU (docs/numerics.md 1); longer: 3e-5
_LONG = 500
_CPU = torch.device("cpu")

COPY, UNTRACED, AGAIN = "copy the bytes to the device", "pass, untraced", "again, untraced"
ALL_AGAIN, WRITER = "again, all traced", "the writer alone"
_STEP = "post_ffn_residual"  # the one stage a layer
# What issue 18 asks for: a row at most so many times another, what the writer takes alone left out.
AIMS = {
    "layer 0 traced": 1.25,
    "all traced": 2.0,
    ALL_AGAIN: 1.25,
    "again, one stage a layer": 1.05,
}


@dataclass
class Measured(Row):
    """A row, and the most memory that its runs used on the device."""

    peak_bytes: list[int] = field(default_factory=list)


class GpuBench(Bench):
    """The same model streamed, and kept on the devices."""

    def __init__(
        self,
        path: Path,
        devices: Devices,
        tokens: int,
        scratch: Path,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(path, devices.first, tokens, scratch)
        self.devices = tuple(devices.titles)
        streamed, kept = (self._place(devices, keep) for keep in (False, True))
        self.streaming = self.stream = WeightStream(self.model, streamed, dtype)
        self.keeping = WeightStream(self.model, kept, dtype)
        slot_bytes = largest_block_bytes(self.model, self.device)
        self._staging = Staging(self.device, slot_bytes) if self.device.type == "cuda" else None

    def _place(self, devices: Devices, keep: bool) -> Placement:
        if self.device.type != "cuda":
            whole = Placement.whole(self.model, self.device)
            return replace(whole, kept=frozenset({*range(len(whole.layers)), None} if keep else ()))
        spare = 4 * working_bytes(self.model, self.device)
        rooms = [Room(each, torch.cuda.mem_get_info(each)[0] - spare) for each in self.devices]
        return place(layer_bytes(self.model), rooms, keep=keep, spread=devices.named)

    @torch.inference_mode()
    def copy_staged(self) -> None:
        """The bytes of every matrix through pinned buffers to the device; nothing is computed."""
        for matrix in self.matrices():
            codec = codec_of(matrix)
            for first, rows in self.streaming.spans(matrix):
                pieces = codec.pieces_of(first, rows)
                if self._staging is None:
                    torch.cat([piece.reshape(-1) for piece in pieces])
                else:
                    with self._staging.on_device(pieces):
                        pass
        self._wait()

    @torch.inference_mode()
    def decode_there(self) -> None:
        """Every kept matrix decoded on its device; nothing multiplied."""
        for role in self.model.weights:
            if len(self.model.weights[role].entry.shape) > 1 and role.name != "embedding":
                for _ in self.keeping.blocks(role):
                    pass
        self._wait()

    def write_alone(self) -> None:
        """The files of a whole trace written from host memory by the writer; nothing computed."""
        with self.capture("all") as capture:
            for file in self.files("all"):
                capture.close_blocks(file, self._host_values[: math.prod(file.shape)], None)
            capture.close()

    @cached_property
    def _host_values(self) -> npt.NDArray[np.float32]:
        largest = max(math.prod(file.shape) for file in self.files("all"))
        return np.random.default_rng(1).standard_normal(largest, dtype=np.float32)

    def on(self, stream: WeightStream, measure: Callable[[], None]) -> Callable[[], None]:
        """Measured with one of the two streams."""

        def measured() -> None:
            self.stream = stream
            measure()

        return measured

    def rows(self) -> list[Measured]:
        """What is measured, floors first. The kept stream's untimed round uploads."""
        streaming, keeping = self.streaming, self.keeping
        traced = {layers: (lambda layers=layers: self.traced(layers)) for layers in ("0", "all")}
        return [
            Measured(COPY, self.copy_staged),
            Measured("the same by torch's .to()", self.copy_to_device, COPY),
            Measured(UNTRACED, self.on(streaming, self.untraced), COPY),
            Measured("layer 0 traced", self.on(streaming, traced["0"]), COPY),
            Measured("all traced", self.on(streaming, traced["all"]), COPY),
            Measured(AGAIN, self.on(keeping, self.untraced), UNTRACED),
            Measured("again, layer 0 traced", self.on(keeping, traced["0"]), AGAIN),
            Measured(
                "again, one stage a layer",
                self.on(keeping, lambda: self.traced("all", _STEP)),
                AGAIN,
            ),
            Measured(ALL_AGAIN, self.on(keeping, traced["all"]), AGAIN),
            Measured(WRITER, self.write_alone),
            Measured("again, decoding alone", self.decode_there, AGAIN),
        ]

    def measure(self, rows: list[Measured], repeats: int) -> None:
        for repeat in range(repeats + 1):
            for row in rows:
                for device in self._cuda():
                    torch.cuda.reset_peak_memory_stats(device)
                start = time.perf_counter()
                row.measure()
                if repeat:
                    row.seconds.append(time.perf_counter() - start)
                    peaks = [torch.cuda.max_memory_allocated(device) for device in self._cuda()]
                    row.peak_bytes.append(sum(peaks))
                for trace in self.scratch.iterdir():  # a long prompt's are gigabytes
                    shutil.rmtree(trace)

    def _wait(self) -> None:
        for device in self._cuda():
            torch.cuda.synchronize(device)

    def _cuda(self) -> list[torch.device]:
        return [device for device in self.devices if device.type == "cuda"]


def stages_of(bench: GpuBench, stream: WeightStream) -> dict[StageKey, torch.Tensor]:
    """Every stage but the [A,T,T] ones, on the CPU."""
    tap = Keeping(lambda stage: stage not in ("attn_scores", "attn_softmax"))
    with torch.inference_mode():
        forward(bench.model.graph, Pass(stream, bench.tokens), tap)
    return {key: value.cpu() for key, value in tap.stages.items()}


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    """Root of the squared differences over that of the squares."""
    a, b = a.double(), b.double()
    return float((a - b).norm() / b.norm().clamp_min(1e-300))


def judge(rows: Sequence[Measured]) -> list[dict[str, Any]]:
    """Every row as JSON; one with an aim says how many times its floor it took, and whether that
    holds."""
    known = {row.name: row.median for row in rows}
    judged = []
    for row in rows:
        said: dict[str, Any] = {
            "row": row.name,
            "seconds": row.seconds,
            "median_s": row.median,
            "peak_bytes": max(row.peak_bytes),
        }
        if row.floor:
            beyond = known[WRITER] if row.name == ALL_AGAIN else 0.0
            ratio = (row.median - beyond) / known[row.floor]
            said |= {"floor": row.floor, "ratio": ratio, "without_writer_s": beyond}
            if row.name in AIMS:
                said |= {"aim": AIMS[row.name], "held": ratio <= AIMS[row.name]}
        judged.append(said)
    return judged


@torch.inference_mode()
def compare(bench: GpuBench) -> bool:
    """Whether the devices' values are the CPU's within the bar, kept ones the streamed ones'."""
    here = WeightStream(bench.model, _CPU, torch.float32)
    roles = (Role("q", 0), Role("v", 0), Role("down", 0), Role("expert_down", 0, 0), Role("head"))
    there = [role for role in roles if role in bench.model.weights]
    wrong = [str(role) for role in there if not _same_weights(bench, here, role)]
    print(f"decoded weights: {'differ in ' + ', '.join(wrong) if wrong else 'bit for bit the CPU'}")
    expected, streamed = stages_of(bench, here), stages_of(bench, bench.streaming)
    kept = stages_of(bench, bench.keeping)
    moved = [key for key in streamed if not same_bits(streamed[key].float(), kept[key].float())]
    print(f"kept against streamed: {len(moved)} of {len(kept)} stages differ in any bit")
    errors = {key: apart(streamed[key], expected[key]) for key in expected}
    worst = max(errors, key=lambda key: errors[key])
    equal = sum(same_bits(streamed[key].float(), expected[key].float()) for key in expected)
    bar = _BAR if len(bench.tokens) < _LONG else 3 * _BAR
    print(
        f"stages against the CPU: worst {errors[worst]:.1e} ({worst}), bar {bar:.0e}; {equal} of "
    )
    print(f"    {len(errors)} equal bit for bit")
    return not wrong and not moved and errors[worst] <= bar


def _same_weights(bench: GpuBench, here: WeightStream, role: Role) -> bool:
    """Rows of one decoded matrix on the device and here, the first block's worth."""
    matrix = bench.model.weights[role]
    rows = min(matrix.rows, bench.streaming.spans(matrix)[0][1])
    stored = codec_of(matrix)
    there = bench.streaming.decode(stored, 0, rows, bench.streaming.device_of(role.layer))
    return same_bits(there.cpu(), here.decode(stored, 0, rows))


@deterministic()
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--tokens", type=int, default=7, help="length of the prompt (default: 7)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="float32", choices=DTYPES)
    parser.add_argument("--without", default="", help="rows to leave out, split by |")
    parser.add_argument("--json", type=Path, help="write what was measured there too")
    parser.add_argument("--no-compare", action="store_true", help="measure alone")
    options = parser.parse_args(arguments)
    try:
        devices = resolve_devices(options.device)
    except UsageError as error:
        parser.error(str(error))
    if devices.first.type == "cuda":
        torch.cuda.set_device(devices.first)
    scratch = Path(tempfile.mkdtemp(prefix="aprtui-gpu-"))
    try:
        dtype: torch.dtype = getattr(torch, options.dtype)
        bench = GpuBench(options.model, devices, options.tokens, scratch, dtype)
        sizes = layer_bytes(bench.model)
        where = devices.title_of(devices.titles)
        print(f"{options.model.name}, {options.tokens} tokens, {options.dtype}, {where}")
        print(f"streamed: {bench.streaming.placement.told()}")
        print(f"kept: {bench.keeping.placement.told()}, {bench.keeping.placement.kept_note(sizes)}")
        rows = [row for row in bench.rows() if row.name not in options.without.split("|")]
        bench.measure(rows, options.repeats)
        report(bench, rows)
        judged = judge(rows)
        for said in judged:
            aim = ""
            if "aim" in said:
                aim = f"{said['ratio']:.2f} x, aim {said['aim']}, held: {said['held']}"
            print(f"{said['row']:36} {said['peak_bytes'] / 1e9:7.2f} GB at most there   {aim}")
        print(f"blocks decoded by {decoder_name(bench.devices)}")
        if options.json:
            options.json.write_text(json.dumps(judged, indent=1))
        # a narrow dtype rounds otherwise on every device: test_cuda.py says that it runs
        return 0 if options.no_compare or compare(bench) else 1
    finally:
        shutil.rmtree(scratch)


if __name__ == "__main__":
    sys.exit(main())
