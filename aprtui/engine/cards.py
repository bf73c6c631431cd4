"""NVIDIA's cards as their management library (NVML) sees them: names, memory, use, power.

No torch, and no CUDA context: asking takes nothing of a card's memory. nvidia-ml-py is optional;
where it or a driver is missing, ``Cards.why_not`` says so in one sentence.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from aprtui.text import clean, size

__all__ = ["Card", "Cards", "look", "look_at", "planned_on"]


@dataclass(frozen=True)
class Card:
    """One card now. ``busy`` is the share of the last moments in which it computed."""

    name: str
    uuid: str
    used_bytes: int
    total_bytes: int
    busy_percent: int | None = None  # None: the card does not tell
    watts: float | None = None
    most_watts: float | None = None

    @property
    def free_bytes(self) -> int:
        return self.total_bytes - self.used_bytes


@dataclass(frozen=True)
class Cards:
    """What was found; without cards ``why_not`` says why."""

    cards: tuple[Card, ...] = ()
    why_not: str = ""

    def told(self) -> str:
        """``cuda:0 and cuda:1: NVIDIA H100 80GB HBM3 (85.9 GB)``, as ``--device`` takes them."""
        kinds = [f"{clean(card.name, 60)} ({size(card.total_bytes)})" for card in self.cards]
        if len(set(kinds)) > 1:  # CUDA may number cards of several kinds in another order
            return f"cuda:0 to cuda:{len(kinds) - 1}: {', '.join(kinds)}, the fastest first"
        last = f" to cuda:{len(kinds) - 1}" if len(kinds) > 1 else ""
        return f"cuda:0{last}: {kinds[0]}" if kinds else self.why_not


def look() -> Cards:
    """Every card that this process may use (CUDA_VISIBLE_DEVICES), in NVML's order."""

    def every(nvml: Any) -> list[Any]:
        found = [nvml.nvmlDeviceGetHandleByIndex(n) for n in range(nvml.nvmlDeviceGetCount())]
        return _visible(nvml, found)

    return _asked(every)


def look_at(uuid: str) -> Cards:
    """The card of one UUID, as torch or NVML spell it."""
    name = uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"
    return _asked(lambda nvml: [nvml.nvmlDeviceGetHandleByUUID(name)])


def planned_on(device: str, weights_bytes: int, *, resident: bool) -> str:
    """What a plan can say of its device before torch is there: the card, the memory that is free,
    and whether the weights stream or stay. Empty where there is no card to ask, or none is meant.
    """
    names = device.lower().replace(" ", "").split(",")
    found = look().cards if names[0].startswith(("auto", "cuda")) else ()
    numbers = [int(name[5:]) for name in names if name.startswith("cuda:") and name[5:].isdigit()]
    if not found or any(number >= len(found) for number in numbers):
        return ""
    if not numbers or len({card.name for card in found}) > 1:  # numbered in an order of CUDA's own
        roomiest = max(found, key=lambda card: card.free_bytes)
        chosen = sorted(found, key=lambda card: -card.free_bytes)[: len(numbers)] or [roomiest]
    else:
        chosen = [found[number] for number in numbers]
    free = sum(card.free_bytes for card in chosen)
    kinds = ", ".join(dict.fromkeys(clean(card.name, 60) for card in chosen))
    if not resident:
        weights = f"{size(weights_bytes)} of weights stream through, block by block"
    elif weights_bytes <= free:
        weights = f"{size(weights_bytes)} of weights fit and stay"
    else:
        weights = f"{size(weights_bytes)} of weights do not fit: what does not streams each time"
    return f"{kinds}, {size(free)} free: {weights}"


def _asked(handles: Callable[[Any], list[Any]]) -> Cards:
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        return Cards(why_not="nvidia-ml-py is not installed: pip install nvidia-ml-py")
    try:
        nvml.nvmlInit()  # counted, and left to the process's end: beginning anew takes longer
        return Cards(tuple(_card(nvml, handle) for handle in handles(nvml)))
    except nvml.NVMLError as error:
        return Cards(why_not=f"NVML says: {clean(str(error), 200)}")


def _card(nvml: Any, handle: Any) -> Card:
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)

    def told(ask: str) -> Any:
        try:
            return getattr(nvml, ask)(handle)
        except nvml.NVMLError:  # some cards do not tell this
            return None

    use, watts = told("nvmlDeviceGetUtilizationRates"), told("nvmlDeviceGetPowerUsage")
    limit = told("nvmlDeviceGetEnforcedPowerLimit")
    return Card(
        name=_text(nvml.nvmlDeviceGetName(handle)),
        uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
        used_bytes=int(memory.used),
        total_bytes=int(memory.total),
        busy_percent=None if use is None else int(use.gpu),
        watts=None if watts is None else watts / 1000,
        most_watts=None if limit is None else limit / 1000,
    )


def _visible(nvml: Any, handles: list[Any]) -> list[Any]:
    """Those that CUDA_VISIBLE_DEVICES leaves, in its order; one that it misspells ends the list."""
    said = os.environ.get("CUDA_VISIBLE_DEVICES")
    if said is None:
        return handles
    uuids = [_text(nvml.nvmlDeviceGetUUID(handle)) for handle in handles]
    visible = []
    for part in (part.strip() for part in said.split(",")):
        at = [
            n for n, uuid in enumerate(uuids) if str(n) == part or (part and uuid.startswith(part))
        ]
        if len(at) != 1:
            break
        visible.append(handles[at[0]])
    return visible


def _text(value: str | bytes) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
