"""Devices that are not there, are full or are lost: one sentence, the CPU offered, files whole."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from aprtui.engine import capture as capture_module
from aprtui.engine import run as run_module
from aprtui.engine.arrays import Float32
from aprtui.engine.device import resolve_devices
from aprtui.engine.events import Event, Failed, Log
from aprtui.engine.job import TraceJob
from aprtui.engine.plan import PlannedFile, make_plan
from aprtui.engine.run import run_trace
from aprtui.errors import EngineError, UsageError
from aprtui.formats.aprt import read_header
from aprtui.formats.layout import MANIFEST
from aprtui.formats.tracedir import StageKey

NO_DRIVER = (
    "Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU and "
    "installed a driver from http://www.nvidia.com/Download/index.aspx"
)
OLD_DRIVER = (
    "The NVIDIA driver on your system is too old (found version 11040). Please update your "
    "GPU driver by downloading and installing a new version"
)


def cuda_that(monkeypatch: pytest.MonkeyPatch, says: str) -> None:
    """A torch built with CUDA that finds none, as torch behaves then."""

    def fail() -> None:
        raise RuntimeError(says)

    def available() -> bool:
        warnings.warn(f"CUDA initialization: {says}", stacklevel=2)
        return False

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", available)
    monkeypatch.setattr(torch.cuda, "init", fail)


@pytest.mark.parametrize(
    ("says", "expected"),
    [
        (NO_DRIVER, "Found no NVIDIA driver on your system (torch"),
        (OLD_DRIVER, "The NVIDIA driver on your system is too old (found version 11040) (torch"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_a_driver_that_is_missing_or_old_is_said(
    says: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda_that(monkeypatch, says)
    for name in ("cuda", "cuda:1"):
        with pytest.raises(UsageError) as refused:
            resolve_devices(name)
        assert f"CUDA was asked for and is not here: {expected}" in refused.value.message
        assert refused.value.message.endswith("wants CUDA 13.0)")
        assert "--device cpu" in refused.value.hint


def test_a_build_without_cuda_and_hidden_cards_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(UsageError, match="was built without CUDA"):
        resolve_devices("cuda")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(UsageError, match="CUDA_VISIBLE_DEVICES='' shows no card"):
        resolve_devices("cuda")


@pytest.mark.filterwarnings("error")
def test_auto_computes_on_the_cpu_and_says_that_a_driver_is_too_old(
    qwen2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda_that(monkeypatch, NO_DRIVER)
    assert not resolve_devices("auto").note, "no card is no news"
    cuda_that(monkeypatch, OLD_DRIVER)
    told: list[Event] = []
    run_trace(make_plan(TraceJob(str(qwen2), str(tmp_path / "t"), tokens=(1, 2))), told.append)
    notes = [event.message for event in told if isinstance(event, Log)]
    assert any("computed on the CPU: The NVIDIA driver" in note for note in notes)


def lost_after(count: int, error: Callable[[], Exception]) -> type[object]:
    """A capture whose writer meets an error when so many files are there."""

    class Losing(capture_module.Capture):
        def _write(self, file: PlannedFile, values: Float32) -> None:
            if self.written == count:
                raise error()
            super()._write(file, values)

    return Losing


@pytest.mark.parametrize(
    ("error", "message", "hint"),
    [
        (RuntimeError("CUDA error: unspecified launch failure\nCUDA kernel errors might be"),
         "the device failed: CUDA error: unspecified launch failure; what was written before is "
         "whole", "--device cpu computes the same; nvidia-smi"),
        (RuntimeError("CUDA error: no kernel image is available for execution on the device"),
         "the device failed: CUDA error: no kernel image", "another build of torch"),
        (RuntimeError("CUDA error: out of memory"),
         "the device is out of memory: no room is left on it, which another process may hold",
         "--device cpu"),
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
         "the device is out of memory", "--device cpu"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("where", ["in the pass", "in the writer", "at the end"])
def test_a_card_that_fails_in_a_trace_leaves_whole_files(
    error: Exception,
    message: str,
    hint: str,
    where: str,
    qwen2: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def failing_put(self: object, key: StageKey, value: torch.Tensor) -> None:
        if key == StageKey(2, "ffn_up"):
            raise error
        put(self, key, value)  # type: ignore[arg-type]

    put = capture_module.Capture.put
    if where == "in the pass":
        monkeypatch.setattr(capture_module.Capture, "put", failing_put)
    else:
        last = 70 if where == "at the end" else 20
        monkeypatch.setattr(run_module, "Capture", lost_after(last, lambda: error))
    out, told = tmp_path / "t", list[Event]()
    job = TraceJob(str(qwen2), str(out), tokens=(1, 2, 3), device="cpu")
    with pytest.raises(EngineError) as failed:
        run_trace(make_plan(job), told.append)
    assert failed.value.message.startswith(message)
    assert hint in failed.value.hint
    assert isinstance(told[-1], Failed) and told[-1].message == failed.value.message
    files = sorted(out.rglob("*.bin"))
    assert files, "what was written stays"
    for path in files:
        read_header(path)
    assert not [path for path in out.rglob("*") if path.name.endswith(".part")]
    assert not (out / MANIFEST).exists()


def test_who_fills_a_card_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (1_000_000_000, 80_000_000_000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 9_000_000_000)
    full = pytest.raises(EngineError, match=r"of 80\.0 GB other processes and the driver hold 70")
    with full, run_module._engine_errors():
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")


def test_a_card_that_does_not_even_tell_its_name_is_an_error_of_one_sentence(
    qwen2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(index: int) -> str:
        raise RuntimeError("CUDA error: GPU is lost\nmore")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lost)
    job = TraceJob(str(qwen2), str(tmp_path / "t"), tokens=(1, 2), device="cuda")
    with pytest.raises(EngineError, match="the device failed: CUDA error: GPU is lost; what"):
        run_trace(make_plan(job), lambda event: None)
