"""Every test of the UI has a session of its own, and does not wait a second for a growing trace."""

from __future__ import annotations

from pathlib import Path

import pytest

from aprtui.tui import following


@pytest.fixture(autouse=True)
def _own_session(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    state: Path = tmp_path_factory.mktemp("state")
    monkeypatch.setenv("XDG_STATE_HOME", str(state))


@pytest.fixture(autouse=True)
def _followed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "FOLLOW_S", 0.02)
