"""The honest ways to compute a stage: which arithmetics are tried, and how each is said."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from aprtui.compare.case import Case
from aprtui.engine.replay import (
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
    TF32_AWAY,
    UNROUNDED,
    WEIGHTS_SCALED,
    Arithmetic,
)
from aprtui.graph import Node, Role
from aprtui.graph.altup import Modes
from aprtui.graph.ops import (
    Activate,
    Add,
    Attend,
    Bias,
    Embed,
    Experts,
    Multiply,
    Norm,
    Op,
    Part,
    Product,
    Rope,
    Scores,
    SharedRope,
)
from aprtui.graph.recurrent import ChannelScan, Decay
from aprtui.text import count

__all__ = [
    "Numerics",
    "activated",
    "has",
    "likely_ways",
    "limits_of",
    "numerics_of",
    "other_ways",
    "written_before",
]

_TYPES = {"BF16": "bfloat16", "F16": "float16", "TF32": "TF32"}
_WITH_F16_SCALES = {name: _TYPES.get(kind, "") for kind, name in F16_SCALES.items()}
_STEPPED = {name: _TYPES[kind] for kind, name in STEPPED.items()}
_BEFORE_PRODUCTS = ("partner", "Q8_0", "Q8_K", "F16", "BF16")
_FEW_PRODUCTS = 2  # in a span: through more of them nothing but an engine's usual way is followed
_UNITS = {"BF16": 2.0**-8, "F16": 2.0**-11}
_RANKS = (2, 4, 8)  # of a tensor-parallel runtime


@dataclass(frozen=True)
class Numerics:
    """One honest way to compute: how the stage rounds, and the type its output was rounded to.

    ``ties``: how many activations inside the experts lay next to a tie and went the other way.
    ``other_keys``: at how many positions others of the keys with equal scores were chosen.
    """

    how: Arithmetic = EXACT
    output: str = ""
    ties: int = 0
    other_keys: int = 0

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
        if self.other_keys:
            words = words or ["float32"]
            chosen = count(self.other_keys, "position")
            words.append(f"others of the keys with equal scores chosen at {chosen}")
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
        elif how.partial:
            yield f"a sum rounded to {_TYPES[how.partial]}"

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
        if how.before == UNROUNDED:
            yield "from the sum before it was rounded"
        elif how.before:
            yield "both branches added before the residual"
        if how.numbers:
            yield f"its factor in {_TYPES[how.weights]}"
        if how.fused_bias:
            yield "a bias added before the rounding"
        if how.tables:
            yield f"RoPE tables in {_TYPES[how.tables]}"
        if how.frequencies:
            yield f"RoPE's frequencies in {_TYPES[how.frequencies]}"
        if how.gelu_table:
            yield "f16 GELU table"


def limits_of(case: Case, numerics: Numerics, part: Part | None = None) -> tuple[float, float]:
    """The bars for one arithmetic, of a product's ``part``. Where it rounds more than once inside a
    stage, a float32 sum that lies next to a tie flips a whole unit: an eighth of the type's unit is
    allowed then."""
    how, inner = numerics.how, ""
    if how.attention in (SUMMED, *FLASH):
        inner = numerics.output or "F16"
    elif how.stage in _UNITS and not numerics.output and _rounds_inside(case, how):
        inner = how.stage
    elif how.partial and numerics.output in ("", how.partial):
        inner = how.partial
    elif numerics.output and numerics.output == how.stage:
        nested = (*INSIDE, *STEPS) if how.steps else INSIDE
        twice = part is not None and not _plain(case.op, part)
        if twice or (has(case, *nested) and not isinstance(case.op, Embed)):
            inner = how.stage
    if not inner:
        return case.limits
    loose = _UNITS[inner] / 8
    return max(case.limits[0], loose), max(case.limits[1], 4 * loose)


def _rounds_inside(case: Case, how: Arithmetic) -> bool:
    """Whether what comes out whole was rounded inside: by a scan of channels, which does not round
    its state, or by the steps that lead to it."""
    scanned = any(isinstance(node.op, ChannelScan) and not node.op.last for node in case.chain)
    return scanned or (how.steps and any(isinstance(node.op, STEPS) for node in case.between))


def _has_factor(op: Op) -> bool:
    """Whether it multiplies by a number of its own, which some runtimes keep as a weight."""
    if isinstance(op, Product):
        return any(part.scale != 1.0 for part in op.parts)
    return (
        isinstance(op, Modes)
        or (isinstance(op, Add) and op.total != 1.0)
        or (isinstance(op, Norm) and op.scale != 1.0)
    )


def numerics_of(case: Case, likely: Sequence[Numerics] = ()) -> Iterator[Numerics]:
    """Every honest way to compute the whole of a stage that is not one product: plain first, then
    ``likely``, those that explained such stages before, where they apply.

    Then RoPE's frequencies or tables in 16 bits, and last the type that the output was not rounded
    to: a few bits fit the other by chance."""
    kinds = ("", case.rounded) if case.rounded else ("",)
    found = [Numerics(how, output) for output in kinds for how in _arithmetics(case, output)]
    found += [*_of_narrow_angles(case, found)]
    products = any(node.op.matrices for node in case.chain)
    for other in _UNITS.keys() - {case.rounded} if case.rounded else ():
        found += [Numerics(how) for how in _in_type(case, other, products, "")]
    first = (found[0], *(each for each in likely if each in found))
    yield from dict.fromkeys((*first, *found))


def _of_narrow_angles(case: Case, found: Sequence[Numerics]) -> Iterator[Numerics]:
    """The ways of ``found`` by an engine that keeps RoPE's frequencies in the type of its own
    numbers, or of its file's where it computes in float32; of a rotation also in the other type of
    16 bits, and its tables in either."""
    if not has(case, Rope, SharedRope):
        return
    own = (case.rounded,) if case.rounded else tuple(_UNITS)
    for kind in own:
        for each in _of_one_type(found, kind):
            yield replace(each, how=replace(each.how, frequencies=kind))
    if has(case, Scores):
        return  # so many ways would take long
    for kind in _UNITS:
        for each in _of_one_type(found, case.rounded or kind):
            if kind not in own:
                yield replace(each, how=replace(each.how, frequencies=kind))
            yield replace(each, how=replace(each.how, tables=kind))


def _of_one_type(found: Sequence[Numerics], kind: str) -> Iterator[Numerics]:
    """Those that round to no other type of 16 bits."""
    others = _UNITS.keys() - {kind}
    return (n for n in found if not others & {n.how.stage, n.how.product, n.how.weights})


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
    if isinstance(case.op, Norm | Bias):
        yield from (Arithmetic(weights=kind) for kind in _UNITS)  # as the runtime keeps them
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
    if output or any(node.op.weights for node in case.chain):
        yield Arithmetic(product=product, weights=kind)  # one rounding of all, biases included
    if not output:
        if any(isinstance(node.op, Scores) and node.op.alibi for node in case.chain):
            yield Arithmetic(stage=kind, fused_bias=True)  # transformers' falcon
        if has(case, Decay):  # transformers' Kimi Linear
            yield Arithmetic(product=product, weights=kind, stage=kind, addends=True)
        if any(isinstance(node.op, STEPS) for node in case.between):  # what they make is rounded
            yield from (Arithmetic(product, weights=w, stage=kind, steps=True) for w in ("", kind))
        return
    if any(_has_factor(node.op) for node in case.chain):
        yield Arithmetic(product, weights=kind, stage=kind, numbers=True)
    if has(case, Rope, SharedRope):
        yield Arithmetic(product=product, weights=kind, tables=kind)
    if has(case, Scores) and has(case, Attend):
        yield from _flash(case, kind, product)
    if has(case, Scores, Attend) and not products:
        yield from (Arithmetic(attention=cache, stage=kind) for cache in CACHED)
    if has(case, *INSIDE, *STEPS):
        for weights in ("", kind):
            yield Arithmetic(product=product, weights=weights, stage=kind, steps=True)
    if "silu" in activated(case):
        yield Arithmetic(product, weights=kind, stage=kind, steps=True, exponential=True)
    if (source := written_before(case)) is not None:
        yield from _from_before(case, source, kind)


def _flash(case: Case, kind: str, product: str) -> Iterator[Arithmetic]:
    """Attention in one step in ``kind``, from q and k that B captured or rotated in one of its
    ways."""
    usual = Arithmetic(product, 0, kind, stage=kind)
    for way in (replace(usual, attention=f"{kind} flash"), replace(usual, scaled_query=True)):
        yield way
        if has(case, Rope):
            yield replace(way, steps=True)
            yield replace(way, tables=kind)


_BEFORE: dict[type[Op], type[Op]] = {Norm: Add, Bias: Product, Add: Add}


def written_before(case: Case) -> Node | None:
    """The sum that a norm or a sum reads, the product that a bias is added to, where B captured
    what it was made of."""
    if case.between or case.last or not case.node.inputs:
        return None
    source = case.captured.graph[case.node.inputs[0]]
    if not isinstance(source.op, _BEFORE.get(type(case.op), ())):
        return None
    held = all(case.captured.state(key) == "whole" for key in source.inputs)
    return source if held else None


def _from_before(case: Case, source: Node, kind: str) -> Iterator[Arithmetic]:
    """The ways of an engine of ``kind`` that does not read what ``source`` wrote."""
    if isinstance(case.op, Add):
        plain = isinstance(source.op, Add) and case.op.scale == source.op.scale == 1.0
        if plain:
            yield Arithmetic(before=BRANCHES_FIRST)
        return
    product = kind if source.op.matrices else ""
    yield Arithmetic(product, weights=kind, before=UNROUNDED)
    if product:
        yield Arithmetic(product, before=UNROUNDED)
    else:
        yield Arithmetic(weights=kind, stage=kind, steps=True, before=UNROUNDED)


def likely_ways(case: Case, op: Product, learnt: Sequence[Numerics]) -> list[Arithmetic]:
    """How a product with ``op``'s one matrix was made most likely: plainly, as its type or the
    checkpoint asks for, as what explained products before."""
    (role,) = op.matrices
    likely, other, scaled = case.replay.roundings(role)
    stated = case.replay.stated_roundings(role)
    usual = [Arithmetic(name) for name in (likely[0], *stated, *likely[1:])]
    known = {*likely, *other, *scaled, "TF32", TF32_AWAY}
    kept = ("", *_TYPES, TF32_AWAY, *WEIGHTS_SCALED, *_decoded(case, role))
    before = [
        _multiplying(each.how, op)
        for each in learnt
        if each.how.product in known and each.how.weights in kept
    ]
    return list(dict.fromkeys([usual[0], *before] if before else usual))


def other_ways(case: Case, op: Product) -> list[Arithmetic]:
    """Every way, whatever is likely."""
    (role,) = op.matrices
    likely, other, scaled = case.replay.roundings(role)
    stated = case.replay.stated_roundings(role)
    found = [Arithmetic(name) for name in (likely[0], *stated, *likely[1:], *other, *scaled)]
    kinds = (case.rounded,) if case.rounded else ("TF32", TF32_AWAY, "F16", "BF16")
    found += [Arithmetic(kind, weights=kind) for kind in kinds]
    if case.rounded and not _plain(op, op.parts[0]):
        usual = Arithmetic(case.rounded, weights=case.rounded, stage=case.rounded)
        found += [replace(usual, weights=w) for w in (*kinds, "")]
        found += [replace(usual, numbers=True)] if _has_factor(op) else []
        found += [replace(usual, fused_bias=True)] if _goes_on(op, op.parts[0]) else []
    elif not _plain(op, op.parts[0]):  # of which the rest may be computed in float32
        found += [Arithmetic(kind, weights=kind, partial=kind) for kind in _UNITS]
    found += [
        Arithmetic(name, weights=weights)
        for weights, (kind, _) in WEIGHTS_SCALED.items()
        for name in scaled
        if name.startswith((f"{kind} per tensor, float32", f"{kind} per token, float32"))
    ]
    if F16_SCALES[""] in _decoded(case, role):
        names = (*likely, *other, *scaled)
        found += [Arithmetic(name, weights=F16_SCALES[""]) for name in names]
        scales = (kind for kind in kinds if kind in F16_SCALES)
        found += [Arithmetic(kind, weights=F16_SCALES[kind]) for kind in scales]
    if case.rounded:
        found += _in_narrow_sums(case, op, case.rounded)
    return list(dict.fromkeys(found))


def _decoded(case: Case, role: Role) -> tuple[str, ...]:
    """The ways in which decoding a matrix itself may round."""
    if case.replay.narrow_decoding(role):
        return tuple(STEPPED.values())
    return tuple(F16_SCALES.values()) if case.replay.type_of(role) == "Q6_K" else ()


def _multiplying(how: Arithmetic, op: Product) -> Arithmetic:
    """What of an arithmetic concerns a product."""
    return Arithmetic(
        how.product,
        weights=how.weights,
        stage="" if _plain(op, op.parts[0]) else how.stage,
        running=how.running,
        ranks=how.ranks,
        partial=how.partial,
        numbers=how.numbers and _has_factor(op),
        fused_bias=how.fused_bias and _goes_on(op, op.parts[0]),
    )


def _goes_on(op: Product, part: Part) -> bool:
    """Whether a bias is not the last that follows a part's product inside its stage."""
    return part.bias is not None and (op.factor(part) != 1.0 or op.cap is not None)


def _plain(op: Op, part: Part) -> bool:
    """Whether nothing follows a part's product inside its stage."""
    assert isinstance(op, Product)
    return part.bias is None and op.factor(part) == 1.0 and op.cap is None


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
