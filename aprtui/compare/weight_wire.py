"""A comparison of two models from its JSON: what the child printed is the value that it had.

``ModelComparison.to_json`` is the other way. Text is cleaned here, where it is read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from aprtui.compare.computation import Otherwise
from aprtui.compare.model_settings import Setting
from aprtui.compare.weight_results import (
    CLASSES,
    SCHEMA,
    Look,
    ModelComparison,
    ModelSide,
    TensorResult,
    TensorSide,
    WeightMetrics,
)
from aprtui.compare.wire import Found, plain, real, text, texts
from aprtui.graph import Role
from aprtui.text import clean

__all__ = ["from_json"]


def from_json(document: Found) -> ModelComparison:
    """What ``to_json`` of a comparison said. Raises ValueError for what is no such document."""
    if not isinstance(document, Mapping) or document.get("schema") != SCHEMA:
        raise ValueError(f"its schema is not {SCHEMA}")
    try:
        return _comparison(document)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"damaged: {clean(repr(error), 120)}") from error


def _comparison(said: Found) -> ModelComparison:
    return ModelComparison(
        _model(said["a"]),
        _model(said["b"]),
        tuple(_result(each) for each in said["tensors"]),
        tuple(_otherwise(each) for each in said["computation"]),
        _settings(said["config"]),
        _settings(said["tokenizer"]),
        tuple(_tensor(each) for each in said["unused_a"]),
        tuple(_tensor(each) for each in said["unused_b"]),
        texts(said["notes"]),
    )


def _otherwise(said: Found) -> Otherwise:
    parameter, kind, a, b = (text(said[name]) for name in ("parameter", "kind", "a", "b"))
    return Otherwise(parameter, kind, a, b, texts(said["stages"]), _numbers(said["layers"]))


def _model(said: Found) -> ModelSide:
    return ModelSide(
        text(said["path"]),
        text(said["format"]),
        text(said["architecture"]),
        int(said["size_bytes"]),
        text(said["digest"]),
        texts(said["types"]),
        bool(said["tied_head"]),
    )


def _tensor(said: Found) -> TensorSide:
    rows, columns = _numbers(said["shape"])
    return TensorSide(text(said["name"]), text(said["type"]), (rows, columns))


def _result(said: Found) -> TensorResult:
    kind, layer, expert = text(said["class"]), said["layer"], said["expert"]
    if kind not in CLASSES:
        raise ValueError(f"no class of a tensor: {kind}")
    a, b = (None if said[name] is None else _tensor(said[name]) for name in "ab")
    metrics, look = said["metrics"], said["looks_like"]
    return TensorResult(
        Role(
            text(said["role"]),
            None if layer is None else int(layer),
            None if expert is None else int(expert),
        ),
        kind,
        a,
        b,
        real(said["limit"]),
        None if metrics is None else _metrics(metrics),
        None if look is None else _look(look),
        text(said["message"]),
        bool(said["folded"]),
    )


def _metrics(said: Found) -> WeightMetrics:
    row, column = _numbers(said["max_abs_at"])
    return WeightMetrics(
        float(said["rel_l2"]),
        float(said["cosine"]),
        float(said["scale"]),
        float(said["max_abs"]),
        (row, column),
        float(said["worst_row_rel_l2"]),
        int(said["worst_row"]),
        float(said["median_row_rel_l2"]),
        int(said["nonfinite_a"]),
        int(said["nonfinite_b"]),
    )


def _look(said: Found) -> Look:
    parameters: Mapping[str, Any] = plain(said["parameters"])
    return Look(text(said["id"]), text(said["text"]), real(said["residual_rel_l2"]), parameters)


def _settings(said: Iterable[Found]) -> tuple[Setting, ...]:
    names = ("key", "kind", "a", "b", "message")
    return tuple(Setting(*(text(each[name]) for name in names)) for each in said)


def _numbers(said: Iterable[Any]) -> tuple[int, ...]:
    return tuple(int(each) for each in said)
