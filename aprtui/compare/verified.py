"""One verdict of a capture that was compared with a reference and replayed."""

from __future__ import annotations

from dataclasses import dataclass

from aprtui.compare.bisection import Bisection
from aprtui.compare.diff import Comparison
from aprtui.compare.pairs import PASSED
from aprtui.formats.tracedir import TraceDir

__all__ = ["WORST_FIRST", "Verified", "verdict_of"]

WORST_FIRST = ("culprits", "unmeasured", "explained", "same")


@dataclass(frozen=True)
class Verified:
    """One engine's capture: against the reference (None for that itself), and replayed.

    ``verdict`` is "culprits", "unmeasured" (none, and not everything could be compared or
    replayed), "explained" (they differ, and honest rounding accounts for every stage) or "same".
    """

    engine: str
    trace: TraceDir
    comparison: Comparison | None
    replay: Bisection

    @property
    def verdict(self) -> str:
        if self.replay.culprits:
            return "culprits"
        pairs = self.comparison.results if self.comparison is not None else ()
        if self.unmeasured_stages:
            return "unmeasured"
        exact = not self.replay.within and all(by == "float32" for by in self.replay.explanations)
        return "same" if exact and all(pair.kind in PASSED for pair in pairs) else "explained"

    @property
    def unmeasured_stages(self) -> tuple[str, ...]:
        """The names of stages that could not be compared or replayed in some layer."""
        pairs = self.comparison.results if self.comparison is not None else ()
        alone = [pair.key.stage for pair in pairs if pair.metrics is None]
        return tuple(dict.fromkeys([*alone, *(item.key.stage for item in self.replay.unmeasured)]))

    @property
    def explained_by(self) -> dict[str, int]:
        """How many stages each kind of rounding accounts for; plain float32 is not listed."""
        found = {by: n for by, n in self.replay.explanations.most_common() if by != "float32"}
        within = len(self.replay.within)
        return {**found, "rounding inside fused steps": within} if within else found


def verdict_of(engines: tuple[Verified, ...]) -> str:
    """The worst verdict of any engine."""
    return min((each.verdict for each in engines), key=WORST_FIRST.index)
