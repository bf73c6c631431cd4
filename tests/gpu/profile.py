"""Where a pass's time goes: kernels on the device, calls on the host, by torch's profiler.

    python -m tests.gpu.profile /tmp/7b.gguf --out DIR

Three passes: weights kept, untraced; kept, all traced; streamed, all traced. Short tables are
printed.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from aprtui.engine.device import deterministic, resolve_devices
from tests.benchmarks.gpu import GpuBench

_ROWS = 10


def profiled(title: str, measure: Callable[[], None]) -> None:
    """One run without the profiler, for its time; one with it, for the shares."""
    measure()
    start = time.perf_counter()
    measure()
    wall_ms = 1000 * (time.perf_counter() - start)
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as found:
        measure()
    events: list[Any] = list(found.key_averages())
    on_device = [event for event in events if event.self_device_time_total > 0]
    kernels = [event for event in on_device if event.device_type.name != "CPU"]
    busy_ms = sum(event.self_device_time_total for event in kernels) / 1000
    print(f"\n== {title}: {wall_ms:.1f} ms without the profiler; device busy {busy_ms:.1f} ms")
    for event in sorted(kernels, key=lambda event: -event.self_device_time_total)[:_ROWS]:
        total_ms = event.self_device_time_total / 1000
        print(f"  device {total_ms:8.2f} ms {event.count:6} x  {event.key[:90]}")
    for event in sorted(events, key=lambda event: -event.self_cpu_time_total)[:_ROWS]:
        host_ms = event.self_cpu_time_total / 1000
        print(f"  host   {host_ms:8.2f} ms {event.count:6} x  {event.key[:90]}")


@deterministic()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--tokens", type=int, default=7)
    options = parser.parse_args()
    devices = resolve_devices(options.device)
    scratch = Path(tempfile.mkdtemp(prefix="aprtui-gpu-"))
    try:
        bench = GpuBench(options.model, devices, options.tokens, scratch)
        keeping, streaming = bench.keeping, bench.streaming
        profiled("kept, untraced", bench.on(keeping, bench.untraced))
        profiled("kept, all traced", bench.on(keeping, lambda: bench.traced("all")))
        profiled("streamed, all traced", bench.on(streaming, lambda: bench.traced("all")))
    finally:
        shutil.rmtree(scratch)
    return 0


if __name__ == "__main__":
    sys.exit(main())
