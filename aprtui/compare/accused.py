"""A culprit made of what was measured: its mistake, how its error looks, which rows have it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from aprtui.compare.bisection import Culprit, Mistake
from aprtui.compare.blamed import otherwise_held, reads_of
from aprtui.compare.case import Case
from aprtui.compare.causes import Read
from aprtui.compare.explain import Explanation
from aprtui.compare.floor import Outlier, judge_finely
from aprtui.compare.localerror import LocalError
from aprtui.compare.looks import looks_like, wrong_rows
from aprtui.compare.mistakes.naming import name_mistake
from aprtui.compare.numerics import Numerics
from aprtui.formats.rows import Rows
from aprtui.graph.ops import Op, Product

__all__ = ["accuse", "accuse_output"]


def accuse_output(
    case: Case, found: Explanation, outlier: Outlier, inherited: float | None
) -> Culprit:
    """Of a stage that is right but for one output."""
    parts = (outlier.part or case.key.stage,)
    return Culprit(
        case.key,
        "differs",
        (),
        found.residual.rel_l2,
        found.residual.worst_row_rel_l2,
        case.place(outlier.place),
        (outlier.part,) if outlier.part else (),
        outlier.text,
        outlier.mistake,
        inherited,
        reads=tuple(read for read in reads_of(case, parts) if read.wrong),
    )


def accuse(
    case: Case,
    found: Explanation,
    reads: Sequence[Read],
    known: tuple[Mapping[type[Op], Numerics], float | None],
    inherited: float | None,
    beyond: str,
) -> Culprit:
    """Of a stage that nothing explains. ``known``: what explained others, by operation, and the
    most that it left of one. ``beyond``: why it is more than the rounding of a fused kernel."""
    numerics, honest = known
    with np.errstate(all="ignore"):
        mistake = _one_weight(case, found) or name_mistake(case, found, numerics, honest)
        usual = numerics.get(type(case.op))
        looks = looks_like(case, found, None if usual is None else usual.how)
    looks += f"; more than rounding: {beyond}" if beyond else ""
    own = otherwise_held(case.captured, reads)
    looks += f"; {own}" if own else ""
    error: LocalError = found.residual if found.residual.born else found.plain
    return Culprit(
        case.key,
        "nonfinite" if error.born else "differs",
        tuple(each.key.stage for each in case.between),
        error.rel_l2,
        error.worst_row_rel_l2,
        case.place(found.residual.worst),
        tuple(part for part in found.unexplained if part != case.key.stage),
        looks,
        mistake,
        inherited,
        *_wrong(case, found),
        tuple(read for read in reads if read.wrong),
    )


def _wrong(case: Case, found: Explanation) -> tuple[Rows | None, str]:
    """The rows that are wrong; in words, too, where several passes made them."""
    numbers, rows = wrong_rows(case, found), case.captured.rows
    if numbers is None:
        return None, ""
    several = numbers and rows.passes[0] != rows.passes[-1]
    return rows.only(numbers), rows.where(numbers) if several else ""


def _one_weight(case: Case, found: Explanation) -> Mistake | None:
    """The single weight that a product's whole error comes from, where it does."""
    if not isinstance(case.op, Product) or found.residual.born or len(found.unexplained) > 1:
        return None
    outlier = judge_finely(case, found).outlier
    return None if outlier is None or not outlier.alone else outlier.mistake
