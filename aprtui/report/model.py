"""What a report says, as plain values: the writers only choose how it looks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from aprtui.compare.bisection import Bisection
from aprtui.compare.diff import Comparison

__all__ = [
    "SCHEMA",
    "Capture",
    "Cell",
    "CulpritLine",
    "Explanation",
    "Grid",
    "ModelFacts",
    "Report",
]

SCHEMA = "aprtui-report-v1"


@dataclass(frozen=True)
class Capture:
    """One side. ``digest`` is a sha256, ``digest_of`` says of what."""

    name: str
    role: str
    path: str
    engine: str
    status: str
    files: int
    digest: str
    digest_of: str


@dataclass(frozen=True)
class ModelFacts:
    """The model that both sides should have computed."""

    path: str
    format: str
    architecture: str
    size_bytes: int
    types: tuple[str, ...]
    dimensions: str
    digest: str  # sha256 of header, metadata and tensor index


@dataclass(frozen=True)
class Cell:
    """One stage of one layer. ``level`` 0 is bit-identical, 1 within its bar, 2 to 4 beyond it."""

    kind: str
    level: int
    mark: str
    culprit: bool
    text: str


@dataclass(frozen=True)
class Grid:
    """Layers down, stages across, both in order of computation; layer None is the whole model."""

    stages: tuple[str, ...]
    layers: tuple[int | None, ...]
    cells: Mapping[tuple[int | None, str], Cell]


@dataclass(frozen=True)
class CulpritLine:
    """One culprit in words and numbers that are ready to be shown."""

    stage: str
    what: str  # the mistake, or what the error looks like
    mistake_id: str  # empty where the catalogue has none that fits
    numbers: tuple[tuple[str, str], ...]
    note: str = ""


@dataclass(frozen=True)
class Explanation:
    """Honest numerics that reproduce stages of B from B's own inputs."""

    by: str
    stages: int
    residual: str
    local_error: str


@dataclass(frozen=True)
class Report:
    """Everything a report says. Texts may hold what files said: writers escape them all."""

    headline: str
    tone: str  # "bad", "good" or "unknown"
    sentences: tuple[str, ...]
    captures: tuple[Capture, ...]
    model: ModelFacts | None
    token_ids: tuple[int, ...]
    token_texts: tuple[str, ...]
    grid: Grid
    culprits: tuple[CulpritLine, ...]
    explanations: tuple[Explanation, ...]
    differences: tuple[tuple[str, ...], ...]  # rows under DIFFERENCE_HEADS
    more_differences: int
    unmeasured: tuple[tuple[str, str], ...]  # what, why
    bars: str
    marked: tuple[tuple[str, str], ...]  # a place, the note on it
    notes: tuple[str, ...]
    versions: tuple[tuple[str, str], ...]
    commands: tuple[str, ...]
    comparison: Comparison
    bisection: Bisection | None
