"""What a bisection found, as the screens draw it: read from the child's lines, all text clean."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from textual.content import Content

from aprtui.formats.tracedir import StageKey
from aprtui.graph.vocabulary import order_of
from aprtui.text import clean, count, number

__all__ = ["KINDS", "Bisected", "Finding", "read_result"]

KINDS = ("culprit", "within", "explained", "exact", "unmeasured")


@dataclass(frozen=True)
class Finding:
    """What the replay says of one stage; all text is clean."""

    kind: str  # one of KINDS
    local_error: float | None
    lines: tuple[tuple[str, str], ...]
    by: str = ""  # what explains it
    text: str = ""  # of a culprit: what it does wrong, in a line; of what is within rounding: how


@dataclass(frozen=True)
class Bisected:
    """A finished bisection as the screen draws it."""

    findings: Mapping[StageKey, Finding]  # in order of computation
    notes: tuple[str, ...]
    limit: float | None = None  # the bar of a local error
    wrong_in_a: str = ""  # where B has no culprit, A has: the first one
    causes: tuple[tuple[str, int], ...] = ()  # what is wrong, in how many stages

    @property
    def culprits(self) -> list[StageKey]:
        return [key for key, finding in self.findings.items() if finding.kind == "culprit"]

    def count(self, kind: str) -> int:
        return sum(finding.kind == kind for finding in self.findings.values())

    @property
    def explanations(self) -> Mapping[str, int]:
        """How many stages each kind of honest numerics explains, the most frequent first."""
        return dict(Counter(f.by for f in self.findings.values() if f.by).most_common())

    def verdict_line(self, then: str = "") -> Content:
        """``1 culprit · 20 explained … · 50 exact``, and what a key does."""
        culprits = self.culprits
        tone = "bold $text-error" if culprits else "bold $text-success"
        honest = ", ".join(self.explanations)
        unmeasured = self.count("unmeasured")
        return Content.assemble(
            "local error · ",
            (count(len(culprits), "culprit"), tone),
            (f" in B, but A computes wrongly: {self.wrong_in_a}", "bold $text-error")
            if self.wrong_in_a
            else "",
            f" · {count(self.count('explained'), 'stage')} explained",
            f" ({honest})" if honest else "",
            f" · {self.count('exact')} exact",
            f" · {self.count('within')} within rounding" if self.count("within") else "",
            (f" · {unmeasured} unmeasured" if unmeasured else "", "$text-warning"),
            (f" · {then}" if then else "", "dim"),
        )


def read_result(said: Mapping[str, Any]) -> Bisected:
    """The ``result`` line of ``aprtui bisect --events``; what is not as expected is left out."""
    findings: dict[StageKey, Finding] = {}
    for entry in _dicts(said.get("explained")):
        by = clean(str(entry.get("by")))
        exact = by == "float32"
        lines = (
            ("local error", _number(entry.get("local_rel_l2"))),
            ("by", by),
            ("leaves", _number(entry.get("residual_rel_l2"))),
            ("inherited", _number(entry.get("inherited_rel_l2"))),
            ("with", _span(entry)),
        )
        findings[_key(entry)] = Finding(
            "exact" if exact else "explained", _float(entry), lines, "" if exact else by
        )
    for entry in _dicts(said.get("within_rounding")):
        text = _within_text(entry)
        findings[_key(entry)] = Finding("within", _float(entry), _within_lines(entry), text=text)
    for entry in _dicts(said.get("unmeasured")):
        findings[_key(entry)] = Finding(
            "unmeasured", None, (("why", clean(str(entry.get("reason") or entry.get("why")))),)
        )
    for entry in _dicts(said.get("culprits")):
        findings[_key(entry)] = Finding(
            "culprit", _float(entry), _culprit_lines(entry), text=_culprit_text(entry)
        )
    notes = said.get("notes")
    shown = tuple(clean(str(note)) for note in notes) if isinstance(notes, list) else ()
    bar = said.get("bar")
    limit = bar.get("rel_l2") if isinstance(bar, dict) else None
    return Bisected(
        {key: findings[key] for key in sorted(findings, key=order_of)},
        shown,
        float(limit) if isinstance(limit, int | float) else None,
        _wrong_in_a(said.get("reference")),
        tuple(map(_cause, _dicts(said.get("causes")))),
    )


def _cause(entry: Mapping[str, Any]) -> tuple[str, int]:
    """A cause in a line, and how many stages it has."""
    culprits = _dicts(entry.get("culprits"))
    pattern = clean(str(entry.get("pattern") or ""), 200)
    text = clean(str(entry.get("text") or ""), 300)
    return (f"{text}; {pattern}" if pattern else text), len(culprits)


def _wrong_in_a(reference: Any) -> str:
    """``layer-2/qkv_bias: the bias of k was not added``; empty where A is not wrong."""
    found = _dicts(reference.get("culprits")) if isinstance(reference, dict) else []
    texts = (clean(f"{_key(entry)}: {_culprit_text(entry)}", 300) for entry in found)
    return next(texts, "")


def _within_text(entry: Mapping[str, Any]) -> str:
    units, bar = _number(entry.get("units")), _number(entry.get("bar_units"))
    return f"rounding: {units} of {bar} units of {clean(str(entry.get('type')), 20)}"


def _within_lines(entry: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    return (
        ("local error", _number(entry.get("local_rel_l2"))),
        ("within", _within_text(entry)),
        ("inherited", _number(entry.get("inherited_rel_l2"))),
        ("with", _span(entry)),
    )


def _culprit_lines(entry: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    mistake = entry.get("mistake")
    worst = entry.get("worst")
    place = ""
    if isinstance(worst, dict):
        place = ", ".join(f"{clean(str(axis))} {at}" for axis, at in worst.items())
    lines = [
        ("local error", _number(entry.get("local_rel_l2"))),
        ("worst row", _number(entry.get("worst_row_rel_l2"))),
        ("inherited", _number(entry.get("inherited_rel_l2"))),
        ("worst at", place),
        ("wrong in", clean(str(entry.get("where") or ""), 200)),
        ("with", _span(entry)),
        ("weights", _tensors(entry)),
        ("looks like", clean(str(entry.get("looks_like") or ""), 300)),
    ]
    if isinstance(mistake, dict):
        lines += [
            ("mistake", clean(str(mistake.get("id")))),
            ("", clean(str(mistake.get("text")), 300)),
            ("leaves", _number(mistake.get("residual_rel_l2"))),
        ]
    return tuple((name, text) for name, text in lines if text)


def _culprit_text(entry: Mapping[str, Any]) -> str:
    """The mistake in words, where one is known; else what the error looks like."""
    mistake = entry.get("mistake")
    known = mistake.get("text") if isinstance(mistake, dict) else None
    return clean(str(known or entry.get("looks_like") or ""), 300)


def _tensors(entry: Mapping[str, Any]) -> str:
    """``blk.3.ffn_gate.weight (Q4_K)``: what the stage's wrong parts read."""
    named = (
        f"{clean(str(each.get('name')), 100)} ({clean(str(each.get('type')), 20)})"
        for each in _dicts(entry.get("tensors"))
    )
    return ", ".join(dict.fromkeys(named))


def _span(entry: Mapping[str, Any]) -> str:
    """The stages before it that B did not capture, if there are any."""
    span = entry.get("span")
    names = [str(name) for name in span] if isinstance(span, list) else []
    return clean(f"{', '.join(names)}, not captured") if names else ""


def _dicts(value: object) -> list[Mapping[str, Any]]:
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def _key(entry: Mapping[str, Any]) -> StageKey:
    layer = entry.get("layer")
    return StageKey(layer if isinstance(layer, int) else None, clean(str(entry.get("stage")), 60))


def _float(entry: Mapping[str, Any]) -> float | None:
    value = entry.get("local_rel_l2")
    return float(value) if isinstance(value, int | float) else None


def _number(value: object) -> str:
    if isinstance(value, int | float):
        return number(float(value), 3)
    return clean(value, 20) if isinstance(value, str) else ""
