"""Explaining a local error by honest numerics: float32, bf16, f16, rounded activations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from aprtui.compare.case import Case
from aprtui.compare.fits import Fit, fit_part
from aprtui.compare.localerror import LocalError, row_norms
from aprtui.compare.numerics import Numerics, limits_of, numerics_of, written_before
from aprtui.compare.tied_keys import with_tied_keys, wrong_keys
from aprtui.engine.replay import (
    EXACT,
    UNROUNDED,
    Arithmetic,
)
from aprtui.graph import Node
from aprtui.graph.indexer import ChooseKeys
from aprtui.graph.ops import Choose, Experts, Multiply, Product

__all__ = ["Explanation", "explain"]

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Explanation:
    """The best that honest numerics can do for one stage.

    ``plain`` is the error against float64; ``residual`` what the best numerics leave; ``parts``
    what explains each matrix where a stage has several and they differ; ``unexplained`` the parts
    (or the stage's own name) that nothing explains. ``replayed`` is the output of the best where it
    explains, else the plain one; ``best`` and ``how``: of the best in any case; ``fits``: of each
    matrix of a product.
    """

    plain: LocalError
    residual: LocalError
    by: str
    parts: Mapping[str, str]
    unexplained: tuple[str, ...]
    replayed: Float64 = field(repr=False)
    numerics: Numerics
    best: Float64 = field(repr=False)
    how: Arithmetic = EXACT
    fits: tuple[Fit, ...] = ()

    @property
    def explained(self) -> bool:
        return not self.unexplained


def explain(case: Case, likely: Sequence[Numerics] = ()) -> Explanation:
    """Find the numerics that reproduce B's output, part by part where a stage is one product.

    ``likely``: what explained such stages before; tried after plain float32.
    """
    if isinstance(case.op, Choose | ChooseKeys):
        return _explain_choice(case)
    if isinstance(case.op, Product) and not case.between:
        return _explain_product(case, case.op, likely)
    first: Fit | None = None
    best: Fit | None = None
    for numerics in numerics_of(case, likely):
        if _narrow_angles(numerics, case) and best is not None and _inside(best, case):
            break  # what is cheaper explains it
        made = _run(case, numerics.how)
        if made is None:
            continue
        error = case.error(made, numerics.output)
        if not error.within(case.limits):
            mend = _with_ties if isinstance(case.op, Experts) else with_tied_keys
            made, numerics = mend(case, made, numerics)
            error = case.error(made, numerics.output)
        fit = Fit(error, made, numerics)  # the others are let go: they can be large
        first = first or fit
        if best is None or _order(fit, case) < _order(best, case):
            best = fit
        if (error.within(case.limits) and error.measured) or error.born:
            break
    assert first is not None and best is not None
    inside = _inside(best, case)
    return Explanation(
        first.error,
        best.error,
        best.numerics.text(_partners(case, best.numerics.how)) if inside else "",
        {},
        () if inside else (case.key.stage,),
        best.made if inside else first.made,
        best.numerics if inside else Numerics(),
        best.made,
        best.numerics.how,
    )


def _narrow_angles(numerics: Numerics, case: Case) -> bool:
    """Whether RoPE's frequencies are in 16 bits, or its tables in others than B's own."""
    return bool(numerics.how.frequencies) or numerics.how.tables not in ("", case.rounded)


def _inside(fit: Fit, case: Case) -> bool:
    return fit.error.within(limits_of(case, fit.numerics))


def _order(fit: Fit, case: Case) -> tuple[bool | float, ...]:
    """What was measured first, then what is inside the bars, then the smaller error."""
    if not fit.error.measured:
        return (True,)
    return (
        False,
        not fit.error.within(case.limits),
        not _inside(fit, case),
        fit.error.median_row_rel_l2 > case.limits[0],
        fit.error.rel_l2,
    )


def _run(case: Case, how: Arithmetic) -> Float64 | None:
    """The stage in one arithmetic; None where a rounding does not fit the matrices."""
    try:
        if how.gelu_table and isinstance(case.op, Multiply) and not case.between:
            return _fused_gelu(case, how)
        if how.before and (source := written_before(case)) is not None:
            return _from_before(case, source, how)
        return case.run(how)
    except RuntimeError:  # torch: columns that are no multiple of the rounding's block
        return None


def _from_before(case: Case, source: Node, how: Arithmetic) -> Float64:
    """The stage from what ``source`` made of its captured inputs, in place of what it wrote."""
    given = [case.captured.wide(key) for key in source.inputs]
    if how.before == UNROUNDED:
        made = (case.replay.run(source, given, replace(how, stage="")),)
        return case.shaped(case.replay.run(case.node, made, how))
    hidden, branch = given
    branches = case.replay.run(case.node, (branch, case.inputs()[1]), how)
    branches = case.replay.rounded(branches, case.rounded)
    return case.shaped(case.replay.run(case.node, (hidden, branches), how))


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
    """Ids of experts, and keys, are compared as integers; of equal scores either may come first."""
    tried: list[tuple[LocalError, Float64, Numerics]] = []
    for how in _logit_arithmetics(case):
        try:
            logits = case.inputs(how=how)[0]
        except RuntimeError:  # torch: columns that are no multiple of the rounding's block
            continue
        ids = case.replay.run(case.node, (logits,), how)
        scores = case.replay.choice_scores(case.node, logits)
        if isinstance(case.op, ChooseKeys):
            wrong = wrong_keys(case, case.node, ids, scores)
        else:
            wrong = _wrong_ids(case.y, scores, ids.shape[1])
        tried.append((_ids_error(wrong), ids, Numerics(how)))
        if not wrong.any():
            break
    best = min(tried, key=lambda each: each[0].rel_l2)
    bad = best[0].rel_l2 > 0
    by = "" if bad else best[2].text()
    unexplained = (case.key.stage,) if bad else ()
    made = tried[0][1] if bad else best[1]
    return Explanation(tried[0][0], best[0], by, {}, unexplained, made, best[2], best[1])


def _logit_arithmetics(case: Case) -> Iterator[Arithmetic]:
    """How the logits may have been computed, plain first; one way where they were captured."""
    roles = [role for node in case.between for role in node.op.matrices]
    if not roles:
        yield EXACT
        return
    likely, other, _ = case.replay.roundings(roles[-1])
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
    rows = wrong.mean(axis=-1).reshape(-1)
    worst = int(np.argmax(rows))
    place = tuple(int(at) for at in np.unravel_index(int(np.argmax(wrong)), wrong.shape))
    if rows.size:
        place = (*place[:-2], worst, int(np.argmax(wrong.reshape(rows.size, -1)[worst])))
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


def _explain_product(case: Case, op: Product, learnt: Sequence[Numerics]) -> Explanation:
    x, parts = case.replay.activations(case.replay.product_input(op, case.inputs()[0])), op.parts
    plain: list[Float64] = []
    fits: list[Fit] = []
    for part in parts:
        first, fit = fit_part(case, op.alone(part), case.columns(part), x, learnt)
        plain.append(first)
        fits.append(fit)
    alone = len(parts) == 1
    bad = [
        case.key.stage if alone else part.name
        for part, fit in zip(parts, fits, strict=True)
        if not fit.error.within(limits_of(case, fit.numerics, part))
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
        case.error(exact),
        residual,
        "" if bad else by,
        named,
        tuple(bad),
        joined,
        fits[0].numerics,
        joined,
        fits[0].numerics.how,
        tuple(fits),
    )
