"""What a mistake's function is given, and what it yields: outputs to hold against B's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from aprtui.compare.case import Case
from aprtui.compare.localerror import row_norms
from aprtui.engine.replay import Arithmetic, Part
from aprtui.graph import Node
from aprtui.model.config import ModelConfig

__all__ = ["Attempt", "Candidate", "Entry", "ProductAttempt", "neat"]

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Candidate:
    """One way a stage may have been computed instead. ``made`` has the shape of the node's output
    (of the part's columns in a product)."""

    made: Float64
    text: str
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Attempt:
    """A node computed in one arithmetic: its inputs, what it should have made, what B captured.

    ``y`` is None for a node inside a span, whose output B did not capture: nothing can be fitted
    then, only tried. ``inputs`` are rounded as ``how`` says, ``base`` is the right output.
    """

    case: Case
    node: Node
    how: Arithmetic
    rounded: str

    @property
    def config(self) -> ModelConfig:
        return self.case.config

    @property
    def operation(self) -> str:
        return self.node.kind.operation

    @property
    def layer(self) -> int:
        return self.node.key.layer or 0

    @cached_property
    def inputs(self) -> tuple[Float64, ...]:
        return self.case.replay.given(self.node, self.case.inputs(self.node, self.how), self.how)

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
        bar = 8e-3 if self.rounded else self.case.limits[1]
        if error.born:
            return ()
        return tuple(np.flatnonzero(row_norms(away, self.case.axis) > bar * norms).tolist())

    def remade(self, config: ModelConfig | None = None) -> Float64:
        """The node's output with another configuration."""
        return self.case.replay.run(
            self.node, self.case.inputs(self.node, self.how), self.how, config
        )

    def finish(self, made: Float64) -> Float64:
        """An output of the node carried on to the end of the span, in y's shape."""
        if self.node is self.case.node:
            return self.case.shaped(made)
        return self.case.run_changed(self.node, lambda inputs: made, self.how)


@dataclass
class ProductAttempt:
    """One matrix of a product stage, its activations rounded by ``name``.

    ``x`` [n, columns] is as B captured it, ``rounded_x`` as multiplied; ``y`` and ``base``
    [n, rows] are B's output and the right one.
    """

    case: Case
    part: Part
    name: str
    x: Float64
    y: Float64
    base: Float64

    @cached_property
    def rounded_x(self) -> Float64:
        return self.case.replay.rounded(self.x, self.name)

    @property
    def config(self) -> ModelConfig:
        return self.case.config

    def finish(self, product: Float64) -> Float64:
        return self.case.replay.finish(self.case.node, product)


@dataclass(frozen=True)
class Entry:
    """One line of the catalogue: the mistake's id, the operations it can befall (empty: any), and
    the function that tries it."""

    id: str
    operations: tuple[str, ...]
    candidates: Callable[[Any], Iterator[Candidate]]


def neat(value: float, tolerance: float = 1e-4) -> Iterator[float]:
    """``value`` in as few digits as come within ``tolerance`` of it, then in more, then itself."""
    for digits in range(1, 8):
        short = float(f"{value:.{digits - 1}e}")
        if abs(short - value) <= tolerance * abs(value):
            yield short
    yield value
