"""How long `aprtui bisect` takes, beside the pass that it replays and the floor under it.

    python -m tests.benchmarks.bisect_speed [MODEL ...] [--dtype float32,bfloat16] [--engine hf]

A trace of each model is taken in each dtype and bisected in a process of its own, three times, of
which the shortest counts. The floor is every matrix decoded and multiplied once in float64. Seconds
are the processor's, without imports; memory is the process's own (anonymous, the most). Without
MODEL: pycode-5m of the fixtures, the folder and the Q4_K_M. Seven tokens.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from tests.support import FIXTURES

__all__ = ["main"]

_SMALL = (FIXTURES / "models/pycode-5m", FIXTURES / "models/pycode-5m-q4_k_m.gguf")
_TOKENS = (3, 17, 40, 99, 5, 61, 7)
_ROUNDS = 3
_EVERY = 0.02  # seconds between two looks at the memory


def _own_kilobytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1])
    return 0


class _Peak(threading.Thread):
    """The most memory of the process's own while it runs."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most, self._done = 0, threading.Event()

    def run(self) -> None:
        while not self._done.wait(_EVERY):
            self.most = max(self.most, _own_kilobytes())

    def stop(self) -> int:
        self._done.set()
        self.join()
        return self.most


def _floor(path: Path, tokens: int) -> float:
    """Processor seconds for every matrix once, in float64."""
    import numpy as np

    from aprtui.engine.replay import Replay, one_core
    from aprtui.model.open import open_model

    model = open_model(path)
    replay = Replay(model)
    roles = [role for node in model.graph for role in node.op.matrices if role.expert is None]
    rng, start = np.random.default_rng(0), time.process_time()
    with one_core():
        for role in dict.fromkeys(roles):
            replay.products(role, rng.standard_normal((tokens, replay.shape(role)[1])))
    return time.process_time() - start


def _one(path: Path, trace: Path) -> dict[str, float]:
    """In a process of its own: one bisection."""
    from aprtui.compare.bisect import bisect
    from aprtui.formats.tracedir import open_trace
    from aprtui.model.open import open_model

    model, opened = open_model(path), open_trace(trace)
    floor = _floor(path, len(opened.token_ids or _TOKENS))
    peak = _Peak()
    peak.start()
    begun = time.process_time()
    found = bisect(model, opened)
    seconds = time.process_time() - begun
    return {
        "floor": floor,
        "seconds": seconds,
        "own": peak.stop() * 1024,
        "stages": len(found.explained) + len(found.within),
        "culprits": len(found.culprits),
    }


def _measure(path: Path, dtype: str, engine: str) -> None:
    from aprtui import api

    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "t"
        begun = time.process_time()
        api.trace(path, tokens=_TOKENS, dtype=dtype, engine=engine, directory=trace)
        passed = time.process_time() - begun
        command = [sys.executable, "-m", __spec__.name, "--one", str(path), str(trace)]
        rounds = [
            json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            for _ in range(_ROUNDS)
        ]
    best = min(rounds, key=lambda each: each["seconds"])
    print(
        f"| {path.name}, {engine} | {dtype} | {best['stages']:.0f} | {passed:.2f} s | "
        f"{best['floor']:.2f} s | {best['seconds']:.2f} s | "
        f"{best['seconds'] / max(best['floor'], 1e-9):.1f} x | {best['own'] / 1e6:.0f} MB | "
        f"{best['culprits']:.0f} |",
        flush=True,
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--dtype", default="float32,bfloat16,float16")
    parser.add_argument("--engine", default="aprtui")
    parser.add_argument("--one", nargs=2, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one:
        print(json.dumps(_one(*options.one)))
        return 0
    print("| model | dtype | stages | the pass | floor | bisect | x floor | own | culprits |")
    print("|---|---|---|---|---|---|---|---|---|")
    for path in options.models or _SMALL:
        for dtype in options.dtype.split(","):
            _measure(path, dtype, options.engine)
    return 0


if __name__ == "__main__":
    sys.exit(main())
