"""What a path was found to be, as one value; importing it costs nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["Opened"]


@dataclass(frozen=True)
class Opened:
    """``kind``: "model", "trace", "stage", "per-op", "dump" (another tool's), "prompts" (a trace
    for each of several), "results" (a sweep's), or "folder" before anybody looked into it."""

    kind: str
    path: Path
