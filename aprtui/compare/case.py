"""One stage under investigation: B's output, B's inputs, and what the stage makes of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from aprtui.compare.captured import Captured, Source, common
from aprtui.compare.localerror import LocalError, local_error
from aprtui.engine.replay import EXACT, Arithmetic, Replay, representable
from aprtui.formats.tracedir import StageKey
from aprtui.graph import Node
from aprtui.graph.ops import Choose, Op, Part, Product

__all__ = ["Case", "open_case"]

Float64 = npt.NDArray[np.float64]


@dataclass
class Case:
    """A node, the nodes between it and its captured inputs, and B's values of all.

    ``y`` is what B captured, shaped; ``axis`` the axis that positions run along; ``limits`` the
    bars (rel_l2, worst row); ``rounded`` the type that every value of y fits ("BF16", "F16", "").
    ``rows``: those of y, where it does not hold all; ``last``: its inputs hold no others.
    """

    replay: Replay
    captured: Captured
    node: Node
    between: tuple[Node, ...]
    given: Mapping[StageKey, Float64]
    y: Float64
    limits: tuple[float, float]
    rounded: str = ""
    last: bool = False
    rows: tuple[int, ...] | None = None
    _memo: dict[tuple[StageKey, Arithmetic], Float64] = field(default_factory=dict)

    @property
    def key(self) -> StageKey:
        return self.node.key

    @property
    def op(self) -> Op:
        return self.node.op

    @property
    def parts(self) -> tuple[Part, ...]:
        """The matrices of a product, in order of its output; none of any other operation."""
        return self.op.parts if isinstance(self.op, Product) else ()

    @property
    def axes(self) -> tuple[str, ...]:
        """The names of y's dimensions."""
        return self.node.axis_names(self.captured.logits)[-self.y.ndim :]

    @property
    def axis(self) -> int:
        return self.node.position_axis

    @property
    def chain(self) -> tuple[Node, ...]:
        return (*self.between, self.node)

    def inputs(self, node: Node | None = None, how: Arithmetic = EXACT) -> tuple[Float64, ...]:
        """The inputs of a node of the chain (its last one by default): captured or recomputed."""
        return tuple(self._value(key, how) for key in (node or self.node).inputs)

    def _value(self, key: StageKey, how: Arithmetic) -> Float64:
        if key in self.given:
            return self.given[key]
        if (key, how) not in self._memo:
            node = next(each for each in self.between if each.key == key)
            self._memo[key, how] = self.replay.run(node, self.inputs(node, how), how)
        return self._memo[key, how]

    def run(self, how: Arithmetic = EXACT) -> Float64:
        """The stage replayed from B's inputs."""
        return self.shaped(self.replay.run(self.node, self.inputs(how=how), how))

    def run_from(self, at: Node, made: Float64, how: Arithmetic = EXACT) -> Float64:
        """The stage replayed with ``made`` as the output of one node of the chain."""
        values = {at.key: made}
        later = self.chain[self.chain.index(at) + 1 :]
        for node in later:
            given = tuple(
                values[key] if key in values else self._value(key, how) for key in node.inputs
            )
            values[node.key] = self.replay.run(node, given, how)
        return self.shaped(values[self.key])

    def shaped(self, made: Float64) -> Float64:
        """A replay's output in y's shape; of the positions that y holds."""
        if made.size > self.y.size and self.axes[0] == "token":
            kept = self.rows is not None and len(self.rows) == self.y.shape[0]
            made = made[list(self.rows or ())] if kept else made[-self.y.shape[0] :]
        return made.reshape(self.y.shape)

    def columns(self, part: Part) -> Float64:
        """B's output [n, rows] of one matrix of a product."""
        assert isinstance(self.op, Product)
        rows = self.y[None] if self.y.ndim == 1 else self.y.reshape(self.y.shape[0], -1)
        return rows[:, self.op.columns(part)]

    @property
    def wrong_experts(self) -> str:
        """Why B's expert ids cannot be used as an input; empty when they can, or are none."""
        for key, ids in self.given.items():
            op = self.captured.graph[key].op
            if isinstance(op, Choose) and not ((ids >= 0) & (ids < op.experts)).all():
                return (
                    f"its input {key} names experts that the model (with {op.experts}) does not "
                    "have"
                )
        return ""

    def place(self, index: tuple[int, ...]) -> dict[str, int]:
        """An index of y named by the stage's axes: position, head, channel."""
        names = {"token": "position", "query": "position", "kv_head": "head", "hidden": "channel",
                 "ffn": "channel", "qkv": "channel", "vocab": "channel"}  # fmt: skip
        found = {names.get(axis, axis): i for axis, i in zip(self.axes, index, strict=False)}
        if "position" in found:
            row = found["position"] if self.rows is None else self.rows[found["position"]]
            found["position"] = self.captured.rows.positions[row]
        if "channel" in found and "head" not in found:  # heads side by side: of Q, K or V in turn
            for heads in (window.heads for window in self.captured.windows.get(self.key, ())):
                if heads.columns.start <= found["channel"] < heads.columns.stop:
                    found["head"] = (found["channel"] - heads.first) // heads.size
        return found

    def error(self, made: Float64, rounded: str = "") -> LocalError:
        """How far y lies from an output, however it was made."""
        return local_error(self.y, made, self.axis, rounded)


def open_case(
    replay: Replay,
    captured: Captured,
    node: Node,
    source: Source,
    limits: tuple[float, float],
) -> Case:
    """Read B's values of a node and of what it is replayed from. Raises BadFileError."""
    values = captured.values(node.key)
    own = captured.held(node.key)
    rows = common(source.rows, own)
    alone = all(each.op.row_wise for each in (*source.between, node))
    cut = rows if alone else None  # of what looks at other rows the replay is cut instead
    given = {key: _rows_of(captured, key, cut) for key in source.inputs}
    y = captured.wide(node.key)
    if rows != own and node.axis_names(captured.logits)[0] == "token":
        y = _rows_of(captured, node.key, rows)
    return Case(
        replay,
        captured,
        node,
        source.between,
        given,
        y,
        limits,
        representable(np.asarray(values).reshape(-1)),
        cut is not None,
        rows,
    )


def _rows_of(captured: Captured, key: StageKey, rows: tuple[int, ...] | None) -> Float64:
    """The captured values of some rows, None for all of them."""
    values, held = captured.wide(key), captured.held(key)
    if rows is None or rows == held:
        return values
    return values[list(rows) if held is None else [held.index(row) for row in rows]]
