"""Which device computes, how it is set up, and how much memory is in use."""

from __future__ import annotations

import os
import platform
import resource
import sys
from pathlib import Path
from typing import Any

import torch

from aprtui.errors import UsageError
from aprtui.text import clean

__all__ = ["own_memory_bytes", "resolve_device", "set_deterministic", "torch_settings"]


def resolve_device(name: str) -> tuple[torch.device, str]:
    """The device that ``name`` (cpu, cuda, cuda:N, mps, auto) stands for, and its name for people.

    ``auto`` takes a CUDA device when there is one, then Apple's, then the CPU. Raises UsageError
    for a device that this machine or this build of torch does not have.
    """
    wanted = name.strip().lower()
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "mps" if _has_mps() else "cpu"
    kind, _, index = wanted.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (index and not index.isdigit()):
        raise UsageError(f"unknown device {clean(name)!r}", hint="cpu, cuda, cuda:N, mps or auto")
    if kind == "cuda":
        return _cuda(int(index or 0))
    if kind == "mps":
        if not _has_mps():
            raise UsageError("there is no Metal (mps) device here", hint="--device cpu")
        return torch.device("mps"), "Apple GPU"
    return torch.device("cpu"), _cpu_name()


def _has_mps() -> bool:
    return torch.backends.mps.is_available()


def _cuda(index: int) -> tuple[torch.device, str]:
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if found == 0:
        why = "" if torch.version.cuda else f"; torch {torch.__version__} was built without CUDA"
        raise UsageError(f"CUDA was asked for and is not here{why}", hint="--device cpu or auto")
    if index >= found:
        raise UsageError(
            f"cuda:{index} was asked for and there are {found} CUDA devices",
            hint=f"cuda:0 to cuda:{found - 1}",
        )
    return torch.device("cuda", index), torch.cuda.get_device_name(index)


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def set_deterministic() -> None:
    """Exact float32 products (no TF32) and the same bits from run to run."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # not use_deterministic_algorithms, which imports the compiler: a second
    torch.set_deterministic_debug_mode("error")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False


def torch_settings() -> dict[str, Any]:
    """What of torch's set-up decides the last bits, for a manifest's engine."""
    return {
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "tf32": torch.backends.cuda.matmul.allow_tf32,
    }


def own_memory_bytes() -> int:
    """This process's anonymous memory; the mapped model file is not part of it.

    Where the system does not tell (outside Linux), the peak of all resident memory.
    """
    try:
        with Path("/proc/self/status").open() as status:
            for line in status:
                if line.startswith("RssAnon:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
