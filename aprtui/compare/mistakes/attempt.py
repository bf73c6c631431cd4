"""What a mistake's function is given, and what it yields: outputs to hold against B's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Generic, TypeVar, cast

import numpy as np
import numpy.typing as npt

from aprtui.compare.case import Case
from aprtui.compare.localerror import row_norms
from aprtui.engine.replay import Arithmetic, Way
from aprtui.formats.tracedir import StageKey
from aprtui.graph import Graph, Node, Role
from aprtui.graph.ops import Op, Part, Product

__all__ = ["Attempt", "Candidate", "Entry", "ProductAttempt", "neat"]

Float64 = npt.NDArray[np.float64]
_SAMPLE = 32  # rows of a matrix that are looked at first
_NEAR = 0.1  # of an output: a mistake leaves less of the rest of it than rounding makes
O = TypeVar("O", bound=Op)  # noqa: E741


@dataclass(frozen=True)
class Candidate:
    """One way a stage may have been computed instead. ``made`` has the shape of the node's output
    (of the part's columns in a product)."""

    made: Float64
    text: str
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Attempt(Generic[O]):
    """A node computed in one arithmetic: its inputs, what it should have made, what B captured.

    ``y`` is None for a node inside a span, whose output B did not capture: nothing can be fitted
    then, only tried. ``base`` is the right output.
    """

    case: Case
    node: Node
    how: Arithmetic
    rounded: str

    @property
    def op(self) -> O:
        return cast(O, self.node.op)

    @property
    def graph(self) -> Graph:
        return self.case.captured.graph

    @cached_property
    def inputs(self) -> tuple[Float64, ...]:
        return self.case.inputs(self.node, self.how)

    @cached_property
    def base(self) -> Float64:
        return self.remade()

    @property
    def y(self) -> Float64 | None:
        if self.node is not self.case.node or self.case.y.shape != self.base.shape:
            return None
        return self.case.y

    @cached_property
    def wrong_rows(self) -> tuple[int, ...]:
        """The positions at which B's output is wrong; empty when that is not known."""
        if self.y is None:
            return ()
        error = self.case.error(self.base, self.rounded)
        finite = np.isfinite(self.y) & np.isfinite(self.base)
        away = np.where(finite, self.y - self.base, 0.0)
        norms = row_norms(np.where(finite, self.base, 0.0), self.case.axis)
        if error.born:
            return ()
        return tuple(np.flatnonzero(row_norms(away, self.case.axis) > self.bar * norms).tolist())

    @property
    def positions(self) -> list[float]:
        """Where the rows of the input stand."""
        return list(self.case.replay.positions or range(len(self.inputs[0])))

    @property
    def bar(self) -> float:
        """How far a right row, head or part may lie from B's."""
        return 8e-3 if self.rounded else self.case.limits[1]

    def remade(
        self,
        op: Op | None = None,
        *,
        inputs: Sequence[Float64] | None = None,
        positions: Sequence[float] = (),
    ) -> Float64:
        """The node's output by another operation, from other inputs, or at other positions."""
        given = self.inputs if inputs is None else inputs
        return self.case.replay.run(self.node, given, self.how, op=op, positions=positions)

    def may_be(self, inputs: Sequence[Float64]) -> bool:
        """Whether other inputs bring the first wrong position near to what B holds there: of many
        experts a whole output costs more. True where positions do not stand alone."""
        if not self.op.row_wise or not self.wrong_rows or self.y is None:
            return True
        row = slice(self.wrong_rows[0], self.wrong_rows[0] + 1)
        made = self.case.replay.run(self.node, [value[row] for value in inputs], self.how)
        away = np.linalg.norm(self.y[row] - made.reshape(self.y[row].shape))
        return bool(away <= _NEAR * np.linalg.norm(made))

    def elsewhere(self, node: Node, op: Op, *inputs: Float64) -> Float64:
        """Another node's output by ``op``, in the same arithmetic."""
        return self.case.replay.run(node, inputs, self.how, op=op)

    def captured(self, key: StageKey) -> Float64 | None:
        """All positions of another stage as B captured it; None where it did not."""
        whole = self.case.captured.state(key) == "whole" and not self.case.last
        return self.case.captured.wide(key) if whole else None

    def finish(self, made: Float64) -> Float64:
        """An output of the node carried on to the end of the span, in y's shape."""
        if self.node is self.case.node:
            return self.case.shaped(made)
        return self.case.run_from(self.node, made, self.how)


@dataclass
class ProductAttempt:
    """One matrix of a product stage, in one arithmetic.

    ``op`` has the one part; ``way`` is how activations and matrix are rounded before they meet.
    ``x`` [n, columns] is as B captured it, ``rounded_x`` as multiplied; ``y`` and
    ``base`` [n, rows] are B's output and the right one, ``made`` the product inside the latter.
    """

    case: Case
    op: Product
    way: Way
    x: Float64
    y: Float64
    made: Float64

    @property
    def part(self) -> Part:
        return self.op.parts[0]

    @property
    def name(self) -> str:
        """The rounding of the activations."""
        return self.way.activations

    @cached_property
    def rounded_x(self) -> Float64:
        return self.case.replay.rounded(self.x, self.name)

    @cached_property
    def base(self) -> Float64:
        return self.finish(self.made)

    @cached_property
    def away(self) -> Float64:
        """What B's product has beside the right one: before the bias, the scale and the cap."""
        return self.undone(self.y) - self.made

    def undone(self, y: Float64) -> Float64:
        """The product inside an output."""
        cap, bias = self.op.cap, self.part.bias
        if cap is not None:
            y = np.arctanh(np.clip(y / cap, -1 + 1e-7, 1 - 1e-7)) * cap
        y = y / self.op.factor(self.part)
        return y if bias is None else y - self.case.replay.vector(bias)

    def product(self, x: Float64, role: Role | None = None, name: str | None = None) -> Float64:
        """The stage's output from other rows, or by another matrix."""
        way = self.way if name is None else replace(self.way, activations=name)
        role, replay = self.part.weight if role is None else role, self.case.replay
        return self.finish(replay.multiplied(role, replay.activations(x), (way,))[0])

    def finish(self, product: Float64) -> Float64:
        """What follows the product inside the stage."""
        return self.case.replay.finish(self.op, product)

    def plausible(self, rows_of: Callable[[list[int]], Float64], x: Float64 | None = None) -> bool:
        """Whether a few rows of another matrix, or other rows ``x``, come near B's output: a whole
        product costs more."""
        rows = self.case.replay.shape(self.part.weight)[0]
        sample = np.unique(np.linspace(0, rows - 1, _SAMPLE).astype(int)).tolist()
        made = (self.x if x is None else x) @ rows_of(sample).T
        y = self.made[:, sample] + self.away[:, sample]
        return bool(np.linalg.norm(y - made) <= 0.3 * np.linalg.norm(made))

    @property
    def output_head(self) -> int | None:
        """The size of the heads that the matrix makes; None where it makes none."""
        assert isinstance(self.case.op, Product)
        columns = self.case.op.columns(self.part)
        windows = self.case.captured.windows.get(self.case.key, ())
        own = (each.heads for each in windows if each.heads.columns == columns)
        return next((heads.size for heads in own), None)

    @property
    def input_head(self) -> int | None:
        """The size of the heads that the matrix reads; None where they are none."""
        axes = self.case.captured.graph[self.case.node.inputs[0]].axes
        heads = [axis.name for axis in axes[1:]] == ["head", "channel"]
        return axes[-1].extent if heads else None


@dataclass(frozen=True)
class Entry:
    """One line of the catalogue: the mistake's id, the operations it can befall (empty: any), and
    the function that tries it."""

    id: str
    operations: tuple[type[Op], ...]
    candidates: Callable[[Any], Iterator[Candidate]]


def neat(value: float, tolerance: float = 1e-4) -> Iterator[float]:
    """``value`` in as few digits as come within ``tolerance`` of it, then in more, then itself."""
    for digits in range(1, 8):
        short = float(f"{value:.{digits - 1}e}")
        if abs(short - value) <= tolerance * abs(value):
            yield short
    yield value
