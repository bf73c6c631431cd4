"""Which device computes, how it is set up, and how much memory is in use."""

from __future__ import annotations

import os
import platform
import resource
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from aprtui.engine.job import device_names
from aprtui.errors import UsageError
from aprtui.text import clean, count

__all__ = [
    "Devices",
    "card_uuids",
    "deterministic",
    "own_memory_bytes",
    "resolve_device",
    "resolve_devices",
    "torch_settings",
]


@dataclass(frozen=True)
class Devices:
    """The devices that a trace may use and their names for people; ``named``: it shall use all."""

    titles: Mapping[torch.device, str]
    named: bool = False
    note: str = ""  # for people: why these and no others

    @property
    def first(self) -> torch.device:
        return next(iter(self.titles))

    def title_of(self, devices: Iterable[torch.device]) -> str:
        """The names of some of them; devices of one kind are named once."""
        return ", ".join(dict.fromkeys(self.titles[device] for device in devices))


def resolve_devices(name: str) -> Devices:
    """The devices that ``name`` stands for: cpu, cuda, cuda:N, cuda:N,cuda:M, mps or auto.

    ``cuda`` is every CUDA device; ``auto`` the same where there is one, then Apple's, then the CPU.
    Raises UsageError for a device that this machine or this build of torch does not have.
    """
    names = device_names(name)
    if names in (("cuda",), ("auto",)):
        if names == ("cuda",) or _cuda_count():
            return Devices(dict(_cuda(index) for index in range(max(1, _cuda_count()))))
        names = ("mps" if _has_mps() else "cpu",)
        why = "" if names == ("mps",) or not torch.version.cuda else _why_no_cuda()
        note = f"computed on the CPU: {why}" if "too old" in why else ""
        return Devices(dict(map(_resolve, names)), note=note)
    found = dict(map(_resolve, names))
    return Devices(found, named=len(found) > 1)


def resolve_device(name: str) -> tuple[torch.device, str]:
    """The one device that ``name`` stands for, the first where it is several, and its name."""
    devices = resolve_devices(name)
    return devices.first, devices.titles[devices.first]


def _resolve(name: str) -> tuple[torch.device, str]:
    kind, _, index = name.partition(":")
    if kind == "cuda":
        return _cuda(int(index or 0))
    if kind == "mps":
        if not _has_mps():
            raise UsageError("there is no Metal (mps) device here", hint="--device cpu")
        return torch.device("mps"), "Apple GPU"
    return torch.device("cpu"), _cpu_name()


def _has_mps() -> bool:
    return torch.backends.mps.is_available()


def _cuda_count() -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of an old driver: said in our own words
        return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _cuda(index: int) -> tuple[torch.device, str]:
    found = _cuda_count()
    if found == 0:
        raise UsageError(
            f"CUDA was asked for and is not here: {_why_no_cuda()}", hint="--device cpu or auto"
        )
    if index >= found:
        known = ", ".join(f"cuda:{each} ({_cuda_name(each)})" for each in range(found))
        raise UsageError(
            f"cuda:{index} was asked for and {count(found, 'CUDA device')} "
            f"{'is' if found == 1 else 'are'} here: {known}",
            hint="--device with one of them, or cpu",
        )
    return torch.device("cuda", index), _cuda_name(index)


def _cuda_name(index: int) -> str:
    return clean(torch.cuda.get_device_name(index), 80)


def _why_no_cuda() -> str:
    """In one sentence: a build without CUDA, no driver, an old one, no card that may be used."""
    if not torch.version.cuda:
        return f"torch {torch.__version__} was built without CUDA"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:  # torch's own words, their first sentence
        said = clean(str(error).split("\n", 1)[0].partition(". ")[0], 200).rstrip(".")
        return f"{said} (torch {torch.__version__} wants CUDA {torch.version.cuda})"
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None:
        return f"CUDA_VISIBLE_DEVICES={clean(hidden, 40)!r} shows no card"
    return "the driver shows no card"


def card_uuids(devices: Iterable[torch.device]) -> dict[str, str]:
    """The UUIDs of CUDA devices by their names; of others nothing."""
    cuda = [device for device in devices if device.type == "cuda"]
    found = {str(each): torch.cuda.get_device_properties(each) for each in cuda}
    # torch tells them from 2.5 on
    return {name: str(each.uuid) for name, each in found.items() if hasattr(each, "uuid")}


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


@contextmanager
def deterministic() -> Iterator[None]:
    """Inside: exact float32 products (no TF32) and the same bits from run to run.

    Torch's switches are the whole process's: they are put back, for whoever else computes in it.
    """
    if os.environ.get("CUBLAS_WORKSPACE_CONFIG") not in (":4096:8", ":16:8"):
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # of others each product is an error
    backends, filling = torch.backends, torch.utils.deterministic
    mode = torch.get_deterministic_debug_mode()
    # not use_deterministic_algorithms, which imports the compiler: a second
    torch.set_deterministic_debug_mode("error")
    with (
        # It would also fill all fresh memory, pinned and device memory too: nothing here reads any.
        _set(filling, fill_uninitialized_memory=False),
        _set(
            backends.cuda.matmul,
            allow_tf32=False,
            allow_fp16_reduced_precision_reduction=False,
            allow_bf16_reduced_precision_reduction=False,
        ),
        _set(backends.cudnn, allow_tf32=False, benchmark=False),
    ):
        try:
            yield
        finally:
            torch.set_deterministic_debug_mode(mode)


@contextmanager
def _set(switches: Any, **values: bool) -> Iterator[None]:
    """Set attributes, and put back what they were."""
    before = {name: getattr(switches, name) for name in values}
    for name, value in values.items():
        setattr(switches, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(switches, name, value)


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
