"""Which device computes which layers, and whose weights stay there; decided by bytes alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import torch

from aprtui.model.open import Model
from aprtui.text import size

__all__ = ["Placement", "Room", "layer_bytes", "place"]

_STEPS = 40  # halvings, until shares are equal to a trillionth


@dataclass(frozen=True)
class Room:
    """A device and how many bytes of stored weights it has room for, beside the pass itself."""

    device: torch.device
    bytes: int


@dataclass(frozen=True)
class Placement:
    """The device of each layer, and of what follows the last one: final norm and head.

    ``kept`` are the layers (None: the head) whose stored weights stay on their device from one
    prompt to the next; the others stream each time.
    """

    layers: tuple[torch.device, ...]
    head: torch.device
    kept: frozenset[int | None] = field(default_factory=frozenset)

    @classmethod
    def whole(cls, model: Model, device: torch.device) -> Placement:
        """Everything on one device, streamed."""
        return cls((device,) * model.graph.num_layers, device)

    def device_of(self, layer: int | None) -> torch.device:
        return self.head if layer is None else self.layers[layer]

    @property
    def devices(self) -> tuple[torch.device, ...]:
        """Each device that computes, in order of computation."""
        return tuple(dict.fromkeys((*self.layers, self.head)))

    def told(self) -> dict[str, str]:
        """What each device computes, for people: ``{"cuda:0": "layers 0-13"}``."""
        told: dict[str, str] = {}
        runs = groupby(range(len(self.layers)), key=lambda layer: self.layers[layer])
        for device, run in runs:
            layers = list(run)
            told[str(device)] = f"layers {layers[0]}-{layers[-1]}"
        before = told.get(str(self.head))
        told[str(self.head)] = f"{before} and the head" if before else "the head"
        return told

    def kept_note(self, sizes: Mapping[int | None, int]) -> str:
        """What of the weights stays on the devices and what does not, for people."""
        kept = sum(sizes[layer] for layer in self.kept)
        whole = sum(sizes.values())
        where = "the device" if len(self.devices) == 1 else "the devices"
        note = f"{size(kept)} of {size(whole)} of stored weights stay on {where}"
        if len(self.kept) == len(sizes):
            return note
        count = len(self.kept - {None})
        head = "and the head " if None in self.kept else ""
        return (
            f"{note}: {count} of {len(self.layers)} layers {head}fit into free memory, the rest "
            "streams for each prompt"
        )


def layer_bytes(model: Model) -> dict[int | None, int]:
    """The stored bytes of each layer's weights; under None those of the final norm and head."""
    sizes: dict[int | None, int] = dict.fromkeys((*range(model.graph.num_layers), None), 0)
    for role, matrix in model.weights.items():
        if role not in model.graph.tables:
            share = matrix.rows * matrix.columns / math.prod(matrix.entry.shape)
            sizes[role.layer] += math.ceil(matrix.entry.size_bytes * share)
    return sizes


def place(
    sizes: Mapping[int | None, int], rooms: Sequence[Room], *, keep: bool, spread: bool
) -> Placement:
    """Lay consecutive layers on the devices by the room they have.

    ``sizes`` are ``layer_bytes``'s, in order of computation. Streamed weights need one device: the
    roomiest of ``rooms``, unless ``spread`` asks for all of them. Weights to ``keep`` take all only
    where one is not enough. Of those that do not fit, each device keeps as many whole layers as it
    has room for, the first ones.
    """
    order = list(sizes)
    roomiest = max(rooms, key=lambda room: room.bytes)
    usable = [room for room in rooms if room.bytes > 0]
    if not spread and (not keep or sum(sizes.values()) <= roomiest.bytes):
        usable = [roomiest]
    places = _shares([sizes[layer] for layer in order], usable or [roomiest])
    kept: set[int | None] = set()
    left = {room.device: room.bytes for room in usable} if keep else {}
    for layer, device in zip(order, places, strict=True):
        if sizes[layer] <= left.get(device, -1):
            left[device] -= sizes[layer]
            kept.add(layer)
    return Placement(tuple(places[:-1]), places[-1], frozenset(kept))


def _shares(sizes: Sequence[int], rooms: Sequence[Room]) -> list[torch.device]:
    """The device of each part: consecutive, each filled to the least common share of its room."""
    low, high = 0.0, sum(sizes) / min(max(room.bytes, 1) for room in rooms) + 1.0
    best = _filled(sizes, rooms, math.inf)
    for _ in range(_STEPS):
        share = (low + high) / 2
        filled = _filled(sizes, rooms, share)
        if filled is None:
            low = share
        else:
            best, high = filled, share
    assert best is not None  # an infinite share takes everything
    return best


def _filled(sizes: Sequence[int], rooms: Sequence[Room], share: float) -> list[torch.device] | None:
    """Parts laid on one device after the other up to a share of its room; None: some remain."""
    places: list[torch.device] = []
    for room in rooms:
        used = 0
        while len(places) < len(sizes) and used + sizes[len(places)] <= share * max(room.bytes, 1):
            used += sizes[len(places)]
            places.append(room.device)
    return places if len(places) == len(sizes) else None
