"""Replay: one stage computed again in float64, from given inputs, in any arithmetic. NumPy outside.

The only door through which comparing code reaches torch.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as functional

from aprtui.engine.kv_cache import CACHED, FUSED, SUMMED, attend_in_f16, cached_operands
from aprtui.engine.low_precision import INSIDE, NESTED, STEPS
from aprtui.engine.ops import OPERATIONS, Operands, value_heads
from aprtui.engine.rounding import (
    PARTNERS,
    ROUNDINGS,
    gelu_f16_table,
    round_bf16,
    round_f16,
    round_q8_1,
)
from aprtui.engine.ties import expert_flips
from aprtui.engine.weights import WeightStream
from aprtui.formats.modelfile import tensor_bytes
from aprtui.graph import Node, Role
from aprtui.model.config import ModelConfig
from aprtui.model.open import Matrix, Model

__all__ = [
    "ACTIVATIONS", "CACHED", "EXACT", "FUSED", "NESTED", "SUMMED", "Arithmetic", "Part", "Replay",
    "activate", "halfway", "representable",
]  # fmt: skip

Float64 = npt.NDArray[np.float64]
Tensor = torch.Tensor

_ROWS_AT_ONCE = 64  # of a decoded block, widened: they stay in the cache
_MINIMA = {"Q4_1": 20, "Q5_1": 24}  # bytes of a block; its minimum is the float16 at byte 2


@dataclass(frozen=True)
class Arithmetic:
    """How an engine rounds. All empty: float64.

    ``product``: a name of rounding.ROUNDINGS, or "partner" (by the weight's type, ``choice``-th
    of rounding.PARTNERS), applied to activations before a product; ``weights``: "BF16" or "F16"
    when the weights are rounded too. ``attention``: one of kv_cache.CACHED or, where one step makes
    scores, softmax and attention, of FUSED. ``gelu_table``: ggml's. ``stage``: "BF16" or "F16"
    rounds inside a stage wherever an engine that computes in that type does (``steps``: after each
    elementary step of a norm or a rotation too); "F32" computes a norm in float32, which may
    overflow.
    """

    product: str = ""
    choice: int = 0
    weights: str = ""
    attention: str = ""
    gelu_table: bool = False
    stage: str = ""
    steps: bool = False


EXACT = Arithmetic()


@dataclass(frozen=True)
class Part:
    """One matrix of a product stage and the columns of the stage's output that it makes."""

    name: str
    role: Role
    first: int
    last: int


class _Buffer(threading.local):
    """One thread's memory for a block of float64 weights: fresh memory costs more than sums."""

    def __init__(self) -> None:
        self._values = torch.empty(0, dtype=torch.float64)

    def take(self, shape: torch.Size) -> Tensor:
        if self._values.numel() < shape.numel():
            self._values = torch.empty(shape.numel(), dtype=torch.float64)
        return self._values[: shape.numel()].view(shape)


class _RoundedWeights(WeightStream):
    """A weight stream whose products round as ``arithmetic`` says, inside experts too."""

    def __init__(self, model: Model, arithmetic: Arithmetic) -> None:
        super().__init__(model, torch.device("cpu"), torch.float64)
        self.arithmetic = arithmetic
        self._stored = WeightStream(model, self.device, torch.float32)
        self._wide = _Buffer()

    def vector(self, role: Role) -> Tensor:
        return _ROUND[self.arithmetic.weights](super().vector(role))

    def linear(self, x: Tensor, role: Role) -> Tensor:
        how = self.arithmetic
        name = how.product
        if name == "partner":
            partners = PARTNERS[self.model.weights[role].entry.type] or ("",)
            name = partners[min(how.choice, len(partners) - 1)]
        out = self.products(x, role, (name,), how.weights)[0]
        return _ROUND[how.stage](out)

    def products(
        self, x: Tensor, role: Role, names: Sequence[str], weights: str = ""
    ) -> list[Tensor]:
        """x [n, columns] rounded each way, times the matrix transposed; one decode for all."""
        matrix = self.model.weights[role]
        rows = torch.cat([_rounded(x, name) for name in names])
        together = torch.empty((len(rows), matrix.rows), dtype=torch.float64)

        def multiply(first: int, block: Tensor) -> None:
            for start in range(0, len(block), _ROWS_AT_ONCE):
                part = block[start : start + _ROWS_AT_ONCE]
                wide = self._wide.take(part.shape).copy_(_ROUND[weights](part))
                place = slice(first + start, first + start + len(part))
                together[:, place] = rows @ wide.T

        self._stored.for_blocks(role, multiply)
        out = [together[n * len(x) : (n + 1) * len(x)] for n in range(len(names))]
        for made, name in zip(out, names, strict=True):
            if name == "Q8_1" and matrix.entry.type in _MINIMA:
                self._add_sums(made, x, matrix)
        return out

    def _add_sums(self, out: Tensor, x: Tensor, matrix: Matrix) -> None:
        """Q8_1's own sum of a block, not the sum of its values, multiplies the block's minimum."""
        values, sums = round_q8_1(x)
        missing = sums - values.reshape(x.shape[0], -1, 32).sum(-1)
        size = _MINIMA[matrix.entry.type]
        stored = np.asarray(tensor_bytes(matrix.entry)).reshape(-1, matrix.columns // 32 * size)
        for first in range(0, matrix.rows, 1024):
            last = min(first + 1024, matrix.rows)
            raw = stored[matrix.first_row + first : matrix.first_row + last]
            raw = raw.reshape(last - first, -1, size)
            minima = np.ascontiguousarray(raw[:, :, 2:4]).view("<f2")[..., 0].astype(np.float64)
            out[:, first:last] += missing @ torch.from_numpy(minima).T


_ROUND: dict[str, Callable[[Tensor], Tensor]] = {
    "": lambda x: x,
    "BF16": round_bf16,
    "F16": round_f16,
    "F32": lambda x: x.float(),
}


def _rounded(x: Tensor, name: str) -> Tensor:
    return ROUNDINGS[name][0](x) if name else x


class Replay:
    """Nodes of one model's stage graph, computed in float64 from arrays of ``stage_shape``.

    ``tokens`` are needed by the embedding alone. Weights are streamed: memory is that of the
    arrays and of one block of rows.
    """

    def __init__(self, model: Model, tokens: tuple[int, ...] = (), logits: str = "last") -> None:
        self.model = model
        self.config = model.config
        self.tokens = tokens
        self.logits = logits
        self._streams: dict[Arithmetic, _RoundedWeights] = {}

    def run(
        self,
        node: Node,
        inputs: Sequence[Float64],
        how: Arithmetic = EXACT,
        config: ModelConfig | None = None,
    ) -> Float64:
        """The node's output; ``config`` replaces the model's where one asks "what if"."""
        operands = Operands(config or self.config, self._stream(how), self.tokens, self.logits)
        name = node.kind.operation
        given = _given(node, inputs, how)
        inside = INSIDE | STEPS if how.steps else INSIDE
        if how.stage and name in inside:
            return _array(inside[name](operands, node, given, _ROUND[how.stage]))
        if how.gelu_table and name == "activation" and operands.config.activation == "gelu_tanh":
            return _array(gelu_f16_table(given[0]))
        if how.attention == SUMMED and name == "attend":
            values = value_heads(given[1], operands.config)
            return _array(attend_in_f16(operands.config, given[0], values))
        return _array(OPERATIONS[name](operands, node, given))

    def expert_flips(self, node: Node, inputs: Sequence[Float64], how: Arithmetic) -> Float64:
        """What ties inside one position's experts add to its output when they round the other
        way: [n, hidden]. ``inputs`` are that position's."""
        stream = self._stream(how)
        operands = Operands(self.config, stream, self.tokens, self.logits)
        return _array(
            expert_flips(
                operands,
                node,
                _given(node, inputs, how),
                lambda role: self.product_rounding(role, how),
                lambda x, role: stream.products(x, role, ("",))[0],
            )
        )

    def given(
        self, node: Node, inputs: Sequence[Float64], how: Arithmetic = EXACT
    ) -> tuple[Float64, ...]:
        """The node's inputs as that arithmetic rounds them before it begins."""
        return tuple(_array(value) for value in _given(node, inputs, how))

    def _stream(self, how: Arithmetic) -> _RoundedWeights:
        return self._streams.setdefault(how, _RoundedWeights(self.model, how))

    # -- products ------------------------------------------------------------------------------

    def parts(self, node: Node) -> tuple[Part, ...]:
        """The matrices of a product stage, in order of its output; empty for any other stage."""
        layer, config = node.key.layer, self.config
        name = node.kind.operation
        if name == "qkv":
            q, kv = config.q_size, config.kv_size
            ends = (0, q, q + kv, q + 2 * kv)
            return tuple(
                Part(part, Role(part, layer), ends[i], ends[i + 1]) for i, part in enumerate("qkv")
            )
        if name == "head":
            return (Part("head", Role("head"), 0, config.vocab_size),)
        if name == "linear" or (name == "ffn_out" and not config.num_experts):
            role = Role(node.kind.weights[0], layer)
            return (Part(role.name, role, 0, self.model.weights[role].rows),)
        return ()

    def matrices(self, node: Node) -> tuple[Role, ...]:
        """The matrices that a node multiplies by; of experts those of the first."""
        if node.kind.operation in ("router", "router_indices"):
            return (Role("router", node.key.layer),)
        if node.kind.operation == "experts":
            return tuple(Role(name, node.key.layer, 0) for name in node.kind.weights)
        return tuple(part.role for part in self.parts(node))

    def partner(self, role: Role, choice: int = 0) -> str:
        """What ggml's CPU rounds activations to before a product with this matrix; "" nothing."""
        partners = PARTNERS[self.type_of(role)]
        return partners[min(choice, len(partners) - 1)] if partners else ""

    def product_rounding(self, role: Role, how: Arithmetic) -> str:
        """The rounding that ``how`` means for the products with one matrix."""
        return self.partner(role, how.choice) if how.product == "partner" else how.product

    def roundings(self, role: Role, columns: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """(the likely, the other) roundings of activations that a product with it can have."""
        fitting = [name for name, (_, block) in ROUNDINGS.items() if columns % block == 0]
        likely = [name for name in PARTNERS[self.type_of(role)] if name in fitting]
        return ("", *likely), tuple(name for name in fitting if name not in likely)

    def product_input(self, node: Node, inputs: Sequence[Float64]) -> Float64:
        """The rows [n, columns] that a product stage multiplies."""
        x = inputs[0].reshape(inputs[0].shape[0], -1)
        return x[-1:] if node.kind.operation == "head" and self.logits == "last" else x

    def products(
        self, role: Role, x: Float64, names: Sequence[str] = ("",), weights: str = ""
    ) -> list[Float64]:
        """x [n, columns] rounded as each name says, times the matrix transposed: [n, rows]."""
        made = self._stream(EXACT).products(torch.from_numpy(x), role, names, weights)
        return [_array(each) for each in made]

    def finish(self, node: Node, product: Float64) -> Float64:
        """What follows the product inside its stage: the output bias, the logits' soft-cap."""
        if node.kind.operation == "linear" and len(node.kind.weights) > 1:
            if self.config.output_bias:
                return product + self.vector(Role(node.kind.weights[1], node.key.layer))
        elif node.kind.operation == "head":
            cap = self.config.logit_softcap
            return np.tanh(product / cap) * cap if cap is not None else product
        return product

    def rounded(self, x: Float64, name: str) -> Float64:
        """x [n, columns] as activations rounded by ``name`` ("" is as they are)."""
        return _array(_rounded(torch.from_numpy(np.ascontiguousarray(x)), name))

    def transposed(self, role: Role, x: Float64, name: str = "") -> Float64:
        """x [n, rows] times the matrix itself: [n, columns]; a block of rows at a time."""
        matrix = self.model.weights[role]
        rounded = _rounded(torch.from_numpy(np.ascontiguousarray(x)), name)
        out = torch.zeros((x.shape[0], matrix.columns), dtype=torch.float64)
        for first, block in self._stream(EXACT).blocks(role):
            out += rounded[:, first : first + block.shape[0]] @ block
        return _array(out)

    # -- weights -------------------------------------------------------------------------------

    def has(self, role: Role) -> bool:
        return role in self.model.weights

    def shape(self, role: Role) -> tuple[int, int]:
        """(rows, columns) of a matrix; a vector is one row."""
        matrix = self.model.weights[role]
        return matrix.rows, matrix.columns

    def type_of(self, role: Role) -> str:
        return self.model.weights[role].entry.type

    def vector(self, role: Role) -> Float64:
        """A norm's weight or a bias [columns]."""
        return _array(self._stream(EXACT).vector(role))

    def rows(self, role: Role, indices: Sequence[int]) -> Float64:
        """Chosen rows [n, columns] of a matrix."""
        return _array(self._stream(EXACT).rows(role, tuple(indices)))

    def find_rows(
        self, role: Role, wanted: Float64, scale: float = 1.0, rounded: str = ""
    ) -> list[int | None]:
        """For each wanted row [n, columns] the first row of the matrix that equals it, times
        ``scale``, to float32's rounding, or to that of ``rounded``; one pass over the matrix."""
        tolerance = {"": 1e-6, "BF16": 2.0**-8, "F16": 2.0**-11}[rounded]
        target = torch.from_numpy(np.ascontiguousarray(wanted))
        norms = target.norm(dim=1)
        found: list[int | None] = [None] * len(wanted)
        for first, block in self._stream(EXACT).blocks(role):
            scaled = block * scale
            squared = scaled.square().sum(1)[None, :] + norms.square()[:, None]
            near = (
                squared - 2 * (target @ scaled.T)
                <= max(2 * tolerance**2, 1e-9) * norms.square()[:, None]
            )
            for row, place in near.nonzero().tolist():
                exact = (scaled[place] - target[row]).norm() <= tolerance * norms[row]
                if found[row] is None and bool(exact):
                    found[row] = first + place
        return found


def _given(node: Node, inputs: Sequence[Float64], how: Arithmetic) -> tuple[Tensor, ...]:
    name = node.kind.operation
    given = tuple(torch.from_numpy(np.ascontiguousarray(value)) for value in inputs)
    if how.attention and name in ("scores", "attend"):
        given = cached_operands(name, given, how.attention)
    if how.stage:
        given = tuple(
            value if key.stage == "moe_router_indices" else _ROUND[how.stage](value)
            for key, value in zip(node.inputs, given, strict=True)
        )
    return given


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "gelu": functional.gelu,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": functional.relu,
    "none": lambda x: x,
}
"""The activations that are met, by name; the first two are the families' own."""


def activate(x: Float64, name: str) -> Float64:
    """An activation of ACTIVATIONS, element by element."""
    return _array(ACTIVATIONS[name](torch.from_numpy(np.ascontiguousarray(x))))


def _array(x: Tensor) -> Float64:
    return np.asarray(x.double().numpy())


# -- the rounding of what was written --------------------------------------------------------------


def representable(values: npt.NDArray[np.float32]) -> str:
    """ "BF16" or "F16" when every value is one of that type's, else ""."""
    finite = values[np.isfinite(values)]
    if not finite.size or not finite.any():
        return ""
    if not (finite.view(np.uint32) & np.uint32(0xFFFF)).any():
        return "BF16"
    with np.errstate(over="ignore"):
        return "F16" if (finite.astype(np.float16).astype(np.float32) == finite).all() else ""


def halfway(values: Float64, kind: str) -> Float64:
    """How far a number that rounds to each value may lie from it: half a unit in the last place."""
    bits, lowest = (8, -126) if kind == "BF16" else (11, -14)
    _, exponent = np.frexp(values)
    return np.asarray(np.ldexp(0.5, np.maximum(exponent, lowest + 1) - bits))
