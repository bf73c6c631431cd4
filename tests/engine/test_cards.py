"""What NVML tells of the cards: names, room, use; and one sentence where it tells nothing."""

from __future__ import annotations

import sys

import pytest

from aprtui.engine import watching as watching_module
from aprtui.engine.cards import Card, look, look_at, planned_on
from aprtui.engine.events import CardSeen, Event, Log, parse_event
from aprtui.engine.watching import watching
from tests.engine.nvml import GB, play_nvml

H100 = ("NVIDIA H100", 5 * GB, 85 * GB)
T4 = ("Tesla T4", 1 * GB, 16 * GB)


@pytest.fixture(autouse=True)
def all_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_cards_are_told_as_device_takes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    play_nvml(monkeypatch, H100)
    assert look().cards == (
        Card("NVIDIA H100", "GPU-0000-0000", 5 * GB, 85 * GB, 37, 310.5, 700.0),
    )
    assert look().told() == "cuda:0: NVIDIA H100 (85.0 GB)"
    play_nvml(monkeypatch, H100, H100)
    assert look().told() == "cuda:0 to cuda:1: NVIDIA H100 (85.0 GB)"
    play_nvml(monkeypatch, T4, H100)
    assert look().told() == (
        "cuda:0 to cuda:1: Tesla T4 (16.0 GB), NVIDIA H100 (85.0 GB), the fastest first"
    )


def test_a_card_that_tells_little_is_told_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    play_nvml(monkeypatch, T4, silent=True)
    assert look().cards == (Card("Tesla T4", "GPU-0000-0000", 1 * GB, 16 * GB),)


@pytest.mark.parametrize(
    ("said", "names"),
    [("1", ["Tesla T4"]), ("1,0", ["Tesla T4", "NVIDIA H100"]), ("GPU-1", ["Tesla T4"]),
     ("", []), ("0,7,1", ["NVIDIA H100"]), ("-1", [])],
)  # fmt: skip
def test_only_visible_cards_count(
    said: str, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    play_nvml(monkeypatch, H100, T4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", said)
    assert [card.name for card in look().cards] == names


def test_why_nothing_is_told_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    play_nvml(monkeypatch)
    assert look().told() == "NVML says: Driver Not Loaded"
    play_nvml(monkeypatch, H100)
    assert look_at("nowhere").why_not == "NVML says: Not Found"
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert look().told() == "nvidia-ml-py is not installed: pip install nvidia-ml-py"


@pytest.mark.parametrize(
    ("device", "weights", "resident", "says"),
    [
        ("auto", 4 * GB, False, "NVIDIA H100, 80.0 GB free: 4.0 GB of weights stream through"),
        ("cuda", 40 * GB, True, "NVIDIA H100, 80.0 GB free: 40.0 GB of weights fit and stay"),
        ("cuda", 90 * GB, True, "NVIDIA H100, 80.0 GB free: 90.0 GB of weights do not fit"),
        ("cuda:0,cuda:1", 90 * GB, True, "NVIDIA H100, Tesla T4, 95.0 GB free: 90.0 GB"),
        ("cuda:5", 4 * GB, False, ""),
        ("cpu", 4 * GB, False, ""),
        ("mps", 4 * GB, False, ""),
    ],
)
def test_a_plan_says_what_fits_and_what_streams(
    device: str, weights: int, resident: bool, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of cards of several sizes the roomiest first, as the weights will be placed."""
    play_nvml(monkeypatch, T4, H100)
    told = planned_on(device, weights, resident=resident)
    assert told.startswith(says) and bool(told) == bool(says)
    play_nvml(monkeypatch)
    assert planned_on(device, weights, resident=resident) == ""


def test_cards_are_watched_from_the_beginning_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    play_nvml(monkeypatch, H100)
    monkeypatch.setattr(watching_module, "EVERY_S", 0)
    told: list[Event] = []
    with watching({"cuda:0": "0000-0000"}, told.append):
        pass
    assert told
    seen = CardSeen("cuda:0", 5 * GB, 85 * GB, 37, 310.5, 700.0)
    assert all(event == seen for event in told)
    assert parse_event(seen.line()) == seen


def test_a_missing_library_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setattr(watching_module, "EVERY_S", 0)
    told: list[Event] = []
    with watching({"cuda:0": "0000-0000", "cuda:1": "1000-0000"}, told.append):
        pass
    assert [type(event) for event in told] == [Log]
    assert "pip install nvidia-ml-py" in told[0].line()


def test_without_a_card_nobody_watches() -> None:
    with watching({}, lambda event: pytest.fail("told")):
        pass
