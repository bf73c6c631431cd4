"""The same passes with blocks of other sizes: what ``DEVICE_BLOCK_VALUES`` should be on a card.

python -m tests.gpu.sweep /tmp/7b.gguf --bits 22,23,24,25,26
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

import torch

from aprtui.engine import staging, weights
from aprtui.engine.device import deterministic, resolve_devices
from tests.benchmarks.gpu import GpuBench, Measured


@deterministic()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--bits", default="23,24,25,26")
    parser.add_argument("--threads", default="4,8,16")
    parser.add_argument("--pieces", default="8,16,32,64", help="MB of pinned memory at a time")
    parser.add_argument("--tokens", type=int, default=7)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    devices = resolve_devices(options.device)
    scratch = Path(tempfile.mkdtemp(prefix="aprtui-gpu-"))
    try:
        usual = staging._FILL_THREADS, weights.DEVICE_BLOCK_VALUES, staging._PIECE_BYTES
        tried = [(usual[0], 1 << int(bits), usual[2]) for bits in options.bits.split(",")]
        tried += [(int(threads), *usual[1:]) for threads in options.threads.split(",")]
        tried += [(*usual[:2], int(size) << 20) for size in options.pieces.split(",")]
        for threads, values, size in tried:
            staging._FILL_THREADS, weights.DEVICE_BLOCK_VALUES = threads, values
            staging._PIECE_BYTES = size
            bench = GpuBench(options.model, devices, options.tokens, scratch)
            wanted = ("copy the bytes to the device", "pass, untraced", "again, untraced",
                      "again, decoding alone")  # fmt: skip
            rows: list[Measured] = [row for row in bench.rows() if row.name in wanted]
            bench.measure(rows, options.repeats)
            told = ", ".join(f"{row.name} {row.median * 1000:.1f}" for row in rows)
            blocks = sum(len(bench.spans(matrix)) for matrix in bench.matrices())
            print(
                f"{values:,} values, {blocks} blocks, {threads} threads, pieces of "
                f"{size >> 20} MB: {told} ms"
            )
            del bench, rows
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
    finally:
        shutil.rmtree(scratch)
    return 0


if __name__ == "__main__":
    sys.exit(main())
