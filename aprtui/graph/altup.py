"""AltUp (arXiv 2301.13310) and what Gemma 3n has beside it: several streams of which a layer
computes one and guesses the others, a residual of low rank, and gates of which few are kept. No
torch; the kernels are ``engine.altup``'s.

Shapes: T tokens, S streams, H hidden, F ffn.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from aprtui.formats.tracedir import StageKey
from aprtui.graph.blocks import Attention, Builder
from aprtui.graph.ops import Add, Norm, Op, Part, Product
from aprtui.graph.per_layer import PerLayer, place_gated
from aprtui.graph.role import Role

__all__ = [
    "AltUp", "Correct", "Merge", "Modes", "Outliers", "Pick", "Predict", "Spread", "StreamProduct",
    "Streams", "place_end", "place_layer", "place_start",
]  # fmt: skip


@dataclass(frozen=True)
class Streams(Op):
    """[T,S,H]: the first input [T,H], and each part [T,(S-1)*H] of the second at the first's root
    mean square; that of a part is at least the root of ``floor``."""

    streams: int
    floor: float


@dataclass(frozen=True)
class Merge(Op):
    """[T,H]: the mean of the first stream of [T,S,H] and of the parts [T,(S-1)*H] of the second
    input, each at the first stream's root mean square, as ``Streams``."""

    streams: int
    floor: float


@dataclass(frozen=True)
class Modes(Op):
    """tanh(x W') [T,S] of x normalised with ``norm`` and divided by ``hidden``: of the stream
    ``stream`` of [T,S,H], or of [T,H]."""

    norm: Norm
    part: Part
    hidden: int
    stream: int | None = None

    @property
    def weights(self) -> tuple[Role, ...]:
        return (*self.norm.weights, self.part.weight)

    @property
    def matrices(self) -> tuple[Role, ...]:
        return (self.part.weight,)

    def weight_shapes(self, width: int) -> dict[Role, tuple[int, ...]]:
        norm = self.norm.weight_shapes(self.hidden)
        return {**norm, self.part.weight: (self.part.rows, self.hidden)}


@dataclass(frozen=True)
class _OfModes(Op):
    """An operation whose coefficients are a product of modes [T,S] with ``part``'s matrix."""

    part: Part
    streams: int

    @property
    def weights(self) -> tuple[Role, ...]:
        return (self.part.weight,)

    @property
    def matrices(self) -> tuple[Role, ...]:
        return self.weights

    def weight_shapes(self, width: int) -> dict[Role, tuple[int, ...]]:
        return {self.part.weight: (self.part.rows, self.streams)}


class Predict(_OfModes):
    """[T,S,H]: each stream plus a mix of all, with S coefficients each, of the second input's
    modes."""


@dataclass(frozen=True)
class Correct(_OfModes):
    """[T,S,H]: each predicted stream plus 1 + a coefficient (of the third input's modes) times what
    the layer made [T,H] less the stream ``active`` that it was given."""

    active: int = 0


@dataclass(frozen=True)
class Pick(Op):
    """The stream ``stream`` of [T,S,H], times a weight [H] where there is one: [T,H]."""

    stream: int
    weight: Role | None = None
    hidden: int = 0

    @property
    def weights(self) -> tuple[Role, ...]:
        return () if self.weight is None else (self.weight,)

    def weight_shapes(self, width: int) -> dict[Role, tuple[int, ...]]:
        return dict.fromkeys(self.weights, (self.hidden,))


@dataclass(frozen=True)
class Spread(Op):
    """[T,S,H] plus the branch [T,H] in all streams but the first."""


@dataclass(frozen=True)
class StreamProduct(Op):
    """Each stream of [T,S,H] but the first times its own matrix: [T,(S-1)*H]."""

    parts: tuple[Part, ...]

    @property
    def weights(self) -> tuple[Role, ...]:
        return tuple(part.weight for part in self.parts)

    @property
    def matrices(self) -> tuple[Role, ...]:
        return self.weights

    def weight_shapes(self, width: int) -> dict[Role, tuple[int, ...]]:
        return {part.weight: (part.rows, part.rows) for part in self.parts}


@dataclass(frozen=True)
class Outliers(Op):
    """max(0, x - mean - ``times`` * deviation) over the row [T,F]: the few that stand out.
    ``unbiased``: the deviation divides by F - 1."""

    times: float
    unbiased: bool = False


@dataclass(frozen=True)
class AltUp:
    """``streams``, of which ``active`` is computed; ``floor``: of ``Streams``; ``rank``: of the
    residual of low rank; ``scaled``: the corrected stream is weighed before the layer's own
    embedding is gated by it."""

    streams: int
    active: int
    floor: float
    rank: int
    scaled: bool
    norm: Norm

    def parts(self, name: str, hidden: int) -> tuple[Part, ...]:
        return tuple(
            Part(f"{name} {place + 1}", Role(name, None, place), hidden)
            for place in range(self.streams - 1)
        )


def place_start(b: Builder, hidden: StageKey, how: AltUp) -> StageKey:
    """The streams that the first layer is given."""
    width = (how.streams - 1) * b.hidden_size
    product = Product(how.parts("altup_projection", b.hidden_size))
    parts = b.put("altup_projected", product, hidden, width=width)
    op = Streams(how.streams, how.floor)
    return b.put("altup_streams", op, hidden, parts, stream=how.streams)


def place_end(b: Builder, streams: StageKey, how: AltUp) -> StageKey:
    """What the final norm is given."""
    b.layer = None
    width = (how.streams - 1) * b.hidden_size
    op = StreamProduct(how.parts("altup_unprojection", b.hidden_size))
    parts = b.put("altup_unprojected", op, streams, width=width)
    return b.put("altup_merged", Merge(how.streams, how.floor), streams, parts)


def place_layer(
    b: Builder, streams: StageKey, inputs: StageKey, how: AltUp, extra: PerLayer,
    attention: Attention, ffn: tuple[int, str, Outliers | None],
) -> StageKey:  # fmt: skip
    """One layer: the streams predicted, the active one computed, all corrected by it."""
    many = {"stream": how.streams}
    modes = b.put("altup_modes", _modes(b, how, how.active), streams, **many)
    coefs = Part("altup_predict", b.role("altup_predict"), how.streams**2)
    predicted = b.put("altup_predicted", Predict(coefs, how.streams), streams, modes, **many)
    active = b.put("altup_active", Pick(how.active), predicted)
    x = b.norm("attn_norm", active, how.norm)
    residual = _low_rank(b, x, how)
    mixed = b.norm("attn_post_norm", b.attention(x, attention), how.norm)
    hidden = b.residual("post_attn_residual", active, mixed)
    hidden = b.residual("laurel_residual", hidden, residual, total=2**-0.5)
    size, activation, sparse = ffn
    x = b.norm("ffn_norm", hidden, how.norm)
    made = b.norm("ffn_post_norm", b.gated_mlp(x, size, activation, kept=sparse), how.norm)
    hidden = b.residual("ffn_residual", hidden, made)
    modes = b.put("altup_correct_modes", _modes(b, how, None), hidden, **many)
    coefs = Part("altup_correct", b.role("altup_correct"), how.streams)
    op = Correct(coefs, how.streams, how.active)
    corrected = b.put("altup_corrected", op, predicted, hidden, modes, **many)
    weight = b.role("altup_scale") if how.scaled else None
    first = b.put("altup_first", Pick(how.active, weight, b.hidden_size), corrected)
    gated = place_gated(b, first, inputs, extra)
    return b.put("altup_out", Spread(), corrected, gated, **many)


def _modes(b: Builder, how: AltUp, stream: int | None) -> Modes:
    norm = replace(how.norm, weight=b.role("altup_norm"))
    part = Part("altup_router", b.role("altup_router"), how.streams)
    return Modes(norm, part, b.hidden_size, stream)


def _low_rank(b: Builder, x: StageKey, how: AltUp) -> StageKey:
    """x plus a product of low rank of it, normalised."""
    left = Part("laurel_left", b.role("laurel_left"), how.rank)
    right = Part("laurel_right", b.role("laurel_right"), b.hidden_size)
    low = b.put("laurel_in", Product((left,)), x, width=how.rank)
    made = b.norm("laurel_norm", b.put("laurel_out", Product((right,)), low), how.norm)
    return b.put("laurel", Add(), x, made)
