"""Every test of the UI has a session of its own, and waits only for what is still to be done."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from textual.css.stylesheet import Stylesheet

from aprtui.tui import following


@pytest.fixture(autouse=True)
def _own_session(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    state: Path = tmp_path_factory.mktemp("state")
    monkeypatch.setenv("XDG_STATE_HOME", str(state))


@pytest.fixture(autouse=True)
def _followed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "FOLLOW_S", 0.02)


@pytest.fixture(autouse=True)
def _idle_is_seen_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Textual looks for 20 ms, twice a key, whether the process rests; 13 tell it."""
    monkeypatch.setattr("textual._wait.SLEEP_GRANULARITY", 1 / 75)
    monkeypatch.setattr("textual._wait.SLEEP_IDLE", 1 / 1500)


@pytest.fixture(autouse=True, scope="session")
def _style_sheets_are_parsed_once() -> Iterator[None]:
    """Not for each app and each of its screens: they are all the same."""
    parse, parsed = Stylesheet._parse_rules, dict[Any, Any]()

    def kept(sheet: Stylesheet, css: str, **told: Any) -> Any:
        key = (css, *told.values(), frozenset(sheet._variables.items()))
        if key not in parsed:
            parsed[key] = parse(sheet, css, **told)
        return parsed[key]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Stylesheet, "_parse_rules", kept)
        yield
