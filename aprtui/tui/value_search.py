"""Looking for values: what a person types, which values that means, the next hit and how many."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from aprtui.errors import UsageError
from aprtui.text import clean
from aprtui.tui.measure import Float32, Hook, blocks

__all__ = ["EXAMPLES", "Hit", "Sought", "nearest_hit", "sought"]

EXAMPLES = "|x| > 3, < -2, = 0, nan, inf"

Mask = npt.NDArray[np.bool_]
_COMPARED = re.compile(r"(\|x\|)?(>=|<=|>|<|==|=|)([+-]?[\d.].*|[+-]?inf)")
_TESTS: dict[str, Callable[[Float32, np.float32], Mask]] = {
    ">": np.greater, ">=": np.greater_equal, "<": np.less, "<=": np.less_equal, "=": np.equal,
    "==": np.equal, "": np.equal,
}  # fmt: skip
_KINDS: dict[str, Callable[[Float32], Mask]] = {
    "nan": np.isnan,
    "inf": np.isinf,
    "nonfinite": lambda values: ~np.isfinite(values),
    "denormal": lambda values: (
        (values != 0) & (np.abs(values) < np.finfo(np.float32).smallest_normal)
    ),
}


@dataclass(frozen=True)
class Sought:
    """What is looked for: in its own words, and which of some values it means."""

    text: str
    test: Callable[[Float32], Mask]


@dataclass(frozen=True)
class Hit:
    """A value that was looked for: the ``number``-th, from 1, of ``total``."""

    index: int
    number: int
    total: int


def sought(text: str) -> Sought:
    """``|x| > 3``, ``< -2``, ``0.5`` (equal as float32), ``nan``, ``inf``, ``denormal``.

    Raises UsageError for anything else.
    """
    typed = text.lower().replace(" ", "")
    if typed in _KINDS:
        return Sought(typed, _KINDS[typed])
    found = _COMPARED.fullmatch(typed.removeprefix("abs").replace("(x)", "|x|"))
    wrong = UsageError(f"{clean(text, 40)!r} is nothing to look for", hint=f"write {EXAMPLES}")
    if found is None:
        raise wrong
    size, sign, digits = found[1] or "", found[2], found[3]
    try:
        number = np.float32(float(digits))
    except (ValueError, OverflowError):
        raise wrong from None
    compare = _TESTS[sign]
    if size:
        return Sought(f"|x| {sign or '='} {digits}", lambda values: compare(np.abs(values), number))
    return Sought(f"{sign or '='} {digits}", lambda values: compare(values, number))


def nearest_hit(
    values: Float32, wanted: Sought, at: int, step: int, cancelled: Hook
) -> Hit | None:  # fmt: skip
    """The next hit behind ``at`` (``step`` 1), the one before (-1) or the first from ``at`` on (0);
    past the end it goes on from the start. Raises metrics.Cancelled.
    """
    total = 0
    first = last = ahead = behind = -1
    behind_number = ahead_number = 0
    for start, block in blocks(values, 0, cancelled):
        with np.errstate(invalid="ignore"):
            places = start + np.flatnonzero(wanted.test(block))
        if not places.size:
            continue
        first = int(places[0]) if first < 0 else first
        last = int(places[-1])
        below = int(np.searchsorted(places, at, "left"))
        beyond = int(np.searchsorted(places, at, "left" if step == 0 else "right"))
        if below:
            behind, behind_number = int(places[below - 1]), total + below
        if ahead < 0 and beyond < places.size:
            ahead, ahead_number = int(places[beyond]), total + beyond + 1
        total += int(places.size)
    if not total:
        return None
    if step < 0:
        return Hit(behind, behind_number, total) if behind >= 0 else Hit(last, total, total)
    return Hit(ahead, ahead_number, total) if ahead >= 0 else Hit(first, 1, total)
