"""A whole comparison as one value: results, bars, verdict, exit code, and its JSON."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from aprtui.compare.bars import Bars, Override, check_overrides, choose_bars
from aprtui.compare.metrics import Element
from aprtui.compare.pairs import (
    CLASSES,
    FAILED,
    PASSED,
    UNMEASURED,
    DiffOptions,
    Pair,
    PairResult,
    check_tokens,
    compare_pair,
    compare_traces,
    reclassify,
    rope_note,
)
from aprtui.errors import UsageError
from aprtui.formats.summary import finite_json
from aprtui.formats.tracedir import StageRecord, TraceDir
from aprtui.notebook import html_table
from aprtui.text import clean, count, number

__all__ = [
    "APR_FIELDS",
    "PAIR_SCHEMA",
    "SCHEMA",
    "Comparison",
    "Side",
    "comparison_json",
    "diff_files",
    "diff_traces",
    "faced",
    "judge_again",
    "pair_json",
    "side_of",
]

SCHEMA = "aprtui-diff-v1"
PAIR_SCHEMA = "apr-stage-diff-v1"  # the public tool's; its field names are kept, ours stand beside

# Fields of Metrics that stand under the public tool's names.
APR_FIELDS = {
    "count": "dim_product",
    "max_abs": "max_abs_diff",
    "max_abs_index": "max_abs_diff_index",
    "rms": "rms_diff",
    "cosine": "cosine_sim",
    "top": "top_diffs",
}


@dataclass(frozen=True)
class Side:
    """One capture as the comparison's head names it; all text is clean."""

    path: str
    status: str  # "complete", "incomplete", "foreign" or "file"
    files: int
    engine: str = ""
    model: str = ""
    tokens: int | None = None


@dataclass(frozen=True, repr=False)
class Comparison:
    """Everything that one comparison found; ``results`` are in order of computation."""

    a: Side
    b: Side
    bars: Bars
    results: tuple[PairResult, ...]
    notes: tuple[str, ...] = ()

    @property
    def may_hide(self) -> bool:
        """Whether a small fault may be among what passed: the bar is loose."""
        return self.bars.may_hide(self.counts)

    @property
    def counts(self) -> dict[str, int]:
        """How many pairs are of each class; classes without a pair are left out."""
        found = Counter(result.kind for result in self.results)
        return {kind: found[kind] for kind in CLASSES if found[kind]}

    @property
    def first_divergence(self) -> PairResult | None:
        """The first pair that fails: where it shows, not where it is made."""
        return next((result for result in self.results if result.kind in FAILED), None)

    @property
    def unmeasured(self) -> tuple[PairResult, ...]:
        return tuple(result for result in self.results if result.kind in UNMEASURED)

    @property
    def measured(self) -> int:
        return sum(result.metrics is not None for result in self.results)

    @property
    def verdict(self) -> str:
        """ "fail", "unmeasured" (nothing fails, something was not compared) or "pass"."""
        if self.first_divergence is not None:
            return "fail"
        return "unmeasured" if self.unmeasured else "pass"

    def exit_code(self, *, allow_unmeasured: bool = False) -> int:
        """0 all pass, 1 a difference or something unmeasured, 3 a damaged file."""
        if any(result.kind == "unreadable" for result in self.results):
            return 3
        if self.verdict == "unmeasured":
            return 0 if allow_unmeasured and self.measured else 1
        return 1 if self.verdict == "fail" else 0

    @property
    def of_files(self) -> bool:
        """Whether two stage files by themselves were compared."""
        return self.a.status == "file"

    @property
    def headline(self) -> str:
        """The answer in one line."""
        counts = ", ".join(f"{count(n)} {kind}" for kind, n in self.counts.items())
        first = self.first_divergence
        if first is not None:
            detail = f": {clean(first.message, 300)}" if first.message else ""
            return f"FAIL ({counts}). First divergence: {first.key} ({first.kind}){detail}"
        if self.verdict == "unmeasured":
            rest = "What was compared passes; the rest was captured once only"
            return f"UNMEASURED ({counts}). {rest if self.measured else 'Nothing was compared'}"
        return f"PASS ({counts})" + (" within a loose bar" if self.may_hide else "")

    def to_json(self, *, allow_unmeasured: bool = False) -> dict[str, Any]:
        """What ``aprtui diff --json`` prints: contracts/diff.schema.json, of two files one pair."""
        if self.of_files:
            return _file_pair_json(self)
        return comparison_json(self, allow_unmeasured=allow_unmeasured)

    def __repr__(self) -> str:
        return f"<comparison: {self.headline}; bar {self.bars}>"

    def _repr_html_(self) -> str:
        """For notebooks: what does not pass, in order of computation."""
        rows = [
            (
                str(result.key),
                result.kind,
                "" if result.metrics is None else number(result.metrics.rel_l2, 3),
                "" if result.metrics is None else number(result.metrics.max_abs, 3),
                result.message,
            )
            for result in self.results
            if result.kind not in PASSED
        ]
        return html_table(self.headline, ("stage", "class", "rel_l2", "max_abs", "why"), rows)


def side_of(trace: TraceDir, path: str = "") -> Side:
    """The head line of one capture."""
    engine = _mapping(trace.stated.get("engine"))
    words = [engine.get(name) for name in ("name", "version", "device", "dtype")]
    ids = trace.token_ids
    return Side(
        clean(path or str(trace.root), 500),
        trace.status,
        len(trace.records),
        clean(" ".join(str(word) for word in words if word)),
        clean(str(_mapping(trace.stated.get("model")).get("path", ""))),
        None if ids is None else len(ids),
    )


def diff_traces(
    a: TraceDir,
    b: TraceDir,
    options: DiffOptions | None = None,
    overrides: Iterable[Override] = (),
    *,
    ignore_tokens: bool = False,
    cancelled: Callable[[], bool] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Comparison:
    """Compare two captures. Raises as ``faced`` does, and metrics.Cancelled."""
    found = faced(a, b, options, overrides, ignore_tokens=ignore_tokens)
    pairs = compare_traces(a, b, found.bars, options, cancelled=cancelled, progress=progress)
    return dataclasses.replace(found, results=tuple(pairs))


def faced(
    a: TraceDir,
    b: TraceDir,
    options: DiffOptions | None = None,
    overrides: Iterable[Override] = (),
    *,
    ignore_tokens: bool = False,
) -> Comparison:
    """Two captures as they face one another, with their bars and notes; nothing is measured yet.

    Raises UsageError for different prompts and for a bar of an unknown stage.
    """
    notes = [*_notes("A", a), *_notes("B", b)]
    if ignore_tokens and a.token_ids != b.token_ids:
        notes.append("token ids were not compared (--ignore-tokens)")
    elif not ignore_tokens:
        check_tokens(a, b)
    reordered = rope_note(a, b)
    notes += [reordered] if reordered else []
    if options is not None and options.last_position:
        notes.append("only the last position of each stage is compared")
    bars = choose_bars(a, b, overrides)
    check_overrides(bars.overrides, (*a.records, *b.records))
    return Comparison(side_of(a), side_of(b), bars, (), tuple(notes))


def diff_files(
    a: StageRecord,
    b: StageRecord,
    bars: Bars,
    options: DiffOptions | None = None,
    *,
    progress: Callable[[int], None] | None = None,
) -> Comparison:
    """Compare two stage files; the pair is named as A is.

    Raises BadFileError for a damaged one, UsageError for files of different layers and for a bar
    of a stage that is unknown.
    """
    check_overrides(bars.overrides, (a.key, b.key))
    layers = [record.header().layer for record in (a, b)]
    if layers[0] != layers[1]:
        said = ["the whole model" if layer is None else f"layer {layer}" for layer in layers]
        raise UsageError(
            f"A is of {said[0]} and B of {said[1]}, by their headers",
            hint="compare stages of the same layer",
        )
    result = compare_pair(Pair(a.key, a, b), bars, options, progress=progress)
    sides = [Side(clean(str(record.path), 500), "file", 1) for record in (a, b)]
    notes = []
    if a.key.stage != b.key.stage:
        notes.append(f"the files are named as different stages: {a.key} and {b.key}")
    return Comparison(sides[0], sides[1], bars, (result,), tuple(notes))


def judge_again(comparison: Comparison, overrides: Iterable[Override]) -> Comparison:
    """The same metrics judged with other overrides; no tensor is read. Raises UsageError."""
    bars = dataclasses.replace(comparison.bars, overrides=tuple(overrides))
    check_overrides(bars.overrides, (result.key for result in comparison.results))
    results = tuple(reclassify(result, bars) for result in comparison.results)
    return dataclasses.replace(comparison, bars=bars, results=results)


def _notes(name: str, trace: TraceDir) -> list[str]:
    notes = [f"{name}: {note}" for note in trace.notes]
    if trace.status == "incomplete":
        whole = f" of {count(trace.expected)}" if trace.expected is not None else ""
        notes.append(f"{name} is incomplete or still growing: {len(trace.records)}{whole} files")
    return notes


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


# -- JSON ------------------------------------------------------------------------------------------


def pair_json(result: PairResult, bars: Bars) -> dict[str, Any]:
    """One pair: the public tool's field names first, then ours."""
    metrics = result.metrics
    layer = "whole-model" if result.key.layer is None else result.key.layer
    found: dict[str, Any] = {
        "path_a": result.path_a or None,
        "path_b": result.path_b or None,
        "layer": layer,
    }
    if metrics is not None:
        found |= {
            "dim_product": metrics.count,
            "max_abs_diff": metrics.max_abs,
            "max_abs_diff_index": metrics.max_abs_index,
            "rms_diff": metrics.rms,
            "cosine_sim": metrics.cosine,
            "top_diffs": [_element_json(element) for element in metrics.top],
        }
    found |= {
        "stage": result.key.stage,
        "class": result.kind,
        "message": result.message,
        "shape": result.shape,
        "axes": result.axes,
        "limits": bars.limits(result.key),
        "exceeded": [dataclasses.asdict(item) for item in result.exceeded],
    }
    if metrics is not None:
        ours = {
            field.name: getattr(metrics, field.name)
            for field in dataclasses.fields(metrics)
            if field.name not in APR_FIELDS
        }
        ours["max_abs_at"] = metrics.max_abs_at
        ours["rows"] = None if result.rows is None else result.rows.to_json()
        first = metrics.first_nonfinite
        ours["first_nonfinite"] = None if first is None else _element_json(first)
        ours["logits"] = None if metrics.logits is None else dataclasses.asdict(metrics.logits)
        found |= ours
    checked: dict[str, Any] = finite_json(found)
    return checked


def _element_json(element: Element) -> dict[str, Any]:
    return {
        "index": element.index,
        "a": element.a,
        "b": element.b,
        "abs_diff": element.abs_diff,
        "at": element.at,
    }


def comparison_json(comparison: Comparison, *, allow_unmeasured: bool = False) -> dict[str, Any]:
    """The whole comparison, of files too, as contracts/diff.schema.json describes it."""
    first = comparison.first_divergence
    bars = comparison.bars
    return {
        "schema": SCHEMA,
        "a": dataclasses.asdict(comparison.a),
        "b": dataclasses.asdict(comparison.b),
        "bars": finite_json(
            {
                "rel_l2": bars.rel_l2,
                "worst_row_rel_l2": bars.worst_row_rel_l2,
                "reason": bars.reason,
                "overrides": [dataclasses.asdict(override) for override in bars.overrides],
            }
        ),
        "verdict": comparison.verdict,
        "exit_code": comparison.exit_code(allow_unmeasured=allow_unmeasured),
        "counts": comparison.counts,
        "first_divergence": None
        if first is None
        else {
            "layer": first.key.layer,
            "stage": first.key.stage,
            "class": first.kind,
            "message": first.message,
        },
        "notes": list(comparison.notes),
        "pairs": [pair_json(result, bars) for result in comparison.results],
    }


def _file_pair_json(comparison: Comparison) -> dict[str, Any]:
    """Two stage files as the public tool's JSON, ours beside."""
    return {
        "schema": PAIR_SCHEMA,
        **pair_json(comparison.results[0], comparison.bars),
        "bar_reason": comparison.bars.reason,
        "notes": list(comparison.notes),
    }
