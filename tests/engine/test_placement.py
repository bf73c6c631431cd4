"""Layers on devices: consecutive, by the room there is; what is kept fits."""

from __future__ import annotations

from itertools import groupby

import torch
from hypothesis import given
from hypothesis import strategies as st

from aprtui.engine.placement import Placement, Room, layer_bytes, place
from aprtui.model.open import Model, open_model
from tests.support import SMALL

A, B, C = (torch.device("cuda", index) for index in range(3))


def layers(count: int, each: int = 10, head: int = 10) -> dict[int | None, int]:
    return {**dict.fromkeys(range(count), each), None: head}


def test_streamed_weights_take_the_one_roomiest_device() -> None:
    placed = place(layers(4), [Room(A, 5), Room(B, 7), Room(C, 6)], keep=False, spread=False)
    assert placed == Placement((B,) * 4, B)
    assert placed.devices == (B,)


def test_named_devices_share_the_layers_by_their_room() -> None:
    placed = place(layers(9), [Room(A, 1000), Room(B, 4000)], keep=False, spread=True)
    assert placed == Placement((A,) * 2 + (B,) * 7, B)
    assert placed.told() == {"cuda:0": "layers 0-1", "cuda:1": "layers 2-8 and the head"}


def test_kept_weights_take_one_device_where_it_has_room() -> None:
    placed = place(layers(4), [Room(A, 49), Room(B, 50)], keep=True, spread=False)
    assert placed == Placement((B,) * 4, B, frozenset({0, 1, 2, 3, None}))


def test_kept_weights_take_all_devices_where_one_is_too_small() -> None:
    placed = place(layers(7), [Room(A, 45), Room(B, 45)], keep=True, spread=False)
    assert placed == Placement((A,) * 4 + (B,) * 3, B, frozenset({*range(7), None}))


def test_whole_layers_are_kept_as_far_as_they_fit_and_the_rest_streams() -> None:
    sizes = layers(4, head=25)
    placed = place(sizes, [Room(A, 34)], keep=True, spread=False)
    assert placed == Placement((A,) * 4, A, frozenset({0, 1, 2}))
    assert placed.kept_note(sizes) == (
        "30 B of 65 B of stored weights stay on the device: 3 of 4 layers fit into free memory, "
        "the rest streams for each prompt"
    )
    everything = place(sizes, [Room(A, 65)], keep=True, spread=False)
    assert everything.kept_note(sizes) == "65 B of 65 B of stored weights stay on the device"


def test_a_device_without_room_is_left_out() -> None:
    placed = place(layers(4), [Room(A, -3), Room(B, 30)], keep=True, spread=True)
    assert placed.devices == (B,)
    nowhere = place(layers(4), [Room(A, -3), Room(B, -1)], keep=True, spread=False)
    assert (nowhere.devices, nowhere.kept) == ((B,), frozenset())


@given(
    sizes=st.lists(st.integers(0, 1000), min_size=2, max_size=40),
    room=st.lists(st.integers(-10, 8000), min_size=1, max_size=5),
    spread=st.booleans(),
)
def test_any_placement_is_consecutive_and_fits(
    sizes: list[int], room: list[int], spread: bool
) -> None:
    by_layer: dict[int | None, int] = dict(enumerate(sizes[:-1]))
    by_layer[None] = sizes[-1]
    rooms = [Room(torch.device("cuda", index), size) for index, size in enumerate(room)]
    placed = place(by_layer, rooms, keep=True, spread=spread)
    order = [*placed.layers, placed.head]
    runs = [device.index for device, _ in groupby(order)]
    assert runs == sorted(set(runs))
    for each in rooms:
        kept = [layer for layer in placed.kept if placed.device_of(layer) == each.device]
        assert sum(by_layer[layer] for layer in kept) <= max(0, each.bytes)
    if sum(sizes) <= max(room):
        assert spread or len(placed.kept) == len(sizes)


def test_the_bytes_of_the_layers_are_those_of_the_file() -> None:
    model: Model = open_model(SMALL / "models" / "qwen2-q4_k_m.gguf")
    sizes = layer_bytes(model)
    assert list(sizes) == [0, 1, 2, 3, None]
    read = {
        m.entry.name: m.entry.size_bytes for r, m in model.weights.items() if r.name != "embedding"
    }
    assert sum(sizes.values()) == sum(read.values())
