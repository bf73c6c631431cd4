"""The operations of a forward pass, each with every parameter that decides its numbers. No torch.

Shapes use the symbols of docs/stages.md: T tokens, H hidden, A query heads, K key/value heads,
d head size, F ffn, V vocabulary, E experts, k experts per token. A kernel of ``engine.ops``
computes each; replay and mistakes ask "what if" by ``dataclasses.replace``.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import chain

from aprtui.graph.role import Role
from aprtui.graph.rope import RopeTable

__all__ = [
    "ACTIVATIONS",
    "Activate",
    "Adapt",
    "Add",
    "Alibi",
    "Attend",
    "Beside",
    "Bias",
    "Choose",
    "Clamp",
    "Clip",
    "Combine",
    "Embed",
    "Experts",
    "Heads",
    "Mask",
    "Multiply",
    "Norm",
    "Op",
    "Part",
    "Positions",
    "Product",
    "Rope",
    "Route",
    "Scores",
    "SharedKeys",
    "SharedRope",
    "Sigmoid",
    "Softmax",
    "Softplus",
    "Temperature",
    "Xielu",
]

ACTIVATIONS = (
    "silu", "gelu_tanh", "gelu", "quick_gelu", "relu", "relu2", "sigmoid", "none",
)  # fmt: skip
"""The activations that are met, by name."""


@dataclass(frozen=True)
class Heads:
    """A window of heads in the columns of a row: ``count`` heads of ``size`` from column ``first``,
    one after the other or ``period`` columns apart.

    Of [T,A,d] the columns are those of [T, A*d].
    """

    first: int
    count: int
    size: int
    period: int = 0

    @property
    def width(self) -> int:
        return self.count * self.size

    def one(self, number: int) -> Heads:
        """The window of one of them."""
        first = self.first + number * (self.period or self.size)
        return Heads(first, 1, self.size, self.period)

    @property
    def columns(self) -> slice:
        """Of heads that lie one after the other."""
        return slice(self.first, self.first + self.width)


@dataclass(frozen=True)
class Mask:
    """Which keys a query sees: itself and those before it; all where not ``causal``.

    ``window``: so many, itself included (of a two-sided mask: fewer than so many away).
    ``chunk``: only keys of the query's own chunk of so many positions. ``ahead``: so many keys
    beyond itself, which a causal mask of a right pass hides.
    """

    causal: bool = True
    window: int | None = None
    chunk: int | None = None
    ahead: int = 0


@dataclass(frozen=True)
class Temperature:
    """A factor on the queries that grows with their position: 1 + ``strength`` * log(1 +
    floor((position + ``first``) / ``span``))."""

    strength: float
    span: float
    first: int = 0


@dataclass(frozen=True)
class Alibi:
    """What is added to the scores of each head's keys: its slope times the key's position, counted
    from the first token, or from the last one where ``from_last`` (the softmax is the same), times
    ``scale``. ``narrow``: slopes, positions and their products are bfloat16."""

    slopes: tuple[float, ...]
    from_last: bool = False
    narrow: bool = False
    scale: float = 1.0


@dataclass(frozen=True)
class Part:
    """One matrix of a product: it makes ``rows`` columns of the output, times ``scale``."""

    name: str
    weight: Role
    rows: int
    bias: Role | None = None
    scale: float = 1.0


class Op:
    """An operation. ``row_wise``: the output's row of one position depends on the inputs' rows of
    that position alone, and not on which position it is. ``weights``: the roles that it reads;
    ``matrices``: those of them that it multiplies by, of experts the first one's."""

    row_wise = True
    remembers = False  # whether it hands a state on, from each token to the next

    @property
    def weights(self) -> tuple[Role, ...]:
        return ()

    @property
    def matrices(self) -> tuple[Role, ...]:
        return ()

    def weight_shapes(self, width: int) -> dict[Role, tuple[int, ...]]:
        """The row-major shape of each weight, where a row of the first input has ``width``
        values."""
        return {}


class _OfParts(Op):
    """An operation on columns that several parts make, side by side."""

    parts: tuple[Part, ...]

    def columns(self, part: Part) -> slice:
        """The columns of the output that ``part`` makes."""
        first = sum(each.rows for each in self.parts[: self.parts.index(part)])
        return slice(first, first + part.rows)


@dataclass(frozen=True)
class Embed(Op):
    """Rows [T,H] of the token table [``rows``,H] times ``scale``; of tokens beyond it the first."""

    table: Role
    rows: int
    scale: float = 1.0

    @property
    def weights(self) -> tuple[Role, ...]:
        return (self.table,)

    def weight_shapes(self, width: int) -> dict[Role, tuple[int, ...]]:
        return {self.table: (self.rows, width)}


@dataclass(frozen=True)
class Positions(Op):
    """hidden plus each position's row of a learned table [``rows``,H]: that of position 0 is
    ``first``."""

    row_wise = False

    table: Role
    rows: int
    first: int = 0

    @property
    def weights(self) -> tuple[Role, ...]:
        return (self.table,)

    def weight_shapes(self, width: int) -> dict[Role, tuple[int, ...]]:
        return {self.table: (self.rows, width)}


@dataclass(frozen=True)
class Norm(Op):
    """x / sqrt(mean(x^2) + eps) * (offset + w): over the last axis, or over each of ``heads``; x is
    multiplied by ``scale`` before, and all by ``factor``.

    ``whole``: over all of the heads together; ``each``: every head has a weight of its own;
    ``own``: they are tensors of their own.
    ``centred``: the mean is taken off first (LayerNorm). Without ``weight`` the factor is one.
    """

    weight: Role | None
    eps: float
    offset: float = 0.0
    heads: Heads | None = None
    whole: bool = False
    each: bool = False
    centred: bool = False
    bias: Role | None = None
    scale: float = 1.0
    factor: float = 1.0
    own: tuple[Role, ...] = ()

    @property
    def weights(self) -> tuple[Role, ...]:
        return tuple(role for role in (self.weight, *self.own, self.bias) if role is not None)

    def weight_shapes(self, width: int) -> dict[Role, tuple[int, ...]]:
        if self.heads is not None:
            width = self.heads.width if self.whole or self.each else self.heads.size
        return dict.fromkeys(self.weights, (width,))


@dataclass(frozen=True)
class Product(_OfParts):
    """x times ``given``, times each part's matrix transposed, side by side, plus its bias; times
    the part's scale and ``scale``; then tanh(y / cap) * cap. ``last``: of the last position alone,
    unless all logits are asked for."""

    parts: tuple[Part, ...]
    scale: float = 1.0
    cap: float | None = None
    last: bool = False
    given: float = 1.0

    @property
    def weights(self) -> tuple[Role, ...]:
        both = chain.from_iterable((part.weight, part.bias) for part in self.parts)
        return tuple(role for role in both if role is not None)

    @property
    def matrices(self) -> tuple[Role, ...]:
        return tuple(part.weight for part in self.parts)

    def alone(self, part: Part) -> Product:
        """The same with one of its parts."""
        return replace(self, parts=(part,))

    def factor(self, part: Part) -> float:
        """What the columns that ``part`` makes are multiplied by."""
        return self.scale * part.scale

    def whole_factor(self, part: Part) -> float:
        """The same, and what its matrix is given."""
        return self.given * self.factor(part)

    def weight_shapes(self, width: int) -> dict[Role, tuple[int, ...]]:
        matrices = {part.weight: (part.rows, width) for part in self.parts}
        return {**matrices, **_bias_shapes(self.parts)}


@dataclass(frozen=True)
class Bias(_OfParts):
    """x plus the parts' biases times their scales, side by side; a part without one is left as it
    is."""

    parts: tuple[Part, ...]

    @property
    def weights(self) -> tuple[Role, ...]:
        return tuple(part.bias for part in self.parts if part.bias is not None)

    def weight_shapes(self, width: int) -> dict[Role, tuple[int, ...]]:
        return _bias_shapes(self.parts)


@dataclass(frozen=True)
class Adapt(_OfParts):
    """x plus what is adapted of it: in the columns of each part its own ``rank`` columns of the
    second input, a latent of low rank, times its matrix transposed."""

    parts: tuple[Part, ...]
    rank: int

    @property
    def weights(self) -> tuple[Role, ...]:
        return tuple(part.weight for part in self.parts)

    @property
    def matrices(self) -> tuple[Role, ...]:
        return self.weights

    def weight_shapes(self, width: int) -> dict[Role, tuple[int, ...]]:
        return {part.weight: (part.rows, self.rank) for part in self.parts}


def _bias_shapes(parts: tuple[Part, ...]) -> dict[Role, tuple[int, ...]]:
    return {part.bias: (part.rows,) for part in parts if part.bias is not None}


@dataclass(frozen=True)
class Clip(Op):
    """x, at most ``limit`` away from 0."""

    limit: float


@dataclass(frozen=True)
class Rope(Op):
    """The heads [T,heads,d] of a window turned by the table's angles, but for the first ``skip``
    channels of each."""

    row_wise = False

    table: RopeTable
    heads: Heads
    skip: int = 0


@dataclass(frozen=True)
class SharedRope(Op):
    """Keys [T,A,d]: of each head its ``own`` channels of the second input, which are not turned,
    then those of the one head ``shared`` of the first, which are, the same for all heads."""

    row_wise = False

    table: RopeTable
    shared: Heads
    own: Heads


@dataclass(frozen=True)
class SharedKeys(Op):
    """The same where nothing turns."""

    shared: Heads
    own: Heads


@dataclass(frozen=True)
class Scores(Op):
    """q.k * scale, then tanh(s / cap) * cap, then what ``alibi`` adds: [A,T,T], 0 where the mask
    hides the key, or a third input [1,T,T] that is 0 there.

    Query head h reads key/value head h div (A/K). ``queries`` and ``keys`` are the windows of the
    inputs that hold them, None where an input is these heads and no more. ``temperature``: q is
    multiplied by it first.
    """

    row_wise = False

    heads: int
    kv_heads: int
    scale: float
    mask: Mask = field(default_factory=Mask)
    cap: float | None = None
    queries: Heads | None = None
    keys: Heads | None = None
    temperature: Temperature | None = None
    alibi: Alibi | None = None


@dataclass(frozen=True)
class Softmax(Op):
    """Softmax of each row over the keys that the mask shows, and a second input [1,T,T] where there
    is one, 0 elsewhere: [A,T,T].

    ``sinks`` [A]: a logit a head that takes its share and is thrown away.
    """

    row_wise = False

    mask: Mask = field(default_factory=Mask)
    sinks: Role | None = None
    heads: int = 0  # A, where there are sinks

    @property
    def weights(self) -> tuple[Role, ...]:
        return () if self.sinks is None else (self.sinks,)

    def weight_shapes(self, width: int) -> dict[Role, tuple[int, ...]]:
        return dict.fromkeys(self.weights, (self.heads,))


@dataclass(frozen=True)
class Attend(Op):
    """Softmax [A,T,T] times V times ``scale``, V a window of the second input: [T,A,d]."""

    row_wise = False

    heads: int
    values: Heads
    scale: float = 1.0


@dataclass(frozen=True)
class Activate(Op):
    """An activation by its name in ACTIVATIONS, element by element."""

    name: str


@dataclass(frozen=True)
class Xielu(Op):
    """xIELU (arXiv 2411.13010), element by element: positive * x^2 + beta * x above 0, else
    negative * (exp(min(x, eps)) - 1 - x) + beta * x."""

    positive: float
    negative: float
    beta: float
    eps: float


@dataclass(frozen=True)
class Multiply(Op):
    """The product of both inputs, element by element; of heads [T,A,d] and a number each [T,A],
    all of a head's times its own. ``window``: the columns of the second input that count, where
    not all do."""

    window: Heads | None = None


@dataclass(frozen=True)
class Add(Op):
    """(hidden + scale * branch) * total."""

    scale: float = 1.0
    total: float = 1.0


@dataclass(frozen=True)
class Beside(Op):
    """The rows of both inputs, side by side: [T,W]."""


@dataclass(frozen=True)
class _Gate(Op):
    """A function of a product [T,n] with ``part``'s matrix, and its bias: a gate."""

    part: Part

    @property
    def weights(self) -> tuple[Role, ...]:
        bias = self.part.bias
        return (self.part.weight,) if bias is None else (self.part.weight, bias)

    @property
    def matrices(self) -> tuple[Role, ...]:
        return (self.part.weight,)

    def weight_shapes(self, width: int) -> dict[Role, tuple[int, ...]]:
        return {self.part.weight: (self.part.rows, width), **_bias_shapes((self.part,))}


class Sigmoid(_Gate):
    """1 / (1 + exp(-x)) of the product: a gate between 0 and 1."""


class Softplus(_Gate):
    """log(1 + exp(x)) of the product: a gate that is never negative."""


@dataclass(frozen=True)
class Choose(Op):
    """Ids [T,k] of the ``top`` experts by the router's logits [T,E], the likeliest first.

    Equal ones go to the lower id, as a stable sort leaves them. ``score``: "softmax", "sigmoid" or
    "none" (the logits themselves), of which the order is taken. ``bias`` [E] is added to the scores
    for the choice alone. Of ``groups`` of neighbouring experts those ``kept`` may be chosen from
    whose ``best`` best scores have the largest sum.
    """

    top: int
    experts: int
    score: str = "softmax"
    bias: Role | None = None
    groups: int = 1
    kept: int = 1
    best: int = 2

    @property
    def weights(self) -> tuple[Role, ...]:
        return () if self.bias is None else (self.bias,)

    def weight_shapes(self, width: int) -> dict[Role, tuple[int, ...]]:
        return dict.fromkeys(self.weights, (self.experts,))


@dataclass(frozen=True)
class Route(Op):
    """Weights [T,k] of the chosen ids: ``score`` of the logits (softmax over all experts, sigmoid,
    "none" or "mixer"), divided by their sum where ``renormalise``, times ``scale``, and each
    expert's own number of ``by_expert`` [E].

    The sum that divides is at least ``floor``, and ``eps`` is added to it. "mixer" is SparseMixer
    (arXiv 2409.12136): of each rank the softmax over the experts of no earlier rank whose logits
    lie within 2 ``jitter`` of the best of them, relative to the larger of both.
    """

    score: str = "softmax"
    renormalise: bool = True
    scale: float = 1.0
    eps: float = 0.0
    floor: float = 0.0
    jitter: float = 0.0
    by_expert: Role | None = None

    @property
    def weights(self) -> tuple[Role, ...]:
        return () if self.by_expert is None else (self.by_expert,)

    def weight_shapes(self, width: int) -> dict[Role, tuple[int, ...]]:
        return dict.fromkeys(self.weights, (width,))


@dataclass(frozen=True)
class Clamp:
    """GPT-OSS's gate: g * sigmoid(``alpha`` * g) * (u + 1) of gate g and up u, g at most ``limit``
    and u within it on both sides."""

    alpha: float
    limit: float


@dataclass(frozen=True)
class Experts(Op):
    """The weighted sum [T,H] of each token's experts: down(activation(gate(x)) * up(x)), or
    down(activation(up(x))) where ``gate`` is None.

    ``gate``, ``up``, ``down`` are roles without a number; ``size`` is F of one expert. ``biased``:
    each product has a bias, whose role's name ends so. ``clamp`` takes the place of the
    activation. ``on_input``: the weight multiplies x instead of what the expert makes of it.
    """

    gate: Role | None
    up: Role
    down: Role
    count: int
    size: int
    activation: str = "silu"
    biased: bool = False
    clamp: Clamp | None = None
    on_input: bool = False

    @property
    def roles(self) -> tuple[Role, ...]:
        gate = () if self.gate is None else (self.gate,)
        return (*gate, self.up, self.down)

    @property
    def weights(self) -> tuple[Role, ...]:
        roles = self.roles
        if self.biased:
            roles += tuple(role._replace(name=f"{role.name}_bias") for role in self.roles)
        return tuple(role._replace(expert=expert) for expert in range(self.count) for role in roles)

    @property
    def matrices(self) -> tuple[Role, ...]:
        return tuple(role._replace(expert=0) for role in self.roles)

    def weight_shapes(self, width: int) -> dict[Role, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {}
        for role in self.roles:
            rows, columns = (width, self.size) if role == self.down else (self.size, width)
            shapes |= {role.name: (rows, columns), f"{role.name}_bias": (rows,)}
        return {role: shapes[role.name] for role in self.weights}


@dataclass(frozen=True)
class Combine(Op):
    """The sum of two branches of one input, as routed experts plus the shared one (times its gate,
    where a third input is one)."""
