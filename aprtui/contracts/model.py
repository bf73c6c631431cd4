"""What a contract says, as plain values, and what can be found wrong with it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

__all__ = [
    "EVIDENCE_KINDS",
    "KINDS",
    "OBLIGATION_TYPES",
    "TOP_LEVEL_BLOCKS",
    "Contract",
    "FalsificationTest",
    "Finding",
    "KaniHarness",
    "Level",
    "Obligation",
]

KINDS = (
    "kernel", "schema", "registry", "model-family", "model-family-variant", "tokenizer",
    "training-loop", "pretraining-corpus", "training-precondition-gate", "corpus-assembly",
    "pattern", "kaizen", "beat-benchmark",
)  # fmt: skip
OBLIGATION_TYPES = (
    "invariant", "equivalence", "bound", "monotonicity", "idempotency", "linearity", "symmetry",
    "associativity", "conservation", "ordering", "completeness", "soundness", "involution",
    "determinism", "roundtrip", "state_machine", "classification", "independence", "termination",
    "safety", "liveness", "precondition", "postcondition", "frame", "loop_invariant",
    "loop_variant", "old_state", "subcontract",
)  # fmt: skip
TOP_LEVEL_BLOCKS = (
    "metadata", "equations", "proof_obligations", "kernel_structure", "simd_dispatch",
    "enforcement", "falsification_tests", "kani_harnesses", "qa_gate", "verification_summary",
    "type_invariants", "coq_spec", "beat", "stories", "requires", "ensures",
)  # fmt: skip
EVIDENCE_KINDS = ("unit", "end-to-end", "independent")


class Level(StrEnum):
    """How far a promise is shown (docs/contracts.md 3), from least to most."""

    PROPOSED = "PROPOSED"
    PARTIAL = "PARTIAL_ALGORITHM_LEVEL"
    FUNCTIONAL = "FUNCTIONAL"
    DISCHARGED = "DISCHARGED"

    @property
    def rank(self) -> int:
        return list(Level).index(self)


@dataclass(frozen=True)
class Finding:
    """One thing wrong: ``severity`` is ERROR or WARN, ``where`` a path inside the file."""

    severity: str
    rule: str
    where: str
    message: str


@dataclass(frozen=True)
class Obligation:
    type: str
    property: str
    id: str | None = None
    formal: str | None = None
    requires: str | None = None
    applies_to: str | None = None
    applies_to_phase: str | None = None
    parent_contract: str | None = None
    na_reason: str | None = None
    na_owner: str | None = None


@dataclass(frozen=True)
class FalsificationTest:
    """One way to show a promise false. The last four are keys of ours (contracts/README.md)."""

    id: str
    rule: str
    prediction: str
    if_fails: str
    test: str | None = None
    binds_to: str | None = None
    evidence: tuple[str, ...] = ()
    model: str | None = None
    against: str | None = None
    level: str | None = None


@dataclass(frozen=True)
class KaniHarness:
    id: str
    obligation: str
    bound: int | None = None


@dataclass(frozen=True)
class Contract:
    """``tests`` is None where the file has no such block; ``formulas`` are by equation name."""

    kind: str
    version: str
    description: str
    references: tuple[str, ...]
    depends_on: tuple[str, ...]
    formulas: dict[str, str]
    obligations: tuple[Obligation, ...]
    tests: tuple[FalsificationTest, ...] | None
    harnesses: tuple[KaniHarness, ...]
    has_qa_gate: bool
    total_obligations: int | None
    unknown_keys: tuple[str, ...]
    duplicate_key: str | None
