"""What a bisection found, as the screens draw it: all text clean."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from textual.content import Content

from aprtui.compare.bisection import Bisection, Culprit, Explained, Within
from aprtui.formats.tracedir import StageKey
from aprtui.graph.vocabulary import order_of
from aprtui.text import clean, count, number

__all__ = ["KINDS", "Bisected", "Finding", "seen"]

KINDS = ("culprit", "within", "explained", "exact", "unmeasured")
EXACT = "float32"  # what explains a stage that is exact

Lines = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Finding:
    """What the replay says of one stage; all text is clean."""

    kind: str  # one of KINDS
    local_error: float | None
    lines: Lines
    by: str = ""  # what explains it
    text: str = ""  # of a culprit: what it does wrong, in a line; of what is within rounding: how
    mistake: str = ""  # of a culprit: the id of the mistake that it was proved to be

    def in_short(self, key: StageKey) -> str:
        """All of it in one line, to be pasted somewhere."""
        facts = " · ".join(f"{name} {said}".strip() for name, said in self.lines if said)
        return f"{clean(str(key))} {self.kind} · {facts}"


@dataclass(frozen=True)
class Bisected:
    """A finished bisection as the screen draws it."""

    value: Bisection
    findings: Mapping[StageKey, Finding]  # in order of computation

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(clean(note, 500) for note in self.value.notes)

    @property
    def wrong_in_a(self) -> str:
        """``layer-2/qkv_bias: the bias of k was not added``; empty where A is not wrong."""
        other = self.value.reference
        if other is None or not other.culprits:
            return ""
        return clean(f"{other.culprits[0].key}: {other.culprits[0].text}", 300)

    @property
    def causes(self) -> tuple[tuple[str, int], ...]:
        """What is wrong, in how many stages."""
        return tuple(
            (clean(f"{each.text}; {each.pattern}" if each.pattern else each.text, 500),
             len(each.culprits))
            for each in self.value.causes
        )  # fmt: skip

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


def seen(value: Bisection) -> Bisected:
    """A bisection as the screens draw it."""
    found: dict[StageKey, Finding] = {}
    for exact in value.explained:
        by = "" if exact.by == EXACT else clean(exact.by)
        kind = "explained" if by else "exact"
        lines = (("by", clean(exact.by)), ("leaves", number(exact.residual_rel_l2, 3)))
        found[exact.key] = Finding(kind, exact.local_rel_l2, _lines(exact, lines), by)
    for within in value.within:
        text = f"rounding: {clean(within.text)}"
        lines_ = _lines(within, (("within", text),))
        found[within.key] = Finding("within", within.local_rel_l2, lines_, text=text)
    for item in value.unmeasured:
        found[item.key] = Finding("unmeasured", None, (("why", clean(item.why)),))
    for culprit in value.culprits:
        mistake = "" if culprit.mistake is None else clean(culprit.mistake.id)
        found[culprit.key] = Finding(
            "culprit", culprit.local_rel_l2, _culprit_lines(culprit),
            text=clean(culprit.text, 300), mistake=mistake,
        )  # fmt: skip
    return Bisected(value, {key: found[key] for key in sorted(found, key=order_of)})


def _lines(item: Explained | Within, how: Lines) -> Lines:
    return (("local error", number(item.local_rel_l2, 3)), *how, *_around(item))


def _around(item: Explained | Within | Culprit) -> Lines:
    """What the inputs of A would have made of it, and the stages that are judged with it."""
    inherited = "" if item.inherited_rel_l2 is None else number(item.inherited_rel_l2, 3)
    span = f"{clean(', '.join(item.span))}, not captured" if item.span else ""
    return ("inherited", inherited), ("with", span)


def _culprit_lines(culprit: Culprit) -> Lines:
    local, worst, mistake = culprit.local_rel_l2, culprit.worst_row_rel_l2, culprit.mistake
    tensors = (f"{clean(read.tensor, 100)} ({clean(read.type, 20)})" for read in culprit.reads)
    inherited, span = _around(culprit)
    lines = [
        ("local error", "" if local is None else number(local, 3)),
        ("worst row", "" if worst is None else number(worst, 3)),
        inherited,
        ("worst at", ", ".join(f"{clean(axis)} {at}" for axis, at in culprit.worst.items())),
        ("wrong in", clean(culprit.where, 200)),
        span,
        ("weights", ", ".join(dict.fromkeys(tensors))),
        ("looks like", clean(culprit.looks_like, 300)),
    ]
    if mistake is not None:
        lines += [
            ("mistake", clean(mistake.id)),
            ("", clean(mistake.text, 300)),
            ("leaves", number(mistake.residual_rel_l2, 3)),
        ]
    return tuple((name, text) for name, text in lines if text)
