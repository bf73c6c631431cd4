"""The values of stages: what a run's ranks hold of one sequence, by the ways that were found.

Nothing is read before its shape is known to be the stage's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from aprtui.captures.dump import Array, Member
from aprtui.captures.maps import DumpMap, Reading
from aprtui.captures.merge import Copies, Window, merged, plan_of, shares
from aprtui.captures.sequences import Run
from aprtui.captures.ways import Way
from aprtui.errors import UsageError
from aprtui.formats.tracedir import StageKey
from aprtui.graph import Graph
from aprtui.graph.heads import HeadWindow, head_windows
from aprtui.graph.node import Node
from aprtui.graph.ops import Bias, Combine, Embed, Experts, Product
from aprtui.text import clean, count

__all__ = ["Values"]

_SUMMED = (Product, Embed, Experts, Combine)  # what ranks may hold their shares of


@dataclass
class Values:
    """One sequence's rows of the stages of ``graph``: the runs that it has in each pass.

    ``summed``: the stages that the ranks hold shares of.
    """

    convention: DumpMap
    graph: Graph
    runs: Sequence[Run]
    ranks: int
    summed: frozenset[str] = frozenset()

    @cached_property
    def _heads(self) -> Mapping[StageKey, tuple[HeadWindow, ...]]:
        return head_windows(self.graph)

    def check(self, node: Node, way: Way) -> None:
        """Raise UsageError unless a reading has the stage's shape, before any of it is read."""
        windows = self._windows(node, way.reading)
        for run in self.runs:
            widths = []
            for ranks in way.parts.get(run.number, ()):
                member = ranks[0]
                if any(other.shape != member.shape for other in ranks):
                    raise UsageError(
                        f"{clean(member.name)} has other shapes on other ranks: "
                        f"{' and '.join(str(list(each.shape)) for each in ranks[:3])}"
                    )
                rows, width = _extents(member, way.reading, run, self.convention)
                widths.append(width)
                if not (rows == run.total or (node.last and rows == run.of)):
                    raise self._other(node, member, run)
                if rows != run.total and run.padded_behind:
                    raise UsageError(
                        f"{clean(member.name)} holds the last column alone, where this sequence "
                        "has padding",
                        hint="pad on the left, or take all columns' logits",
                    )
            if not widths:
                continue
            if windows:
                plans = [
                    plan_of(each, width, self.ranks, logits=node.last)
                    for each, width in zip(windows, widths, strict=True)
                ]
                fits = None not in plans
            else:
                fits = self.ranks == 1 and sum(widths) == _width(node)
            if not fits:
                raise self._other(node, way.parts[run.number][0][0], run)

    def value(self, node: Node, way: Way, copies: Copies) -> tuple[Array, tuple[int, ...]]:
        """The stage by one reading, shaped as its node, and where its rows stand: ranks merged,
        parts joined or split, the sequence's rows taken out, passes stacked."""
        stacked: list[Array] = []
        positions: list[int] = []
        first = 0
        for run in self.runs:
            members = way.parts.get(run.number)
            if members is not None:
                found, held = self._of_pass(node, way.reading, members, run, copies, first)
                stacked.append(found)
                positions += held
            first += len(run.rows)
        whole = stacked[0] if len(stacked) == 1 else np.concatenate(stacked)
        if node.last and tuple(positions) == self.runs[-1].positions[-1:]:
            return whole.reshape(node.shape(1, "last")), tuple(positions)
        return whole.reshape(node.shape(len(positions), "all")), tuple(positions)

    def learn_sums(self, ways: Mapping[StageKey, Way]) -> None:
        """Find the stages that the ranks hold shares of: nowhere alike, in no layer or pass."""
        if self.ranks < 2:
            return
        told: dict[str, bool] = {}
        for key, way in ways.items():
            node = self.graph[key]
            if node.last or not isinstance(node.op, _SUMMED) or told.get(key.stage) is False:
                continue
            found = self._shares(node, way)
            if found is not None:
                told[key.stage] = found
        self.summed = frozenset(stage for stage, are in told.items() if are)

    def _of_pass(
        self,
        node: Node,
        reading: Reading,
        members: Sequence[Sequence[Member]],
        run: Run,
        copies: Copies,
        first: int,
    ) -> tuple[Array, tuple[int, ...]]:
        """The sequence's rows [t, n] of one pass, and their positions; ``first``: the number of its
        first row in the sequence."""
        windows = self._windows(node, reading)
        parts = []
        held: tuple[int, ...] = run.positions
        for place, ranks in enumerate(members):
            cut = []
            for member in ranks:
                rows = _flat_rows(member.read(), reading, run, self.convention)
                rows, held = _own_rows(rows, run)
                cut.append(rows)
            if windows:
                plan = plan_of(windows[place], cut[0].shape[1], len(cut), logits=node.last)
                assert plan is not None
                summed = ranks[0].dtype if node.key.stage in self.summed else ""
                at = first + len(run.rows) - len(held)
                parts.append(merged(plan, cut, copies, at, summed))
            else:
                parts.append(cut[0])
        joined = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)
        if not reading.split:
            return joined, held
        keys = [StageKey(node.key.layer, stage) for stage in reading.split]
        widths = [_width(self.graph[key]) if key in self.graph else 0 for key in keys]
        at = reading.split.index(node.key.stage)
        start = sum(widths[:at])
        return joined[:, start : start + widths[at]], held

    def _shares(self, node: Node, way: Way) -> bool | None:
        """Whether the ranks hold shares of one stage; None where it is not told."""
        windows = self._windows(node, way.reading)
        found: bool | None = None
        for run in self.runs:
            for place, ranks in enumerate(way.parts.get(run.number, ())):
                rows = [
                    _own_rows(_flat_rows(m.read(), way.reading, run, self.convention), run)[0]
                    for m in ranks[:2]
                ]
                plan = plan_of(windows[place], rows[0].shape[1], len(ranks), logits=node.last)
                if plan is None or plan.kind != "whole":
                    return False
                here = shares(rows)
                if here is False:
                    return False
                found = here if found is None else found
        return found

    def _windows(self, node: Node, reading: Reading) -> list[list[Window]]:
        """What the columns of each part of a reading are."""
        graph, layer = self.graph, node.key.layer
        if reading.split:
            keys = [StageKey(layer, stage) for stage in reading.split]
            return [[each for key in keys if key in graph for each in self._columns(graph[key])]]
        own = self._columns(node)
        if len(reading.parts) == 1:
            return [own]
        return [[each] for each in own] if len(own) == len(reading.parts) else []

    def _columns(self, node: Node) -> list[Window]:
        """The columns of a stage: the matrices that make them, each with its heads."""
        cut = [each.heads for each in self._heads.get(node.key, ())]
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

    def _other(self, node: Node, member: Member, run: Run) -> UsageError:
        """What a tensor of another shape is."""
        width, right = math.prod(member.shape[1 + self.convention.batch :]), _width(node)
        parts = ""
        if width and right % width == 0 and right > width:
            parts = f", or 1/{right // width} of it: not all ranks are there"
        return UsageError(
            f"{clean(member.name)} is {list(member.shape)}, where {node.key} of this model has "
            f"{list(node.shape(len(run.rows)))}: a dump of another model or prompt, or a map that "
            f"does not fit{parts}",
            hint="name the model that was run, and the map with --map",
        )


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


def _width(node: Node) -> int:
    """Values of one position."""
    return math.prod(axis.extent or 1 for axis in node.axes)
