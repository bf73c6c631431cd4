"""The honest ways to compute a stage: which arithmetics are tried, and how each is said."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from aprtui.compare.case import Case
from aprtui.engine.replay import (
    CACHED,
    EXACT,
    F16_SCALES,
    FLASH,
    FUSED,
    INSIDE,
    STEPPED,
    STEPS,
    TF32_AWAY,
    WEIGHTS_SCALED,
    Arithmetic,
)
from aprtui.graph import Node, Role
from aprtui.graph.ops import (
    Activate,
    Add,
    Attend,
    Embed,
    Experts,
    Multiply,
    Norm,
    Op,
    Product,
    Rope,
    Scores,
)

__all__ = ["Numerics", "activated", "has", "normed_sum", "numerics_of", "product_ways"]

_TYPES = {"BF16": "bfloat16", "F16": "float16", "TF32": "TF32"}
_WITH_F16_SCALES = {name: _TYPES.get(kind, "") for kind, name in F16_SCALES.items()}
_STEPPED = {name: _TYPES[kind] for kind, name in STEPPED.items()}
_BEFORE_PRODUCTS = ("partner", "Q8_0", "Q8_K", "F16", "BF16")
_FEW_PRODUCTS = 2  # in a span: through more of them nothing but an engine's usual way is followed
_RANKS = (2, 4, 8)  # of a tensor-parallel runtime


@dataclass(frozen=True)
class Numerics:
    """One honest way to compute: how the stage rounds, and the type its output was rounded to.

    ``ties``: how many activations inside the experts lay next to a tie and went the other way.
    """

    how: Arithmetic = EXACT
    output: str = ""
    ties: int = 0

    def text(self, partners: str = "their weights' partner types") -> str:
        """What a report says: "activations rounded to Q8_K"; plain agreement is "float32".

        ``partners`` names what a rounding by the weights' types came to.
        """
        how = self.how
        if how.stage == "F32":
            return "float32, which overflows here"
        words = [*self._of_weights()]
        if how.product and how.product not in (*_TYPES, TF32_AWAY):
            to = partners if how.product == "partner" else how.product
            words.append(f"activations rounded to {to}")
        elif (how.product or how.stage) not in ("", "TF32", TF32_AWAY) and not self.output:
            words.append(f"{_TYPES[how.product or how.stage]} rounding of inputs")
        words += self._of_steps()
        if self.output:
            words.append(f"{_TYPES[self.output]} rounding of inputs and outputs")
        if self.ties:
            words.append(f"{self.ties} tie{'s' * (self.ties > 1)} inside the other way")
        return ", ".join(words) or "float32"

    def _of_weights(self) -> Iterator[str]:
        how = self.how
        if how.weights in ("TF32", TF32_AWAY):
            yield how.weights.replace("TF32", "TF32 products")
        elif how.weights in WEIGHTS_SCALED:
            yield how.weights
        elif how.weights in _WITH_F16_SCALES:
            rounded = _WITH_F16_SCALES[how.weights]
            yield "weights with float16 scales" + (f", in {rounded}" if rounded else "")
        elif how.weights in _STEPPED:
            yield f"weights decoded in {_STEPPED[how.weights]}"
        elif how.weights:
            yield f"{_TYPES[how.weights]} weights"
        if how.running:
            yield f"terms summed one by one in {_TYPES[how.running]}"
        if how.ranks > 1:
            yield f"sums of {how.ranks} ranks, each rounded to {_TYPES[how.partial]}"

    def _of_steps(self) -> Iterator[str]:
        how = self.how
        if how.attention in FLASH:
            yield "flash attention, its weights rounded before the values"
        elif how.attention:
            kind, _, fused = how.attention.partition(" ")
            yield f"{kind.lower()} KV cache" + (f", {fused}" if fused else "")
        if how.scaled_query:
            yield "attention of a query that was scaled first"
        if how.exponential:
            yield "SiLU of a rounded exponential"
        if how.summed:
            yield "normed from the residual sum before it was rounded"
        if how.tables:
            yield f"RoPE tables in {_TYPES[how.tables]}"
        if how.gelu_table:
            yield "f16 GELU table"


def numerics_of(case: Case, likely: Sequence[Numerics] = ()) -> Iterator[Numerics]:
    """Every honest way to compute the whole of a stage that is not one product: plain first, then
    ``likely``, those that explained such stages before, where they apply."""
    kinds = ("", case.rounded) if case.rounded else ("",)
    found = [Numerics(how, output) for output in kinds for how in _arithmetics(case, output)]
    first = (found[0], *(each for each in likely if each in found))
    yield from dict.fromkeys((*first, *found))


def has(case: Case, *operations: type[Op]) -> bool:
    """Whether one of the operations is part of the chain."""
    return any(isinstance(node.op, operations) for node in case.chain)


def activated(case: Case) -> set[str]:
    """The names of the activations in the chain, and of the one that its end multiplies."""
    ops = [node.op for node in case.chain]
    if isinstance(case.op, Multiply):
        ops.append(case.captured.graph[case.node.inputs[0]].op)
    names = {op.name for op in ops if isinstance(op, Activate)}
    return names | {op.activation for op in ops if isinstance(op, Experts)}


def _arithmetics(case: Case, output: str) -> Iterator[Arithmetic]:
    products = any(node.op.matrices for node in case.chain)
    long = sum(bool(node.op.matrices) for node in case.between) > _FEW_PRODUCTS
    rounded = (("partner",) if long else _BEFORE_PRODUCTS) if products else ()
    yield EXACT
    for kind in _attentions(case, products):
        for table in (False, True) if "gelu_tanh" in activated(case) else (False,):
            for product in ("", *rounded):
                for choice in (0, 1) if product == "partner" else (0,):
                    how = Arithmetic(product, choice, "", kind, table)
                    if how != EXACT:
                        yield how
    if isinstance(case.op, Norm):
        yield Arithmetic(stage="F32")
    if isinstance(case.op, Embed):
        for weights in _decoded(case, case.op.table):
            yield Arithmetic(weights=weights)
    for kind in (output,) if output else () if case.rounded else ("F16", "BF16"):
        yield from _in_type(case, kind, products, output)


def _attentions(case: Case, products: bool) -> tuple[str, ...]:
    """The KV caches and fused steps that scores or attention can have."""
    if not has(case, Scores, Attend):
        return ("",)
    fused = has(case, Scores) and has(case, Attend)  # in one step, or B captured no more
    usual = ("", "F16", "BF16", *(FUSED if fused else ()))
    return usual if products else tuple(dict.fromkeys((*usual, *CACHED)))


def _in_type(case: Case, kind: str, products: bool, output: str) -> Iterator[Arithmetic]:
    """The ways of an engine that computes in ``kind``; ``output``: it wrote its output in it."""
    product = kind if products else ""
    yield Arithmetic(stage=kind)
    if any(
        STEPPED[kind] in _decoded(case, role) for node in case.chain for role in node.op.matrices
    ):
        yield Arithmetic(product, weights=STEPPED[kind], stage=kind, running=kind)
    yield Arithmetic(product=product, weights=kind, stage=kind)
    if output or products:
        yield Arithmetic(product=product, weights=kind)  # one rounding of all, biases included
    if not output:
        return
    if has(case, Rope):
        yield Arithmetic(product=product, weights=kind, tables=kind)
    if has(case, Scores) and has(case, Attend):
        yield from _flash(case, kind, product)
    if has(case, *INSIDE, *STEPS):
        for weights in ("", kind):
            yield Arithmetic(product=product, weights=weights, stage=kind, steps=True)
    if "silu" in activated(case):
        yield Arithmetic(product, weights=kind, stage=kind, steps=True, exponential=True)
    if normed_sum(case) is not None:
        for steps in (False, True):
            how = Arithmetic(weights=kind, stage=kind if steps else "", steps=steps)
            yield replace(how, summed=True)


def _flash(case: Case, kind: str, product: str) -> Iterator[Arithmetic]:
    """Attention in one step in ``kind``, from q and k that B captured or rotated in one of its
    ways."""
    usual = Arithmetic(product, 0, kind, stage=kind)
    for way in (replace(usual, attention=f"{kind} flash"), replace(usual, scaled_query=True)):
        yield way
        if has(case, Rope):
            yield replace(way, steps=True)
            yield replace(way, tables=kind)


def normed_sum(case: Case) -> Node | None:
    """The residual sum that a norm reads, where B captured what was summed."""
    if not isinstance(case.op, Norm) or case.between or case.last:
        return None
    summed = case.captured.graph[case.node.inputs[0]] if case.node.inputs else None
    if summed is None or not isinstance(summed.op, Add):
        return None
    held = all(case.captured.state(key) == "whole" for key in summed.inputs)
    return summed if held else None


def product_ways(
    case: Case, op: Product, learnt: Sequence[Numerics]
) -> tuple[list[Arithmetic], list[Arithmetic]]:
    """How a product with ``op``'s one matrix may have been made: the likely (plain, what its type
    asks for, what explained products before), and the rest."""
    (role,) = op.matrices
    likely, other, scaled = case.replay.roundings(role)
    stated = case.replay.stated_roundings(role)
    usual = [Arithmetic(name) for name in (likely[0], *stated, *likely[1:])]
    known = {*likely, *other, *scaled, "TF32", TF32_AWAY}
    kept = ("", *_TYPES, TF32_AWAY, *WEIGHTS_SCALED, *_decoded(case, role))
    before = [
        _multiplying(each.how)
        for each in learnt
        if each.how.product in known and each.how.weights in kept
    ]
    first = [usual[0], *before] if before else usual
    rest = [*usual, *(Arithmetic(name) for name in (*other, *scaled))]
    kinds = (case.rounded,) if case.rounded else ("TF32", TF32_AWAY, "F16", "BF16")
    rest += [Arithmetic(kind, weights=kind) for kind in kinds]
    rest += [
        Arithmetic(name, weights=weights)
        for weights, (kind, _) in WEIGHTS_SCALED.items()
        for name in scaled
        if name.startswith((f"{kind} per tensor, float32", f"{kind} per token, float32"))
    ]
    if F16_SCALES[""] in kept:
        names = (*likely, *other, *scaled)
        rest += [Arithmetic(name, weights=F16_SCALES[""]) for name in names]
        rest += [Arithmetic(kind, weights=F16_SCALES[kind]) for kind in kinds if kind in F16_SCALES]
    if case.rounded:
        rest += _in_narrow_sums(case, op, case.rounded)
    return list(dict.fromkeys(first)), [how for how in dict.fromkeys(rest) if how not in first]


def _decoded(case: Case, role: Role) -> tuple[str, ...]:
    """The ways in which decoding a matrix itself may round."""
    if case.replay.narrow_decoding(role):
        return tuple(STEPPED.values())
    return tuple(F16_SCALES.values()) if case.replay.type_of(role) == "Q6_K" else ()


def _multiplying(how: Arithmetic) -> Arithmetic:
    """What of an arithmetic concerns a product."""
    return Arithmetic(
        how.product,
        weights=how.weights,
        running=how.running,
        ranks=how.ranks,
        partial=how.partial,
    )


def _in_narrow_sums(case: Case, op: Product, kind: str) -> Iterator[Arithmetic]:
    """Products of which not only the output is rounded to ``kind``."""
    (role,) = op.matrices
    for weights in (kind, *(name for name in _decoded(case, role) if name == STEPPED[kind])):
        yield Arithmetic(kind, weights=weights, running=kind)
        if weights != kind:
            yield Arithmetic(kind, weights=weights)
    columns = case.replay.shape(role)[1]
    for ranks in _RANKS:
        if columns % ranks == 0:
            yield Arithmetic(kind, weights=kind, ranks=ranks, partial=kind)
