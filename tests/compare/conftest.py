"""What tests of planted mistakes share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.families import TINY, save_tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Where the tiny model of a family lies; made once."""
    root = tmp_path_factory.mktemp("families")

    def made(family: str) -> Path:
        if not (root / family).exists():
            save_tiny(TINY[family], root / family)
        return root / family

    return made
