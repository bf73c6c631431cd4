"""Fixtures that every test may use."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

from tests.support import SMALL

# How long an example takes is the machine's affair: none is a failure.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture
def qwen2() -> Path:
    """A 2 MB qwen2 GGUF with seeded random weights, quantised by llama.cpp."""
    return SMALL / "models" / "qwen2-q4_k_m.gguf"


@pytest.fixture
def qwen2_apr() -> Path:
    """The same weights as the public `apr import` wrote them."""
    return SMALL / "apr" / "qwen2-import.apr"
