"""Roles: what a tensor is for, whatever its name in a file."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Role"]


class Role(NamedTuple):
    """What a tensor is for. ``expert`` numbers one expert's own tensor; None for packed experts."""

    name: str
    layer: int | None = None
    expert: int | None = None

    def __str__(self) -> str:
        text = self.name if self.layer is None else f"layer {self.layer} {self.name}"
        return text if self.expert is None else f"{text} of expert {self.expert}"
