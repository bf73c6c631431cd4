"""What an import came to: one frozen value for the command line and for callers."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from aprtui.text import count

__all__ = ["ImportedTrace"]


@dataclass(frozen=True)
class ImportedTrace:
    """A dump that was written as a trace folder.

    ``stages`` of ``of`` that the model has were written; ``checked`` of them could be had in
    several ways, which were equal to the bit; ``contradictions`` say which could not be trusted and
    were left out. ``map`` is the convention, ``dtype`` the type that the runtime computed in.
    """

    directory: str
    source: str
    map: str
    tokens: int
    passes: int
    dtype: str
    stages: int
    of: int
    checked: int
    contradictions: tuple[str, ...]
    notes: tuple[str, ...]
    elapsed_s: float

    def to_json(self) -> dict[str, Any]:
        """What ``aprtui import-trace --json`` prints."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        wrong = f", {count(len(self.contradictions), 'stage')} left out" * bool(self.contradictions)
        return (
            f"{self.stages} of {self.of} stages, {count(self.tokens, 'token')}, {self.dtype}, "
            f"by the map {self.map}; {self.checked} checked by a second reading{wrong}"
        )
