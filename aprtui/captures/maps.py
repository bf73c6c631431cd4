"""A convention as data: which names of a tool's dump hold which stage, and in which form.

One TOML file a convention lies in ``maps/``; a person brings another by its path. The schema stands
in docs/captures.md 3; anything that is not in it is an error.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from aprtui.errors import BadFileError, UsageError
from aprtui.formats.files import read_whole
from aprtui.graph.vocabulary import STAGES
from aprtui.text import clean, nearest

__all__ = ["CONVENTIONS", "DumpMap", "Reading", "StageRule", "load_map"]

_FOLDER = Path(__file__).resolve().parent / "maps"
CONVENTIONS = (
    "transformers-hooks", "transformers-debugger", "vllm", "sglang", "msprobe", "mlx",
    "onnxruntime", "openvino", "torchlens", "transformerlens", "sglang-dumper", "tensorrt-llm",
)  # fmt: skip
_BASES = ("transformers-modules", "fused-modules")
_MAX_BYTES = 1 << 20
_MAP_KEYS = frozenset({
    "title", "base", "engine", "recognise", "unless", "tokens", "positions", "lengths", "mask",
    "shared", "off_by_one", "own_names", "parameters", "runtime", "spelling", "stage",
})  # fmt: skip
_READING_KEYS = frozenset({"take", "names", "split", "heads", "layer", "where"})
_SPELLINGS = frozenset({"output", "input", "element"})
_NAMES = frozenset(stage.name for stage in STAGES)
_SOURCE = re.compile(r"(?P<module>[^:\[\]]+)(?P<input>:input)?(?:\[(?P<element>[0-9]{1,3})\])?")
_SPELT: Mapping[str, tuple[str, ...]] = {
    "output": ("{module}",), "input": ("{module}:input",), "element": ("{module}.{n}",),
}  # fmt: skip


@dataclass(frozen=True)
class Reading:
    """One way to a stage: ``parts`` joined along the last axis, each by one of several patterns.

    ``split`` names the stages whose columns lie side by side in it; ``heads``: [H,T,d] as it lies;
    ``layer`` "own", "next" (it lies in the layer that follows) or "last" (only of the last layer);
    ``where`` is a stage that the layer must have, "no STAGE", or "unscaled".
    """

    parts: tuple[tuple[str, ...], ...]
    split: tuple[str, ...] = ()
    heads: bool = False
    layer: str = "own"
    where: str = ""


@dataclass(frozen=True)
class StageRule:
    """The stage, under the first of these names that the layer has, and the ways to it."""

    names: tuple[str, ...]
    readings: tuple[Reading, ...]


@dataclass(frozen=True)
class DumpMap:
    """A convention. Patterns: ``{L}`` is the layer's number, ``*`` anything between two dots; of
    ``parameters`` ``{module}.{name}`` is the tensor's name in the checkpoint."""

    name: str
    title: str
    engine: str
    recognise: tuple[str, ...]
    unless: tuple[str, ...]
    tokens: tuple[str, ...]
    positions: tuple[str, ...]
    lengths: tuple[str, ...]
    mask: tuple[str, ...]
    shared: tuple[str, ...]
    off_by_one: tuple[str, ...]
    parameters: tuple[re.Pattern[str], ...]
    runtime: Mapping[str, str | bool]
    rules: tuple[StageRule, ...]

    @property
    def batch(self) -> bool:
        """Whether every tensor has a leading axis of sequences."""
        return bool(self.runtime.get("batch", False))

    def is_parameter(self, name: str) -> bool:
        """Whether a tensor of the dump is one of the runtime's own weights."""
        return any(pattern.fullmatch(name) for pattern in self.parameters)


def load_map(chosen: str) -> DumpMap:
    """A convention by its name, or a person's own map by the path of its ``.toml``.

    Raises UsageError for a name that is none, BadFileError for a map that says what no map can.
    """
    if chosen.endswith(".toml"):
        return _read(Path(chosen), Path(chosen).stem)
    if chosen not in CONVENTIONS:
        near = nearest(chosen, CONVENTIONS)
        raise UsageError(
            f"no map is named {clean(chosen)!r}",
            hint=f"did you mean {near}?" if near else f"{', '.join(CONVENTIONS)}, or a .toml file",
        )
    return _read(_FOLDER / f"{chosen}.toml", chosen)


def _read(path: Path, name: str) -> DumpMap:
    said = _parsed(path)
    base = said.get("base")
    if base is not None and base not in _BASES:
        raise BadFileError(path, f"base is one of {', '.join(_BASES)}")
    below = _parsed(_FOLDER / f"{base}.toml") if base else {}
    both = _Text(path, below, said)
    spelling = {
        kind: tuple(both.table("spelling").get(kind, default)) for kind, default in _SPELT.items()
    }
    rules: dict[tuple[str, ...], StageRule] = {}
    for table in (*below.get("stage", ()), *said.get("stage", ())):
        rule = _rule(path, table, spelling)
        known = rules.get(rule.names)
        rules[rule.names] = (
            replace(rule, readings=known.readings + rule.readings) if known else rule
        )
    _add_own_names(rules, both.words("own_names"))
    if not rules or not both.words("recognise"):
        raise BadFileError(path, "a map needs recognise and at least one [[stage]]")
    return DumpMap(
        name=clean(name, 60),
        title=both.text("title"),
        engine=both.text("engine") or clean(name, 60),
        recognise=both.words("recognise"),
        unless=both.words("unless"),
        tokens=both.words("tokens"),
        positions=both.words("positions"),
        lengths=both.words("lengths"),
        mask=both.words("mask"),
        shared=both.words("shared"),
        off_by_one=both.words("off_by_one"),
        parameters=tuple(map(_parameter, both.words("parameters"))),
        runtime=both.table("runtime"),
        rules=tuple(rules.values()),
    )


def _parameter(pattern: str) -> re.Pattern[str]:
    """A pattern of parameters' names with the groups ``module`` and ``name``."""
    text = re.escape(pattern).replace(r"\*", "[^./]*")
    for place in ("module", "name"):
        text = text.replace(re.escape(f"{{{place}}}"), f"(?P<{place}>.+)", 1)
    return re.compile(text)


def _add_own_names(rules: dict[tuple[str, ...], StageRule], patterns: Sequence[str]) -> None:
    """Readings of every stage by its own name: ``{S}`` stands for it, ``{L}`` for its layer."""
    by_stage = {name: names for names in rules for name in names}
    for stage in STAGES if patterns else ():
        fitting = tuple(
            pattern.replace("{S}", stage.name)
            for pattern in patterns
            if stage.scope == "first" or ("{L}" in pattern) == (stage.scope == "layer")
        )
        if not fitting:
            continue
        names = by_stage.get(stage.name, (stage.name,))
        known = rules.get(names)
        own = Reading((fitting,))
        rules[names] = StageRule(names, (*(known.readings if known else ()), own))


def _parsed(path: Path) -> dict[str, Any]:
    try:
        said = tomllib.loads(read_whole(path, _MAX_BYTES, "a map").decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadFileError(path, f"not TOML: {clean(str(error), 120)}") from error
    _check_keys(path, "the map", said, _MAP_KEYS)
    stages = said.get("stage", [])
    if not isinstance(stages, list) or not all(isinstance(each, dict) for each in stages):
        raise BadFileError(path, "stages are written as [[stage]]")
    return said


def _check_keys(path: Path, what: str, said: Mapping[str, Any], known: frozenset[str]) -> None:
    for key in said:
        if key not in known:
            near = nearest(key, sorted(known))
            hint = f"did you mean {near}?" if near else f"it has {', '.join(sorted(known))}"
            raise BadFileError(path, f"{what} has no {clean(key)!r}", hint=hint)


@dataclass(frozen=True)
class _Text:
    """What a map says over its base."""

    path: Path
    below: Mapping[str, Any]
    own: Mapping[str, Any]

    def text(self, key: str) -> str:
        found = self.own.get(key, self.below.get(key, ""))
        if not isinstance(found, str):
            raise BadFileError(self.path, f"{key} is a text")
        return clean(found)

    def words(self, key: str) -> tuple[str, ...]:
        return _words(self.path, key, self.own.get(key, self.below.get(key, [])))

    def table(self, key: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for said in (self.below, self.own):
            table = said.get(key, {})
            if not isinstance(table, dict):
                raise BadFileError(self.path, f"{key} is a table: [{key}]")
            if key == "spelling":
                _check_keys(self.path, "[spelling]", table, _SPELLINGS)
                table = {kind: _words(self.path, kind, table[kind]) for kind in table}
            elif not all(isinstance(value, (str, bool)) for value in table.values()):
                raise BadFileError(self.path, f"[{key}] holds texts, true and false")
            found.update(table)
        return found


def _words(path: Path, key: str, value: Any) -> tuple[str, ...]:
    """A list of texts; one text is a list of one."""
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, list) or not all(isinstance(word, str) and word for word in found):
        raise BadFileError(path, f"{clean(key)} is a text or a list of texts")
    return tuple(found)


def _rule(path: Path, table: Mapping[str, Any], spelling: Mapping[str, Sequence[str]]) -> StageRule:
    _check_keys(path, "a [[stage]]", table, frozenset({"name", "from"}))
    names = _words(path, "name", table.get("name", []))
    for name in names:
        if name not in _NAMES:
            near = nearest(name, sorted(_NAMES))
            raise BadFileError(
                path,
                f"{clean(name)!r} is no stage",
                hint=f"did you mean {near}?" if near else "docs/stages.md lists them",
            )
    ways = table.get("from", [])
    if not names or not isinstance(ways, list) or not ways:
        raise BadFileError(path, "a [[stage]] needs its name and from = [{...}]")
    return StageRule(names, tuple(_reading(path, names[0], way, spelling) for way in ways))


def _reading(path: Path, stage: str, way: Any, spelling: Mapping[str, Sequence[str]]) -> Reading:
    if not isinstance(way, dict) or ("take" in way) == ("names" in way):
        raise BadFileError(path, f"{stage}: a way to it is {{take = ...}} or {{names = ...}}")
    _check_keys(path, f"{stage}: a way to it", way, _READING_KEYS)
    modules = _words(path, "take", way.get("take", []))
    parts = tuple(_spelt(path, each, spelling) for each in modules) or tuple(
        (each,) for each in _words(path, "names", way["names"])
    )
    split, where = _words(path, "split", way.get("split", [])), way.get("where", "")
    stage_where = where.removeprefix("no ") if isinstance(where, str) else ""
    if where not in ("", "unscaled") and stage_where not in _NAMES:
        raise BadFileError(path, f"{stage}: where is a stage, 'no STAGE' or 'unscaled'")
    layer, heads = way.get("layer", "own"), way.get("heads", False)
    if layer not in ("own", "next", "last") or not isinstance(heads, bool):
        raise BadFileError(path, f"{stage}: layer is own, next or last, heads true or false")
    if split and (stage not in split or not set(split) <= _NAMES or len(parts) > 1):
        raise BadFileError(path, f"{stage}: split names the stages in one tensor, it among them")
    return Reading(parts, split, heads, layer, where)


def _spelt(path: Path, text: str, spelling: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """The patterns of a source like ``MODULE``, ``MODULE:input[1]`` or ``MODULE[1]``."""
    found = _SOURCE.fullmatch(text)
    if found is None:
        raise BadFileError(
            path, f"{clean(text)!r} cannot be read", hint="MODULE, MODULE:input or MODULE[1]"
        )
    kind = "input" if found["input"] else "element" if found["element"] else "output"
    place = found["element"] or "0"
    if found["input"] and place != "0":  # where inputs are not counted there is one alone
        patterns = [pattern for pattern in spelling["input"] if "{n}" in pattern]
    else:
        patterns = list(spelling[kind])
    filled = (
        pattern.replace("{module}", found["module"]).replace("{n}", place) for pattern in patterns
    )
    return tuple(filled)
