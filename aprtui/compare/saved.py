"""A comparison kept in a file and read back, so that its metrics can be judged by other bars."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aprtui.compare.bars import METRICS, Bars, Exceeded, Override
from aprtui.compare.diff import APR_FIELDS, SCHEMA, Comparison, Side, comparison_json
from aprtui.compare.logits import LogitsMetrics
from aprtui.compare.metrics import Element, Metrics
from aprtui.compare.pairs import CLASSES, PairResult
from aprtui.errors import BadFileError
from aprtui.formats.atomic import whole_file
from aprtui.formats.rows import Rows
from aprtui.formats.strict_json import read_object
from aprtui.formats.tracedir import StageKey, key_of, relative_path
from aprtui.text import clean

__all__ = ["comparison_of", "load", "save"]

MAX_BYTES = 64 << 20


def save(comparison: Comparison, path: Path) -> None:
    """Write the comparison as its JSON, whole or not at all. Raises EngineError."""
    document = json.dumps(comparison_json(comparison), allow_nan=False, indent=1) + "\n"
    with whole_file(path, hint="free space or name another file") as file:
        file.write(document.encode())


def load(path: Path) -> Comparison:
    """Read what ``save`` (or ``aprtui diff --json``) wrote. Raises BadFileError."""
    found = read_object(path, "the saved comparison", MAX_BYTES)
    if found.get("schema") != SCHEMA:
        raise BadFileError(
            path, f"not a saved comparison: its schema is not {SCHEMA}", hint="aprtui diff --save"
        )
    try:
        return comparison_of(found)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadFileError(
            path, f"the saved comparison is damaged: {clean(repr(error), 120)}"
        ) from error


def comparison_of(found: Mapping[str, Any]) -> Comparison:
    """What ``comparison_json`` wrote. Raises KeyError, TypeError, ValueError or AttributeError for
    anything else."""
    bars = found["bars"]
    return Comparison(
        _side(found["a"]),
        _side(found["b"]),
        Bars(
            float(bars["rel_l2"]),
            float(bars["worst_row_rel_l2"]),
            clean(str(bars["reason"]), 500),
            tuple(_override(item) for item in bars["overrides"]),
        ),
        tuple(_result(pair) for pair in found["pairs"]),
        tuple(clean(str(note), 500) for note in found["notes"]),
    )


def _override(found: Mapping[str, Any]) -> Override:
    if found["metric"] not in METRICS:
        raise ValueError(f"metric {found['metric']!r}")
    return Override(found["metric"], float(found["limit"]), str(found["pattern"]))


def _side(found: Mapping[str, Any]) -> Side:
    tokens = found["tokens"]
    return Side(
        clean(str(found["path"]), 500),
        clean(str(found["status"])),
        int(found["files"]),
        clean(str(found["engine"])),
        clean(str(found["model"])),
        None if tokens is None else int(tokens),
    )


def _result(pair: Mapping[str, Any]) -> PairResult:
    layer = None if pair["layer"] == "whole-model" else int(pair["layer"])
    key = StageKey(layer, str(pair["stage"]))
    if key_of(relative_path(key)) != key or pair["class"] not in CLASSES:
        raise ValueError(f"pair {key}, class {pair['class']}")
    shape, axes = pair["shape"], pair["axes"]
    return PairResult(
        key,
        pair["class"],
        clean(str(pair["path_a"] or ""), 500),
        clean(str(pair["path_b"] or ""), 500),
        clean(str(pair["message"]), 500),
        None if shape is None else tuple(int(extent) for extent in shape),
        None if axes is None else tuple(clean(str(axis)) for axis in axes),
        _metrics(pair) if "dim_product" in pair else None,
        tuple(
            Exceeded(clean(str(item["metric"])), float(item["value"]), float(item["limit"]))
            for item in pair["exceeded"]
        ),
        None if pair.get("rows") is None else Rows.read(pair["rows"]),
    )


def _metrics(pair: Mapping[str, Any]) -> Metrics:
    values: dict[str, Any] = {}
    for field in dataclasses.fields(Metrics):
        raw = pair[APR_FIELDS.get(field.name, field.name)]
        if field.type == "float":
            raw = float(raw)
        elif field.type in ("int", "int | None"):
            raw = None if raw is None and field.type != "int" else int(raw)
        elif field.type == "bool":
            raw = bool(raw)
        values[field.name] = raw
    first, logits = values["first_nonfinite"], values["logits"]
    values["first_nonfinite"] = None if first is None else _element(first)
    values["top"] = tuple(_element(item) for item in values["top"])
    values["max_abs_at"] = tuple(int(i) for i in values["max_abs_at"])
    values["logits"] = None if logits is None else _logits(logits)
    return Metrics(**values)


def _element(found: Mapping[str, Any]) -> Element:
    return Element(
        int(found["index"]),
        float(found["a"]),
        float(found["b"]),
        float(found["abs_diff"]),
        tuple(int(i) for i in found["at"]),
    )


def _logits(found: Mapping[str, Any]) -> LogitsMetrics:
    return LogitsMetrics(
        int(found["argmax_a"]),
        int(found["argmax_b"]),
        bool(found["argmax_equal"]),
        int(found["top5_overlap"]),
        float(found["kl"]),
        float(found["margin_a"]),
        float(found["margin_b"]),
    )
