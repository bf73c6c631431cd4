"""Rows at positions of their own: a padded or packed batch is no mistake, but nothing says so."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from aprtui.compare.bisection import Culprit, Unmeasured

__all__ = ["without_padding"]


def without_padding(
    culprits: Sequence[Culprit], rotated: int
) -> tuple[list[Culprit], list[Unmeasured]]:
    """The culprits that stay, and those that a padded batch may be.

    Where each of the ``rotated`` stages that RoPE makes has its rows at the same positions, such as
    a batch has them, B computed another sequence than the manifest says: it is not known which.
    """
    turned = [each for each in culprits if _positions(each) is not None]
    positions = {_positions(each) for each in turned}
    if not turned or len(turned) < rotated or len(positions) > 1:
        return [*culprits], []
    found = positions.pop() or ()
    if not _of_a_batch(found):
        return [*culprits], []
    said = ", ".join(map(str, found[:8])) + (", ..." if len(found) > 8 else "")
    why = (
        f"its rows are those of positions {said}: a padded or packed batch has such ones, but the "
        "capture does not say so"
    )
    kept, apart = [], []
    for culprit in culprits:
        if culprit in turned or _hides_pads(culprit, found):
            apart.append(Unmeasured(culprit.key, why))
        else:
            kept.append(culprit)
    return kept, apart


def _positions(culprit: Culprit) -> tuple[int, ...] | None:
    mistake = culprit.mistake
    if mistake is None or mistake.id != "rope_positions":
        return None
    return tuple(mistake.parameters["positions"])


def _of_a_batch(positions: Sequence[int]) -> bool:
    """Whether each row is one further than the one before, or begins a sequence, or pads one."""
    steps = (after == before + 1 or after in (0, 1) for before, after in pairwise(positions))
    return positions[:1] == (0,) and all(steps)


def _hides_pads(culprit: Culprit, positions: Sequence[int]) -> bool:
    """Whether what a culprit hides is all before a row that begins a sequence."""
    mistake = culprit.mistake
    if mistake is None or mistake.id != "keys_cut" or "from" not in mistake.parameters:
        return False
    first, (low, high) = mistake.parameters["from"], mistake.parameters["keys"]
    return bool(low == 0 and high == first - 1 and positions[first] == 0)
