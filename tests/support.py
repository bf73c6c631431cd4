"""What tests share: where the fixtures lie."""

from __future__ import annotations

from pathlib import Path

import pytest

__all__ = ["FIXTURES", "SMALL", "needs_fixtures"]

FIXTURES = Path(__file__).resolve().parents[2] / "shared" / "fixtures"
SMALL = Path(__file__).resolve().parent / "fixtures"

needs_fixtures = pytest.mark.skipif(
    not FIXTURES.is_dir(), reason=f"the large fixtures are not at {FIXTURES}"
)
