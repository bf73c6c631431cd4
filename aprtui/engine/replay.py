"""Replay: one stage computed again in float64, from given inputs, in any arithmetic. NumPy outside.

The only door through which comparing code reaches torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from aprtui.engine import ops
from aprtui.engine.arithmetic import (
    BRANCHES_FIRST,
    CACHED,
    EXACT,
    F16_SCALES,
    FLASH,
    FUSED,
    INSIDE,
    STEPPED,
    STEPS,
    SUMMED,
    UNROUNDED,
    Arithmetic,
    Rounded,
    Way,
    product_rounding,
)  # fmt: skip
from aprtui.engine.expert_ties import expert_flips
from aprtui.engine.indexer import hidden_keys
from aprtui.engine.misread import (
    MISREADINGS,
    SUB_BLOCKS,
    Misreading,
    misread_blocks,
    misread_rows,
)
from aprtui.engine.ops import ACTIVATIONS
from aprtui.engine.rounding import (
    PARTNERS,
    ROUND_TO,
    ROUNDINGS,
    SCALED,
    TF32_AWAY,
    WEIGHTS_SCALED,
)
from aprtui.engine.wide import Activations, WideStream, rounded_rows
from aprtui.engine.workers import one_core
from aprtui.formats.blocks import BLOCK_TYPES
from aprtui.formats.quantised.coding import Affine
from aprtui.formats.rows import Rows
from aprtui.graph import Node, Role
from aprtui.graph.indexer import ChooseKeys
from aprtui.graph.ops import Attend, Choose, Heads, Op, Product, Softmax
from aprtui.graph.vocabulary import facts_of
from aprtui.model.open import Model

__all__ = [
    "ACTIVATIONS", "BRANCHES_FIRST", "CACHED", "EXACT", "F16_SCALES", "FLASH", "FUSED", "INSIDE",
    "STEPPED", "STEPS", "SUMMED", "TF32_AWAY", "UNROUNDED", "WEIGHTS_SCALED", "Activations",
    "Arithmetic", "Misreading", "Replay", "Way", "activate", "halfway", "heads_of", "one_core",
    "representable", "terms_norm", "types_of",
]  # fmt: skip

Float64 = npt.NDArray[np.float64]
Tensor = torch.Tensor

_STATED = {
    "fp8 e4m3": "float8 e4m3", "float8": "float8 e4m3", "fp8 e5m2": "float8 e5m2", "int8": "int8",
}  # fmt: skip
"""How a checkpoint's words on activations begin -> the type."""
_SCALES_STATED = {"a token": "per token", "a tensor": "per tensor"}


class Replay:
    """Nodes of one model's graph, computed in float64 from arrays of the nodes' shapes.

    ``tokens`` are needed by the embedding alone; ``rows`` where they do not stand at 0, 1, 2 and so
    on. Weights are streamed: memory is that of the
    arrays and of one block of rows.
    """

    def __init__(
        self,
        model: Model,
        tokens: tuple[int, ...] = (),
        logits: str = "last",
        rows: Rows | None = None,
    ) -> None:
        self.model = model
        plain = rows is None or rows.positions == tuple(range(len(rows)))
        self.positions = () if rows is None or plain else rows.positions
        self.tokens = tokens
        self.logits = logits
        self._stream = WideStream(model)

    def run(
        self,
        node: Node,
        inputs: Sequence[Float64],
        how: Arithmetic = EXACT,
        *,
        op: Op | None = None,
        positions: Sequence[float] = (),
    ) -> Float64:
        """The node's output; ``op`` takes the place of its own where one asks "what if".

        ``positions`` are the rows', where they are not those of the capture. Raises RuntimeError
        where a rounding in blocks does not fit a matrix's columns.
        """
        ar = Rounded(
            self._stream, how, self.tokens, self.logits, tuple(positions) or self.positions
        )
        asked = node if op is None else replace(node, op=op)
        return _array(ops.compute(ar, asked, _given(node, inputs, how)))

    def expert_flips(self, node: Node, inputs: Sequence[Float64], how: Arithmetic) -> Float64:
        """What ties inside one position's experts add to its output when they round the other
        way: [n, hidden]. ``inputs`` are that position's."""
        ar = Rounded(self._stream, how, self.tokens, self.logits)
        return _array(expert_flips(ar, node, _given(node, inputs, how)))

    def choice_scores(self, node: Node, logits: Float64) -> Float64:
        """What a node chooses experts by [T,E], or keys [1,T,T], of which a larger one is chosen
        first; -inf for keys that are hidden."""
        if isinstance(node.op, ChooseKeys):
            return _array(hidden_keys(node.op, _tensor(logits)))
        assert isinstance(node.op, Choose)
        if node.op.bias is None and node.op.groups == node.op.kept:
            return logits
        ar = Rounded(self._stream, EXACT)
        return _array(ops.choice_scores(ar, node.op, _tensor(logits)))

    # -- products ------------------------------------------------------------------------------

    def partner(self, role: Role, choice: int = 0) -> str:
        """What ggml's CPU rounds activations to before a product with this matrix; "" nothing."""
        return product_rounding(self.type_of(role), Arithmetic("partner", choice))

    def roundings(self, role: Role) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
        """(the likely, the other, those to int8 and float8 with a scale) roundings of activations
        that a product with it can have."""
        columns = self.shape(role)[1]
        fitting = [name for name, (_, block) in ROUNDINGS.items() if columns % block == 0]
        likely = [name for name in PARTNERS[self.type_of(role)] if name in fitting]
        known = (*likely, *SCALED, "TF32", TF32_AWAY)  # TF32 rounds the weights too
        other = tuple(name for name in fitting if name not in known)
        return ("", *likely), other, tuple(name for name in fitting if name in SCALED)

    def stated_roundings(self, role: Role) -> tuple[str, ...]:
        """The roundings of activations that the checkpoint itself asks for before a product with a
        matrix that its quantiser wrote, as far as they need nothing but the activations."""
        said, coding = self.model.file.quantisation, self.model.weights[role].entry.coding
        words = "" if said is None or coding is None else said.activations
        kind = next((name for word, name in _STATED.items() if words.startswith(word)), "")
        if not kind or "static" in words:
            return ()
        wanted = [place for word, place in _SCALES_STATED.items() if word in words]
        block = said.keys.get("weight_block_size") if said is not None else None
        if isinstance(block, list) and len(block) == 2:  # activations go in the same columns
            whole = isinstance(block[1], int) and block[1] >= self.shape(role)[1]
            wanted = ["per token" if whole else f"in blocks of {block[1]}"]
        names = [f"{kind} {place}, float32 scale" for place in wanted or _SCALES_STATED.values()]
        return tuple(n for n in names if n in SCALED and self.shape(role)[1] % SCALED[n][1] == 0)

    def product_input(self, op: Product, x: Float64) -> Float64:
        """The rows [n, columns] that a product multiplies."""
        rows = x.reshape(x.shape[0], -1)
        rows = rows[-1:] if op.last and self.logits == "last" else rows
        return rows if op.given == 1.0 else rows * op.given

    def products(self, role: Role, x: Float64, names: Sequence[str] = ("",)) -> list[Float64]:
        """x [n, columns] rounded as each name says, times the matrix transposed: [n, rows]."""
        return self.multiplied(role, self.activations(x), [Way(name) for name in names])

    def activations(self, x: Float64) -> Activations:
        """Rows [n, columns] for several products, each rounding of which is made once."""
        return Activations(_tensor(x))

    def rounded_rows(self, x: Activations, name: str) -> Float64:
        """The rows as they are multiplied: rounded by ``name``."""
        return _array(x.rounded(name))

    def multiplied(
        self, role: Role, x: Activations, ways: Sequence[Way], rows: Sequence[int] | None = None
    ) -> list[Float64]:
        """x [n, columns] times the matrix transposed, each way: [n, rows]; ``rows``: of these
        alone. The matrix is decoded once for all."""
        if rows is None:
            made = self._stream.products(x, role, ways)
        else:
            made = self._stream.chosen(x, role, ways, tuple(rows))
        return [_array(each) for each in made]

    def narrow_decoding(self, role: Role) -> bool:
        """Whether an engine of 16 bits rounds inside the decoding of the matrix."""
        coding = self.model.weights[role].entry.coding
        return isinstance(coding, Affine) and any(part.name == "bias" for part in coding.parts)

    def finish(self, op: Product, made: Float64, how: Arithmetic = EXACT) -> Float64:
        """What follows the products inside their stage: biases, a scale, a cap."""
        return _array(ops.finish(Rounded(self._stream, how), op, _tensor(made)))

    def sampled(self, op: Product, rows: Sequence[int]) -> Callable[[Float64, Arithmetic], Float64]:
        """``finish`` for those rows alone of ``op``'s only matrix."""
        (part,) = op.parts
        bias = None if part.bias is None else _tensor(self.vector(part.bias)[list(rows)])

        def finish(made: Float64, how: Arithmetic) -> Float64:
            ar = Rounded(self._stream, how)
            own = None if bias is None else ar.kept(bias)
            some = replace(op, parts=(replace(part, rows=len(rows)),))
            return _array(ops.finish(ar, some, _tensor(made), own))

        return finish

    def rounded(self, x: Float64, name: str) -> Float64:
        """x [n, columns] as activations rounded by ``name`` ("" is as they are)."""
        return _array(rounded_rows(_tensor(x), name))

    def transposed(self, role: Role, x: Float64, name: str = "") -> Float64:
        """x [n, rows] times the matrix itself: [n, columns]; a block of rows at a time."""
        rounded = rounded_rows(_tensor(x), name)
        out = torch.zeros((x.shape[0], self.shape(role)[1]), dtype=torch.float64)
        for first, block in self._stream.blocks(role):
            out += rounded[:, first : first + block.shape[0]] @ block
        return _array(out)

    # -- weights read wrongly ------------------------------------------------------------------

    def misreadings(self, role: Role) -> tuple[Misreading, ...]:
        """The ways in which decoders have read blocks of the weight's type wrongly."""
        kind = self.type_of(role)
        return tuple(each for each in MISREADINGS if kind in each.types)

    def misread_product(self, role: Role, x: Float64, reading: Misreading) -> Float64:
        """x [n, columns] times the transpose of the matrix read so: [n, rows]."""
        out = np.empty((x.shape[0], self.shape(role)[0]))
        for first, block in misread_blocks(self.model.weights[role], reading):
            out[:, first : first + len(block)] = x @ _array(block).T
        return out

    def misread_rows(self, role: Role, rows: Sequence[int], reading: Misreading) -> Float64:
        """Chosen rows [n, columns] of the matrix read so."""
        return _array(misread_rows(self.model.weights[role], rows, reading))

    def sub_block(self, role: Role) -> int:
        """How many weights of a row share a scale of their own, inside a K-block too."""
        return SUB_BLOCKS.get(self.type_of(role)) or self.block_values(role)

    # -- weights -------------------------------------------------------------------------------

    def has(self, role: Role) -> bool:
        return role in self.model.weights

    def shape(self, role: Role) -> tuple[int, int]:
        """(rows, columns) of a matrix; a vector is one row."""
        matrix = self.model.weights[role]
        return matrix.rows, matrix.columns

    def type_of(self, role: Role) -> str:
        """The block type that a weight is stored in."""
        return self._stream.type_of(role)

    def block_values(self, role: Role) -> int:
        """How many weights of a row share a scale; 1 where each stands for itself."""
        entry = self.model.weights[role].entry
        if entry.coding is None:
            return BLOCK_TYPES[entry.type].values
        return entry.coding.group if isinstance(entry.coding, Affine) else 1

    def vector(self, role: Role) -> Float64:
        """A norm's weight or a bias [columns]."""
        return _array(self._stream.vector(role))

    def blocks(self, role: Role) -> Iterator[tuple[int, Float64]]:
        """(the first row, rows [n, columns]) of a whole weight, a block at a time."""
        for first, block in self._stream.blocks(role):
            yield first, _array(block)

    def rows(self, role: Role, indices: Sequence[int], weights: str = "") -> Float64:
        """Chosen rows [n, columns] of a matrix; ``weights``: as an engine keeps them (``Way``)."""
        return _array(self._stream.rows_as(role, tuple(indices), weights))

    def find_rows(
        self, role: Role, wanted: Float64, scale: float = 1.0, rounded: str = ""
    ) -> list[int | None]:
        """For each wanted row [n, columns] the first row of the matrix that equals it, times
        ``scale``, to float32's rounding, or to that of ``rounded``; one pass over the matrix."""
        tolerance = {"": 1e-6, "BF16": 2.0**-8, "F16": 2.0**-11}[rounded]
        target = _tensor(wanted)
        norms = target.norm(dim=1)
        found: list[int | None] = [None] * len(wanted)
        for first, block in self._stream.blocks(role):
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


def _given(node: Node, inputs: Sequence[Float64], how: Arithmetic) -> list[Tensor]:
    """The inputs as an engine that computes in the type of ``how.stage`` holds them; a residual
    sum, what stays inside a fused attention and what a scan computes, it does not write."""
    round_to = ROUND_TO["" if how.before == UNROUNDED else how.stage]
    inside = how.attention in FLASH and isinstance(node.op, Softmax | Attend)
    given = []
    for place, (key, value) in enumerate(zip(node.inputs, inputs, strict=True)):
        whole = facts_of(key.stage).integers or facts_of(key.stage).wide
        kept = whole or (inside and place == 0)
        given.append(_tensor(value) if kept else round_to(_tensor(value)))
    return given


def activate(x: Float64, name: str) -> Float64:
    """An activation of ACTIVATIONS, element by element."""
    return _array(ACTIVATIONS[name](_tensor(x)))


def terms_norm(x: Float64, weights: Float64) -> Float64:
    """sqrt(sum of (x w)^2) over the columns of x [n, columns] and weights [m, columns]: [n, m].

    By torch, on one core where ``one_core`` says so: numpy's threads spin after each product.
    """
    return _array((_tensor(x).square() @ _tensor(weights).square().T).sqrt())


def heads_of(x: Float64, heads: Heads) -> Float64:
    """A window of heads [T,heads,d] of rows [T,...]."""
    return _array(ops.heads_of(_tensor(x), heads))


def _tensor(x: Float64) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(x))


def _array(x: Tensor) -> Float64:
    return np.asarray(x.double().numpy())


# -- the rounding of what was written --------------------------------------------------------------


def representable(values: npt.NDArray[np.float32]) -> str:
    """ "BF16" or "F16" when every value is one of that type's, else ""."""
    return next(iter(types_of(values)), "")


def types_of(values: npt.NDArray[np.float32]) -> tuple[str, ...]:
    """Which of "BF16" and "F16" hold every value; none where there is nothing but zeros."""
    held = np.isfinite(values)
    finite = values if held.all() else values[held]
    if not finite.size or not finite.any():
        return ()
    few = finite[:_FEW]
    with np.errstate(over="ignore"):
        return tuple(k for k, fit in _FITTING.items() if fit(few) and fit(finite))


_FEW = 1024  # values that tell whether a type may hold all
_FITTING: dict[str, Callable[[npt.NDArray[np.float32]], bool]] = {
    "BF16": lambda x: not (x.view(np.uint32) & np.uint32(0xFFFF)).any(),
    "F16": lambda x: bool((x.astype(np.float16).astype(np.float32) == x).all()),
}


def halfway(values: Float64, kind: str) -> Float64:
    """How far a number that rounds to each value may lie from it: half a unit in the last place."""
    bits, lowest = (8, -126) if kind == "BF16" else (11, -14)
    _, exponent = np.frexp(values)
    return np.asarray(np.ldexp(0.5, np.maximum(exponent, lowest + 1) - bits))
