"""Stages put together from a dump by its map: shapes from the graph, every second reading checked.

Nothing is read before its shape is known to be the stage's. Where a stage can be had in several
ways all of them are read and must be equal to the bit; one whose readings differ is left out.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from aprtui.captures.dump import Array, Dump, Member, Pass
from aprtui.captures.maps import DumpMap, Reading
from aprtui.captures.naming import Names
from aprtui.captures.prompt import Prompt, prompt_of
from aprtui.captures.recognise import passes_of
from aprtui.errors import UsageError
from aprtui.formats.tracedir import StageKey
from aprtui.graph import Graph
from aprtui.graph.node import Node
from aprtui.graph.ops import Embed
from aprtui.graph.vocabulary import facts_of
from aprtui.text import clean, count, ranges

__all__ = ["Assembly", "assemble"]

_SAMPLES = 6  # of names that are not used, in one note


@dataclass(frozen=True)
class _Way:
    """One reading of one stage, found: the members of its parts, pass by pass."""

    reading: Reading
    parts: tuple[tuple[Member, ...], ...]

    @property
    def name(self) -> str:
        return " + ".join(clean(member.name, 80) for member in self.parts[0])


@dataclass
class Assembly:
    """A dump as a trace of one model. ``stages`` yields the values; then the findings are whole.

    ``contradictions`` are stages that two readings give differently, which are left out.
    """

    convention: DumpMap
    prompt: Prompt
    dtype: str
    ways: dict[StageKey, tuple[_Way, ...]]
    graph: Graph
    notes: list[str]
    checked: int = 0
    contradictions: list[str] = field(default_factory=list)

    @property
    def settings(self) -> dict[str, Any]:
        """What the map knows of the runtime, for the manifest."""
        return {"map": self.convention.name, **self.convention.runtime}

    def stages(self) -> Iterator[tuple[StageKey, Array]]:
        """Each stage in order of computation, shaped as its node."""
        for key, ways in self.ways.items():
            node = self.graph[key]
            value = _value(node, ways[0], self)
            other = self._differing(node, value, ways)
            if other is None:
                yield key, value
            else:
                self.contradictions.append(other)

    def _differing(self, node: Node, value: Array, ways: Sequence[_Way]) -> str | None:
        """How a second reading of the stage differs from the first; None where all are equal."""
        for way in ways[1:]:
            again = _value(node, way, self)
            if value.shape != again.shape or not np.array_equal(value, again, equal_nan=True):
                apart = _apart(value, again)
                return f"{node.key}: {ways[0].name} and {way.name} differ{apart}: left out"
        self.checked += len(ways) > 1
        return None


def assemble(
    dump: Dump, convention: DumpMap, graph: Graph, tokens: Sequence[int] | None
) -> Assembly:
    """How a dump is read as a trace of ``graph``; its values are read by ``stages``.

    Raises UsageError for a dump of another model, of several sequences, or without token ids where
    ``tokens`` are None, and BadFileError.
    """
    passes = passes_of(dump, convention)
    names = [Names(tensors) for tensors in passes]
    _check_layers(names[0], convention, graph)
    prompt = prompt_of(dump.path, passes, convention, tokens)
    ways = _ways(passes, names, convention, graph)
    if not ways:
        raise UsageError(
            f"the map {convention.name} finds no stage of this model in {clean(str(dump.path))}"
        )
    assembly = Assembly(convention, prompt, "", ways, graph, list(prompt.notes))
    assembly.notes += _left_out(assembly, graph)
    for key, found in ways.items():
        for way in found:
            _check_shapes(graph[key], way, prompt, convention, graph)
    assembly.dtype = _dtype(assembly)
    assembly.notes += _unused(passes, convention, ways)
    return assembly


def _check_layers(names: Names, convention: DumpMap, graph: Graph) -> None:
    """Raise UsageError for a dump that has layers which the model has not."""
    patterns = (
        pattern for rule in convention.rules for way in rule.readings
        for part in way.parts for pattern in part
    )  # fmt: skip
    there = {layer for pattern in patterns for layer in names.layers(pattern)}
    if there and max(there) >= graph.num_layers:
        raise UsageError(
            f"a dump of another model: it has layer {max(there)}, "
            f"the model has layers 0..{graph.num_layers - 1}"
        )


def _ways(
    passes: Sequence[Pass], names: Sequence[Names], convention: DumpMap, graph: Graph
) -> dict[StageKey, tuple[_Way, ...]]:
    """Every way to every stage that all passes have."""
    by_stage = {name: rule for rule in convention.rules for name in rule.names}
    found: dict[StageKey, tuple[_Way, ...]] = {}
    for node in graph:
        rule = by_stage.get(node.key.stage)
        if rule is None or _named(node.key, rule.names, graph) != node.key.stage:
            continue
        ways = (_way(reading, node.key, passes, names, graph) for reading in rule.readings)
        if there := tuple(way for way in ways if way is not None):
            found[node.key] = there
    return found


def _named(key: StageKey, names: Sequence[str], graph: Graph) -> str | None:
    """The first of a rule's names that the layer has."""
    return next((name for name in names if StageKey(key.layer, name) in graph), None)


def _way(
    reading: Reading, key: StageKey, passes: Sequence[Pass], names: Sequence[Names], graph: Graph
) -> _Way | None:
    layer = key.layer
    if reading.layer == "last" and layer != graph.num_layers - 1:
        return None
    if reading.layer == "next":
        layer = (layer or 0) + 1
    if not _holds(reading.where, key, graph):
        return None
    parts: list[tuple[Member, ...]] = []
    for tensors, known in zip(passes, names, strict=True):
        found = [known.one(patterns, layer) for patterns in reading.parts]
        if None in found:
            return None
        parts.append(tuple(tensors[name] for name in found if name is not None))
    return _Way(reading, tuple(parts))


def _holds(where: str, key: StageKey, graph: Graph) -> bool:
    if where == "unscaled":
        return not any(isinstance(node.op, Embed) and node.op.scale != 1.0 for node in graph)
    if where.startswith("no "):
        return StageKey(key.layer, where.removeprefix("no ")) not in graph
    return not where or StageKey(key.layer, where) in graph


# -- shapes ----------------------------------------------------------------------------------------


def _width(node: Node) -> int:
    """Values of one position."""
    return math.prod(axis.extent or 1 for axis in node.axes)


def _check_shapes(node: Node, way: _Way, prompt: Prompt, convention: DumpMap, graph: Graph) -> None:
    """Raise UsageError unless a reading has the stage's shape, before anything of it is read."""
    for members, rows in zip(way.parts, prompt.rows, strict=True):
        widths = []
        for member in members:
            shape = _unbatched(member, convention)
            if way.reading.heads:
                heads, channels = (axis.extent for axis in node.axes[-2:])
                fits = shape == (heads, rows, channels)
                widths.append(_width(node))
            else:
                fits = bool(shape) and (shape[0] == rows or (node.last and shape[0] == 1))
                widths.append(math.prod(shape[1:]))
            if not fits:
                raise _other(node, member, rows)
        stages = way.reading.split or (node.key.stage,)
        keys = [StageKey(node.key.layer, stage) for stage in stages]
        if sum(widths) != sum(_width(graph[key]) for key in keys if key in graph):
            raise _other(node, members[0], rows)


def _other(node: Node, member: Member, rows: int) -> UsageError:
    """What a tensor of another shape is."""
    return UsageError(
        f"{clean(member.name)} is {list(member.shape)}, where {node.key} of this model has "
        f"{list(node.shape(rows))}: a dump of another model or prompt, or a map that does not fit",
        hint="name the model that was run, and the map with --map",
    )


def _unbatched(member: Member, convention: DumpMap) -> tuple[int, ...]:
    """The shape without its batch of one. Raises UsageError for a batch of several."""
    if not convention.batch:
        return member.shape
    if len(member.shape) < 2 or member.shape[0] != 1:
        raise UsageError(
            f"{clean(member.name)} is {list(member.shape)}: a batch of several sequences, or none",
            hint="one alone can be imported: run one prompt",
        )
    return member.shape[1:]


# -- values ----------------------------------------------------------------------------------------


def _value(node: Node, way: _Way, assembly: Assembly) -> Array:
    """The stage by one reading: its parts joined or split, passes stacked, shaped as the node."""
    prompt, graph, batch = assembly.prompt, assembly.graph, assembly.convention.batch
    stacked = [_pass_value(node, way.reading, part, batch, graph) for part in way.parts]
    tokens = sum(prompt.rows)
    if node.last and sum(map(len, stacked)) != tokens:
        return np.asarray(stacked[-1][-1]).reshape(node.shape(tokens, "last"))
    whole = stacked[0] if len(stacked) == 1 else np.concatenate(stacked)
    return whole.reshape(node.shape(tokens, "all"))


def _pass_value(
    node: Node, reading: Reading, members: Sequence[Member], batch: bool, graph: Graph
) -> Array:
    """The rows [t,n] of one pass."""
    parts = []
    for member in members:
        values = member.read()
        if reading.heads:
            values = np.moveaxis(values.reshape(values.shape[-3:]), 0, 1)
            parts.append(values.reshape(values.shape[0], -1))
        else:
            parts.append(values.reshape(values.shape[batch], -1))
    joined = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)
    if not reading.split:
        return joined
    keys = [StageKey(node.key.layer, stage) for stage in reading.split]
    widths = [_width(graph[key]) if key in graph else 0 for key in keys]
    place = reading.split.index(node.key.stage)
    first = sum(widths[:place])
    return joined[:, first : first + widths[place]]


def _apart(first: Array, second: Array) -> str:
    """How far two readings lie apart, in words."""
    with np.errstate(invalid="ignore", over="ignore"):
        largest = float(np.max(np.abs(first.astype(np.float64) - second.astype(np.float64))))
    return f" (by up to {largest:.3g})" if math.isfinite(largest) else ""


# -- what is to be said ----------------------------------------------------------------------------


def _left_out(assembly: Assembly, graph: Graph) -> list[str]:
    """Take out what cannot be read as the model means it; what was taken out."""
    pairs = str(assembly.convention.runtime.get("pairs", ""))
    if not pairs or graph.rope_layout in ("", pairs):
        return []
    turned = [key for key in assembly.ways if facts_of(key.stage).rotated]
    for key in turned:
        del assembly.ways[key]
    stages = ", ".join(dict.fromkeys(key.stage for key in turned))
    return [
        f"left out: {stages}: the dump has the channels of RoPE's pairs in {pairs}, this model "
        f"file {graph.rope_layout}; the checkpoint that was run shows them"
    ]


def _dtype(assembly: Assembly) -> str:
    """The type that most tensors were computed in; float32 that holds another type is found out."""
    used = [way.parts[0][0] for ways in assembly.ways.values() for way in ways[:1]]
    stored = Counter(member.dtype for member in used).most_common(1)[0][0]
    if stored not in ("float32", "float64"):
        return stored
    found = _narrower(assembly)
    if found:
        assembly.notes.append(
            f"{stored} holds nothing but {found} values in the first layer: taken as {found}"
        )
    elif stored == "float64":
        assembly.notes.append("float64 values are rounded to float32")
    return found or "float32"


def _narrower(assembly: Assembly) -> str:
    """The 16-bit type that every value of the first layer there is; empty where there is none."""
    first = min((key.layer or 0 for key in assembly.ways if key.layer is not None), default=None)
    kinds = {"bfloat16", "float16"}
    for key, ways in assembly.ways.items():
        if key.layer == first and kinds:
            value = _value(assembly.graph[key], ways[0], assembly)
            kinds &= _types_of(value)
    return next(iter(sorted(kinds)), "")


def _types_of(value: Array) -> set[str]:
    found = set()
    with np.errstate(over="ignore", invalid="ignore"):
        single = value.astype(np.float32)
        if np.array_equal(single, value, equal_nan=True):
            if not np.any(single.view(np.uint32) & 0xFFFF):
                found.add("bfloat16")
            if np.array_equal(single.astype(np.float16).astype(np.float32), single, equal_nan=True):
                found.add("float16")
    return found


def _unused(
    passes: Sequence[Pass], convention: DumpMap, ways: dict[StageKey, tuple[_Way, ...]]
) -> list[str]:
    """What of the dump was not read, and which layers it does not hold."""
    used = {m.name for found in ways.values() for way in found for part in way.parts for m in part}
    idle = [name for name in passes[0] if name not in used]
    notes = []
    if idle:
        kinds = list(
            dict.fromkeys(re.sub(r"(layers\.|present\.)[0-9]+", r"\1{L}", name) for name in idle)
        )
        shown = ", ".join(clean(kind, 60) for kind in kinds[:_SAMPLES])
        more = ", …" if len(kinds) > _SAMPLES else ""
        notes.append(f"not read: {count(len(idle), 'tensor')}: {shown}{more}")
    if there := [word for word in convention.shared if any(word in name for name in idle)]:
        notes.append(
            f"{', '.join(there)}: one module for all layers, whose last call wins: not trusted"
        )
    layers = sorted({key.layer for key in ways if key.layer is not None})
    notes.append(f"stages of layers {ranges(layers)}")
    if convention.batch:
        notes.append("the batch of one was dropped")
    return notes
