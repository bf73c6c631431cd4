"""Explaining a local error by honest numerics: float32, bf16, f16, rounded activations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from aprtui.compare.case import Case
from aprtui.compare.localerror import LocalError, local_error, row_norms
from aprtui.engine.replay import CACHED, EXACT, FUSED, INSIDE, STEPS, SUMMED, Arithmetic
from aprtui.graph.ops import (
    Activate,
    Attend,
    Choose,
    Experts,
    Multiply,
    Norm,
    Op,
    Product,
    Scores,
)

__all__ = ["Explanation", "Numerics", "activated", "explain", "numerics_of"]

Float64 = npt.NDArray[np.float64]

_TYPES = {"BF16": "bfloat16", "F16": "float16"}
_UNITS = {"BF16": 2.0**-8, "F16": 2.0**-11}


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
        words = []
        if how.weights:
            words.append(f"{_TYPES[how.weights]} weights")
        if how.product and how.product not in _TYPES:
            to = partners if how.product == "partner" else how.product
            words.append(f"activations rounded to {to}")
        elif (how.product or how.stage) and not self.output:
            words.append(f"{_TYPES[how.product or how.stage]} rounding of inputs")
        if how.attention:
            kind, _, fused = how.attention.partition(" ")
            words.append(f"{kind.lower()} KV cache" + (f", {fused}" if fused else ""))
        if how.gelu_table:
            words.append("f16 GELU table")
        if self.output:
            words.append(f"{_TYPES[self.output]} rounding of inputs and outputs")
        if self.ties:
            words.append(f"{self.ties} tie{'s' * (self.ties > 1)} inside the other way")
        return ", ".join(words) or "float32"


@dataclass(frozen=True)
class Explanation:
    """The best that honest numerics can do for one stage.

    ``plain`` is the error against float64; ``residual`` what the best numerics leave; ``parts``
    what explains each matrix where a stage has several and they differ; ``unexplained`` the parts
    (or the stage's own name) that nothing explains. ``replayed`` is the output of the best.
    """

    plain: LocalError
    residual: LocalError
    by: str
    parts: Mapping[str, str]
    unexplained: tuple[str, ...]
    replayed: Float64 = field(repr=False)
    numerics: Numerics

    @property
    def explained(self) -> bool:
        return not self.unexplained


def numerics_of(case: Case) -> Iterator[Numerics]:
    """Every honest way to compute the whole of a stage that is not one product, plain first."""
    kinds = ("", case.rounded) if case.rounded else ("",)
    for output in kinds:
        for how in _arithmetics(case, output):
            yield Numerics(how, output)


def _has(case: Case, *operations: type[Op]) -> bool:
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
    rounded = ("partner", "Q8_0", "Q8_K", "F16", "BF16") if products else ()
    yield EXACT
    kinds: tuple[str, ...] = ("", *CACHED) if _has(case, Scores, Attend) else ("",)
    if _has(case, Scores) and _has(case, Attend):  # in one step, or in some that B did not capture
        kinds += FUSED
    for kind in kinds:
        for table in (False, True) if "gelu_tanh" in activated(case) else (False,):
            for product in ("", *rounded):
                for choice in (0, 1) if product == "partner" else (0,):
                    how = Arithmetic(product, choice, "", kind, table)
                    if how != EXACT:
                        yield how
    if isinstance(case.op, Norm):
        yield Arithmetic(stage="F32")
    for kind in (output,) if output else () if case.rounded else ("F16", "BF16"):
        yield Arithmetic(stage=kind)
        yield Arithmetic(product=kind if products else "", weights=kind, stage=kind)
        if output and _has(case, *INSIDE, *STEPS):
            yield Arithmetic(product=kind if products else "", stage=kind, steps=True)
            yield Arithmetic(product=kind if products else "", weights=kind, stage=kind, steps=True)


def explain(case: Case) -> Explanation:
    """Find the numerics that reproduce B's output, part by part where a stage is one product."""
    if isinstance(case.op, Choose):
        return _explain_choice(case)
    if isinstance(case.op, Product) and not case.between:
        return _explain_product(case, case.op)
    tried: list[tuple[LocalError, Float64, Numerics]] = []
    for numerics in numerics_of(case):
        made = _run(case, numerics.how)
        if made is None:
            continue
        error = case.error(made, numerics.output)
        if isinstance(case.op, Experts) and not error.within(case.limits):
            made, numerics = _with_ties(case, made, numerics)
            error = case.error(made, numerics.output)
        tried.append((error, made, numerics))
        if (error.within(case.limits) and error.measured) or error.born:
            break
    measured = [each for each in tried if each[0].measured] or tried[:1]
    best = min(
        measured,
        key=lambda each: (
            not each[0].within(case.limits),
            not each[0].within(_limits(case, each[2])),
            each[0].median_row_rel_l2 > case.limits[0],
            each[0].rel_l2,
        ),
    )
    inside = best[0].within(_limits(case, best[2]))
    return Explanation(
        tried[0][0],
        best[0],
        best[2].text(_partners(case, best[2].how)) if inside else "",
        {},
        () if inside else (case.key.stage,),
        best[1] if inside else tried[0][1],
        best[2] if inside else Numerics(),
    )


def _limits(case: Case, numerics: Numerics) -> tuple[float, float]:
    """The bars for one arithmetic. Where it rounds more than once inside a stage, a float32 sum
    that lies next to a tie flips a whole unit: an eighth of the type's unit is allowed then."""
    if numerics.how.attention == SUMMED:
        loose = _UNITS["F16"] / 8
        return max(case.limits[0], loose), max(case.limits[1], 4 * loose)
    nested = (*INSIDE, *STEPS) if numerics.how.steps else INSIDE
    if not _has(case, *nested) or not numerics.output or numerics.output != numerics.how.stage:
        return case.limits
    loose = _UNITS[numerics.output] / 8
    return max(case.limits[0], loose), max(case.limits[1], 4 * loose)


def _run(case: Case, how: Arithmetic) -> Float64 | None:
    """The stage in one arithmetic; None where a rounding does not fit the matrices."""
    try:
        if how.gelu_table and isinstance(case.op, Multiply) and not case.between:
            return _fused_gelu(case, how)
        return case.run(how)
    except RuntimeError:  # torch: columns that are no multiple of the rounding's block
        return None


def _with_ties(case: Case, made: Float64, numerics: Numerics) -> tuple[Float64, Numerics]:
    """``made`` with activations inside the experts that lie next to a tie rounded the other way,
    where that reproduces every row beyond the bar; unchanged where it does not."""
    inputs = case.inputs(how=numerics.how)
    if not numerics.how.product or numerics.output or len(inputs[0]) != len(case.y):
        return made, numerics
    error, norms = case.y - made, row_norms(case.y, 0)
    mended, ties = made.copy(), 0
    for row in np.flatnonzero(row_norms(error, 0) > case.limits[0] * norms):
        given = [value[row : row + 1] for value in inputs]
        flips = case.replay.expert_flips(case.node, given, numerics.how)
        if not len(flips) or not np.isfinite(error[row]).all():
            return made, numerics
        taken = np.linalg.lstsq(flips.T, error[row], rcond=None)[0] > 0.5
        mended[row] += flips[taken].sum(0)
        if np.linalg.norm(case.y[row] - mended[row]) > case.limits[0] * norms[row]:
            return made, numerics
        ties += int(taken.sum())
    return mended, replace(numerics, ties=ties)


def _partners(case: Case, how: Arithmetic) -> str:
    """The types that activations were rounded to, by the weights of the chain's products."""
    roles = {role for node in case.chain for role in node.op.matrices}
    found = {case.replay.partner(role, how.choice) for role in roles}
    return " and ".join(sorted(found - {""})) or "nothing"


def _explain_choice(case: Case) -> Explanation:
    """Expert ids are compared as integers; of equal logits either may come first."""
    tried: list[tuple[LocalError, Float64, Numerics]] = []
    for how in _logit_arithmetics(case):
        try:
            logits = case.inputs(how=how)[0]
        except RuntimeError:  # torch: columns that are no multiple of the rounding's block
            continue
        ids = case.replay.run(case.node, (logits,), how)
        scores = case.replay.choice_scores(case.node, logits)
        wrong = _wrong_ids(case.y, scores, ids.shape[1])
        tried.append((_ids_error(wrong), ids, Numerics(how)))
        if not wrong.any():
            break
    best = min(tried, key=lambda each: each[0].rel_l2)
    bad = best[0].rel_l2 > 0
    by = "" if bad else best[2].text()
    unexplained = (case.key.stage,) if bad else ()
    made = tried[0][1] if bad else best[1]
    return Explanation(tried[0][0], best[0], by, {}, unexplained, made, best[2])


def _logit_arithmetics(case: Case) -> Iterator[Arithmetic]:
    """How the logits may have been computed, plain first; one way where they were captured."""
    roles = [role for node in case.between for role in node.op.matrices]
    if not roles:
        yield EXACT
        return
    likely, other = case.replay.roundings(roles[-1])
    yield from (Arithmetic(name) for name in (*likely, *other))


def _wrong_ids(y: Float64, scores: Float64, rank: int) -> npt.NDArray[np.bool_]:
    """Which captured ids [T,k] are not the expert of that rank, ties (to 1e-5) allowed."""
    count = scores.shape[1]
    valid = np.isfinite(y) & (y == np.floor(y)) & (y >= 0) & (y < count)
    ids = np.where(valid, y, 0).astype(np.int64)
    chosen = np.take_along_axis(scores, ids, axis=1)
    best = -np.sort(-scores, axis=1)[:, :rank]
    twice = np.array([[row[:i].tolist().count(row[i]) > 0 for i in range(rank)] for row in ids])
    return np.asarray(~valid | twice | (np.abs(chosen - best) > 1e-5 * np.maximum(1, abs(best))))


def _ids_error(wrong: npt.NDArray[np.bool_]) -> LocalError:
    rows = wrong.mean(axis=1)
    worst = int(np.argmax(rows))
    place = (worst, int(np.argmax(wrong[worst])))
    return LocalError(float(wrong.mean()), float(rows[worst]), worst, place, 0, 0, wrong.size)


def _fused_gelu(case: Case, how: Arithmetic) -> Float64 | None:
    """ggml computes activation and product in one step, from the gate, through its table."""
    act = case.captured.graph[case.node.inputs[0]]
    gate = act.inputs[0]
    if case.captured.state(gate) != "whole" or case.last:
        return None
    through = case.replay.run(act, (case.captured.wide(gate),), how)
    return case.shaped(case.replay.run(case.node, (through, case.inputs()[1]), how))


# -- stages that are one product -------------------------------------------------------------------


@dataclass(frozen=True)
class _Fit:
    error: LocalError
    made: Float64
    numerics: Numerics


def _explain_product(case: Case, op: Product) -> Explanation:
    x, parts = case.replay.product_input(op, case.inputs()[0]), op.parts
    plain: list[Float64] = []
    fits: list[_Fit] = []
    for part in parts:
        first, fit = _fit_part(case, op.alone(part), case.columns(part), x)
        plain.append(first)
        fits.append(fit)
    alone = len(parts) == 1
    bad = [
        case.key.stage if alone else part.name
        for part, fit in zip(parts, fits, strict=True)
        if not fit.error.within(case.limits)
    ]
    exact = case.shaped(np.concatenate(plain, axis=1))
    joined = case.shaped(np.concatenate([fit.made for fit in fits], axis=1))
    texts = [fit.numerics.text() for fit in fits]
    outputs = {fit.numerics.output for fit in fits}
    residual = case.error(joined, outputs.pop() if len(outputs) == 1 else "")
    same = len(set(texts)) == 1
    named = {} if same else {part.name: text for part, text in zip(parts, texts, strict=True)}
    by = texts[0] if same else "; ".join(f"{name}: {text}" for name, text in named.items())
    return Explanation(
        case.error(exact), residual, "" if bad else by, named, tuple(bad), joined, fits[0].numerics
    )


def _fit_part(case: Case, op: Product, y: Float64, x: Float64) -> tuple[Float64, _Fit]:
    """(the plain product, the best fit) of one matrix, a product of which is the only part and
    ``y`` what B made of it; stops at the first round that fits."""
    (role,) = op.matrices
    likely, other = case.replay.roundings(role)
    plain: Float64 | None = None
    best: _Fit | None = None
    rounds = [(likely, ""), (other, "")]
    rounds += [((kind,), kind) for kind in ((case.rounded,) if case.rounded else ("F16", "BF16"))]
    for names, weights in rounds:
        if not names:
            continue
        made = case.replay.products(role, x, names, weights)
        made = [case.replay.finish(op, each) for each in made]
        if plain is None:
            plain = made[0]
        for name, values in zip(names, made, strict=True):
            for output in ("", case.rounded) if case.rounded else ("",):
                error = local_error(y, values.reshape(y.shape), 0, output)
                fit = _Fit(error, values, Numerics(Arithmetic(name, weights=weights), output))
                if best is None or _rank(fit, case) < _rank(best, case):
                    best = fit
        if best is not None and (best.error.within(case.limits) or best.error.born):
            break
    assert plain is not None and best is not None
    return plain, best


def _rank(fit: _Fit, case: Case) -> tuple[bool, bool, float]:
    """Fits inside the bars first, among them those that do not lean on the output's rounding."""
    inside = fit.error.within(case.limits)
    return (not inside, inside and bool(fit.numerics.output), fit.error.rel_l2)
