"""A stand-in for NVIDIA's management library: cards as a test wants them."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

__all__ = ["GB", "play_nvml"]

GB = 1_000_000_000


def play_nvml(
    monkeypatch: pytest.MonkeyPatch, *cards: tuple[str, int, int], silent: bool = False
) -> None:
    """Cards of (name, used bytes, total bytes); ``silent`` ones tell neither use nor power.

    No card: the library says that there is no driver.
    """

    class NVMLError(Exception):
        pass

    played: Any = ModuleType("pynvml")
    played.NVMLError = NVMLError

    def begin() -> None:
        if not cards:
            raise NVMLError("Driver Not Loaded")

    def uuid(handle: int) -> str:
        return f"GPU-{handle}000-0000"

    def handle_of(name: str) -> int:
        known = {uuid(number): number for number in range(len(cards))}
        if name not in known:
            raise NVMLError("Not Found")
        return known[name]

    def told(value: object) -> Any:
        def ask(handle: int) -> object:
            if silent:
                raise NVMLError("Not Supported")
            return value

        return ask

    played.nvmlInit = begin
    played.nvmlDeviceGetCount = lambda: len(cards)
    played.nvmlDeviceGetHandleByIndex = lambda number: number
    played.nvmlDeviceGetHandleByUUID = handle_of
    played.nvmlDeviceGetUUID = uuid
    played.nvmlDeviceGetName = lambda handle: cards[handle][0].encode()
    played.nvmlDeviceGetMemoryInfo = lambda handle: SimpleNamespace(
        used=cards[handle][1], total=cards[handle][2]
    )
    played.nvmlDeviceGetUtilizationRates = told(SimpleNamespace(gpu=37))
    played.nvmlDeviceGetPowerUsage = told(310_500)
    played.nvmlDeviceGetEnforcedPowerLimit = told(700_000)
    monkeypatch.setitem(sys.modules, "pynvml", played)
