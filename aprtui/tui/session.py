"""Where a person was in each trace, and which traces were left running: kept between starts.

``$XDG_STATE_HOME/aprtui/session.json``; one that is damaged counts as empty and is replaced.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aprtui.errors import AprtuiError
from aprtui.formats.layout import MANIFEST, StageKey
from aprtui.state import state_folder
from aprtui.text import clean

__all__ = [
    "Spot", "last_verdicts", "left_running", "recall", "recall_theme", "remember",
    "remember_running", "remember_theme", "remember_verdict", "session_file",
]  # fmt: skip

MAX_SPOTS = 200
MAX_LEFT = 50
MAX_BYTES = 1 << 20


@dataclass(frozen=True)
class Spot:
    """A stage, and how it was looked at: Browse's pane or Diff's metric."""

    key: StageKey | None = None
    pane: str = ""
    metric: str = ""


def session_file() -> Path:
    """Where the session lies."""
    return state_folder() / "session.json"


def recall(*paths: Path) -> Spot:
    """The last place in what these paths open; an empty one when none is known."""
    found = _read()["spots"].get(_name(paths))
    if not isinstance(found, dict):
        return Spot()
    layer, stage = found.get("layer"), found.get("stage")
    key = None
    if isinstance(stage, str) and (layer is None or isinstance(layer, int)):
        key = StageKey(layer, stage)
    texts = [
        text if isinstance(text := found.get(name), str) else "" for name in ("pane", "metric")
    ]
    return Spot(key, *texts)


def remember(spot: Spot, *paths: Path) -> None:
    """Keep the place; the oldest of more than MAX_SPOTS is forgotten."""
    kept = _read()
    spots = kept["spots"]
    spots.pop(_name(paths), None)
    layer, stage = spot.key or (None, None)
    spots[_name(paths)] = {
        "layer": layer, "stage": stage, "pane": spot.pane, "metric": spot.metric,
    }  # fmt: skip
    _write(kept | {"spots": dict([*spots.items()][-MAX_SPOTS:])})


def left_running() -> tuple[Path, ...]:
    """Folders of traces that were left running, the newest last; they may have ended since."""
    return tuple(Path(entry) for entry in _read()["left"])


def remember_running(directory: Path) -> None:
    """Keep the folder of a trace that goes on by itself."""
    kept = _read()
    name = str(directory.absolute())
    left = [entry for entry in kept["left"] if entry != name]
    _write(kept | {"left": [*left, name][-MAX_LEFT:]})


def recall_theme(configured: str) -> str:
    """The theme that was chosen last, unless the config names another one than it did then."""
    chosen, then = _read()["theme"]
    return chosen if then == configured else ""


def remember_theme(chosen: str, configured: str) -> None:
    """Keep the choice, made while the config named ``configured``."""
    _write(_read() | {"theme": [chosen, configured]})


def last_verdicts() -> dict[str, str]:
    """What is known of each trace by comparisons, in clean words, by absolute path."""
    found = _read()["verdicts"].items()
    texts = {path: kept.get("text") for path, kept in found if isinstance(kept, dict)}
    return {path: clean(text, 200) for path, text in texts.items() if isinstance(text, str)}


def remember_verdict(trace: Path, against: Path, text: str, *, telling: bool = False) -> None:
    """Keep what a comparison of ``trace`` found; the oldest of many is forgotten.

    ``telling``: it says what each stage does wrong, or that none does. One that only measures the
    same two does not take its place, as long as both are as they were.
    """
    kept = _read()
    verdicts, name = kept["verdicts"], _name((trace,))
    sides = [[str(path.absolute()), _written_ns(path)] for path in (trace, against)]
    before, found = verdicts.pop(name, None), {"text": text, "telling": telling, "sides": sides}
    if isinstance(before, dict) and before.get("telling") is True and not telling:
        found = before if before.get("sides") == sides else found
    verdicts[name] = found
    _write(kept | {"verdicts": dict([*verdicts.items()][-MAX_SPOTS:])})


def _written_ns(path: Path) -> int:
    """When a trace was completed, or else the folder or the stage file was changed."""
    for file in (path / MANIFEST, path):
        with suppress(OSError):
            return file.stat().st_mtime_ns
    return 0


def _name(paths: tuple[Path, ...]) -> str:
    return "\n".join(str(path.absolute()) for path in paths)


def _read() -> dict[str, Any]:
    found: object = None
    try:
        if session_file().stat().st_size <= MAX_BYTES:
            found = json.loads(session_file().read_bytes())
    except (OSError, ValueError, RecursionError):
        pass
    spots = found.get("spots") if isinstance(found, dict) else None
    left = found.get("left") if isinstance(found, dict) else None
    verdicts = found.get("verdicts") if isinstance(found, dict) else None
    theme = found.get("theme") if isinstance(found, dict) else None
    pair = isinstance(theme, list) and [type(each) for each in theme] == [str, str]
    return {
        "theme": theme if pair else ["", ""],
        "verdicts": verdicts if isinstance(verdicts, dict) else {},
        "spots": spots if isinstance(spots, dict) else {},
        "left": [entry for entry in left if isinstance(entry, str)]
        if isinstance(left, list)
        else [],
    }


def _write(session: Mapping[str, Any]) -> None:
    """Replace the file whole; a state folder that cannot be written is no reason to complain."""
    from aprtui.formats.atomic import whole_file  # numpy, which the first frame does without

    try:
        with whole_file(session_file(), parents=True) as file:
            file.write(json.dumps(session).encode())
    except (AprtuiError, OSError):
        pass
