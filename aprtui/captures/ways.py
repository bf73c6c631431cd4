"""The ways to a model's stages that a convention knows and a dump has, pass by pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from aprtui.captures.dump import Member
from aprtui.captures.maps import DumpMap, Reading
from aprtui.captures.naming import Names
from aprtui.captures.ranks import Shards
from aprtui.captures.sequences import Run
from aprtui.errors import UsageError
from aprtui.formats.tracedir import StageKey
from aprtui.graph import Graph
from aprtui.graph.node import Node
from aprtui.graph.ops import Embed
from aprtui.text import clean

__all__ = ["Way", "Ways"]


@dataclass(frozen=True)
class Way:
    """One reading of one stage, found: pass by pass its parts, each as the ranks hold it."""

    reading: Reading
    parts: Mapping[int, tuple[tuple[Member, ...], ...]]

    @property
    def name(self) -> str:
        first = next(iter(self.parts.values()))
        return " + ".join(clean(members[0].name, 80) for members in first)


class Ways:
    """The passes of all ranks by the map's patterns."""

    def __init__(
        self,
        passes: Sequence[Shards],
        convention: DumpMap,
        graph: Graph,
    ) -> None:
        """Raises UsageError for a dump that has layers which the model has not."""
        self._passes, self._names = passes, [Names(tensors) for tensors in passes]
        self._convention, self._graph = convention, graph
        for each in self._names:
            _check_layers(each, convention, graph)
        self.ranks = max((len(members) for each in passes for members in each.values()), default=1)

    def to_stages(self, runs: Sequence[Run]) -> dict[StageKey, tuple[Way, ...]]:
        """Every way to every stage that the passes of all runs have; to logits, that any has: of a
        run whose last rows were cut off they are those of a row that is gone."""
        by_stage = {name: rule for rule in self._convention.rules for name in rule.names}
        found: dict[StageKey, tuple[Way, ...]] = {}
        for node in self._graph:
            rule = by_stage.get(node.key.stage)
            if rule is None or self._named(node.key, rule.names) != node.key.stage:
                continue
            ways = (self._way(reading, node, runs) for reading in rule.readings)
            if there := tuple(way for way in ways if way is not None):
                found[node.key] = there
        return found

    def _named(self, key: StageKey, names: Sequence[str]) -> str | None:
        """The first of a rule's names that the layer has."""
        return next((name for name in names if StageKey(key.layer, name) in self._graph), None)

    def _way(self, reading: Reading, node: Node, runs: Sequence[Run]) -> Way | None:
        layer = node.key.layer
        if reading.layer == "last" and layer != self._graph.num_layers - 1:
            return None
        if reading.layer == "next":
            layer = (layer or 0) + 1
        if not _holds(reading.where, node.key, self._graph):
            return None
        parts: dict[int, tuple[tuple[Member, ...], ...]] = {}
        for number in (run.number for run in runs if not (node.last and run.cut)):
            tensors, known = self._passes[number], self._names[number]
            found = [known.one(patterns, layer) for patterns in reading.parts]
            if None not in found:
                parts[number] = tuple(tensors[name] for name in found if name is not None)
            elif not node.last:
                return None
        return Way(reading, parts) if parts else None


def _holds(where: str, key: StageKey, graph: Graph) -> bool:
    if where == "unscaled":
        return not any(isinstance(node.op, Embed) and node.op.scale != 1.0 for node in graph)
    if where.startswith("no "):
        return StageKey(key.layer, where.removeprefix("no ")) not in graph
    return not where or StageKey(key.layer, where) in graph


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
