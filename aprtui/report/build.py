"""Turn a comparison, and a bisection where there is one, into what a report says."""

from __future__ import annotations

import hashlib
import importlib.metadata
import math
import platform
from collections.abc import Iterable

from aprtui import __version__
from aprtui.compare.bisection import Bisection, Culprit
from aprtui.compare.diff import Comparison
from aprtui.compare.pairs import PASSED, PairResult
from aprtui.errors import BadFileError
from aprtui.formats.tracedir import StageKey, TraceDir
from aprtui.graph.vocabulary import order_of
from aprtui.graph.words import sizes
from aprtui.model.open import Model
from aprtui.report.bookmarks import Bookmark
from aprtui.report.model import (
    Capture,
    Cell,
    CulpritLine,
    Explanation,
    Grid,
    ModelFacts,
    Report,
)
from aprtui.text import clean, cosine_text, count, number

__all__ = ["DIFFERENCE_HEADS", "EXPLANATION_HEADS", "build_report"]

DIFFERENCE_HEADS = ("stage", "class", "rel_l2", "worst row", "cosine", "max abs", "why")
EXPLANATION_HEADS = ("computed with", "stages", "local error, at most", "residual, at most")
_MARKS = {"nonfinite": "N", "shape": "#", "unreadable": "?", "missing-a": "a", "missing-b": "b"}
_LISTED = 20
_MAX_TOKENS = 512
_HASHED_BYTES = 1 << 20


def build_report(
    a: TraceDir,
    b: TraceDir,
    comparison: Comparison,
    *,
    model: Model | None = None,
    bisection: Bisection | None = None,
    token_ids: tuple[int, ...] | None = None,
    commands: Iterable[str] = (),
    marked: Iterable[Bookmark] = (),
) -> Report:
    """Put together what the writers show; reads the captures' bytes for their digests. ``marked``
    are a person's notes on what is compared.

    Raises BadFileError for a file that cannot be read.
    """
    blamed: tuple[Culprit, ...] = ()
    if bisection is not None:
        side = bisection.reference if bisection.swapped else bisection
        blamed = side.culprits if side is not None else ()
    culprits = frozenset(culprit.key for culprit in blamed)
    bad = [result for result in comparison.results if result.kind not in PASSED]
    ids = token_ids or b.token_ids or a.token_ids or ()
    tone, headline, sentences = _verdict(comparison, bisection)
    more = bisection.notes if bisection else ()
    told = {note.removeprefix("B: ") for note in comparison.notes}
    notes = (*comparison.notes, *(note for note in more if note not in told))
    return Report(
        headline=headline,
        tone=tone,
        sentences=tuple(sentences),
        captures=(_capture("A", "the reference", a), _capture("B", "under test", b)),
        model=None if model is None else _facts(model),
        token_ids=ids[:_MAX_TOKENS],
        token_texts=_texts(ids[:_MAX_TOKENS], model, a, b),
        grid=_grid(comparison, culprits),
        culprits=tuple(map(_culprit, blamed)),
        explanations=tuple(_explanations(bisection)) if bisection else (),
        differences=tuple(_difference(result) for result in bad[:_LISTED]),
        more_differences=max(0, len(bad) - _LISTED),
        unmeasured=_unmeasured(comparison, bisection),
        bars=str(comparison.bars),
        marked=tuple((each.what, each.note) for each in marked),
        notes=tuple(dict.fromkeys(notes)),
        versions=_versions(),
        commands=tuple(commands),
        comparison=comparison,
        bisection=bisection,
    )


# -- the verdict -----------------------------------------------------------------------------------


def _verdict(comparison: Comparison, bisection: Bisection | None) -> tuple[str, str, list[str]]:
    """Tone, headline and the sentences under it."""
    first = comparison.first_divergence
    shows = (
        "Every stage that both sides captured agrees within its bar."
        if first is None
        else f"A and B first differ at {first.key}: {first.message or first.kind}."
    )
    if bisection is None:
        return _verdict_of_comparison(comparison, shows)
    within, replayed = len(bisection.within), bisection.replayed
    innocent = f"{replayed - len(bisection.culprits)} of {replayed} replayed stages are innocent"
    innocent += f", {within} of them within rounding." if within else "."
    if bisection.culprits:
        return "bad", bisection.headline, [*_mistakes(bisection), shows, innocent]
    other = bisection.reference
    if other is not None and other.culprits:
        right = f"In B, under test, no culprit: {innocent}"
        headline = f"In A, the reference, {other.headline}"
        return "bad", headline, [*_mistakes(other), shows, right]
    headline = bisection.headline
    if bisection.unmeasured:
        return "unknown", headline, [shows]
    if comparison.first_divergence is None:
        return "good", headline, [shows]
    if other is not None and not other.unmeasured:
        honest = (
            "In A there is none either: what they differ by is rounding that has grown, no bug."
        )
        return "good", headline, [shows, honest]
    return "unknown", f"{headline} in B; of A it is not known", [shows]


def _mistakes(found: Bisection) -> list[str]:
    """The first of the mistakes, in words."""
    known = []
    for cause in found.causes:
        if cause.id:
            pattern = f"; {cause.pattern}" if cause.pattern else ""
            known.append(f"{cause.where}: {cause.text}{pattern}.")
    return known[:3]


def _verdict_of_comparison(comparison: Comparison, shows: str) -> tuple[str, str, list[str]]:
    first = comparison.first_divergence
    if first is not None:
        hint = "Where it is made, and not only where it shows, needs the model: --model MODEL."
        return "bad", f"A and B differ from {first.key} on", [shows, hint]
    if comparison.verdict == "unmeasured":
        missing = f"{count(len(comparison.unmeasured), 'stage')} captured on one side only"
        return "unknown", f"Nothing differs, but not all is compared: {missing}", [shows]
    headline = f"A and B agree on all {comparison.measured} stages"
    if comparison.may_hide:
        hidden = (
            "The bar is loose: whether a small fault hides below it needs the model: --model MODEL."
        )
        return "unknown", f"{headline} within a loose bar", [shows, hidden]
    return "good", headline, [shows]


def _culprit(culprit: Culprit) -> CulpritLine:
    mistake = culprit.mistake
    numbers = []
    if culprit.local_rel_l2 is not None:
        numbers.append(("local error", number(culprit.local_rel_l2, 3)))
    if mistake is not None:
        numbers.append(("residual", number(mistake.residual_rel_l2, 2)))
    if culprit.inherited_rel_l2 is not None:
        numbers.append(("inherited from A", number(culprit.inherited_rel_l2, 2)))
    if culprit.worst:
        place = ", ".join(f"{axis} {index}" for axis, index in culprit.worst.items())
        numbers.append(("worst at", place))
    if culprit.where:
        numbers.append(("wrong in", culprit.where))
    if culprit.parts:
        numbers.append(("of", ", ".join(culprit.parts)))
    if culprit.reads:
        weights = dict.fromkeys(f"{read.tensor} ({read.type})" for read in culprit.reads)
        numbers.append(("weights", ", ".join(weights)))
    notes = [] if mistake is None or not culprit.looks_like else [
        f"looks like: {culprit.looks_like}"
    ]  # fmt: skip
    if culprit.span:
        notes.append(f"with {', '.join(culprit.span)}, which B did not capture")
    return CulpritLine(
        str(culprit.key),
        culprit.text,
        mistake.id if mistake else "",
        tuple(numbers),
        "; ".join(notes),
    )


def _explanations(bisection: Bisection) -> Iterable[Explanation]:
    for by, stages in bisection.explanations.most_common():
        found = [each for each in bisection.explained if each.by == by]
        residual = max(each.residual_rel_l2 for each in found)
        local = max(each.local_rel_l2 for each in found)
        yield Explanation(by, stages, number(residual, 2), number(local, 2))
    if bisection.within:
        most = max(bisection.within, key=lambda each: each.units / each.bar_units)
        local = max(each.local_rel_l2 for each in bisection.within)
        by = f"within rounding: fused steps of 16 bits, noise of at most {most.text}"
        yield Explanation(by, len(bisection.within), "", number(local, 2))


def _difference(result: PairResult) -> tuple[str, ...]:
    metrics = result.metrics
    if metrics is None:
        return (str(result.key), result.kind, "", "", "", "", result.message)
    row = "" if metrics.worst_row is None else f" at {result.worst_place}"
    return (
        str(result.key),
        result.kind,
        number(metrics.rel_l2, 3),
        f"{number(metrics.worst_row_rel_l2, 3)}{row}",
        cosine_text(metrics.cosine),
        number(metrics.max_abs, 3),
        result.message,
    )


def _unmeasured(comparison: Comparison, bisection: Bisection | None) -> tuple[tuple[str, str], ...]:
    """Stages by the reason for which nothing is known of them."""
    reasons: dict[str, list[str]] = {}
    for result in comparison.unmeasured:
        side = "A" if result.kind == "missing-a" else "B"
        why = f"not captured by {side}" + (f": {result.message}" if result.message else "")
        reasons.setdefault(why, []).append(str(result.key))
    for item in bisection.unmeasured if bisection else ():
        reasons.setdefault(f"not replayed: {item.why}", []).append(str(item.key))
    found = []
    for why, names in reasons.items():
        more = f" and {len(names) - 4} more" if len(names) > 4 else ""
        found.append((", ".join(names[:4]) + more, why))
    return tuple(found)


# -- the grid --------------------------------------------------------------------------------------


def _grid(comparison: Comparison, culprits: frozenset[StageKey]) -> Grid:
    keys = {result.key for result in comparison.results} | culprits
    stages = sorted({key.stage for key in keys}, key=lambda name: order_of(StageKey(0, name)))
    layers = sorted({key.layer for key in keys}, key=lambda n: (n is None, n or 0))
    cells = {
        (result.key.layer, result.key.stage): _cell(result, result.key in culprits)
        for result in comparison.results
    }
    for key in culprits:
        cells.setdefault(
            (key.layer, key.stage), Cell("culprit", 0, "", True, f"{key}: a culprit, not compared")
        )
    return Grid(tuple(stages), tuple(layers), cells)


def _cell(result: PairResult, culprit: bool) -> Cell:
    """``level`` 2, 3 and 4: up to 3 times the bar, up to 30 times, beyond."""
    level = {"equal": 0, "within": 1}.get(result.kind, 2)
    excess = max((_excess(e.value, e.limit) for e in result.exceeded), default=1.0)
    if result.kind == "differs":
        level = 2 if excess <= 3 else 3 if excess <= 30 else 4
    text = f"{result.key}: {result.kind}"
    if result.metrics is not None:
        text += f", rel_l2 {number(result.metrics.rel_l2, 3)}"
    return Cell(
        result.kind, level, _MARKS.get(result.kind, ""), culprit, text + ", culprit" * culprit
    )


def _excess(value: float, limit: float) -> float:
    """How many times its bar a value is; a bar that asks for more (cosine) counts by what lacks."""
    if math.isnan(value):
        return math.inf
    if value < limit:
        return (1 - value) / max(1 - limit, 1e-12)
    return value / limit if limit else math.inf


# -- what was compared -----------------------------------------------------------------------------


def _capture(name: str, role: str, trace: TraceDir) -> Capture:
    said = trace.stated.get("engine")
    engine = said if isinstance(said, dict) else {}
    words = [engine.get(key) for key in ("name", "version", "device", "dtype")]
    digest, digest_of = _digest(trace)
    return Capture(
        name,
        role,
        str(trace.root),
        " ".join(str(word) for word in words if word) or "engine not stated",
        trace.status,
        len(trace.records),
        digest,
        digest_of,
    )


def _digest(trace: TraceDir) -> tuple[str, str]:
    """Of a trace with a manifest the manifest's sha256; else that of all stage files, by name."""
    manifest = trace.root / "trace.json"
    total = hashlib.sha256()
    try:
        if trace.manifest is not None and manifest.is_file():
            return hashlib.sha256(manifest.read_bytes()).hexdigest(), "trace.json"
        for key in sorted(trace.records, key=str):
            record = trace.records[key]
            total.update(f"{key}\0{record.size_bytes}\0".encode())
            with record.path.open("rb") as file:
                while chunk := file.read(_HASHED_BYTES):
                    total.update(chunk)
    except OSError as error:
        raise BadFileError(trace.root, f"cannot be read: {error.strerror}") from error
    return total.hexdigest(), f"its {count(len(trace.records))} stage files"


def _facts(model: Model) -> ModelFacts:
    file = model.file
    return ModelFacts(
        str(model.path),
        f"{file.format} {file.version}".strip(),
        model.architecture,
        file.size_bytes,
        tuple(sorted({matrix.entry.type for matrix in model.weights.values()})),
        ", ".join(sizes(model.graph)),
        file.digest,
    )


def _texts(ids: tuple[int, ...], model: Model | None, a: TraceDir, b: TraceDir) -> tuple[str, ...]:
    """The tokens' own texts: from a manifest that has these ids, else from the vocabulary."""
    for trace in (b, a):
        if trace.token_texts is not None and (trace.token_ids or ())[: len(ids)] == ids:
            return trace.token_texts[: len(ids)]
    vocabulary = model.vocabulary if model is not None else None
    return tuple(vocabulary.text_of(token) for token in ids) if vocabulary is not None else ()


def _versions() -> tuple[tuple[str, str], ...]:
    found = [("aprtui", __version__), ("Python", platform.python_version())]
    found += [(name, importlib.metadata.version(name)) for name in ("numpy", "torch")]
    return (*found, ("system", clean(f"{platform.system()} {platform.machine()}")))
