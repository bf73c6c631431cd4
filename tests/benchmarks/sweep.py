"""What a sweep on Ray costs, and that it is the serial one: `python -m tests.benchmarks.sweep`.

8 models x 10 prompts x 2 engines. First in one process; then on a cluster of two nodes, one of
which is killed in the middle, and the driver stopped later; then resumed. Both results are compared
byte for byte. Then cells per second with one and with two workers, and what Ray adds to a cell.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from aprtui.sweep.cells import CellJob
from aprtui.sweep.matrix import Cell, Matrix
from aprtui.sweep.on_ray import OnRay
from aprtui.sweep.plan import read_plan
from aprtui.sweep.run import Runner, Serial, Swept, prepare, run_sweep
from aprtui.sweep.work import compute
from tests.support import FIXTURES

MODELS = ("granite", "gpt2", "olmo", "smollm3", "glm", "cohere", "gpt_neox", "nemotron")
PROMPTS = tuple(tuple((7 * n + 3 * i) % 60 + 1 for i in range(4 + n)) for n in range(10))


class _Stop(Exception):
    """The driver ends here."""


def plan_text(models: list[Path], prompts: int) -> str:
    text = 'reference = { engine = "ours" }\nkeep = "everything"\n'
    text += "".join(f'[[models]]\npath = "{path}"\n' for path in models)
    for number, tokens in enumerate(PROMPTS[:prompts]):
        text += f'[[prompts]]\nname = "p{number}"\ntokens = {list(tokens)}\n'
    return text + '[[engines]]\nname = "ours"\nengine = "aprtui"\n[[engines]]\nengine = "hf"\n'


def folders(count: int) -> list[Path]:
    families = FIXTURES / "families"
    found = [families / name for name in MODELS if (families / name).is_dir()]
    if len(found) < count:
        raise SystemExit(f"{families} holds {len(found)} of the {count} models")
    return found[:count]


@contextmanager
def cluster(workers: int) -> Iterator[tuple[Any, Any]]:
    """A head that computes nothing, and nodes of one processor each."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray: Any = importlib.import_module("ray")
    utils: Any = importlib.import_module("ray.cluster_utils")
    node = {"object_store_memory": 80_000_000}
    made = utils.Cluster(
        initialize_head=True, head_node_args={**node, "num_cpus": 0, "include_dashboard": False}
    )
    made.workers = [made.add_node(**node, num_cpus=1) for _ in range(workers)]
    made.connect()
    made.wait_for_nodes()
    try:
        yield ray, made
    finally:
        ray.shutdown()
        made.shutdown()


def swept(
    plan: Path, results: Path, runner: Runner, tell: Callable[[Matrix, Cell | None], None] | None
) -> tuple[Swept, float]:
    start = time.monotonic()
    prepared = prepare(read_plan(plan), str(results), runner)
    told = tell or (lambda matrix, cell: None)
    found = run_sweep(prepared, str(results), runner, tell=told)
    return found, time.monotonic() - start


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "costs" not in path.parts
    }


def killed_and_resumed(plan: Path, results: Path, cells: int) -> dict[str, Any]:
    """A third done a node dies, at two thirds the driver; then it goes on with two nodes."""
    seen: list[Cell] = []
    with cluster(2) as (ray, nodes):

        def tell(matrix: Matrix, cell: Cell | None) -> None:
            if cell is None:
                return
            seen.append(cell)
            if len(seen) == cells // 3:
                nodes.remove_node(nodes.workers.pop(), allow_graceful=False)
            if len(seen) == 2 * cells // 3:
                raise _Stop

        with suppress(_Stop):
            swept(plan, results, OnRay(ray), tell)
        nodes.workers.append(nodes.add_node(num_cpus=1, object_store_memory=80_000_000))
        nodes.wait_for_nodes()
        again: list[Cell] = []
        found, seconds = swept(
            plan, results, OnRay(ray), lambda m, c: again.append(c) if c is not None else None
        )
    return {
        "headline": found.matrix.headline,
        "before_the_stop": len(seen),
        "computed_when_resumed": len(again),
        "resumed_s": round(seconds, 1),
    }


def rate(plan: Path, results: Path, workers: int) -> dict[str, Any]:
    """Cells per second once the workers run: the first quarter, with its imports, is left out."""
    times: list[float] = []
    with cluster(workers) as (ray, _):
        found, seconds = swept(
            plan, results, OnRay(ray), lambda m, c: times.append(time.monotonic())
        )
    steady = times[len(times) // 4 :]
    peaks = json.loads(next((results / "costs").glob("*.json")).read_text())["cells"].values()
    return {
        "cells_per_s": round((len(steady) - 1) / (steady[-1] - steady[0]), 2),
        "wall_s": round(seconds, 1),
        "load_average": round(os.getloadavg()[0], 1),
        "failed": found.matrix.counts.get("failed", 0),
        "worker_peak_mb": round(max(each["peak_memory_bytes"] for each in peaks) / 1e6),
    }


def cost_per_cell(plan: Path, results: Path, number: int) -> dict[str, float]:
    """What Ray adds: cells that are no work, since their results are there, and the same here."""
    prepared = prepare(read_plan(plan), str(results), Serial())
    job = prepared.planned.jobs[0]
    start = time.monotonic()
    for _ in range(number):
        compute(job)
    here = (time.monotonic() - start) / number
    with cluster(1) as (ray, _):
        task = ray.remote(_again).options(num_cpus=1)
        ray.get(task.remote(job))
        start = time.monotonic()
        ray.get([task.remote(job) for _ in range(number)])
        there = (time.monotonic() - start) / number
        start = time.monotonic()
        empty = ray.remote(_nothing).options(num_cpus=1)
        ray.get([empty.remote(job) for _ in range(number)])
        alone = (time.monotonic() - start) / number
    Serial().close(prepared.scratch)
    return {
        "one_process_ms": round(here * 1e3, 1),
        "ray_ms": round(there * 1e3, 1),
        "a_task_that_does_nothing_ms": round(alone * 1e3, 2),
    }


def _again(job: CellJob) -> str:
    return compute(job).cell.verdict


def _nothing(job: CellJob) -> None:
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=8)
    parser.add_argument("--prompts", type=int, default=10)
    args = parser.parse_args()
    cells = args.models * args.prompts * 2
    work = Path(tempfile.mkdtemp(prefix="sweep-bench-"))
    told: dict[str, Any] = {"cells": cells, "processors": len(os.sched_getaffinity(0))}
    try:
        plan = work / "plan.toml"
        plan.write_text(plan_text(folders(args.models), args.prompts))
        serial, seconds = swept(plan, work / "serial", Serial(), None)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        told["one_process"] = {
            "headline": serial.matrix.headline, "wall_s": round(seconds, 1),
            "cells_per_s": round(cells / seconds, 2), "peak_mb": round(peak),
        }  # fmt: skip
        print(json.dumps(told), flush=True)
        told["killed_and_resumed"] = killed_and_resumed(plan, work / "ray", cells)
        same = tree(work / "ray") == tree(work / "serial")
        told["killed_and_resumed"] |= {"same_bytes": same, "files": len(tree(work / "serial"))}
        print(json.dumps(told), flush=True)
        for workers in (1, 2):
            told[f"workers_{workers}"] = rate(plan, work / f"rate{workers}", workers)
        told["cost_per_cell"] = cost_per_cell(plan, work / "serial", 50)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
