"""Where this program keeps what it knows between starts: sessions, logs, crash files; and what it
can make again."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["cache_folder", "state_folder"]


def state_folder() -> Path:
    """``$XDG_STATE_HOME/aprtui``, else ``~/.local/state/aprtui``; it need not be there."""
    base = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(base) / "aprtui"


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/aprtui``, else ``~/.cache/aprtui``; it need not be there."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "aprtui"
