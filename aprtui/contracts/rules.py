"""The rules that a parsed contract must keep: docs/contracts.md 2, with the public ids.

Each rule is a generator of findings; ``check`` runs all that the contract's kind asks for. Rules
named ``OURS-`` go beyond the public validator and only warn, so that the exit codes agree.
"""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

from aprtui.contracts.model import (
    EVIDENCE_KINDS,
    TOP_LEVEL_BLOCKS,
    Contract,
    FalsificationTest,
    Finding,
    Obligation,
)
from aprtui.text import clean

__all__ = ["check", "named_files"]

_SEMANTIC_VERSION = re.compile(r"\d+\.\d+\.\d+(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?")
_ON_TYPES = (
    ("SCHEMA-014", "requires", ("postcondition",)),
    ("SCHEMA-015", "applies_to_phase", ("loop_invariant", "loop_variant")),
    ("SCHEMA-016", "parent_contract", ("subcontract",)),
)


def check(contract: Contract, root: Path | None = None) -> Iterator[Finding]:
    """Every finding. ``root`` is the project that the tests run in, where that is known."""
    yield from _metadata(contract)
    yield from _top_level_keys(contract)
    if contract.kind == "kernel":
        yield from _kernel(contract)
    for index, obligation in enumerate(contract.obligations):
        yield from _obligation(contract, obligation, f"proof_obligations.{index}")
    yield from _same_formal(contract)
    yield from _tests(contract)
    yield from _harnesses(contract)
    yield from _count(contract)
    yield from _ours(contract, root)


def _error(rule: str, where: str, message: str) -> Finding:
    return Finding("ERROR", rule, clean(where), message)


def _warning(rule: str, where: str, message: str) -> Finding:
    return Finding("WARN", rule, clean(where), message)


def _metadata(contract: Contract) -> Iterator[Finding]:
    if not contract.references:
        yield _error("SCHEMA-001", "metadata.references", "is empty: cite at least one source")
    if not contract.version:
        yield _error("SCHEMA-002", "metadata.version", "is empty")
    elif not _SEMANTIC_VERSION.fullmatch(contract.version):
        shown = clean(contract.version, 40)
        yield _warning(
            "OURS-VERSION", "metadata.version", f"{shown!r} is not a semantic version (1.0.0)"
        )


def _forms(key: str) -> set[str]:
    """``key`` without case and separators, as it is and without a plural ending."""
    bare = "".join(c for c in key.lower() if c.isascii() and c.isalnum())
    return {bare} | {bare.removesuffix(ending) for ending in ("s", "es") if bare != ending}


def _top_level_keys(contract: Contract) -> Iterator[Finding]:
    for key in contract.unknown_keys:
        if key == "kind":
            yield _error("SCHEMA-018", "kind", "is read by nothing here; put it under metadata")
        elif near := [block for block in TOP_LEVEL_BLOCKS if _forms(block) & _forms(key)]:
            yield _error("SCHEMA-019", key, f"is read by nothing; did you mean {near[0]!r}?")
    if contract.duplicate_key is not None:
        yield _error(
            "SCHEMA-020", contract.duplicate_key, "stands twice in one mapping: one is lost"
        )


def _kernel(contract: Contract) -> Iterator[Finding]:
    tests = contract.tests or ()
    if not contract.formulas:
        yield _error("SCHEMA-003", "equations", "a kernel needs at least one equation")
    for name, formula in contract.formulas.items():
        if not formula:
            yield _error("SCHEMA-004", f"equations.{name}.formula", "is empty")
    if not contract.has_qa_gate:
        yield _warning("SCHEMA-013", "qa_gate", "a kernel should have a quality gate")
    lacking = (
        (not contract.obligations, "proof_obligations", "a kernel needs at least one"),
        (not tests, "falsification_tests", "a kernel needs at least one"),
        (not contract.harnesses, "kani_harnesses", "a kernel needs at least one"),
        (
            len(tests) < len(contract.obligations),
            "falsification_tests",
            f"{len(tests)} for {len(contract.obligations)} obligations",
        ),
    )
    for is_lacking, where, message in lacking:
        if is_lacking:
            yield _error("PROVABILITY-001", where, message)


def _obligation(contract: Contract, obligation: Obligation, where: str) -> Iterator[Finding]:
    if not obligation.property:
        yield _error("SCHEMA-005", f"{where}.property", "is empty")
    for rule, name, types in _ON_TYPES:
        if getattr(obligation, name) is not None and obligation.type not in types:
            yield _error(rule, f"{where}.{name}", f"belongs on {' or '.join(types)} only")
    parent = obligation.parent_contract
    if (
        obligation.type == "subcontract"
        and parent is not None
        and parent not in contract.depends_on
    ):
        yield _error(
            "SCHEMA-017", f"{where}.parent_contract", "is not listed in metadata.depends_on"
        )
    reasons = (
        ("SCHEMA-021", "na_reason", obligation.na_reason),
        ("SCHEMA-022", "na_owner", obligation.na_owner),
    )
    for rule, name, text in reasons:
        if obligation.applies_to == "not_applicable":
            if not (text or "").strip():
                yield _error(rule, f"{where}.{name}", "not_applicable without it")
        elif text is not None:
            yield _error("SCHEMA-023", f"{where}.{name}", "only with applies_to: not_applicable")


def _same_formal(contract: Contract) -> Iterator[Finding]:
    seen: set[str] = set()
    for index, obligation in enumerate(contract.obligations):
        if obligation.formal in seen:
            yield _warning(
                "SCHEMA-006", f"proof_obligations.{index}.formal", "is another obligation's too"
            )
        elif obligation.formal is not None:
            seen.add(obligation.formal)


def _tests(contract: Contract) -> Iterator[Finding]:
    if contract.tests == ():
        yield _error("SCHEMA-024", "falsification_tests", "is written but empty")
    seen: set[str] = set()
    for test in contract.tests or ():
        where = f"falsification_tests.{test.id}"
        if test.id in seen:
            yield _error("SCHEMA-007", where, "the id stands twice")
        seen.add(test.id)
        if not test.prediction:
            yield _error("SCHEMA-008", f"{where}.prediction", "is empty: nothing can be false")
        if not test.if_fails:
            yield _warning("SCHEMA-009", f"{where}.if_fails", "is empty")
        if test.test is not None and not test.test.strip():
            yield _error("SCHEMA-025", f"{where}.test", "is blank")


def _harnesses(contract: Contract) -> Iterator[Finding]:
    seen: set[str] = set()
    for harness in contract.harnesses:
        where = f"kani_harnesses.{harness.id}"
        if harness.id in seen:
            yield _error("SCHEMA-010", where, "the id stands twice")
        seen.add(harness.id)
        if not harness.obligation:
            yield _error("SCHEMA-011", f"{where}.obligation", "is empty")
        if harness.bound is None:
            yield _warning("SCHEMA-012", f"{where}.bound", "is missing")


def _count(contract: Contract) -> Iterator[Finding]:
    listed = len(contract.obligations)
    if contract.total_obligations is not None and contract.total_obligations != listed:
        message = f"says {contract.total_obligations}, {listed} are listed"
        severity = "WARN" if contract.kind == "schema" else "ERROR"
        yield Finding(severity, "VS-COUNT-001", "verification_summary.total_obligations", message)


def _ours(contract: Contract, root: Path | None) -> Iterator[Finding]:
    bound = {text for one in contract.obligations for text in (one.id, one.property)}
    for test in contract.tests or ():
        where = f"falsification_tests.{test.id}"
        if test.binds_to is not None and test.binds_to not in bound:
            name = clean(test.binds_to, 60)
            yield _warning("OURS-BINDS-TO", f"{where}.binds_to", f"no obligation is {name!r}")
        why = _cannot_run(test, root)
        if why:
            yield _warning("OURS-TEST", f"{where}.test", why)
        for kind in test.evidence:
            if kind not in EVIDENCE_KINDS:
                known = ", ".join(EVIDENCE_KINDS)
                shown = clean(kind, 40)
                yield _warning(
                    "OURS-EVIDENCE", f"{where}.evidence", f"{shown!r} is none of {known}"
                )


def _cannot_run(test: FalsificationTest, root: Path | None) -> str:
    """Why the test's command cannot be run; empty where nothing stands against it."""
    if test.test is None:
        return "names nothing that can be run"
    try:
        words = shlex.split(test.test)
    except ValueError as error:
        return f"is not a command line: {error}"
    if not words:
        return ""  # SCHEMA-025 says so
    if words[0] != "python" and shutil.which(words[0]) is None:
        return f"no program {clean(words[0], 60)!r} is on the path"
    return _missing(words, root) if root else ""


def _missing(words: list[str], root: Path) -> str:
    """The first test file or test function that the command names and the project lacks."""
    for name in named_files(words):
        if not (root / name).is_file():
            return f"{clean(name)} is not there"
    for word in words:
        name, _, test = word.partition("::")
        function = test.rpartition("::")[2].partition("[")[0]
        if function and name.endswith(".py"):
            source = (root / name).read_text(encoding="utf-8", errors="replace")
            if f"def {function}(" not in source:
                return f"{clean(name)} has no {clean(function)}"
    return ""


def named_files(words: list[str]) -> tuple[str, ...]:
    """The Python files that a command names, relative to the project: ``tests/a.py::test_b``."""
    names = (word.partition("::")[0] for word in words[1:] if not word.startswith("-"))
    return tuple(name for name in names if name.endswith(".py") and not Path(name).is_absolute())
