"""Fixtures that every test may use."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support import SMALL

# How long an example takes is the machine's affair: none is a failure.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """First the folders whose tests wait for other programs, one of them for half a minute: at the
    end another process would have nothing to do meanwhile."""
    items.sort(key=lambda item: item.path.parent.name not in ("gpu", "pty", "sweep"))


def pytest_collection_finish() -> None:
    """Modules and tests stay to the end: the collector looks at what tests make alone, and not at
    every few objects. That is a fifth of the time of a test of the UI."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 10, 10)


@pytest.fixture
def qwen2() -> Path:
    """A 2 MB qwen2 GGUF with seeded random weights, quantised by llama.cpp."""
    return SMALL / "models" / "qwen2-q4_k_m.gguf"


@pytest.fixture
def qwen2_apr() -> Path:
    """The same weights as the public `apr import` wrote them."""
    return SMALL / "apr" / "qwen2-import.apr"
