"""Products in float64, rounded as other engines round them: activations, weights, partial sums."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from aprtui.engine.codecs import codec_of
from aprtui.engine.rounding import (
    ROUND_TO,
    ROUNDINGS,
    WEIGHTS_SCALED,
    round_f16,
    round_q8_1,
    round_weights,
)
from aprtui.engine.weights import WeightStream
from aprtui.formats.quantised.coding import Affine
from aprtui.graph import Role
from aprtui.model.open import Matrix, Model

__all__ = ["F16_SCALES", "STEPPED", "Activations", "Way", "WideStream", "rounded_rows"]

Tensor = torch.Tensor

F16_SCALES = {"": "F16 scales", "F16": "F16 scales, F16", "BF16": "F16 scales, BF16"}
"""Weights of Q6_K whose scale of 16 values (block's scale times its own) was kept in float16; what
was decoded is rounded to the type."""

STEPPED = {"F16": "F16 stepped", "BF16": "BF16 stepped"}
"""Weights of MLX's whose decoding itself rounds: code * scale, then that plus the bias."""

_LARGE = 1 << 21  # weights of a matrix from which on its plain products are summed in runs
_RUN = 256  # columns that are summed in float32, before float64 goes on: an error of 1e-7
_ROWS_AT_ONCE = 64  # of a decoded block, widened: they stay in the cache
_TERMS_AT_ONCE = 1 << 21  # products of a running sum that are rounded together
_MINIMA = {"Q4_1": 20, "Q5_1": 24}  # bytes of a block; its minimum is the float16 at byte 2
_HALF = {"F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class Way:
    """How an engine multiplies by a matrix.

    ``activations``: a name of ROUNDINGS; ``weights``: a name of ROUND_TO or WEIGHTS_SCALED, or of
    the values of STEPPED and F16_SCALES; ``summed``: "F16" or "BF16", the type in which each term
    and the one running sum of them is rounded. ``ranks``: so many equal shares of the columns, each
    of whose sums is rounded to ``partial`` before they are added; of one rank the sum itself.
    """

    activations: str = ""
    weights: str = ""
    summed: str = ""
    ranks: int = 1
    partial: str = ""


class _Buffer(threading.local):
    """One thread's memory for a block of float64 weights: fresh memory costs more than sums."""

    def __init__(self) -> None:
        self._values = torch.empty(0, dtype=torch.float64)

    def take(self, shape: torch.Size) -> Tensor:
        if self._values.numel() < shape.numel():
            self._values = torch.empty(shape.numel(), dtype=torch.float64)
        return self._values[: shape.numel()].view(shape)


def rounded_rows(x: Tensor, name: str) -> Tensor:
    """x [n, columns] as a rounding of ROUNDINGS leaves it; "" is as it is.

    Raises RuntimeError for columns that are no multiple of its block.
    """
    return ROUNDINGS[name][0](x) if name else x.double()


class Activations:
    """Rows x [n, columns] that products multiply; each rounding of them is made once."""

    def __init__(self, x: Tensor) -> None:
        self.x = x
        self._made: dict[str, Tensor] = {}

    def rounded(self, name: str) -> Tensor:
        """As ``rounded_rows``."""
        if name not in self._made:
            self._made[name] = rounded_rows(self.x, name)
        return self._made[name]


class WideStream(WeightStream):
    """One model's weights in float64 on the CPU; products are summed in float64, those with large
    matrices in float32 over runs of columns and in float64 from run to run."""

    def __init__(self, model: Model) -> None:
        super().__init__(model, torch.device("cpu"), torch.float64)
        self._stored = {"": WeightStream(model, self.device, torch.float32)}
        self._wide = _Buffer()
        self._largest: dict[Role, float] = {}

    def type_of(self, role: Role) -> str:
        """The block type that a weight is stored in."""
        return self.model.weights[role].entry.type

    def linear(self, x: Tensor, role: Role) -> Tensor:
        return self.products(Activations(x), role, (Way(),))[0]

    def products(self, x: Activations, role: Role, ways: Sequence[Way]) -> list[Tensor]:
        """x [n, columns] times the matrix transposed, each way: [n, rows]; one decode for all
        whose weights are decoded alike."""
        matrix = self.model.weights[role]
        out: dict[Way, Tensor] = {}
        for kind in dict.fromkeys(_decoding(way) for way in ways):
            alike = [way for way in dict.fromkeys(ways) if _decoding(way) == kind]
            tasks = [_Task(x, way, matrix.rows) for way in alike]
            self._measure(role, [way.weights for way in alike])
            runs = [task for task in tasks if _in_runs(task.way, matrix)]
            wide = [task for task in tasks if task not in runs]

            def multiply(
                first: int,
                block: Tensor,
                wide: Sequence[_Task] = wide,
                runs: Sequence[_Task] = runs,
            ) -> None:
                for start in range(0, len(block) if wide else 0, _ROWS_AT_ONCE):
                    part = block[start : start + _ROWS_AT_ONCE]
                    self._multiply(role, first + start, part, wide)
                for task in runs:
                    task.take_in_runs(block, first)

            self._decoder(kind).for_blocks(role, multiply)
            out |= {way: task.finished() for way, task in zip(alike, tasks, strict=True)}
        for way, made in out.items():
            if way.activations == "Q8_1" and matrix.entry.type in _MINIMA:
                _add_sums(made, x.x, matrix)
        return [out[way] for way in ways]

    @torch.inference_mode()
    def chosen(
        self, x: Activations, role: Role, ways: Sequence[Way], rows: tuple[int, ...]
    ) -> list[Tensor]:
        """The same of a few rows of the matrix: [n, len(rows)]; Q8_1's sums are left out."""
        tasks = [_Task(x, way, len(rows)) for way in ways]
        self._measure(role, [way.weights for way in ways])
        for kind in dict.fromkeys(_decoding(way) for way in ways):
            block = self._decoder(kind).rows(role, rows)
            alike = [task for task in tasks if _decoding(task.way) == kind]
            apart = [task for task in alike if task.way.weights in F16_SCALES.values()]
            together = [task for task in alike if task not in apart]
            self._multiply(role, 0, block, together, 0)
            for place, row in enumerate(rows if apart else ()):  # whose scales lie apart
                self._multiply(role, row, block[place : place + 1], apart, place)
        return [task.finished() for task in tasks]

    @torch.inference_mode()
    def rows_as(self, role: Role, indices: tuple[int, ...], weights: str) -> Tensor:
        """Chosen rows [n, columns] of a matrix whose weights an engine keeps so."""
        self._measure(role, [weights])
        made = self._decoder(_decoding(Way(weights=weights))).rows(role, indices)
        if weights not in F16_SCALES.values():  # whose scales lie apart
            return self._narrowed(made.double(), weights, role, 0)
        narrow = [
            self._narrowed(made[place : place + 1].double(), weights, role, index)
            for place, index in enumerate(indices)
        ]
        return torch.cat(narrow)

    def _multiply(
        self,
        role: Role,
        first: int,
        part: Tensor,
        tasks: Sequence[_Task],
        place: int | None = None,
    ) -> None:
        """Rows ``first``.. of the matrix, decoded to ``part``, for every task: columns ``place``
        (``first``).. of its output."""
        at = first if place is None else place
        for weights in dict.fromkeys(task.way.weights for task in tasks):
            wide = self._wide.take(part.shape).copy_(part)
            wide = self._narrowed(wide, weights, role, first)
            for task in tasks:
                if task.way.weights == weights:
                    task.take(wide, at)

    def _measure(self, role: Role, weights: Sequence[str]) -> None:
        """Find the largest weight of a matrix where a way of keeping it asks for it."""
        if role in self._largest or WEIGHTS_SCALED.keys().isdisjoint(weights):
            return
        found = [float(block.abs().amax()) for _, block in self._stored[""].blocks(role)]
        self._largest[role] = max(found)

    def _narrowed(self, wide: Tensor, weights: str, role: Role, first: int) -> Tensor:
        """Decoded rows ``first``.. of a matrix as an engine keeps its ``weights``."""
        if weights in WEIGHTS_SCALED:
            return round_weights(wide, weights, self._largest[role])
        if weights in F16_SCALES.values():
            wide = wide * _to_f16_scales(self.model.weights[role], first, len(wide))
            weights = next(kind for kind, name in F16_SCALES.items() if name == weights)
        return ROUND_TO["" if weights in STEPPED.values() else weights](wide)

    def _decoder(self, kind: str) -> WeightStream:
        """Decodes matrices to float32; ``kind`` is the type in which decoding itself rounds."""
        if kind not in self._stored:
            weights = {role: _stepped(each, kind) for role, each in self.model.weights.items()}
            narrow = replace(self.model, weights=weights)
            self._stored[kind] = WeightStream(narrow, self.device, torch.float32)
        return self._stored[kind]


class _Task:
    """One product on its way: the rows that are multiplied, the output as far as it is made."""

    def __init__(self, x: Activations, way: Way, rows: int) -> None:
        self.way = way
        self._x = whole = x.rounded(way.activations)
        self._out = torch.empty((len(whole) * way.ranks, rows), dtype=torch.float64)
        if way.ranks > 1:
            share = whole.shape[1] // way.ranks
            parts = torch.zeros(way.ranks, *whole.shape, dtype=torch.float64)
            for rank in range(way.ranks):
                columns = slice(rank * share, (rank + 1) * share)
                parts[rank, :, columns] = whole[:, columns]
            self._x = parts.reshape(-1, whole.shape[1])
        self._cut: Tensor | None = None

    def take(self, wide: Tensor, at: int) -> None:
        """Rows [n, columns] of the matrix, from its row ``at`` on."""
        place = slice(at, at + len(wide))
        if self.way.summed:
            self._out[:, place] = _running(self._x, wide, _HALF[self.way.summed])
        else:
            self._out[:, place] = self._x @ wide.T

    def take_in_runs(self, block: Tensor, at: int) -> None:
        """The same of rows in float32, summed in runs of columns."""
        runs = self._runs()
        across = block.view(len(block), -1, _RUN).permute(1, 2, 0)
        made = torch.bmm(runs, across).sum(0, dtype=torch.float64)
        self._out[:, at : at + len(block)] = made

    def _runs(self) -> Tensor:
        """x in float32 as [runs, n, columns of a run]."""
        if self._cut is None:
            rows = self._x.float().view(len(self._x), -1, _RUN)
            self._cut = rows.transpose(0, 1).contiguous()
        return self._cut

    def finished(self) -> Tensor:
        partial = ROUND_TO[self.way.partial](self._out)
        if self.way.ranks == 1:
            return partial
        return partial.reshape(self.way.ranks, -1, partial.shape[1]).sum(0)


def _in_runs(way: Way, matrix: Matrix) -> bool:
    """Whether a product is summed in runs: of a large matrix, as it is decoded, in whole runs."""
    large = matrix.rows * matrix.columns >= _LARGE and matrix.columns % _RUN == 0
    return large and not way.weights and not way.summed


def _decoding(way: Way) -> str:
    """The type in which the decoding of the weights rounds; "" where it does not."""
    return next((kind for kind, name in STEPPED.items() if name == way.weights), "")


def _stepped(matrix: Matrix, kind: str) -> Matrix:
    """The same weight, decoded in a narrow type."""
    coding = matrix.entry.coding
    if not isinstance(coding, Affine):
        return matrix
    return replace(matrix, entry=replace(matrix.entry, coding=replace(coding, narrow=kind)))


def _running(x: Tensor, weights: Tensor, dtype: torch.dtype) -> Tensor:
    """x [n, columns] times weights [m, columns] transposed, each term rounded to ``dtype`` and so
    is the sum after each. torch adds numbers of such a type in float32 and rounds once."""
    total = torch.zeros(len(x), len(weights), dtype=dtype)
    step = max(1, _TERMS_AT_ONCE // total.numel())
    columns, across = x.float().T.contiguous(), weights.float().T.contiguous()
    for first in range(0, len(columns), step):
        place = slice(first, first + step)
        terms = (columns[place, :, None] * across[place, None, :]).to(dtype)
        for term in terms:
            total += term
    return total.double()


def _to_f16_scales(matrix: Matrix, first: int, rows: int) -> Tensor:
    """What makes of each value of Q6_K the one whose scale is kept in float16: [rows, columns]."""
    raw = codec_of(matrix).bytes_of(first, rows).view(-1, 210)
    whole = raw[:, 208:].contiguous().view(torch.float16).double()
    scales = raw[:, 192:208].contiguous().view(torch.int8).double() * whole
    factors = torch.where(scales == 0, torch.ones_like(scales), round_f16(scales) / scales)
    return factors.repeat_interleave(16, dim=1).view(rows, -1)


def _add_sums(out: Tensor, x: Tensor, matrix: Matrix) -> None:
    """Q8_1's own sum of a block, not the sum of its values, multiplies the block's minimum."""
    values, sums = round_q8_1(x)
    missing = sums - values.reshape(x.shape[0], -1, 32).sum(-1)
    size, codec = _MINIMA[matrix.entry.type], codec_of(matrix)
    for first in range(0, matrix.rows, 1024):
        last = min(first + 1024, matrix.rows)
        blocks = codec.bytes_of(first, last - first).view(last - first, -1, size)
        minima = blocks[:, :, 2:4].contiguous().view(torch.float16)[..., 0].double()
        out[:, first:last] += missing @ minima.T
