"""What capturing costs on each engine: time and memory with every stage, and with the logits only.

    python -m tests.benchmarks.adapter_cost MODEL [--engines aprtui,llamacpp] [--tokens 16]

Each run is a process of its own; the fastest of the runs counts. ``pass`` is the engine's own time
in the manifest (loading included), memory what is not mapped from the model's file.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from aprtui.engine.adapters import available, suits
from aprtui.model.open import open_model


@dataclass(frozen=True)
class Cost:
    process_s: float
    pass_s: float
    memory_bytes: int
    written_bytes: int


def measure(model: str, engine: str, stages: str, tokens: int) -> Cost:
    """One trace in a process of its own."""
    ids = ",".join(str(100 + 7 * place) for place in range(tokens))
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", "from aprtui.cli.main import entry; entry()", "trace",
                   model, "--engine", engine, "--stages", stages, "--tokens", ids, "--json",
                   "-o", str(Path(folder) / "trace")]  # fmt: skip
        start = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        elapsed = time.monotonic() - start
    found = json.loads(done.stdout)
    return Cost(
        elapsed, found["elapsed_s"], found["peak_memory_bytes"], found["written_bytes"]
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("model")
    parser.add_argument("--engines", help="default: those that are installed and read the model")
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    opened = open_model(Path(options.model))
    installed = [c.name for c in available() if c.installed and not suits(c.name, opened)]
    print("| engine | captured | process s | pass s | memory MB | written MB |")
    print("|---|---|---|---|---|---|")
    for engine in options.engines.split(",") if options.engines else installed:
        for stages in ("lm_head", "all"):
            runs = [
                measure(options.model, engine, stages, options.tokens) for _ in range(options.runs)
            ]
            best = min(runs, key=lambda cost: cost.pass_s)
            print(
                f"| {engine} | {stages} | {best.process_s:.2f} | {best.pass_s:.2f} "
                f"| {best.memory_bytes / 1e6:.0f} | {best.written_bytes / 1e6:.1f} |"
            )


if __name__ == "__main__":
    main()
