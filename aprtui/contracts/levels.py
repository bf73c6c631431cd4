"""Levels of discharge, derived from evidence and never typed (docs/contracts.md 3)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from aprtui.contracts.evidence import Evidence, digest, load_evidence
from aprtui.contracts.model import Contract, FalsificationTest, Finding, Level
from aprtui.errors import AprtuiError
from aprtui.text import clean

__all__ = ["Standing", "contradictions", "standing", "standings"]


@dataclass(frozen=True)
class Standing:
    """One promise, the level that its evidence supports and why not a higher one."""

    contract: Path
    test: FalsificationTest
    level: Level
    reason: str
    evidence: Evidence | None


def standings(contract: Contract, path: Path, root: Path) -> Iterator[Standing]:
    """A standing for every falsification test of the contract in ``path``."""
    contract_digest = digest(path)
    for test in contract.tests or ():
        try:
            evidence = load_evidence(path, test.id)
        except AprtuiError as error:
            yield Standing(path, test, Level.PROPOSED, error.message, None)
            continue
        level, reason = standing(evidence, contract_digest, root)
        yield Standing(path, test, level, reason, evidence)


def standing(
    evidence: Evidence | None, contract_digest: str | None, root: Path
) -> tuple[Level, str]:
    """The level that ``evidence`` supports today, and what it rests on or lacks."""
    if evidence is None:
        return Level.PROPOSED, "no evidence yet"
    if evidence.contract_digest != contract_digest:
        return Level.PROPOSED, "stale: the contract has changed since"
    changed = _changed(evidence.inputs.items(), root)
    if changed:
        return Level.PROPOSED, f"stale: {clean(changed)} has changed since"
    if not evidence.passed:
        return Level.PROPOSED, _failure(evidence)
    if "end-to-end" not in evidence.kinds:
        return Level.PARTIAL, "its unit tests pass"
    if evidence.model is None:
        return Level.PARTIAL, "end to end, but no model file was recorded"
    if "independent" not in evidence.kinds:
        return Level.FUNCTIONAL, "seen end to end"
    if evidence.against is None:
        return Level.FUNCTIONAL, "end to end, but what it was checked against was not recorded"
    return Level.DISCHARGED, "seen end to end and checked against an independent implementation"


def contradictions(contract: Contract, path: Path) -> Iterator[Finding]:
    """Levels typed into the contract that the evidence beside it does not support."""
    typed = [test for test in contract.tests or () if test.level in list(Level)]
    if not typed:
        return
    derived = {one.test.id: one for one in standings(contract, path, path.resolve().parent.parent)}
    for test in typed:
        found = derived[test.id]
        if test.level != found.level:
            where = f"falsification_tests.{clean(test.id)}.level"
            message = f"says {test.level}, the evidence supports {found.level}: {found.reason}"
            yield Finding("WARN", "OURS-LEVEL", where, message)


def _changed(inputs: Iterable[tuple[str, str]], root: Path) -> str | None:
    return next((name for name, before in inputs if digest(root / name) != before), None)


def _failure(evidence: Evidence) -> str:
    if evidence.exit_code is None:
        return "failed: it did not end by itself"
    if evidence.exit_code:
        return f"failed: exit code {evidence.exit_code}"
    skipped = (evidence.outcomes or {}).get("skipped", 0)
    return f"shows nothing: {skipped} skipped" if skipped else "shows nothing: no test ran"
