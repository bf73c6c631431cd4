"""The kernels: one function an operation of ``graph.ops``, written once against an arithmetic.

Each works in the dtype of its input and reads its operation's parameters alone. ``Pass`` is the
exact arithmetic, in which ``cut``, ``step``, ``cached`` and ``queried`` change nothing; what rounds
overrides them. Shapes use the symbols of docs/stages.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as functional

from aprtui.engine.staging import send
from aprtui.engine.weights import WeightStream
from aprtui.graph import Role
from aprtui.graph.node import Node
from aprtui.graph.ops import (
    Activate,
    Add,
    Attend,
    Bias,
    Choose,
    Combine,
    Embed,
    Experts,
    Heads,
    Mask,
    Multiply,
    Norm,
    Op,
    Product,
    Rope,
    Route,
    Scores,
    Sigmoid,
    Softmax,
)
from aprtui.graph.rope import RopeTable

__all__ = ["ACTIVATIONS", "KERNELS", "Pass", "attention_blocks", "compute", "heads_of", "visible"]

Tensor = torch.Tensor

# Values of one block of attention scores. Blocks depend on the prompt's length alone, so that
# watching the scores changes no number.
SCORE_BLOCK_VALUES = 1 << 23


class Pass:
    """What kernels compute with: a model's weights, the tokens, and no rounding of their own.

    ``logits``: "last", or "all" positions'.
    """

    def __init__(
        self, weights: WeightStream, tokens: tuple[int, ...] = (), logits: str = "last"
    ) -> None:
        self.weights, self.tokens, self.logits = weights, tokens, logits
        self._angles: dict[tuple[object, ...], tuple[Tensor, Tensor]] = {}

    def product(self, x: Tensor, role: Role) -> Tensor:
        """x [n, columns] times the matrix transposed: [n, rows]."""
        return self.weights.linear(x, role)

    def vector(self, role: Role) -> Tensor:
        return self.weights.vector(role)

    def cut(self, x: Tensor) -> Tensor:
        """An inner result that an engine of low precision writes in its type."""
        return x

    def step(self, x: Tensor) -> Tensor:
        """An elementary step of a norm or a rotation, which some write in their type too."""
        return x

    def cached(self, x: Tensor) -> Tensor:
        """Keys or values as the KV cache holds them."""
        return x

    def activate(self, x: Tensor, name: str) -> Tensor:
        return ACTIVATIONS[name](x)

    def angles(self, table: RopeTable, x: Tensor) -> tuple[Tensor, Tensor]:
        """``rotation`` of a table for x [T,heads,d], in x's wide dtype and on its device.

        Kept: most layers turn by the same angles.
        """
        key = (table, x.shape[0], x.dtype, x.device)
        if key not in self._angles:
            dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
            cos, sin = rotation(table, x.shape[0])
            self._angles[key] = send(cos.to(dtype), x.device), send(sin.to(dtype), x.device)
        return self._angles[key]


def _wide(x: Tensor) -> Tensor:
    """x in at least float32: norms, angles and softmax are computed so whatever the dtype."""
    return x if x.dtype == torch.float64 else x.float()


def heads_of(x: Tensor, heads: Heads) -> Tensor:
    """A window of heads [T,heads,d] of rows [T,...]."""
    rows = x.reshape(x.shape[0], -1)
    return rows[:, heads.columns].reshape(x.shape[0], heads.count, heads.size)


def embed(ar: Pass, op: Embed) -> Tensor:
    rows = ar.weights.rows(op.table, ar.tokens)
    return rows * op.scale if op.scale != 1.0 else rows


def norm(ar: Pass, op: Norm, x: Tensor) -> Tensor:
    if op.heads is not None and not op.whole:
        return normalise(ar, op, heads_of(x, op.heads))
    if op.heads is not None:
        flat = x.reshape(x.shape[0], -1)[:, op.heads.columns]
        return normalise(ar, op, flat).reshape(x.shape[0], op.heads.count, op.heads.size)
    return normalise(ar, op, x)


def normalise(ar: Pass, op: Norm, x: Tensor) -> Tensor:
    """The norm over the last axis of x."""
    wide = _wide(x)
    if op.centred:
        wide = wide - wide.mean(-1, keepdim=True)
    made = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + op.eps)
    if op.weight is not None:
        made = ar.step(made) * (_wide(ar.vector(op.weight)) + op.offset)
    if op.bias is not None:
        made = made + _wide(ar.vector(op.bias))
    return made.to(x.dtype)


def product(ar: Pass, op: Product, x: Tensor) -> Tensor:
    rows = x.reshape(x.shape[0], -1)
    if op.last and ar.logits == "last":
        rows = rows[-1:]
    made = [ar.product(rows, part.weight) for part in op.parts]
    out = finish(ar, op, made[0] if len(made) == 1 else torch.cat(made, dim=1))
    return out[0] if op.last and ar.logits == "last" else out


def finish(ar: Pass, op: Product, out: Tensor) -> Tensor:
    """What follows the products inside their stage: biases, scale, cap."""
    if any(part.bias is not None for part in op.parts):
        out = out + _biases(ar, op)
    if op.scale != 1.0:
        out = out * op.scale
    return out if op.cap is None else torch.tanh(out / op.cap) * op.cap


def _biases(ar: Pass, op: Product | Bias) -> Tensor:
    return torch.cat([
        ar.vector(part.bias) if part.bias is not None
        else torch.zeros(part.rows, dtype=ar.weights.dtype, device=ar.weights.device_of(part.weight.layer))
        for part in op.parts
    ])  # fmt: skip


def bias(ar: Pass, op: Bias, x: Tensor) -> Tensor:
    return x + _biases(ar, op)


def rotation(table: RopeTable, tokens: int) -> tuple[Tensor, Tensor]:
    """cos and sin [T, dims/2] float64, on the CPU, of the table's angles, times its magnitude.

    Angles are float64 whatever the dtype: float32 angles lose 1e-5 beyond 1,000 positions.
    """
    table = table.at(tokens)
    pairs = torch.arange(table.dims // 2, dtype=torch.float64)
    frequency = table.theta ** (-2.0 * pairs / table.dims)
    if table.divisors:
        frequency = frequency / torch.tensor(table.divisors, dtype=torch.float64)
    positions = torch.arange(tokens, dtype=torch.float64) / table.position_divisor
    angles = torch.outer(positions, frequency)
    return angles.cos() * table.magnitude, angles.sin() * table.magnitude


def rope(ar: Pass, op: Rope, x: Tensor) -> Tensor:
    heads = heads_of(x, op.heads)
    cos, sin = ar.angles(op.table, heads)
    return rotate(ar, heads, cos, sin, op.table)


def rotate(ar: Pass, x: Tensor, cos: Tensor, sin: Tensor, table: RopeTable) -> Tensor:
    """x [T,heads,d] with the pairs of its first ``dims`` channels turned."""
    wide = _wide(x)
    cos, sin = ar.step(cos[:, None, :].to(wide)), ar.step(sin[:, None, :].to(wide))
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


def visible(mask: Mask, first: int, last: int, keys: int, device: torch.device) -> Tensor:
    """Which keys the queries first..last see [last-first, keys] bool."""
    queries = torch.arange(first, last, device=device)[:, None]
    key = torch.arange(keys, device=device)[None, :]
    seen = key <= queries if mask.causal else torch.ones_like(key <= queries)
    if mask.window is not None:
        seen = seen & (queries - key < mask.window)
        if not mask.causal:
            seen = seen & (key - queries < mask.window)
    return seen if mask.chunk is None else seen & (queries // mask.chunk == key // mask.chunk)


def score_block(ar: Pass, op: Scores, q: Tensor, k: Tensor, seen: Tensor) -> Tensor:
    """Scores [a,t,S] of queries [t,a,d] and keys [S,b,d], a/b queries a key head: 0 where unseen."""
    queries, keys, size = q.shape[0], k.shape[0], q.shape[2]
    groups = q.shape[1] // k.shape[1]
    grouped = q.reshape(queries, k.shape[1], groups, size)
    grouped = grouped.permute(1, 2, 0, 3).reshape(k.shape[1], -1, size)
    made = ar.cut(torch.bmm(grouped, k.permute(1, 2, 0))) * op.scale
    if op.cap is not None:
        made = ar.cut(torch.tanh(ar.cut(ar.cut(made) / op.cap))) * op.cap
    return made.reshape(q.shape[1], queries, keys).masked_fill(~seen, 0.0)


def softmax_block(scores: Tensor, seen: Tensor, sinks: Tensor | None = None) -> Tensor:
    """Softmax [a,t,S] over the keys that are seen, 0 elsewhere; ``sinks`` [a] take their share."""
    masked = _wide(scores).masked_fill(~seen, float("-inf"))
    if sinks is None:
        return torch.softmax(masked, dim=-1).to(scores.dtype)
    sink = _wide(sinks)[:, None, None].expand(-1, masked.shape[1], 1)
    return torch.softmax(torch.cat((masked, sink), dim=-1), dim=-1)[..., :-1].to(scores.dtype)


def attend_block(weights: Tensor, v: Tensor) -> Tensor:
    """Attention [t,a,d] of softmax weights [a,t,S] over values [S,b,d]."""
    heads, queries = weights.shape[0], weights.shape[1]
    grouped = weights.reshape(v.shape[1], -1, weights.shape[2])
    mixed = torch.bmm(grouped, v.permute(1, 0, 2))
    return mixed.reshape(heads, queries, v.shape[2]).permute(1, 0, 2).contiguous()


def attention_blocks(heads: int, tokens: int) -> list[tuple[int, int]]:
    """The blocks of queries (first, last) in which attention is computed."""
    step = max(1, SCORE_BLOCK_VALUES // (heads * tokens))
    return [(first, min(first + step, tokens)) for first in range(0, tokens, step)]


def scores(ar: Pass, op: Scores, q: Tensor, k: Tensor) -> Tensor:
    """All scores at once; for replay. The pass itself goes block by block."""
    seen = visible(op.mask, 0, q.shape[0], k.shape[0], q.device)
    return score_block(ar, op, q, k, seen)


def softmax(ar: Pass, op: Softmax, x: Tensor) -> Tensor:
    """All rows at once; for replay."""
    seen = visible(op.mask, 0, x.shape[-1], x.shape[-1], x.device)
    return softmax_block(x, seen, None if op.sinks is None else ar.vector(op.sinks))


def attend(ar: Pass, op: Attend, weights: Tensor, values: Tensor) -> Tensor:
    """All queries at once; for replay."""
    return attend_block(weights, heads_of(values, op.values))


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "gelu": functional.gelu,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": functional.relu,
    "none": lambda x: x,
}
"""The functions of ``graph.ops.ACTIVATIONS``."""


def activation(ar: Pass, op: Activate, x: Tensor) -> Tensor:
    return ar.activate(x, op.name)


def multiply(ar: Pass, op: Multiply, x: Tensor, y: Tensor) -> Tensor:
    return x * y


def add(ar: Pass, op: Add, hidden: Tensor, branch: Tensor) -> Tensor:
    return hidden + branch if op.scale == 1.0 else hidden + branch * op.scale


def sigmoid(ar: Pass, op: Sigmoid, x: Tensor) -> Tensor:
    return torch.sigmoid(ar.product(x, op.part.weight))


def _scored(logits: Tensor, score: str) -> Tensor:
    wide = _wide(logits)
    return torch.softmax(wide, dim=-1) if score == "softmax" else torch.sigmoid(wide)


def choose(ar: Pass, op: Choose, logits: Tensor) -> Tensor:
    _, ids = torch.sort(_scored(logits, op.score), dim=-1, descending=True, stable=True)
    return ids[:, : op.top]


def route(ar: Pass, op: Route, logits: Tensor, ids: Tensor) -> Tensor:
    chosen = _scored(logits, op.score).gather(1, ids.long())
    if op.renormalise:
        chosen = chosen / chosen.sum(-1, keepdim=True)
    if op.scale != 1.0:
        chosen = chosen * op.scale
    return chosen.to(logits.dtype)


def experts(ar: Pass, op: Experts, x: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
    """In order of their ids; only those that some token chose are read."""
    out = torch.zeros_like(x)
    places: dict[int, list[tuple[int, int]]] = {}
    for token, row in enumerate(ids.tolist()):  # a device is waited for here, and not again
        for rank, expert in enumerate(row):
            places.setdefault(int(expert), []).append((token, rank))
    for expert, chosen_at in sorted(places.items()):
        tokens, ranks = send(torch.tensor(chosen_at).T.contiguous(), x.device)
        gate, up, down = (role._replace(expert=expert) for role in op.roles)
        rows = x[tokens]
        inner = ar.cut(ar.activate(ar.product(rows, gate), op.activation))
        made = ar.product(ar.cut(inner * ar.product(rows, up)), down)
        out[tokens] = ar.cut(out[tokens] + ar.cut(made * weights[tokens, ranks, None]))
    return out


def combine(
    ar: Pass, op: Combine, routed: Tensor, shared: Tensor | None = None, gate: Tensor | None = None
) -> Tensor:
    if shared is None:
        return routed
    return routed + (shared if gate is None else shared * gate)


KERNELS: dict[type[Op], Callable[..., Tensor]] = {
    Embed: embed,
    Norm: norm,
    Product: product,
    Bias: bias,
    Rope: rope,
    Scores: scores,
    Softmax: softmax,
    Attend: attend,
    Activate: activation,
    Multiply: multiply,
    Add: add,
    Sigmoid: sigmoid,
    Choose: choose,
    Route: route,
    Experts: experts,
    Combine: combine,
}


def compute(ar: Pass, node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """A node's output from its inputs."""
    kernel: Any = KERNELS[type(node.op)]
    out: Tensor = kernel(ar, node.op, *inputs)
    return out
