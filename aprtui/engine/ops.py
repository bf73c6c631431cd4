"""The kernels: one function an operation of ``graph.ops``, written once against an arithmetic.

Each works in the dtype of its input and reads its operation's parameters alone. ``Pass`` is the
exact arithmetic, which rounds nothing of its own accord; one that does overrides the places where
it rounds. Shapes use the symbols of docs/stages.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as functional

from aprtui.engine.altup import ALTUP
from aprtui.engine.indexer import INDEXER
from aprtui.engine.recurrent import RECURRENT
from aprtui.engine.staging import send
from aprtui.engine.weights import WeightStream
from aprtui.graph import Role
from aprtui.graph.node import Node
from aprtui.graph.ops import (
    Activate,
    Adapt,
    Add,
    Alibi,
    Attend,
    Beside,
    Bias,
    Choose,
    Clip,
    Combine,
    Embed,
    Experts,
    Heads,
    Mask,
    Multiply,
    Norm,
    Op,
    Part,
    Positions,
    Product,
    Rope,
    Route,
    Scores,
    SharedKeys,
    SharedRope,
    Sigmoid,
    Softmax,
    Softplus,
    Temperature,
    Xielu,
)
from aprtui.graph.rope import RopeTable

__all__ = [
    "ACTIVATIONS", "KERNELS", "Pass", "attention_blocks", "compute", "heads_of", "looked_at",
    "scale_columns",
    "visible",
]  # fmt: skip

Tensor = torch.Tensor

# Values of one block of attention scores. Blocks depend on the prompt's length alone, so that
# watching the scores changes no number.
SCORE_BLOCK_VALUES = 1 << 23


class Pass:
    """What kernels compute with: a model's weights, the tokens, and no rounding of their own.

    ``logits``: "last", or "all" positions'. ``positions``: of each row, where they are not
    0, 1, 2 and so on. ``stride``: tokens that a state is carried over at once.
    """

    stride = 64

    def __init__(
        self,
        weights: WeightStream,
        tokens: tuple[int, ...] = (),
        logits: str = "last",
        positions: tuple[float, ...] = (),
    ) -> None:
        self.weights, self.tokens, self.logits = weights, tokens, logits
        self.positions = positions
        self.scanned: tuple[tuple[Tensor, ...], tuple[Tensor, ...]] | None = None
        self._angles: dict[tuple[object, ...], tuple[Tensor, Tensor]] = {}

    @property
    def start(self) -> int:
        """Where the first row stands."""
        return int(self.positions[0]) if self.positions else 0

    def product(self, x: Tensor, role: Role) -> Tensor:
        """x [n, columns] times the matrix transposed: [n, rows]."""
        return self.weights.linear(x, role)

    def vector(self, role: Role) -> Tensor:
        """A norm's weight, a bias or sinks."""
        return self.weights.vector(role)

    def addend(self, role: Role) -> Tensor:
        """A vector that is added in float32, which some keep in it whatever the others are."""
        return self.vector(role)

    def number(self, x: float) -> float:
        """A scale or another number of an operation's own, which some keep in their type too."""
        return x

    def numbers(self, x: Tensor) -> Tensor:
        """The same of several."""
        return x

    def softened(self, x: float) -> float:
        """A number that is stored as it is before its softplus."""
        return x

    def looked_up(self, role: Role, rows: int) -> Tensor:
        """The tokens' rows of a table; of tokens beyond its ``rows`` the first."""
        return self.rows(role, self.within(rows))

    def rows(self, role: Role, indices: tuple[int, ...]) -> Tensor:
        """Rows of a table, as it is kept."""
        return self.weights.rows(role, indices)

    def within(self, rows: int) -> tuple[int, ...]:
        """The tokens, of those beyond ``rows`` the first one."""
        return tuple(token if token < rows else 0 for token in self.tokens)

    def cut(self, x: Tensor) -> Tensor:
        """An inner result that an engine of low precision writes in its type."""
        return x

    def unbiased(self, x: Tensor) -> Tensor:
        """A product before its bias, which some add to its sum before that is rounded."""
        return self.cut(x)

    def step(self, x: Tensor) -> Tensor:
        """An elementary step of a norm or a rotation, which some write in their type too."""
        return x

    def table(self, x: Tensor) -> Tensor:
        """The cosines or sines of a rotation, which some keep in their type."""
        return x

    def cached(self, x: Tensor) -> Tensor:
        """Keys or values as the KV cache holds them."""
        return x

    def queried(self, x: Tensor) -> Tensor:
        """Queries as they meet cached keys."""
        return x

    def scaled(self, q: Tensor, scale: float) -> tuple[Tensor, float]:
        """(queries, what their scores are multiplied by): some scale the queries first."""
        return q, scale

    def weighed(self, x: Tensor) -> Tensor:
        """Softmax weights as they meet cached values."""
        return x

    def along(self, node: Node, kernel: Callable[..., Tensor], inputs: Sequence[Tensor]) -> Tensor:
        """The output of a node that carries something from each token to the next, or whose rows
        are those of one sequence."""
        return kernel(self, node.op, *inputs)

    def recall(self, empty: Tensor) -> Tensor:
        """What such a node has carried to the first of these rows: ``empty``, as before the first
        token, where no rows came before."""
        return empty

    def keep(self, carried: Tensor) -> None:
        """What such a node carries to the rows behind these."""

    def met(self, q: Tensor, k: Tensor) -> Tensor:
        """q [t,d] times keys [S,d]: [t,S]."""
        return q @ k.T

    def mix(self, weights: Tensor, v: Tensor) -> Tensor:
        """Softmax weights [a,t,S] times values [S,b,d], a/b heads a value head: [t,a,d]."""
        heads, queries = weights.shape[0], weights.shape[1]
        grouped = weights.reshape(v.shape[1], -1, weights.shape[2])
        mixed = torch.bmm(grouped, v.permute(1, 0, 2))
        return mixed.reshape(heads, queries, v.shape[2]).permute(1, 0, 2).contiguous()

    def activate(self, x: Tensor, name: str) -> Tensor:
        """An activation of ACTIVATIONS, element by element."""
        return self.wide_activate(x, name)

    def wide_activate(self, x: Tensor, name: str) -> Tensor:
        """The same inside a norm, which no engine computes in 16 bits."""
        return self.map(ACTIVATIONS[name], x)

    def map(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """A function of each element."""
        return function(x)

    def asked(self, x: Tensor) -> Tensor:
        """Of rows [T,...] those whose logits are asked for."""
        return x[-1:] if self.logits == "last" else x

    def angles(self, table: RopeTable, x: Tensor) -> tuple[Tensor, Tensor]:
        """``rotation`` of a table for x [T,heads,d], in x's wide dtype and on its device.

        Kept: most layers turn by the same angles.
        """
        key = (table, x.shape[0], x.dtype, x.device)
        if key not in self._angles:
            dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
            cos, sin = self.turns(table, self.positions or range(x.shape[0]))
            self._angles[key] = send(cos.to(dtype), x.device), send(sin.to(dtype), x.device)
        return self._angles[key]

    def turns(
        self, table: RopeTable, positions: range | tuple[float, ...]
    ) -> tuple[Tensor, Tensor]:
        """The cosines and sines of a table, whose frequencies some keep in 16 bits."""
        return rotation(table, positions)


def _wide(x: Tensor) -> Tensor:
    """x in at least float32: norms, angles and softmax are computed so whatever the dtype."""
    return x if x.dtype == torch.float64 else x.float()


def heads_of(x: Tensor, heads: Heads) -> Tensor:
    """A window of heads [T,heads,d] of rows [T,...]."""
    rows = x.reshape(x.shape[0], -1)
    if heads.period:
        first, place = divmod(heads.first, heads.period)
        apart = rows.reshape(len(rows), -1, heads.period)
        return apart[:, first : first + heads.count, place : place + heads.size].contiguous()
    return rows[:, heads.columns].reshape(x.shape[0], heads.count, heads.size)


def embed(ar: Pass, op: Embed) -> Tensor:
    """The tokens' rows of the table times ``scale``: [T,H]."""
    rows = ar.looked_up(op.table, op.rows)
    return rows * ar.number(op.scale) if op.scale != 1.0 else rows


def positions(ar: Pass, op: Positions, x: Tensor) -> Tensor:
    """x plus the rows of its positions: [T,H]."""
    placed = ar.positions or range(len(x))
    rows = ar.rows(op.table, tuple(op.first + int(place) for place in placed))
    return x + send(rows, x.device)


def norm(ar: Pass, op: Norm, x: Tensor) -> Tensor:
    """[T,H], or the heads [T,heads,d] of a window, each normalised or all of them together."""
    if op.heads is not None and not op.whole:
        return normalise(ar, op, heads_of(x, op.heads))
    if op.heads is not None:
        flat = x.reshape(x.shape[0], -1)[:, op.heads.columns]
        return normalise(ar, op, flat).reshape(x.shape[0], op.heads.count, op.heads.size)
    return normalise(ar, op, x)


def normalise(ar: Pass, op: Norm, x: Tensor) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * (offset + w) + bias over the last axis, times ``factor``; x times
    ``scale`` before, and less its mean where ``centred``."""
    wide = _wide(x)
    if op.scale != 1.0:
        wide = ar.cut(wide * ar.number(op.scale))
    if op.centred:
        wide = wide - wide.mean(-1, keepdim=True)
    made = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + op.eps)
    if op.weight is not None:
        weight = _wide(ar.vector(op.weight))
        weight = weight.reshape(x.shape[1:]) if op.each else weight
        made = ar.step(made) * (weight + op.offset)
    if op.own:
        made = ar.step(made) * (
            torch.stack([_wide(ar.vector(role)) for role in op.own]) + op.offset
        )
    if op.bias is not None:
        made = made + _wide(ar.vector(op.bias))
    if op.factor != 1.0:
        made = ar.step(made) * op.factor
    return made.to(x.dtype)


def product(ar: Pass, op: Product, x: Tensor) -> Tensor:
    """cap * tanh((x W' + b) * scales / cap) with the parts side by side: [T, rows], or [rows]
    where only the last position is asked for. x [T,...] is taken as rows, times ``given``."""
    rows = x.reshape(x.shape[0], -1)
    rows = ar.asked(rows) if op.last else rows
    rows = rows if op.given == 1.0 else ar.cut(rows * op.given)
    made = [ar.product(rows, part.weight) for part in op.parts]
    out = finish(ar, op, made[0] if len(made) == 1 else torch.cat(made, dim=1))
    return out[0] if op.last and ar.logits == "last" else out


def finish(ar: Pass, op: Product, out: Tensor, biases: Tensor | None = None) -> Tensor:
    """What follows the products inside their stage: biases, scales, cap. ``biases`` take the place
    of the parts' own."""
    if biases is None and any(part.bias is not None for part in op.parts):
        biases = _biases(ar, op)
    if biases is not None:
        out = ar.unbiased(out) + biases
    if any(part.scale != 1.0 for part in op.parts):
        out = scale_columns(op.parts, ar.cut(out), ar.number)
    if op.scale != 1.0:
        out = ar.cut(out) * op.scale
    if op.cap is None:
        return out
    return ar.cut(ar.map(torch.tanh, ar.cut(ar.cut(out) / op.cap))) * op.cap


def scale_columns(
    parts: Sequence[Part], x: Tensor, number: Callable[[float], float] = float
) -> Tensor:
    """x [...,rows] with the columns of each of ``parts`` times its scale, as ``number`` keeps
    it."""
    if all(part.scale == 1.0 for part in parts):
        return x
    columns = torch.split(x, [part.rows for part in parts], dim=-1)
    scaled = (each * number(part.scale) for each, part in zip(columns, parts, strict=True))
    return torch.cat(tuple(scaled), dim=-1)


def _biases(ar: Pass, op: Product | Bias) -> Tensor:
    """The parts' biases side by side [rows], 0 where a part has none."""
    device = ar.weights.device_of(op.parts[0].weight.layer)
    return torch.cat([
        torch.zeros(part.rows, dtype=ar.weights.dtype, device=device) if part.bias is None
        else ar.vector(part.bias)
        for part in op.parts
    ])  # fmt: skip


def bias(ar: Pass, op: Bias, x: Tensor) -> Tensor:
    """x [T, rows] + b."""
    return x + scale_columns(op.parts, _biases(ar, op))


@lru_cache(maxsize=4)  # replay computes one rotation after another: most by the same few tables
def rotation(
    table: RopeTable,
    positions: range | tuple[float, ...],
    kept: Callable[[Tensor], Tensor] = torch.Tensor.double,
) -> tuple[Tensor, Tensor]:
    """cos and sin [T, dims/2] float64, on the CPU, of the table's angles, times its magnitude.

    Angles are float64 whatever the dtype: float32 angles lose 1e-5 beyond 1,000 positions. ``kept``
    rounds the frequencies, by which a position is multiplied.
    """
    table = table.at(1 + int(max(positions, default=0)))
    pairs = torch.arange(table.dims // 2, dtype=torch.float64)
    frequency = table.theta ** (-2.0 * pairs / table.dims)
    if table.divisors:
        frequency = frequency / torch.tensor(table.divisors, dtype=torch.float64)
    rows = torch.tensor(positions, dtype=torch.float64)
    angles = torch.outer(rows, kept(frequency / table.position_divisor))
    return angles.cos() * table.magnitude, angles.sin() * table.magnitude


def rope(ar: Pass, op: Rope, x: Tensor) -> Tensor:
    """The heads [T,heads,d] of a window turned by their positions' angles."""
    heads = heads_of(x, op.heads)
    cos, sin = ar.angles(op.table, heads)
    if not op.skip:
        return rotate(ar, heads, cos, sin, op.table)
    turned = rotate(ar, heads[..., op.skip :], cos, sin, op.table)
    return torch.cat((heads[..., : op.skip], turned), dim=-1)


def shared_rope(ar: Pass, op: SharedRope, x: Tensor, y: Tensor) -> Tensor:
    """Keys [T,A,d] of own channels, which stand still, and shared ones, which turn."""
    shared = heads_of(x, op.shared)
    return _joined(op, y, rotate(ar, shared, *ar.angles(op.table, shared), op.table))


def shared_keys(ar: Pass, op: SharedKeys, x: Tensor, y: Tensor) -> Tensor:
    """Keys [T,A,d] of own channels and shared ones."""
    return _joined(op, y, heads_of(x, op.shared))


def _joined(op: SharedRope | SharedKeys, y: Tensor, shared: Tensor) -> Tensor:
    own = heads_of(y, op.own)
    return torch.cat((own, shared.expand(-1, own.shape[1], -1)), dim=-1)


def rotate(ar: Pass, x: Tensor, cos: Tensor, sin: Tensor, table: RopeTable) -> Tensor:
    """x [T,heads,d] with the pairs (a, b) of its first ``dims`` channels turned to
    (a cos - b sin, b cos + a sin)."""
    wide = _wide(x)
    cos, sin = ar.table(cos[:, None, :].to(wide)), ar.table(sin[:, None, :].to(wide))
    turned, rest = wide[..., : table.dims], wide[..., table.dims :]
    halves = table.pairs == "halves"
    one, two = turned.chunk(2, dim=-1) if halves else (turned[..., 0::2], turned[..., 1::2])
    made = (
        ar.step(one * cos) - ar.step(two * sin),
        ar.step(two * cos) + ar.step(one * sin),
    )
    out = torch.cat(made, dim=-1) if halves else torch.stack(made, dim=-1).reshape(turned.shape)
    if rest.shape[-1]:
        out = torch.cat((out, rest), dim=-1)
    return out.reshape(x.shape).to(x.dtype)


@lru_cache(maxsize=4)  # layers ask for the same again, and each of their threads
def visible(
    mask: Mask, first: int, last: int, keys: int, device: torch.device, start: int = 0
) -> Tensor:
    """Which keys the queries first..last see [last-first, keys] bool; ``start``: where the first
    key stands."""
    queries = torch.arange(first, last, device=device)[:, None]
    key = torch.arange(keys, device=device)[None, :]
    seen = key <= queries + mask.ahead
    if not mask.causal:
        seen = torch.ones_like(seen)
    if mask.window is not None:
        seen = seen & (queries - key < mask.window)
        if not mask.causal:
            seen = seen & (key - queries < mask.window)
    if mask.chunk is None:
        return seen
    return seen & ((queries + start) // mask.chunk == (key + start) // mask.chunk)


def score_block(
    ar: Pass, op: Scores, q: Tensor, k: Tensor, seen: Tensor, biases: Tensor | None = None
) -> Tensor:
    """Scores [a,t,S] of queries [t,a,d] and keys [S,b,d], a/b queries a key head: q.k * scale,
    then cap * tanh(s / cap), plus ``biases`` [a,1,S], 0 where unseen."""
    q, scale = ar.scaled(q, op.scale)
    q, k = ar.queried(q), ar.cached(k)
    queries, keys, size = q.shape[0], k.shape[0], q.shape[2]
    groups = q.shape[1] // k.shape[1]
    grouped = q.reshape(queries, k.shape[1], groups, size)
    grouped = grouped.permute(1, 2, 0, 3).reshape(k.shape[1], -1, size)
    made = ar.cut(torch.bmm(grouped, k.permute(1, 2, 0))) * scale
    if op.cap is not None:
        made = ar.cut(ar.map(torch.tanh, ar.cut(ar.cut(made) / op.cap))) * op.cap
    made = made.reshape(q.shape[1], queries, keys)
    made = made if biases is None else ar.unbiased(made) + ar.step(biases)
    return made.masked_fill(~seen, 0.0)


def key_biases(op: Alibi | None, keys: Tensor, end: int | None = None) -> Tensor | None:
    """What is added to all scores of each key of keys [S,b,d]: [A,1,S]; None for nothing. ``end``:
    how many keys there are, where the others are room for more."""
    if op is None:
        return None
    last = (len(keys) if end is None else end) - 1
    dtype = torch.bfloat16 if op.narrow else keys.dtype
    slopes = torch.tensor(op.slopes, device=keys.device, dtype=keys.dtype).to(dtype)
    placed = torch.arange(len(keys), device=keys.device).to(dtype)
    made = slopes[:, None, None] * (placed - last if op.from_last else placed)
    return made.to(keys.dtype) * op.scale


def softmax_block(ar: Pass, scores: Tensor, seen: Tensor, sinks: Tensor | None = None) -> Tensor:
    """Softmax [a,t,S] over the keys that are seen, 0 elsewhere; ``sinks`` [a] take their share."""
    masked = _wide(scores).masked_fill(~seen, float("-inf"))
    if sinks is None:
        return torch.softmax(masked, dim=-1).to(scores.dtype)
    sink = _wide(sinks)[:, None, None].expand(-1, masked.shape[1], 1)
    whole = torch.cat((masked, sink), dim=-1)
    whole = ar.step(whole - whole.amax(-1, keepdim=True))
    return torch.softmax(whole, dim=-1)[..., :-1].to(scores.dtype)


def attend_block(ar: Pass, weights: Tensor, v: Tensor) -> Tensor:
    """Attention [t,a,d] of softmax weights [a,t,S] over values [S,b,d]."""
    return ar.mix(ar.weighed(weights), ar.cached(v))


def value_heads(ar: Pass, op: Attend, values: Tensor) -> Tensor:
    """Values [T,b,d], scaled as they are cached."""
    v = heads_of(values, op.values)
    return v if op.scale == 1.0 else ar.cut(v * op.scale)


def attention_blocks(heads: int, tokens: int) -> list[tuple[int, int]]:
    """The blocks of queries (first, last) in which attention is computed."""
    step = max(1, SCORE_BLOCK_VALUES // (heads * tokens))
    return [(first, min(first + step, tokens)) for first in range(0, tokens, step)]


def query_key_heads(
    ar: Pass, op: Scores, q: Tensor, k: Tensor, chosen: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Queries [T,A,d], at their temperature, and keys [T,K,d] out of the inputs of scores."""
    q = q if op.queries is None else heads_of(q, op.queries)
    k = k if op.keys is None else heads_of(k, op.keys)
    if op.temperature is not None:
        warm = temperatures(op.temperature, ar.positions or range(len(q)))
        q = ar.cut(q * send(ar.numbers(warm).to(q.dtype), q.device))
    return q, k


def temperatures(how: Temperature, positions: Sequence[float]) -> Tensor:
    """The factor on each position's queries [T,1,1] float64, on the CPU."""
    placed = torch.tensor(positions, dtype=torch.float64)
    grown = torch.log1p(torch.floor((placed + how.first) / how.span))
    return (1.0 + how.strength * grown)[:, None, None]


def looked_at(seen: Tensor, chosen: Tensor | None) -> Tensor:
    """Of the keys that are seen [t,S] those that are chosen, where some are [1,t,S]."""
    return seen if chosen is None else seen & (chosen[0] != 0)


def scores(ar: Pass, op: Scores, q: Tensor, k: Tensor, chosen: Tensor | None = None) -> Tensor:
    """All scores at once [A,T,T]; for replay. The pass itself goes block by block."""
    q, k = query_key_heads(ar, op, q, k)
    seen = visible(op.mask, 0, q.shape[0], k.shape[0], q.device, ar.start)
    seen = looked_at(seen, chosen)
    return score_block(ar, op, q, k, seen, key_biases(op.alibi, k))


def softmax(ar: Pass, op: Softmax, x: Tensor, chosen: Tensor | None = None) -> Tensor:
    """All rows at once [A,T,T]; for replay."""
    seen = visible(op.mask, 0, x.shape[-1], x.shape[-1], x.device, ar.start)
    seen = looked_at(seen, chosen)
    return softmax_block(ar, x, seen, None if op.sinks is None else ar.vector(op.sinks))


def attend(ar: Pass, op: Attend, weights: Tensor, values: Tensor) -> Tensor:
    """All queries at once [T,A,d]; for replay."""
    return attend_block(ar, weights, value_heads(ar, op, values))


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "gelu": functional.gelu,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": functional.relu,
    "relu2": lambda x: functional.relu(x).square(),
    "sigmoid": torch.sigmoid,
    "none": lambda x: x,
}
"""The functions of ``graph.ops.ACTIVATIONS``."""


def activation(ar: Pass, op: Activate, x: Tensor) -> Tensor:
    """[T,F], element by element."""
    return ar.activate(x, op.name)


def xielu(ar: Pass, op: Xielu, x: Tensor) -> Tensor:
    """[T,F], element by element."""
    beta = ar.number(op.beta)
    negative = ar.number(beta + ar.softened(op.negative - op.beta))
    line = ar.step(beta * x)
    above = ar.step(ar.step(ar.softened(op.positive) * x) * x) + line
    grown = ar.step(ar.map(torch.expm1, x.clamp(max=ar.number(op.eps))))
    below = ar.step(ar.step(grown - x) * negative) + line
    return torch.where(x > 0, above, below)


def adapt(ar: Pass, op: Adapt, x: Tensor, low: Tensor) -> Tensor:
    """x [T, rows] plus each part's columns of ``low`` times its matrix transposed."""
    latents = torch.split(low, op.rank, dim=1)
    parts = zip(op.parts, latents, strict=True)
    made = [ar.product(latent.contiguous(), part.weight) for part, latent in parts]
    return x + torch.cat(made, dim=1)


def beside(ar: Pass, op: Beside, x: Tensor, y: Tensor) -> Tensor:
    """[T,W]."""
    return torch.cat((x, y), dim=1)


def clip(ar: Pass, op: Clip, x: Tensor) -> Tensor:
    """Element by element."""
    return x.clamp(-op.limit, op.limit)


def multiply(ar: Pass, op: Multiply, x: Tensor, y: Tensor) -> Tensor:
    """x * y, element by element; y of [T,A] weighs the heads of x [T,A,d]."""
    y = y if op.window is None else heads_of(y, op.window)
    return x * y.reshape(*x.shape[:-1], -1)


def add(ar: Pass, op: Add, hidden: Tensor, branch: Tensor) -> Tensor:
    """(hidden + scale * branch) * total, in hidden's shape."""
    branch = branch.reshape(hidden.shape)
    made = hidden + (branch if op.scale == 1.0 else ar.cut(branch * op.scale))
    return made if op.total == 1.0 else ar.cut(made) * ar.number(op.total)


def sigmoid(ar: Pass, op: Sigmoid, x: Tensor) -> Tensor:
    """1 / (1 + exp(-x W' - b)): [T, rows]."""
    return ar.map(torch.sigmoid, _gate(ar, op, x))


def softplus(ar: Pass, op: Softplus, x: Tensor) -> Tensor:
    """log(1 + exp(x W' + b)): [T, rows]."""
    return ar.map(functional.softplus, _wide(_gate(ar, op, x))).to(x.dtype)


def _gate(ar: Pass, op: Sigmoid | Softplus, x: Tensor) -> Tensor:
    """A gate's product, and its bias where it has one: [T, rows]."""
    made = ar.product(x, op.part.weight)
    return made if op.part.bias is None else ar.cut(made + ar.vector(op.part.bias))


def _scored(ar: Pass, logits: Tensor, score: str) -> Tensor:
    """Softmax over all experts, sigmoid of each, or the logits as they are: [T,E]."""
    wide = _wide(logits)
    if score == "none":
        return wide
    return torch.softmax(wide, dim=-1) if score == "softmax" else ar.map(torch.sigmoid, wide)


def choice_scores(ar: Pass, op: Choose, logits: Tensor) -> Tensor:
    """What the experts are chosen by [T,E]: their scores plus the bias, -inf in groups that are
    not kept."""
    scores = _scored(ar, logits, op.score)
    if op.bias is not None:
        scores = scores + _wide(ar.vector(op.bias))
    if op.groups == op.kept:
        return scores
    grouped = scores.reshape(len(scores), op.groups, -1)
    best = grouped.topk(min(op.best, grouped.shape[2]), dim=2).values.sum(2)
    order = best.argsort(dim=1, descending=True, stable=True)
    left_out = torch.zeros_like(best, dtype=torch.bool).scatter(1, order[:, op.kept :], True)
    return grouped.masked_fill(left_out[:, :, None], float("-inf")).reshape(scores.shape)


def choose(ar: Pass, op: Choose, logits: Tensor) -> Tensor:
    """Ids [T,k] of the largest scores, descending; of equal ones the lower id first."""
    scores = choice_scores(ar, op, logits)
    _, ids = torch.sort(scores, dim=-1, descending=True, stable=True)
    return ids[:, : op.top]


def _mixed(logits: Tensor, ids: Tensor, jitter: float) -> Tensor:
    """SparseMixer's weights [T,k] of the chosen ids."""
    wide = left = _wide(logits)
    made = []
    for chosen in torch.split(ids, 1, dim=1):
        best = left.amax(1, keepdim=True)
        far = (best - wide) / wide.abs().maximum(best) > 2 * jitter
        shares = torch.softmax(left.masked_fill(far, float("-inf")), dim=1)
        made.append(shares.gather(1, chosen))
        left = left.scatter(1, chosen, float("-inf"))
    return torch.cat(made, dim=1)


def route(ar: Pass, op: Route, logits: Tensor, ids: Tensor) -> Tensor:
    """Scores [T,k] of the chosen ids, over their sum where ``renormalise``, times ``scale``."""
    ids = ids.long()
    if op.score == "mixer":
        chosen = _mixed(logits, ids, op.jitter)
    else:
        chosen = ar.step(_scored(ar, logits, op.score).gather(1, ids))
    if op.renormalise:
        total = ar.step(ar.step(chosen.sum(-1, keepdim=True)).clamp(min=op.floor) + op.eps)
        chosen = ar.step(chosen / total)
    if op.scale != 1.0:
        chosen = chosen * op.scale
    if op.by_expert is not None:
        chosen = ar.step(chosen) * _wide(ar.vector(op.by_expert))[ids]
    return chosen.to(logits.dtype)


def experts(ar: Pass, op: Experts, x: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
    """[T,H]: the sum over a token's ids of weight * down(activation(gate(x)) * up(x)), with biases,
    a clamp or no gate where the operation says so.

    In order of the ids; only experts that some token chose are read.
    """
    out = torch.zeros_like(x)
    places: dict[int, list[tuple[int, int]]] = {}
    for token, row in enumerate(ids.tolist()):  # a device is waited for here, and not again
        for rank, expert in enumerate(row):
            places.setdefault(int(expert), []).append((token, rank))
    for expert, chosen_at in sorted(places.items()):
        tokens, ranks = send(torch.tensor(chosen_at).T.contiguous(), x.device)
        *inward, down = (role._replace(expert=expert) for role in op.roles)
        rows, weight = x[tokens], weights[tokens, ranks, None]
        rows = ar.cut(rows * weight) if op.on_input else rows
        inner = _gated(ar, op, *(_biased(ar, op, rows, role) for role in inward))
        made = _biased(ar, op, ar.cut(inner), down)
        made = made if op.on_input else ar.cut(made * weight)
        out[tokens] = ar.cut(out[tokens] + made)
    return out


def _biased(ar: Pass, op: Experts, x: Tensor, role: Role) -> Tensor:
    """An expert's product, and its bias where there are some."""
    made = ar.product(x, role)
    if not op.biased:
        return made
    return ar.cut(made + ar.vector(role._replace(name=f"{role.name}_bias")))


def _gated(ar: Pass, op: Experts, gate: Tensor, up: Tensor | None = None) -> Tensor:
    """activation(gate) * up [n,F], or what the clamp makes of them; without a gate that of up."""
    if up is None:
        return ar.activate(gate, op.activation)
    if op.clamp is None:
        return ar.cut(ar.activate(gate, op.activation)) * up
    gate, up = gate.clamp(max=op.clamp.limit), up.clamp(-op.clamp.limit, op.clamp.limit)
    return ar.cut(gate * ar.map(torch.sigmoid, gate * op.clamp.alpha)) * (up + 1)


def combine(
    ar: Pass, op: Combine, routed: Tensor, shared: Tensor | None = None, gate: Tensor | None = None
) -> Tensor:
    """routed + gate * shared, [T,H]; gate [T,1]."""
    if shared is None:
        return routed
    return routed + (shared if gate is None else ar.cut(shared * gate))


KERNELS: dict[type[Op], Callable[..., Tensor]] = {
    Embed: embed,
    Positions: positions,
    Norm: norm,
    Product: product,
    Adapt: adapt,
    Beside: beside,
    Bias: bias,
    Clip: clip,
    Rope: rope,
    SharedKeys: shared_keys,
    SharedRope: shared_rope,
    Scores: scores,
    Softmax: softmax,
    Attend: attend,
    Activate: activation,
    Xielu: xielu,
    Multiply: multiply,
    Add: add,
    Sigmoid: sigmoid,
    Softplus: softplus,
    Choose: choose,
    Route: route,
    Experts: experts,
    Combine: combine,
    **RECURRENT,
    **ALTUP,
    **INDEXER,
}


def compute(ar: Pass, node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """A node's output from its inputs."""
    kernel: Any = KERNELS[type(node.op)]
    if node.op.remembers or node.position_axis:
        return ar.along(node, kernel, inputs)
    out: Tensor = kernel(ar, node.op, *inputs)
    return out
