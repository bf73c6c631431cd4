"""Ray, when it is asked for: connected to, asked what its nodes have, left as it was found.

aprtui schedules nothing itself. A task says what it needs; Ray finds the node, runs it again where
a node dies, and tells when it cannot.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from aprtui.engine.processors import processors
from aprtui.errors import EngineError, UsageError
from aprtui.text import clean, size

__all__ = [
    "LOCAL",
    "RETRIES",
    "SHARE",
    "alive_nodes",
    "connected",
    "first_line",
    "on_node",
    "unmet",
]

LOCAL = "local"
SHARE = 0.001
"""Of a node's resource that says what it holds: as many tasks as like may run beside it."""

RETRIES = 3
"""Of a task whose process or node dies."""

_STORE_BYTES = 100_000_000  # of objects in memory: only small values pass between processes


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """The module ``ray``, connected: ``local`` is a cluster of this machine alone, ``auto`` the one
    that runs here, else where its head is.

    One that the process is connected to already is used and left. Raises UsageError where Ray is
    not installed, EngineError where nothing answers.
    """
    if importlib.util.find_spec("ray") is None:
        raise UsageError(
            "Ray is not installed",
            hint="pip install 'aprtui[ray]', or leave --ray out: one process",
        )
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    ray: Any = importlib.import_module("ray")
    if ray.is_initialized():
        yield ray
        return
    said: dict[str, Any] = {"address": address}
    if address == LOCAL:
        said |= {"num_cpus": processors(), "object_store_memory": _STORE_BYTES,
                 "include_dashboard": False}  # fmt: skip
    try:
        with _signals_kept():
            ray.init(**said, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise EngineError(
            f"no Ray cluster answers at {clean(address, 200)}: {clean(str(error), 200)}",
            hint="ray start --head makes one; --ray local needs none",
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Whoever heeds SIGTERM and SIGINT here goes on to: Ray takes them where it starts."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def alive_nodes(ray: Any) -> list[tuple[str, Mapping[str, float]]]:
    """The nodes that are there: their ids, and what they have in all."""
    return [(n["NodeID"], n["Resources"]) for n in ray.nodes() if n["Alive"]]


def unmet(ray: Any, needs: Mapping[str, float]) -> str:
    """Why no node can run what needs so much; empty where one can."""
    nodes = [found for _, found in alive_nodes(ray)]
    if any(all(node.get(k, 0) >= v for k, v in needs.items()) for node in nodes):
        return ""
    for name, needed in needs.items():
        most = max((node.get(name, 0) for node in nodes), default=0)
        if most < needed:
            if name not in ("CPU", "GPU", "memory"):
                return f"no node of the cluster holds the model: none has the resource {name}"
            what = _amount(name, needed), _amount(name, most)
            return f"no node of the cluster has {what[0]}: the most is {what[1]}"
    wanted = ", ".join(_amount(name, needed) for name, needed in needs.items())
    return f"no single node of the cluster has {wanted}"


def _amount(name: str, value: float) -> str:
    if name == "memory":
        return f"{size(value)} of memory"
    return f"{value:g} {name}" + "s" * (name in ("CPU", "GPU") and value != 1)


def first_line(error: object) -> str:
    """What one of Ray's errors says, in a line: the rest is where in Ray it was raised."""
    return clean(next((line for line in str(error).splitlines() if line.strip()), ""), 300)


def on_node(ray: Any, node: str, task: Any) -> Any:
    """``task`` for one node alone, beside whatever runs there."""
    strategies: Any = importlib.import_module("ray.util.scheduling_strategies")
    strategy = strategies.NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(task).options(num_cpus=0, scheduling_strategy=strategy, max_retries=0)
