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

from aprtui.captures.dump import Array, Dump
from aprtui.captures.maps import DumpMap
from aprtui.captures.merge import Copies
from aprtui.captures.parameters import Parameters
from aprtui.captures.prompt import batches_of
from aprtui.captures.ranks import Shards, together
from aprtui.captures.recognise import passes_of
from aprtui.captures.sequences import CutSequence, Run, sequences_of, with_prefix
from aprtui.captures.values import Values
from aprtui.captures.ways import Way, Ways
from aprtui.errors import UsageError
from aprtui.formats.rows import Rows
from aprtui.formats.tracedir import StageKey
from aprtui.graph import Graph
from aprtui.graph.node import Node
from aprtui.graph.vocabulary import facts_of
from aprtui.text import clean, count, ranges

__all__ = ["Assembly", "assemble"]

_SAMPLES = 6  # of names that are not used, in one note


@dataclass
class Assembly:
    """A dump as a trace of one model. ``stages`` yields the values; then the findings are whole.

    ``sequence`` is the one that was chosen of ``sequences``. ``contradictions`` are stages that two
    readings give differently, which are left out; ``findings`` copies on ranks that differ,
    and weights of the runtime that are not the model's.
    """

    convention: DumpMap
    graph: Graph
    sequence: CutSequence
    sequences: int
    rows: Rows
    values: Values
    ways: dict[StageKey, tuple[Way, ...]]
    notes: list[str]
    dtype: str = ""
    checked: int = 0
    contradictions: list[str] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    parameters: Parameters = field(default_factory=Parameters)

    @property
    def settings(self) -> dict[str, Any]:
        """What the map and the dump know of the runtime, for the manifest."""
        parallel = {"tensor_parallel": self.values.ranks} if self.values.ranks > 1 else {}
        own = self.parameters.settings
        return {"map": self.convention.name, **self.convention.runtime, **parallel, **own}

    def tell(self, parameters: Parameters) -> None:
        """Take in what the dump's own weights are."""
        self.parameters = parameters
        self.notes += [parameters.note] if parameters.held else []
        self.findings += parameters.findings

    @property
    def passes(self) -> int:
        return len(self.sequence.runs)

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

    def _told(self, node: Node, way: Way) -> tuple[Array, tuple[int, ...]]:
        """A stage's value by one way; copies that differ become a finding."""
        copies = Copies()
        found = self.values.value(node, way, copies)
        if said := copies.text(node.key, self.rows, self.values.ranks):
            self.findings.append(said)
        return found

    def _differing(self, node: Node, value: Array, ways: Sequence[Way]) -> str | None:
        """How a second reading of the stage differs from the first; None where all are equal."""
        for way in ways[1:]:
            again, _ = self.values.value(node, way, Copies())
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
    ways = Ways(passes, convention, graph)
    batches, said = batches_of(dump.path, passes, convention, tokens)

    def likeliest(run: Run) -> int | None:
        return _likeliest(run, ways, convention, graph)

    sequences, cut = sequences_of(batches, likeliest)
    at = _chosen(dump, sequences, sequence, tokens)
    one, cached = _whole_of(sequences, at, tokens)
    assembly = Assembly(
        convention,
        graph,
        one,
        len(sequences),
        one.rows(at if len(sequences) > 1 else None),
        Values(convention, graph, one.runs, ways.ranks),
        ways.to_stages(one.runs),
        [*notes, *said, *cut, *cached],
    )
    if not assembly.ways:
        raise UsageError(
            f"the map {convention.name} finds no stage of this model in {clean(str(dump.path))}"
        )
    assembly.notes += _left_out(assembly, graph)
    for key, found in assembly.ways.items():
        for way in found:
            assembly.values.check(graph[key], way)
    assembly.values.learn_sums({key: found[0] for key, found in assembly.ways.items()})
    _learn_dtype(assembly)
    assembly.notes += [*_of_rows(assembly), *_unused(passes, assembly)]
    return assembly


def _likeliest(run: Run, ways: Ways, convention: DumpMap, graph: Graph) -> int | None:
    """The likeliest token after a run, by the logits that its pass holds."""
    node = graph.nodes[-1]
    way = ways.to_stages([run]).get(node.key)
    if way is None or not node.last:
        return None
    value, positions = Values(convention, graph, [run], ways.ranks).value(node, way[0], Copies())
    last = value.reshape(-1, graph.vocab_size)[-1]
    return int(np.argmax(last)) if positions[-1:] == run.positions[-1:] else None


def _chosen(
    dump: Dump, found: Sequence[CutSequence], asked: int | None, tokens: Sequence[int] | None
) -> int:
    """Which sequence is read. Raises UsageError where that is not clear."""
    wanted = None if tokens is None else tuple(tokens)
    listed = ", ".join(f"{at} ({count(len(one.tokens), 'token')})" for at, one in enumerate(found))
    if asked is not None and not 0 <= asked < len(found):
        raise UsageError(f"--sequence {asked}: {clean(str(dump.path))} holds {listed}")
    if asked is None and wanted is not None:
        ends = [at for at, one in enumerate(found) if _ends(one, wanted)]
        whole = [at for at in ends if found[at].tokens == wanted]
        asked = next(iter([*whole, *ends]), None)
    if asked is None and len(found) > 1:
        raise UsageError(
            f"{clean(str(dump.path))}: a batch of {len(found)} sequences: {listed}",
            hint="--sequence 0 chooses one",
        )
    at = asked or 0
    if wanted is not None and not _ends(found[at], wanted):
        raise UsageError(
            f"the dump was run on {_few(found[at].tokens)}, not on {_few(wanted)}",
            hint="leave the tokens out: the dump holds them",
        )
    return at


def _ends(one: CutSequence, tokens: Sequence[int]) -> bool:
    """Whether a sequence holds these tokens, or what comes last of them at its positions."""
    first = one.runs[0].positions[0]
    return one.tokens == tuple(tokens) or one.tokens == tuple(tokens[first:])


def _whole_of(
    found: Sequence[CutSequence], at: int, tokens: Sequence[int] | None
) -> tuple[CutSequence, list[str]]:
    """The sequence ``at``; where it begins late and ``tokens`` say what came before, with the rows
    that another sequence has of them."""
    one = found[at]
    if tokens is None or one.tokens == tuple(tokens):
        return one, []
    before, end = with_prefix(found, one, tokens), one.runs[0].positions[0] - 1
    if before is None:
        return one, [f"no sequence of the dump holds positions 0-{end} of these tokens"]
    whole, donor = before
    return whole, [f"positions 0-{end}: the rows of sequence {donor}, which has the same tokens"]


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
    if assembly.values.summed:
        stages = ", ".join(sorted(assembly.values.summed))
        notes.append(f"{stages}: the ranks' shares, added as the all-reduce does")
    return notes


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
            value, _ = assembly.values.value(assembly.graph[key], ways[0], Copies())
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
    used |= set(filter(convention.is_parameter, passes[assembly.sequence.runs[0].number]))
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
