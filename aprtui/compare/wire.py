"""A bisection from its JSON: what the child printed is the value that it had, in every process.

``Bisection.to_json`` is the other way. Text is cleaned here, where it is read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from aprtui.compare.bisection import (
    SCHEMA,
    Bisection,
    Culprit,
    Divergence,
    Explained,
    Mistake,
    Unmeasured,
    Within,
)
from aprtui.compare.causes import Cause, Read
from aprtui.formats.rows import Rows
from aprtui.formats.tracedir import StageKey, key_of, relative_path
from aprtui.text import clean

__all__ = ["Found", "from_json", "plain", "real", "text", "texts"]

Found = Mapping[str, Any]


def from_json(document: Found) -> Bisection:
    """What ``to_json`` of a bisection said. Raises ValueError for what is no such document."""
    if document.get("schema") != SCHEMA:
        raise ValueError(f"its schema is not {SCHEMA}")
    try:
        return _bisection(document)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"damaged: {clean(repr(error), 120)}") from error


def _bisection(said: Found) -> Bisection:
    culprits = tuple(_culprit(each) for each in said["culprits"])
    divergence, reference, a = said.get("first_divergence"), said.get("reference"), said.get("a")
    return Bisection(
        culprits,
        tuple(_explained(each) for each in said["explained"]),
        tuple(
            Unmeasured(_key(each), text(each["why"]), bool(each["damaged"]))
            for each in said["unmeasured"]
        ),
        None if divergence is None else _divergence(divergence),
        (float(said["bar"]["rel_l2"]), float(said["bar"]["worst_row_rel_l2"])),
        int(said["tokens"]["count"]),
        text(said["tokens"]["source"]),
        texts(said["notes"]),
        None if reference is None else _bisection(reference),
        frozenset(texts(said["weighted"])),
        text(said.get("model", "")),
        None if a is None else text(a),
        text(said.get("b", "")),
        tuple(_within(each) for each in said["within_rounding"]),
        tuple(_cause(each, culprits) for each in said["causes"]),
    )


def _divergence(said: Found) -> Divergence:
    return Divergence(_key(said), text(said["class"]), text(said["message"]))


def _culprit(said: Found) -> Culprit:
    key, mistake, rows = _key(said), said["mistake"], said["rows"]
    return Culprit(
        key,
        text(said["kind"]),
        texts(said["span"]),
        real(said["local_rel_l2"]),
        real(said["worst_row_rel_l2"]),
        {text(axis): int(place) for axis, place in said["worst"].items()},
        texts(said["parts"]),
        text(said["looks_like"]),
        None if mistake is None else _mistake(mistake),
        real(said["inherited_rel_l2"]),
        None if rows is None else Rows.read(rows),
        text(said["where"]),
        tuple(_read(key, each) for each in said["tensors"]),
    )


def _read(key: StageKey, said: Found) -> Read:
    part, role, name, kind = (text(said[each]) for each in ("part", "role", "name", "type"))
    return Read(key, part, role, name, kind, bool(said["product"]), wrong=True)


def _mistake(said: Found) -> Mistake:
    parameters = {text(name): plain(value) for name, value in said["parameters"].items()}
    return Mistake(text(said["id"]), text(said["text"]), parameters, float(said["residual_rel_l2"]))


def _explained(said: Found) -> Explained:
    return Explained(
        _key(said),
        text(said["by"]),
        {text(part): text(by) for part, by in said["parts"].items()},
        float(said["residual_rel_l2"]),
        float(said["local_rel_l2"]),
        texts(said["span"]),
        real(said["inherited_rel_l2"]),
        real(said["hidden_weight"]),
    )


def _within(said: Found) -> Within:
    return Within(
        _key(said),
        text(said["type"]),
        float(said["units"]),
        float(said["bar_units"]),
        float(said["local_rel_l2"]),
        texts(said["span"]),
        real(said["inherited_rel_l2"]),
    )


def _cause(said: Found, culprits: Iterable[Culprit]) -> Cause:
    keys = {_key(each) for each in said["culprits"]}
    held = tuple(each for each in culprits if each.key in keys)
    return Cause(text(said["id"] or ""), text(said["text"]), held, text(said["pattern"]))


def _key(said: Found) -> StageKey:
    layer = said["layer"]
    key = StageKey(None if layer is None else int(layer), str(said["stage"]))
    if key_of(relative_path(key)) != key:
        raise ValueError(f"no stage: {clean(str(key), 80)}")
    return key


def text(said: object) -> str:
    """Clean text of a document. Raises TypeError for what is none."""
    if not isinstance(said, str):
        raise TypeError(f"{said!r} is no text")
    return clean(said, 2000)


def texts(said: Iterable[object]) -> tuple[str, ...]:
    return tuple(text(each) for each in said)


def real(said: Any) -> float | None:
    """A number, by name where JSON has none, or null."""
    return None if said is None else float(said)


def plain(value: Any) -> Any:
    """A parameter: a number or text, or several by place or by name; its text clean."""
    if isinstance(value, list):
        return [plain(each) for each in value]
    if isinstance(value, dict):
        return {text(name): plain(each) for name, each in value.items()}
    return text(value) if isinstance(value, str) else value
