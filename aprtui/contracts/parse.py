"""From a YAML tree to a Contract: every modelled key's type, spelling and presence is checked.

Fields and what is required: docs/contracts.md 1 and 2. Anything else is passed over, as the
public reader does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from aprtui.contracts.document import (
    Items,
    Mapping,
    Node,
    NotReadable,
    Scalar,
    duplicate_key,
    read_document,
)
from aprtui.contracts.model import (
    KINDS,
    OBLIGATION_TYPES,
    TOP_LEVEL_BLOCKS,
    Contract,
    FalsificationTest,
    KaniHarness,
    Obligation,
)
from aprtui.text import clean

__all__ = ["has_metadata", "parse_contract"]

MAX_NODES = 1_000_000  # read through aliases: repetition cannot outgrow this


@dataclass
class _Budget:
    left: int = MAX_NODES


@dataclass(frozen=True)
class _Place:
    """Where reading stands. ``typed``: a number is no text here (equations)."""

    name: str
    typed: bool = False
    budget: _Budget = field(default_factory=_Budget)

    def below(self, name: str) -> _Place:
        self.budget.left -= 1
        if self.budget.left < 0:
            raise NotReadable(f"{self.name}: aliases repeat more than {MAX_NODES} values")
        return replace(self, name=f"{self.name}.{clean(name, 80)}" if self.name else clean(name))

    def refuse(self, node: Node, expected: str) -> NotReadable:
        return NotReadable(f"line {node.line}: {self.name or 'the document'} must be {expected}")


_Read = Callable[[Node, _Place], Any]


@dataclass(frozen=True)
class _Field:
    """One modelled key. ``default`` stands where the key is absent, or null and ``nullable``."""

    read: _Read
    required: bool = False
    default: Any = None
    nullable: bool = False
    also: str = ""  # the other spelling of the same key
    ours: bool = False  # the public reader does not know it


def _text(node: Node, place: _Place) -> str:
    if not isinstance(node, Scalar) or (place.typed and node.kind != "str"):
        raise place.refuse(node, "text (quote a number)")
    return node.text


def _whole(node: Node, place: _Place) -> int:
    if isinstance(node, Scalar) and node.kind == "int":
        value = int(node.text, 0 if node.text.lstrip("+-").startswith(("0x", "0o", "0b")) else 10)
        if 0 <= value < 1 << 32:
            return value
    raise place.refuse(node, "a whole number below 2^32")


def _real(node: Node, place: _Place) -> None:
    if not isinstance(node, Scalar) or node.kind not in ("int", "float"):
        raise place.refuse(node, "a number")


def _flag(node: Node, place: _Place) -> bool:
    if not isinstance(node, Scalar) or node.text not in ("true", "false") or node.kind != "bool":
        raise place.refuse(node, "true or false")
    return node.text == "true"


def _choice(*names: str) -> _Read:
    def read(node: Node, place: _Place) -> str:
        value = _text(node, place)
        if value not in names:
            raise place.refuse(node, f"one of {', '.join(names)}; it is {clean(value, 40)!r}")
        return value

    return read


def _items(read_one: _Read) -> _Read:
    def read(node: Node, place: _Place) -> tuple[Any, ...]:
        if isinstance(node, Scalar) and node.plain and node.text == "" and not place.typed:
            return ()
        if not isinstance(node, Items):
            raise place.refuse(node, "a list")
        return tuple(read_one(one, place.below(str(i))) for i, one in enumerate(node.nodes))

    return read


def _mapping(read_one: _Read) -> _Read:
    def read(node: Node, place: _Place) -> dict[str, Any]:
        if isinstance(node, Scalar) and node.plain and node.text == "":
            return {}
        if not isinstance(node, Mapping):
            raise place.refuse(node, "a mapping")
        pairs = ((_text(key, place), value) for key, value in node.pairs)
        return {name: read_one(value, place.below(name)) for name, value in pairs}

    return read


def _block(fields: dict[str, _Field], *, closed: bool = False) -> _Read:
    """A mapping with known keys: each at most once, in one of its spellings."""
    canonical = {name: name for name in fields}
    canonical |= {known.also: name for name, known in fields.items() if known.also}

    def read(node: Node, place: _Place) -> dict[str, Any]:
        if not isinstance(node, Mapping):
            raise place.refuse(node, "a mapping")
        values = {name: known.default for name, known in fields.items()}
        seen: set[str] = set()
        for key, value in node.pairs:
            spelling = _text(key, replace(place, typed=False))
            name = canonical.get(spelling)
            if name is None:
                if closed:
                    raise place.refuse(key, f"without the unknown key {clean(spelling, 40)!r}")
                continue
            known = fields[name]
            if name in seen and not known.ours:
                raise place.below(name).refuse(key, "given once, in one spelling")
            seen.add(name)
            absent = known.nullable and isinstance(value, Scalar) and value.kind == "null"
            values[name] = known.default if absent else known.read(value, place.below(name))
        for name, known in fields.items():
            if known.required and name not in seen:
                raise place.below(name).refuse(node, "there")
        return values

    return read


def _anything(node: Node, place: _Place) -> Node:
    return node


def _words(node: Node, place: _Place) -> tuple[str, ...]:
    """Text or a list of texts: a key of ours, read gently since others may use its name."""
    nodes = node.nodes if isinstance(node, Items) else (node,)
    return tuple(one.text for one in nodes if isinstance(one, Scalar))


def _word(node: Node, place: _Place) -> str | None:
    return node.text if isinstance(node, Scalar) else None


def _equations(node: Node, place: _Place) -> dict[str, dict[str, Any]]:
    """A mapping of equations, or a list of them with ids; nothing in it may stand twice."""
    twice = duplicate_key(node)
    if twice is not None:
        raise place.below(twice.text).refuse(twice, "given once")
    place = replace(place, typed=True)
    if isinstance(node, Scalar) and node.kind == "null":
        return {}
    if isinstance(node, Items):
        listed: tuple[dict[str, Any], ...] = _items(_EQUATION)(node, place)
        return {one["id"] or f"equation_{i}": one for i, one in enumerate(listed)}
    read: dict[str, dict[str, Any]] = _mapping(_EQUATION)(node, place)
    return read


_NEEDED = _Field(_text, required=True)
_OPTIONAL = _Field(_text, nullable=True)
_WRITTEN = _Field(_text, default="")
_NUMBER = _Field(_real, nullable=True)
_TEXTS = _Field(_items(_text), default=())

_EQUATION = _block({
    "id": _OPTIONAL, "formula": _WRITTEN, "domain": _OPTIONAL, "codomain": _OPTIONAL,
    "invariants": _TEXTS, "preconditions": _TEXTS, "postconditions": _TEXTS,
    "lean_theorem": _OPTIONAL, "float_tolerance": _NUMBER,
})  # fmt: skip
_METADATA = _block({
    "version": _NEEDED, "description": _NEEDED, "created": _OPTIONAL, "author": _OPTIONAL,
    "references": _TEXTS, "depends_on": _TEXTS, "registry": _Field(_flag, default=False),
    "kind": _Field(_choice(*KINDS), default="kernel"),
    "enforcement_level": _Field(
        _choice("basic", "standard", "strict", "proven"), nullable=True
    ),
    "locked_level": _OPTIONAL,
})  # fmt: skip
_LEAN = _block({
    "theorem": _NEEDED, "module": _OPTIONAL, "depends_on": _TEXTS, "mathlib_imports": _TEXTS,
    "status": _Field(_choice("proved", "sorry", "wip", "not-applicable")), "notes": _OPTIONAL,
})  # fmt: skip
_OBLIGATION = _block({
    "id": replace(_OPTIONAL, ours=True),
    "type": _Field(_choice(*OBLIGATION_TYPES), default="invariant"),
    "property": replace(_WRITTEN, also="statement"),
    "formal": replace(_OPTIONAL, also="verification"),
    "tolerance": _NUMBER, "applies_to": _OPTIONAL, "lean": _Field(_LEAN, nullable=True),
    "requires": _OPTIONAL, "applies_to_phase": _OPTIONAL, "parent_contract": _OPTIONAL,
    "na_reason": _OPTIONAL, "na_owner": _OPTIONAL,
})  # fmt: skip
_TEST = _block({
    "id": _NEEDED,
    "rule": replace(_WRITTEN, also="description"),
    "prediction": replace(_WRITTEN, also="expected"),
    "test": replace(_OPTIONAL, also="command"),
    "if_fails": replace(_WRITTEN, also="fails_if"),
    "binds_to": replace(_OPTIONAL, also="obligation"),
    "test_harness": _OPTIONAL, "name": _OPTIONAL,
    "evidence": _Field(_words, default=(), ours=True),
    "model": _Field(_word, nullable=True, ours=True),
    "against": _Field(_word, nullable=True, ours=True),
    "level": _Field(_word, nullable=True, ours=True),
})  # fmt: skip
_HARNESS = _block({
    "id": _NEEDED, "obligation": _NEEDED, "property": _OPTIONAL,
    "bound": _Field(_whole, nullable=True),
    "strategy": _Field(
        _choice("exhaustive", "stub_float", "compositional", "bounded_int"), nullable=True
    ),
    "solver": _OPTIONAL, "harness": _OPTIONAL, "actually_verified": _Field(_flag, nullable=True),
})  # fmt: skip
_COUNT = _Field(_whole, default=0)
_SUMMARY = _block({
    "total_obligations": _Field(_whole, required=True), "l2_property_tested": _COUNT,
    "l3_kani_proved": _COUNT, "l4_lean_proved": _COUNT, "l4_sorry_count": _COUNT,
    "l4_not_applicable": _COUNT,
})  # fmt: skip
_GATE = _block({
    "id": _WRITTEN, "name": _WRITTEN, "description": _OPTIONAL, "checks": _TEXTS,
    "pass_criteria": _OPTIONAL, "falsification": _OPTIONAL,
})  # fmt: skip
_CLAUSES = _Field(_items(_block({
    "id": _NEEDED, "statement": _NEEDED, "formal": _OPTIONAL,
    "formal_status": _Field(_choice("parsed", "prose"), required=True),
}, closed=True)))  # fmt: skip
_ANYTHING = _Field(_anything)
_CONTRACT = _block({
    "metadata": _Field(_METADATA, required=True),
    "equations": _Field(_equations, default={}),
    "proof_obligations": _Field(_items(_OBLIGATION), default=()),
    "falsification_tests": _Field(_items(_TEST)),
    "kani_harnesses": _Field(_items(_HARNESS), default=()),
    "qa_gate": _Field(_GATE, nullable=True),
    "verification_summary": _Field(_SUMMARY, nullable=True),
    "coq_spec": _Field(_block({"module": _NEEDED, "imports": _TEXTS}), nullable=True),
    "requires": _CLAUSES, "ensures": _CLAUSES,
    "simd_dispatch": _Field(_mapping(_mapping(_text))),
    **dict.fromkeys(
        ("kernel_structure", "enforcement", "type_invariants", "beat", "stories"), _ANYTHING
    ),
})  # fmt: skip


def parse_contract(body: bytes) -> Contract:
    """The contract that a file's bytes hold. Raises NotReadable where it is none."""
    document = read_document(body)
    read: dict[str, Any] = _CONTRACT(document, _Place(""))
    assert isinstance(document, Mapping)
    metadata, summary, tests = (
        read[name] for name in ("metadata", "verification_summary", "falsification_tests")
    )
    registry = metadata["registry"] and metadata["kind"] == "kernel"
    twice = duplicate_key(document)
    keys = (key.text for key, _ in document.pairs if isinstance(key, Scalar))
    return Contract(
        kind="registry" if registry else metadata["kind"],
        version=metadata["version"],
        description=metadata["description"],
        references=metadata["references"],
        depends_on=metadata["depends_on"],
        formulas={name: one["formula"] for name, one in read["equations"].items()},
        obligations=tuple(_pick(Obligation, one) for one in read["proof_obligations"]),
        tests=None if tests is None else tuple(_pick(FalsificationTest, one) for one in tests),
        harnesses=tuple(_pick(KaniHarness, one) for one in read["kani_harnesses"]),
        has_qa_gate=read["qa_gate"] is not None,
        total_obligations=None if summary is None else summary["total_obligations"],
        unknown_keys=tuple(sorted({key for key in keys if key not in TOP_LEVEL_BLOCKS})),
        duplicate_key=None if twice is None else f"line {twice.line}: {clean(twice.text, 80)}",
    )


def has_metadata(body: bytes) -> bool:
    """Whether the file is readable YAML with a ``metadata`` key, so meant as a contract."""
    document = read_document(body)
    return isinstance(document, Mapping) and any(
        isinstance(key, Scalar) and key.text == "metadata" for key, _ in document.pairs
    )


def _pick(kind: type[Any], values: dict[str, Any]) -> Any:
    """A ``kind`` from those of ``values`` that are its fields."""
    return kind(**{name: values[name] for name in kind.__dataclass_fields__ if name in values})
