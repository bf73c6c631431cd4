"""Stages put together from a dump by its map: shapes from the graph, every second reading checked.

Nothing is read before its shape is known to be the stage's. Where a stage can be had in several
ways all of them are read and must be equal to the bit; one whose readings differ is left out.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from aprtui.captures.dump import Array, Dump, Member
from aprtui.captures.maps import DumpMap, Reading
from aprtui.captures.merge import Copies, Plan, Window, merged, plan_of, shares
from aprtui.captures.naming import Names
from aprtui.captures.prompt import batches_of
from aprtui.captures.ranks import Shards, together
from aprtui.captures.recognise import passes_of
from aprtui.captures.sequences import CutSequence, Run, sequences_of
from aprtui.errors import UsageError
from aprtui.formats.rows import Rows
from aprtui.formats.tracedir import StageKey
from aprtui.graph import Graph
from aprtui.graph.heads import HeadWindow, head_windows
from aprtui.graph.node import Node
from aprtui.graph.ops import Bias, Combine, Embed, Experts, Product
from aprtui.graph.vocabulary import facts_of
from aprtui.text import clean, count, ranges

__all__ = ["Assembly", "assemble"]

_SAMPLES = 6  # of names that are not used, in one note
_SUMMED = (Product, Embed, Experts, Combine)  # what ranks may hold their shares of


@dataclass(frozen=True)
class _Way:
    """One reading of one stage, found: pass by pass its parts, each as the ranks hold it."""

    reading: Reading
    parts: Mapping[int, tuple[tuple[Member, ...], ...]]

    @property
    def name(self) -> str:
        first = next(iter(self.parts.values()))
        return " + ".join(clean(members[0].name, 80) for members in first)


@dataclass
class Assembly:
    """A dump as a trace of one model. ``stages`` yields the values; then the findings are whole.

    ``sequence`` is the one that was chosen of ``sequences``. ``contradictions`` are stages that two
    readings give differently, which are left out; ``findings`` copies on ranks that differ.
    """

    convention: DumpMap
    graph: Graph
    sequence: CutSequence
    sequences: int
    rows: Rows
    ranks: int
    ways: dict[StageKey, tuple[_Way, ...]]
    notes: list[str]
    dtype: str = ""
    summed: frozenset[str] = frozenset()
    checked: int = 0
    contradictions: list[str] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)

    @property
    def settings(self) -> dict[str, Any]:
        """What the map and the dump know of the runtime, for the manifest."""
        parallel = {"tensor_parallel": self.ranks} if self.ranks > 1 else {}
        return {"map": self.convention.name, **self.convention.runtime, **parallel}

    @property
    def passes(self) -> int:
        return len(self.sequence.runs)

    @cached_property
    def windows(self) -> Mapping[StageKey, tuple[HeadWindow, ...]]:
        return head_windows(self.graph)

    def stages(self) -> Iterator[tuple[StageKey, Array, tuple[int, ...]]]:
        """Each stage in order of computation, shaped as its node, and the positions of its rows."""
        for key, ways in self.ways.items():
            node = self.graph[key]
            value, positions = self._told(node, ways[0])
            other = self._differing(node, value, ways)
            if other is None:
                yield key, value, positions
            else:
                self.contradictions.append(other)

    def _told(self, node: Node, way: _Way) -> tuple[Array, tuple[int, ...]]:
        """A stage's value by one way; copies that differ become a finding."""
        copies = Copies()
        found = _value(node, way, self, copies)
        if said := copies.text(node.key, self.rows, self.ranks):
            self.findings.append(said)
        return found

    def _differing(self, node: Node, value: Array, ways: Sequence[_Way]) -> str | None:
        """How a second reading of the stage differs from the first; None where all are equal."""
        for way in ways[1:]:
            again, _ = _value(node, way, self, Copies())
            if value.shape != again.shape or not np.array_equal(value, again, equal_nan=True):
                apart = _apart(value, again)
                return f"{node.key}: {ways[0].name} and {way.name} differ{apart}: left out"
        self.checked += len(ways) > 1
        return None


def assemble(
    dump: Dump,
    convention: DumpMap,
    graph: Graph,
    tokens: Sequence[int] | None,
    sequence: int | None = None,
) -> Assembly:
    """How a dump is read as a trace of ``graph``; its values are read by ``stages``.

    ``sequence``: which of a batch, in order of appearance. Raises UsageError for a dump of another
    model, of several sequences where none is chosen, or without token ids where ``tokens`` are
    None; BadFileError.
    """
    own = [passes_of(dump, rank, convention) for rank in dump.ranks]
    passes, notes = together(dump, own)
    names = [Names(tensors) for tensors in passes]
    for each in names:
        _check_layers(each, convention, graph)
    batches, said = batches_of(dump.path, passes, convention, tokens)
    reader = _Reader(passes, names, convention, graph)
    sequences, cut = sequences_of(batches, reader.likeliest)
    at = _chosen(dump, sequences, sequence, tokens)
    one = sequences[at]
    assembly = Assembly(
        convention,
        graph,
        one,
        len(sequences),
        one.rows(at if len(sequences) > 1 else None),
        reader.ranks,
        reader.ways([run.number for run in one.runs]),
        [*notes, *said, *cut],
    )
    if not assembly.ways:
        raise UsageError(
            f"the map {convention.name} finds no stage of this model in {clean(str(dump.path))}"
        )
    assembly.notes += _left_out(assembly, graph)
    for key, found in assembly.ways.items():
        for way in found:
            _check_shapes(graph[key], way, assembly)
    _learn_sums(assembly)
    _learn_dtype(assembly)
    assembly.notes += [*_of_rows(assembly), *_unused(passes, assembly)]
    return assembly


def _chosen(
    dump: Dump, found: Sequence[CutSequence], asked: int | None, tokens: Sequence[int] | None
) -> int:
    """Which sequence is read. Raises UsageError where that is not clear."""
    wanted = None if tokens is None else tuple(tokens)
    listed = ", ".join(f"{at} ({count(len(one.tokens), 'token')})" for at, one in enumerate(found))
    if asked is not None and not 0 <= asked < len(found):
        raise UsageError(f"--sequence {asked}: {clean(str(dump.path))} holds {listed}")
    if asked is None and wanted is not None:
        asked = next((at for at, one in enumerate(found) if one.tokens == wanted), None)
    if asked is None and len(found) > 1:
        raise UsageError(
            f"{clean(str(dump.path))}: a batch of {len(found)} sequences: {listed}",
            hint="--sequence 0 chooses one",
        )
    at = asked or 0
    if wanted is not None and found[at].tokens != wanted:
        raise UsageError(
            f"the dump was run on {_few(found[at].tokens)}, not on {_few(wanted)}",
            hint="leave the tokens out: the dump holds them",
        )
    return at


def _few(numbers: Sequence[int]) -> str:
    shown = ", ".join(str(number) for number in numbers[:6])
    return f"[{shown}{', …' if len(numbers) > 6 else ''}]"


def _of_rows(assembly: Assembly) -> list[str]:
    """What is to be said of the sequence that was cut out."""
    rows, runs = assembly.rows, assembly.sequence.runs
    notes = []
    if assembly.sequences > 1:
        notes.append(f"sequence {rows.sequence} of {assembly.sequences}, in order of appearance")
    if len(runs) > 1:
        of_each = ", ".join(str(len(run.rows)) for run in runs)
        notes.append(f"{len(runs)} passes of {of_each} rows, stacked by position")
    if rows.positions[0]:
        notes.append(f"its rows stand at {rows}")
    if rows.unseen:
        notes.append(f"{rows.unseen}: attention and what follows in its span cannot be replayed")
    if assembly.summed:
        stages = ", ".join(sorted(assembly.summed))
        notes.append(f"{stages}: the ranks' shares, added as the all-reduce does")
    return notes


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


class _Reader:
    """The passes of all ranks by the map's patterns."""

    def __init__(
        self,
        passes: Sequence[Shards],
        names: Sequence[Names],
        convention: DumpMap,
        graph: Graph,
    ) -> None:
        self._passes, self._names = passes, names
        self._convention, self._graph = convention, graph
        self.ranks = max((len(members) for each in passes for members in each.values()), default=1)

    def ways(self, numbers: Sequence[int]) -> dict[StageKey, tuple[_Way, ...]]:
        """Every way to every stage that all of these passes have; to logits, that any has."""
        by_stage = {name: rule for rule in self._convention.rules for name in rule.names}
        found: dict[StageKey, tuple[_Way, ...]] = {}
        for node in self._graph:
            rule = by_stage.get(node.key.stage)
            if rule is None or self._named(node.key, rule.names) != node.key.stage:
                continue
            ways = (self._way(reading, node, numbers) for reading in rule.readings)
            if there := tuple(way for way in ways if way is not None):
                found[node.key] = there
        return found

    def likeliest(self, run: Run) -> int | None:
        """The likeliest token after a run, by the logits that its pass holds."""
        node = self._graph.nodes[-1]
        way = self.ways([run.number]).get(node.key)
        if way is None or not node.last:
            return None
        one = CutSequence([run])
        alone = Assembly(self._convention, self._graph, one, 1, one.rows(None), self.ranks, {}, [])
        value, positions = _value(node, way[0], alone, Copies())
        last = value.reshape(-1, _width(node))[-1]
        return int(np.argmax(last)) if positions[-1:] == run.positions[-1:] else None

    def _named(self, key: StageKey, names: Sequence[str]) -> str | None:
        """The first of a rule's names that the layer has."""
        return next((name for name in names if StageKey(key.layer, name) in self._graph), None)

    def _way(self, reading: Reading, node: Node, numbers: Sequence[int]) -> _Way | None:
        layer = node.key.layer
        if reading.layer == "last" and layer != self._graph.num_layers - 1:
            return None
        if reading.layer == "next":
            layer = (layer or 0) + 1
        if not _holds(reading.where, node.key, self._graph):
            return None
        parts: dict[int, tuple[tuple[Member, ...], ...]] = {}
        for number in numbers:
            tensors, known = self._passes[number], self._names[number]
            found = [known.one(patterns, layer) for patterns in reading.parts]
            if None not in found:
                parts[number] = tuple(tensors[name] for name in found if name is not None)
            elif not node.last:
                return None
        return _Way(reading, parts) if parts else None


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


def _windows(node: Node, reading: Reading, assembly: Assembly) -> list[list[Window]]:
    """What the columns of each part of a reading are."""
    graph, layer = assembly.graph, node.key.layer
    if reading.split:
        keys = [StageKey(layer, stage) for stage in reading.split]
        return [[each for key in keys if key in graph for each in _of(graph[key], assembly)]]
    own = _of(node, assembly)
    if len(reading.parts) == 1:
        return [own]
    return [[each] for each in own] if len(own) == len(reading.parts) else []


def _of(node: Node, assembly: Assembly) -> list[Window]:
    """The columns of a stage: the matrices that make them, each with its heads."""
    cut = [each.heads for each in assembly.windows.get(node.key, ())]
    heads = {each.first: each for each in cut}
    if isinstance(node.op, Product | Bias) and len(node.op.parts) > 1:
        found = []
        for part in node.op.parts:
            own = heads.get(node.op.columns(part).start)
            fits = own is not None and own.width == part.rows
            found.append(Window(part.rows, own.count if fits and own is not None else None))
        return found
    if len(cut) > 1 and sum(each.width for each in cut) == _width(node):
        return [Window(each.width, each.count) for each in cut]
    axes = [axis.name for axis in node.axes]
    if axes[1:] in (["head", "channel"], ["kv_head", "channel"]):
        return [Window(_width(node), node.axes[1].extent)]
    return [Window(_width(node))]


def _check_shapes(node: Node, way: _Way, assembly: Assembly) -> None:
    """Raise UsageError unless a reading has the stage's shape, before anything of it is read."""
    windows = _windows(node, way.reading, assembly)
    for run in assembly.sequence.runs:
        widths = []
        for ranks in way.parts.get(run.number, ()):
            member = ranks[0]
            if any(other.shape != member.shape for other in ranks):
                raise UsageError(
                    f"{clean(member.name)} has other shapes on other ranks: "
                    f"{' and '.join(str(list(each.shape)) for each in ranks[:3])}"
                )
            rows, width = _extents(member, way.reading, run, assembly.convention)
            widths.append(width)
            if not (rows == run.total or (node.last and rows in (run.of, 1))):
                raise _other(node, member, run, assembly)
        if not widths:
            continue
        if windows:
            plans = [
                plan_of(each, width, assembly.ranks, logits=node.last)
                for each, width in zip(windows, widths, strict=True)
            ]
            fits = None not in plans
        else:
            fits = assembly.ranks == 1 and sum(widths) == _width(node)
        if not fits:
            raise _other(node, way.parts[run.number][0][0], run, assembly)


def _extents(member: Member, reading: Reading, run: Run, convention: DumpMap) -> tuple[int, int]:
    """(rows, columns) of a tensor as it lies: a batch's sequences one after the other.

    Raises UsageError for one without the leading axis of sequences that the others have.
    """
    shape = member.shape
    if convention.batch:
        if len(shape) < 2 or shape[0] != run.of:
            raise UsageError(
                f"{clean(member.name)} is {list(shape)}, in a batch of {count(run.of, 'sequence')}",
                hint="name the map with --map, or run one prompt",
            )
        shape = shape[1:]
    sequences = run.of if convention.batch else 1
    if reading.heads:
        if len(shape) != 3:
            return -1, -1
        return sequences * shape[1], shape[0] * shape[2]
    if len(shape) == 1 and convention.batch:  # [B, V]: logits of one position each
        return sequences, shape[0]
    return sequences * shape[0] if shape else -1, math.prod(shape[1:])


def _other(node: Node, member: Member, run: Run, assembly: Assembly) -> UsageError:
    """What a tensor of another shape is."""
    width, right = math.prod(member.shape[1 + assembly.convention.batch :]), _width(node)
    parts = ""
    if width and right % width == 0 and right > width:
        parts = f", or 1/{right // width} of it: not all ranks are there"
    return UsageError(
        f"{clean(member.name)} is {list(member.shape)}, where {node.key} of this model has "
        f"{list(node.shape(len(run.rows)))}: a dump of another model or prompt, or a map that does "
        f"not fit{parts}",
        hint="name the model that was run, and the map with --map",
    )


# -- values ----------------------------------------------------------------------------------------


def _value(
    node: Node, way: _Way, assembly: Assembly, copies: Copies
) -> tuple[Array, tuple[int, ...]]:
    """The stage by one reading and the positions of its rows: ranks merged, parts joined or split,
    the sequence's rows taken out, passes stacked, shaped as the node."""
    stacked: list[Array] = []
    positions: list[int] = []
    first = 0
    for run in assembly.sequence.runs:
        members = way.parts.get(run.number)
        if members is not None:
            found, held = _pass_value(node, way.reading, members, run, assembly, copies, first)
            stacked.append(found)
            positions += held
        first += len(run.rows)
    whole = stacked[0] if len(stacked) == 1 else np.concatenate(stacked)
    if node.last and tuple(positions) == assembly.rows.positions[-1:]:
        return whole.reshape(node.shape(1, "last")), tuple(positions)
    return whole.reshape(node.shape(len(positions), "all")), tuple(positions)


def _pass_value(
    node: Node,
    reading: Reading,
    members: Sequence[Sequence[Member]],
    run: Run,
    assembly: Assembly,
    copies: Copies,
    first: int,
) -> tuple[Array, tuple[int, ...]]:
    """The sequence's rows [t, n] of one pass, and their positions; ``first``: the number of its
    first row in the sequence."""
    windows = _windows(node, reading, assembly)
    parts = []
    held: tuple[int, ...] = run.positions
    for place, ranks in enumerate(members):
        cut = []
        for member in ranks:
            rows = _flat_rows(member.read(), reading, run, assembly.convention)
            rows, held = _own_rows(rows, run)
            cut.append(rows)
        if windows:
            plan = plan_of(windows[place], cut[0].shape[1], len(cut), logits=node.last)
            assert plan is not None
            summed = ranks[0].dtype if node.key.stage in assembly.summed else ""
            at = first + len(run.rows) - len(held)
            parts.append(merged(plan, cut, copies, at, summed))
        else:
            parts.append(cut[0])
    joined = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)
    if not reading.split:
        return joined, held
    keys = [StageKey(node.key.layer, stage) for stage in reading.split]
    widths = [_width(assembly.graph[key]) if key in assembly.graph else 0 for key in keys]
    at = reading.split.index(node.key.stage)
    start = sum(widths[:at])
    return joined[:, start : start + widths[at]], held


def _flat_rows(values: Array, reading: Reading, run: Run, convention: DumpMap) -> Array:
    """[rows, columns] as ``_extents`` counts them."""
    sequences = run.of if convention.batch else 1
    if reading.heads:  # [B,H,T,d]
        heads = values.reshape(sequences, *values.shape[-3:])
        values = np.moveaxis(heads, 1, 2)
        return values.reshape(values.shape[0] * values.shape[1], -1)
    if convention.batch:
        rows = sequences if values.ndim == 2 else sequences * values.shape[1]
        return values.reshape(rows, -1)
    return values.reshape(values.shape[0], -1)


def _own_rows(values: Array, run: Run) -> tuple[Array, tuple[int, ...]]:
    """The sequence's rows of a pass's [n, columns], and their positions: of a tensor that has one
    row a sequence (logits) the last."""
    if len(values) == run.total:
        whole = run.rows == tuple(range(run.total))
        return (values if whole else values[list(run.rows)]), run.positions
    at = run.place if len(values) == run.of else 0
    return values[at : at + 1], run.positions[-1:]


def _learn_sums(assembly: Assembly) -> None:
    """Find the stages that the ranks hold their shares of: nowhere alike, in no layer or pass."""
    if assembly.ranks < 2:
        return
    told: dict[str, bool] = {}
    for key, ways in assembly.ways.items():
        node = assembly.graph[key]
        if node.last or not isinstance(node.op, _SUMMED) or told.get(key.stage) is False:
            continue
        found = _shares(node, ways[0], assembly)
        if found is not None:
            told[key.stage] = found
    assembly.summed = frozenset(stage for stage, are in told.items() if are)


def _shares(node: Node, way: _Way, assembly: Assembly) -> bool | None:
    """Whether the ranks hold shares of one stage; None where it is not told."""
    windows = _windows(node, way.reading, assembly)
    found: bool | None = None
    for run in assembly.sequence.runs:
        for place, ranks in enumerate(way.parts.get(run.number, ())):
            rows = [
                _own_rows(_flat_rows(m.read(), way.reading, run, assembly.convention), run)[0]
                for m in ranks[:2]
            ]
            plan: Plan | None = plan_of(
                windows[place], rows[0].shape[1], len(ranks), logits=node.last
            )
            if plan is None or plan.kind != "whole":
                return False
            here = shares(rows)
            if here is False:
                return False
            found = here if found is None else found
    return found


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


def _learn_dtype(assembly: Assembly) -> None:
    """The type that most tensors were computed in; float32 that holds another type is found out."""
    used = [
        next(iter(way.parts.values()))[0][0] for ways in assembly.ways.values() for way in ways[:1]
    ]
    stored = Counter(member.dtype for member in used).most_common(1)[0][0]
    assembly.dtype = stored
    if stored not in ("float32", "float64"):
        return
    found = _narrower(assembly)
    if found:
        assembly.notes.append(
            f"{stored} holds nothing but {found} values in the first layer: taken as {found}"
        )
    elif stored == "float64":
        assembly.notes.append("float64 values are rounded to float32")
    assembly.dtype = found or "float32"


def _narrower(assembly: Assembly) -> str:
    """The 16-bit type that every value of the first layer there is; empty where there is none."""
    first = min((key.layer or 0 for key in assembly.ways if key.layer is not None), default=None)
    kinds = {"bfloat16", "float16"}
    for key, ways in assembly.ways.items():
        if key.layer == first and kinds:
            value, _ = _value(assembly.graph[key], ways[0], assembly, Copies())
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


def _unused(passes: Sequence[Shards], assembly: Assembly) -> list[str]:
    """What of the dump was not read, and which layers it does not hold."""
    ways, convention = assembly.ways, assembly.convention
    used = {
        member.name
        for found in ways.values() for way in found for parts in way.parts.values()
        for members in parts for member in members
    }  # fmt: skip
    idle = [name for name in passes[assembly.sequence.runs[0].number] if name not in used]
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
    if convention.batch and assembly.sequences == 1:
        notes.append("the batch of one was dropped")
    return notes
