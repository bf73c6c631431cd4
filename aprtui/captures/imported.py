"""What an import came to: one frozen value for the command line and for callers."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aprtui.text import count

if TYPE_CHECKING:
    from aprtui.captures.assemble import Assembly

__all__ = ["ImportedTrace", "imported"]


@dataclass(frozen=True)
class ImportedTrace:
    """A dump that was written as a trace folder.

    ``stages`` of ``of`` that the model has were written; ``checked`` of them could be had in
    several ways, which were equal to the bit; ``contradictions`` say which could not be trusted and
    were left out, ``findings`` which copies on the ``ranks`` differ. ``map`` is the convention,
    ``dtype`` the type that the runtime computed in; ``sequence`` which of ``sequences``, None where
    there is one.
    """

    directory: str
    source: str
    map: str
    tokens: int
    passes: int
    ranks: int
    sequence: int | None
    sequences: int
    dtype: str
    stages: int
    of: int
    checked: int
    contradictions: tuple[str, ...]
    findings: tuple[str, ...]
    notes: tuple[str, ...]
    elapsed_s: float

    def to_json(self) -> dict[str, Any]:
        """What ``aprtui import-trace --json`` prints."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        wrong = f", {count(len(self.contradictions), 'stage')} left out" * bool(self.contradictions)
        wrong += f", {count(len(self.findings), 'finding')}" * bool(self.findings)
        made = f" in {self.passes} passes" if self.passes > 1 else ""
        made += f" of sequence {self.sequence}" if self.sequence is not None else ""
        made += f" on {self.ranks} ranks" if self.ranks > 1 else ""
        return (
            f"{self.stages} of {self.of} stages, {count(self.tokens, 'token')}{made}, "
            f"{self.dtype}, by the map {self.map}; {self.checked} checked by a second "
            f"reading{wrong}"
        )


def imported(
    found: Assembly, directory: Path, source: Path, of: int, elapsed_s: float
) -> ImportedTrace:
    """What came of a dump whose stages, of so many ``of`` the model, were written."""
    return ImportedTrace(
        directory=str(directory),
        source=str(source),
        map=found.convention.name,
        tokens=len(found.sequence.tokens),
        passes=found.passes,
        ranks=found.values.ranks,
        sequence=found.rows.sequence,
        sequences=found.sequences,
        dtype=found.dtype,
        stages=len(found.ways) - len(found.contradictions),
        of=of,
        checked=found.checked,
        contradictions=tuple(found.contradictions),
        findings=tuple(found.findings),
        notes=tuple(found.notes),
        elapsed_s=round(elapsed_s, 3),
    )
