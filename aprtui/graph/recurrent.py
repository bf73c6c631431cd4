"""Operations with a memory of the tokens before: convolutions, and rules that carry a state along.
No torch; the kernels are ``engine.recurrent``'s.

Shapes: T tokens, N heads of a state, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass

from aprtui.graph.ops import Op, Part
from aprtui.graph.role import Role

__all__ = [
    "CausalConv", "ChannelScan", "Columns", "Decay", "DeltaRule", "Gated", "GatedNorm", "Scan",
    "Steps",
]  # fmt: skip


@dataclass(frozen=True)
class CausalConv(Op):
    """Of each channel the sum of its last ``taps`` values, each times a weight of its own, then
    ``activation``: [T,C]. The last weight is that of the token itself; before the first there are
    zeros. The channels are columns of the input, from ``first`` on. ``more``: weights of as many
    channels each, where those of all are several tensors."""

    row_wise = False
    remembers = True

    weight: Role  # [C, taps]
    channels: int
    taps: int
    bias: Role | None = None
    activation: str = "silu"
    first: int = 0
    more: tuple[Role, ...] = ()

    @property
    def plain(self) -> bool:
        """Whether nothing follows the sums."""
        return self.bias is None and self.activation == "none"

    @property
    def filters(self) -> tuple[Role, ...]:
        """The weights of all channels, one after the other."""
        return (self.weight, *self.more)

    @property
    def weights(self) -> tuple[Role, ...]:
        return self.filters if self.bias is None else (*self.filters, self.bias)

    def weight_shapes(self, width: int) -> dict[Role, tuple[int, ...]]:
        each = self.channels // len(self.filters) * self.taps
        shapes: dict[Role, tuple[int, ...]] = dict.fromkeys(self.filters, (each,))
        return shapes if self.bias is None else {**shapes, self.bias: (self.channels,)}


@dataclass(frozen=True)
class Columns(Op):
    """``size`` columns of the first input, from ``first`` on, times as many of the second, from
    ``second`` on: [T,size]."""

    first: int
    second: int
    size: int


@dataclass(frozen=True)
class Decay(Op):
    """Logarithms [T,N] of what a state keeps at each token: a * softplus(x W' + dt), where a is
    -exp(A) of the weight where it is ``logged``, else the weight as it is. ``each``: of so many
    rows of a state each its own [T,N,each], of one a."""

    part: Part
    a: Role
    dt: Role
    logged: bool = True
    each: int = 0

    @property
    def weights(self) -> tuple[Role, ...]:
        return (self.part.weight, self.a, self.dt)

    @property
    def matrices(self) -> tuple[Role, ...]:
        return (self.part.weight,)

    def weight_shapes(self, width: int) -> dict[Role, tuple[int, ...]]:
        rows = self.part.rows
        heads = rows // (self.each or 1)
        return {self.part.weight: (rows, width), self.a: (heads,), self.dt: (rows,)}


@dataclass(frozen=True)
class DeltaRule(Op):
    """The gated delta rule (arXiv 2412.06464). A state S [N, ``key``, ``value``] begins as zeros;
    at each token S = exp(g) S, then S = S + k (beta (v - k'S))', and q'S / sqrt(``key``) comes
    out: [T,N,value]. ``state``: what comes out is the S behind the last token.

    The inputs are q, k and v side by side [T, 2 * key_heads * key + heads * value], g [T,N], or of
    each row of the state its own [T,N,key] (arXiv 2510.26692), and beta [T,N]. q and k are of
    length one, as x / sqrt(x'x + ``eps``). Value head h has the q and k of head h div
    (heads / key_heads), or h mod key_heads where they are ``dealt``.
    """

    row_wise = False
    remembers = True

    key_heads: int
    heads: int
    key: int
    value: int
    eps: float
    dealt: bool = False
    state: bool = False


@dataclass(frozen=True)
class Steps(Op):
    """How far a state goes at each token [T,N]: softplus(x + dt) between ``low`` and ``high``, x
    the ``heads`` columns of the input from ``first`` on."""

    dt: Role
    first: int
    heads: int
    low: float = 0.0
    high: float = float("inf")

    @property
    def weights(self) -> tuple[Role, ...]:
        return (self.dt,)

    def weight_shapes(self, width: int) -> dict[Role, tuple[int, ...]]:
        return {self.dt: (self.heads,)}


@dataclass(frozen=True)
class Scan(Op):
    """Mamba 2's scan (arXiv 2405.21060). A state S [N, ``state``, ``size``] begins as zeros; at
    each token S = exp(a dt) S + dt b x', and c'S + skip x comes out: [T,N,size]. ``last``: what
    comes out is the S behind the last token.

    The inputs are x, b and c side by side [T, heads * size + 2 * groups * state], and dt [T,N].
    Head h has the b and c of group h div (heads / groups); a is -exp(A) of its weight where it is
    ``logged``, else the weight as it is.
    """

    row_wise = False
    remembers = True

    heads: int
    size: int
    groups: int
    state: int
    a: Role
    skip: Role
    logged: bool = True
    last: bool = False

    @property
    def weights(self) -> tuple[Role, ...]:
        return (self.a, self.skip)

    def weight_shapes(self, width: int) -> dict[Role, tuple[int, ...]]:
        return dict.fromkeys(self.weights, (self.heads,))


@dataclass(frozen=True)
class ChannelScan(Op):
    """Mamba's scan (arXiv 2312.00752). Each of C ``channels`` has a state S [``state``] of its own
    that begins as zeros; at each token S = exp(a dt) S + dt b x, and c'S + skip x comes out:
    [T,C,1]. ``last``: what comes out is the S behind the last token [C,``state``,1].

    The inputs are x and dt [T,C], b and c [T,state] of all channels. a [C,state] is -exp(A) of its
    weight where it is ``logged``, else the weight as it is.
    """

    row_wise = False
    remembers = True

    channels: int
    state: int
    a: Role
    skip: Role
    logged: bool = True
    last: bool = False

    @property
    def weights(self) -> tuple[Role, ...]:
        return (self.a, self.skip)

    def weight_shapes(self, width: int) -> dict[Role, tuple[int, ...]]:
        return {self.a: (self.channels * self.state,), self.skip: (self.channels,)}


@dataclass(frozen=True)
class Gated(Op):
    """``size`` values of the first input, times ``activation`` of as many columns of the second,
    from ``first`` on: [T,size]."""

    size: int
    activation: str = "silu"
    first: int = 0


@dataclass(frozen=True)
class GatedNorm(Op):
    """RMSNorm of each ``size`` values of the first input, times the weight, times ``activation`` of
    the gate: the first columns of the second input. ``before``: the gate multiplies what is
    normalised instead. ``groups``: so many parts of them are normalised apart."""

    weight: Role
    size: int
    eps: float
    activation: str = "silu"
    before: bool = False
    groups: int = 1

    @property
    def weights(self) -> tuple[Role, ...]:
        return (self.weight,)

    def weight_shapes(self, width: int) -> dict[Role, tuple[int, ...]]:
        return {self.weight: (self.size,)}
