"""How other engines compute: an arithmetic is what is rounded, to what, and where.

Sources: ggml-cpu/ops.cpp, ggml_compute_forward_flash_attn_ext (public), and docs/numerics.md 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from aprtui.engine.ops import Pass, rotation
from aprtui.engine.rounding import (
    PARTNERS,
    ROUND_TO,
    gelu_f16_table,
    round_bf16,
    round_e4m3,
    round_e5m2,
    round_f16,
    round_q4_0,
    round_q8_0,
)
from aprtui.engine.wide import F16_SCALES, STEPPED, Activations, Way, WideStream
from aprtui.graph import Role
from aprtui.graph.altup import Outliers
from aprtui.graph.ops import (
    Activate,
    Embed,
    Experts,
    Norm,
    Rope,
    Route,
    Scores,
    SharedRope,
    Softmax,
    Xielu,
)
from aprtui.graph.recurrent import Decay, GatedNorm, Steps
from aprtui.graph.rope import RopeTable

__all__ = [
    "BRANCHES_FIRST", "CACHED", "EXACT", "F16_SCALES", "FLASH", "FUSED", "INSIDE",
    "STEPPED", "STEPS", "SUMMED", "TILED", "UNROUNDED", "Arithmetic", "Rounded", "Way",
    "product_rounding",
]  # fmt: skip

Tensor = torch.Tensor

_WIDE = " with a float32 query"
_CACHES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "F16": (round_f16, round_f16),
    "BF16": (round_bf16, round_bf16),
    "Q8_0": (round_q8_0, round_q8_0),
    "Q4_0": (round_q4_0, round_q8_0),
    "E4M3": (round_e4m3, round_e4m3),
    "E5M2": (round_e5m2, round_e5m2),
}
"""Type of a KV cache -> what it makes of rows of a head, and what its query is rounded to."""

CACHED = (*_CACHES, *(kind + _WIDE for kind in _CACHES))
"""Scores and softmax are computed one after the other; a cache of 16 bits rounds the softmax too
where it rounds the query."""

FLASH = ("BF16 flash", "F16 flash")
"""Fused, in a runtime of 16 bits: exp(s - max) is rounded before it meets the values, and divided
by the float32 sum of what was not rounded."""

TILED = "F16 flash attention"
"""Fused, for 64 queries and more: keys and values come from the cache, all else is float32."""

SUMMED = "F16 flash attention summed in f16"
"""Fused, for fewer: the query is rounded as well, and the sum over values is kept in float16."""

FUSED = (TILED, SUMMED)

UNROUNDED = "unrounded"
"""A norm of a sum, or a bias of a product, that reads it as it was before it was written."""

BRANCHES_FIRST = "branches first"
"""A sum of a residual and two branches that adds the branches before the residual."""

INSIDE = (Scores, Experts)
"""Operations inside which an engine of low precision rounds partial results."""

STEPS = (
    Embed, Norm, Rope, SharedRope, Activate, Xielu, Softmax, Route, Decay, GatedNorm, Steps,
    Outliers,
)  # fmt: skip
"""Operations of elementary steps, each of which some engines round."""


@dataclass(frozen=True)
class Arithmetic:
    """How an engine rounds. All empty: float64.

    ``product``: a name of rounding.ROUNDINGS, or "partner" (by the weight's type, ``choice``-th
    of rounding.PARTNERS), applied to activations before a product; ``weights``: "BF16", "F16" or
    "TF32" when the weights are rounded too, of STEPPED's or F16_SCALES; ``running``, ``ranks`` and
    ``partial``: how a product is summed and its sum rounded (wide.Way). ``attention``: one of
    CACHED or, where one step makes scores, softmax and attention, of FUSED or FLASH;
    ``scaled_query``: the scale multiplies the query, which is rounded. ``gelu_table``: ggml's.
    ``stage``: "BF16" or "F16" rounds inside a stage wherever an engine that computes in that type
    does (``steps``: after each elementary step of a norm, a rotation or SiLU too; ``exponential``:
    and SiLU's exponential); "F32" computes a norm in float32, which may overflow. ``numbers``: an
    operation's factor is kept as the weights are. ``fused_bias``: a bias is added to its product
    before that is rounded. ``addends``: vectors that a step adds in float32 are kept in it.
    ``tables``: the type that RoPE's cosines and sines are kept in; ``frequencies``: that of the
    angles by which they turn from one position to the next. ``before``: UNROUNDED or
    BRANCHES_FIRST, what is read in place of the sum or product that was written.
    """

    product: str = ""
    choice: int = 0
    weights: str = ""
    attention: str = ""
    gelu_table: bool = False
    stage: str = ""
    steps: bool = False
    tables: str = ""
    before: str = ""
    running: str = ""
    ranks: int = 1
    partial: str = ""
    scaled_query: bool = False
    exponential: bool = False
    addends: bool = False
    numbers: bool = False
    fused_bias: bool = False
    frequencies: str = ""

    def way(self, kind: str) -> Way:
        """How it multiplies by a matrix stored in a type."""
        rounding = product_rounding(kind, self)
        return Way(rounding, self.weights, self.running, self.ranks, self.partial)


EXACT = Arithmetic()
_SOFT = 700.0  # beyond it softplus(x) is x, and the exponential no number

_NUMBERS = {
    "BF16": "BF16",
    "F16": "F16",
    **{name: kind for kinds in (STEPPED, F16_SCALES) for kind, name in kinds.items()},
}
"""What weights that are vectors are rounded to, where matrices are rounded so."""


def product_rounding(kind: str, how: Arithmetic) -> str:
    """What ``how`` rounds activations to before a product with weights of a type; "" nothing."""
    if how.product != "partner":
        return how.product
    partners = PARTNERS[kind]
    return partners[min(how.choice, len(partners) - 1)] if partners else ""


class Rounded(Pass):
    """Float64, rounded where ``how`` says."""

    weights: WideStream

    def __init__(
        self,
        weights: WideStream,
        how: Arithmetic,
        tokens: tuple[int, ...] = (),
        logits: str = "last",
        positions: tuple[float, ...] = (),
    ) -> None:
        super().__init__(weights, tokens, logits, positions)
        self.how = how
        kind = "" if how.attention in FLASH else how.attention.partition(" ")[0]
        self._cache, self._query = _CACHES.get(kind, (ROUND_TO[""], ROUND_TO[""]))

    def product(self, x: Tensor, role: Role) -> Tensor:
        way = self.how.way(self.weights.type_of(role))
        return ROUND_TO[self.how.stage](self.weights.products(Activations(x), role, (way,))[0])

    def vector(self, role: Role) -> Tensor:
        return self.kept(super().vector(role))

    def addend(self, role: Role) -> Tensor:
        return super().vector(role) if self.how.addends else self.vector(role)

    def kept(self, x: Tensor) -> Tensor:
        """Weights that are vectors, as they are kept where matrices are kept so."""
        return ROUND_TO[_NUMBERS.get(self.how.weights, "")](x)

    def number(self, x: float) -> float:
        return float(self.numbers(torch.tensor(x, dtype=torch.float64)))

    def numbers(self, x: Tensor) -> Tensor:
        return self.kept(x) if self.how.steps or self.how.numbers else x

    def softened(self, x: float) -> float:
        if not 0 < x < _SOFT:
            return self.number(x)
        return self.number(math.log1p(math.exp(self.number(math.log(math.expm1(x))))))

    def rows(self, role: Role, indices: tuple[int, ...]) -> Tensor:
        return self.weights.rows_as(role, indices, self.how.weights)

    def cut(self, x: Tensor) -> Tensor:
        return x if self.how.attention in FLASH else ROUND_TO[self.how.stage](x)

    def unbiased(self, x: Tensor) -> Tensor:
        return x if self.how.fused_bias else self.cut(x)

    def step(self, x: Tensor) -> Tensor:
        return ROUND_TO[self.how.stage](x) if self.how.steps else x

    def table(self, x: Tensor) -> Tensor:
        return ROUND_TO[self.how.tables](x) if self.how.tables else self.step(x)

    def turns(
        self, table: RopeTable, positions: range | tuple[float, ...]
    ) -> tuple[Tensor, Tensor]:
        return rotation(table, positions, ROUND_TO[self.how.frequencies])

    def cached(self, x: Tensor) -> Tensor:
        return ROUND_TO[self.how.stage](_by_head(x, self._cache))

    def scaled(self, q: Tensor, scale: float) -> tuple[Tensor, float]:
        if not self.how.scaled_query:
            return q, scale
        cut = ROUND_TO[self.how.stage]
        return cut(q * cut(torch.tensor(scale, dtype=q.dtype))), 1.0

    def queried(self, x: Tensor) -> Tensor:
        wide = self.how.attention == TILED or self.how.attention.endswith(_WIDE)
        return x if wide else _by_head(x, self._query)

    def weighed(self, x: Tensor) -> Tensor:
        if self.how.attention in FLASH:
            peak = x.amax(-1, keepdim=True)
            return ROUND_TO[self.how.attention.partition(" ")[0]](x / peak) * peak
        return self._cache(x) if self.how.attention in ("F16", "BF16") else x

    def mix(self, weights: Tensor, v: Tensor) -> Tensor:
        summed = self.how.attention == SUMMED
        return _mix_in_f16(weights, v) if summed else super().mix(weights, v)

    def activate(self, x: Tensor, name: str) -> Tensor:
        if self.how.gelu_table and name == "gelu_tanh":
            return gelu_f16_table(x)
        if self.how.steps and name == "silu":
            return x * self.step(self._sigmoid(x))
        return super().activate(x, name)

    def _sigmoid(self, x: Tensor) -> Tensor:
        """MLX's takes the exponential of the size, in the type of its numbers."""
        if not self.how.exponential:
            return torch.sigmoid(x)
        below = 1.0 / (1.0 + self.step(torch.exp(x.abs())))
        return torch.where(x < 0, below, 1.0 - below)


def _by_head(x: Tensor, rounding: Callable[[Tensor], Tensor]) -> Tensor:
    """x [T,heads,d] rounded a head at a time."""
    return rounding(x.reshape(-1, x.shape[-1])).reshape(x.shape)


def _mix_in_f16(weights: Tensor, v: Tensor) -> Tensor:
    """Attention [T,A,d] of softmax weights [A,T,T] over values [T,K,d], summed in float16.

    Key after key, the sum is rounded after each value and whenever a larger score rescales it; the
    division by the sum of weights comes last. The running maximum is told by the weights alone.
    """
    heads, queries, keys = weights.shape
    values = v.repeat_interleave(heads // v.shape[1], dim=1).transpose(0, 1)
    total = torch.zeros(heads, queries, v.shape[2], dtype=torch.float64)
    top = torch.zeros(heads, queries, 1, dtype=torch.float64)
    for key in range(keys):
        p, held, largest = weights[:, key:, key, None], total[:, key:], top[:, key:]
        rises, seen = p > largest, p > 0
        rescaled = torch.where(rises, round_f16(held * (largest / p)), held)
        largest.copy_(torch.maximum(largest, p))
        added = round_f16(rescaled + values[:, key, None] * (p / largest))
        held.copy_(torch.where(seen, added, held))
    return (total * top / weights.sum(-1, keepdim=True)).transpose(0, 1).contiguous()
