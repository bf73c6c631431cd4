"""What a person opens: what a path was found to be, and a URL. Importing it costs nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["Opened", "behind_url"]


@dataclass(frozen=True)
class Opened:
    """``kind``: "model", "trace", "stage", "per-op", "dump" (another tool's), "prompts" (a trace
    for each of several), "results" (a sweep's), or "folder" before anybody looked into it."""

    kind: str
    path: Path


def behind_url(text: str) -> Path | None:
    """A folder that stands for the sweep's results behind a URL; None for what is a path."""
    if "://" not in text or text.startswith("file://"):
        return None
    from aprtui.sweep.results import place_for  # numpy comes behind the first frame

    return place_for(text)
