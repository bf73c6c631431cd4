"""What tensor-parallel ranks hold of a stage, made into the whole by the model's dimensions.

Heads and channels are parts side by side (of q|k|v and gate|up each in turn), a key head that there
are too few of is held by several ranks, logits are parts of a padded vocabulary; what is as wide as
the stage is a copy on each rank, or its share of a sum. Copies are compared before one is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from aprtui.captures.dump import Array
from aprtui.formats.rows import Rows
from aprtui.formats.tracedir import StageKey

__all__ = ["Copies", "Plan", "Window", "merged", "plan_of", "same_bits", "shares"]

Bools = npt.NDArray[np.bool_]

_PADDED_TO = 64  # a vocabulary is padded to a multiple of it
_FAR = 0.1  # of the values' own size: copies that differ lie nearer, shares of a sum do not


@dataclass(frozen=True)
class Window:
    """Some columns of a tensor: how many the model gives them, and heads, where they are some."""

    width: int
    heads: int | None = None

    def on(self, ranks: int) -> tuple[int, int] | None:
        """(columns on each rank, ranks that hold the same), where it is dealt out to ``ranks``."""
        units = self.width if self.heads is None else self.heads
        if units % ranks == 0:
            return self.width // ranks, 1
        if self.heads is not None and ranks % self.heads == 0:
            return self.width // self.heads, ranks // self.heads
        return None


@dataclass(frozen=True)
class Plan:
    """How the ranks' tensors make one: ``kind`` "one" (as it is), "whole" (copies, or shares of a
    sum), "parts" or "vocabulary". ``padding``: columns at the end that are dropped."""

    kind: str
    windows: tuple[Window, ...]
    padding: int = 0


def plan_of(windows: Sequence[Window], width: int, ranks: int, *, logits: bool) -> Plan | None:
    """How tensors of ``width`` columns on each of ``ranks`` make the windows; None: they do not."""
    found, total = tuple(windows), sum(window.width for window in windows)
    if width == total:
        return Plan("one" if ranks == 1 else "whole", found)
    dealt = [window.on(ranks) for window in windows]
    if ranks > 1 and width == sum(each[0] for each in dealt if each is not None):
        return Plan("parts", found) if None not in dealt else None
    padded = width * ranks
    if logits and padded % _PADDED_TO == 0 and 0 < padded - total <= _PADDED_TO * ranks:
        return Plan("vocabulary", found, padded - total)
    if logits and ranks > 1 and width % _PADDED_TO == 0 and 0 < width - total <= _PADDED_TO * ranks:
        return Plan("whole", found, width - total)
    return None


@dataclass
class Copies:
    """Where the ranks' copies of one stage differ: row by row, by rank; the largest distance."""

    rows: dict[int, set[int]] = field(default_factory=dict)
    apart: float = 0.0

    def compare(self, copies: Sequence[Array], ranks: Sequence[int], first: int) -> Array:
        """The copy that most ranks have; ``first``: the number of its first row in the sequence."""
        kept = _most_held(copies)
        for rank, copy in zip(ranks, copies, strict=True):
            wrong = ~same_bits(kept, copy)
            if wrong.any():
                self.rows.setdefault(rank, set()).update(np.flatnonzero(wrong) + first)
                with np.errstate(invalid="ignore", over="ignore"):
                    away = np.abs(copy.astype(np.float64) - kept.astype(np.float64))
                self.apart = max(self.apart, float(np.nanmax(away, initial=0.0)))
        return kept

    def text(self, key: StageKey, rows: Rows, ranks: int) -> str:
        """The finding, in words; empty where all are alike."""
        if not self.rows:
            return ""
        said = "; ".join(
            f"rank {rank} in {rows.where(sorted(int(row) for row in wrong))}"
            for rank, wrong in sorted(self.rows.items())
        )
        which = "rank 0's" if ranks == 2 else "that of most ranks"
        return (
            f"{key}: copies on the ranks that differ: {said} from {which}, by up to "
            f"{self.apart:.3g}; {which} is taken"
        )


def same_bits(one: Array, other: Array) -> Bools:
    """Which rows of two tensors [n, columns] are the same bit for bit."""
    if one.dtype != other.dtype:
        return np.asarray((one == other).all(axis=1))
    bits = [np.ascontiguousarray(each).view(f"u{each.itemsize}") for each in (one, other)]
    return np.asarray((bits[0] == bits[1]).all(axis=1))


def _most_held(copies: Sequence[Array]) -> Array:
    """The copy that equals most others; the first of several."""
    if len(copies) < 3:
        return copies[0]
    votes = [sum(bool(same_bits(one, other).all()) for other in copies) for one in copies]
    return copies[int(np.argmax(votes))]


def shares(copies: Sequence[Array]) -> bool | None:
    """Whether tensors of full width are the ranks' shares of a sum: nowhere alike, and far apart.

    None where they tell nothing: all of them are the same, or nothing but zeros.
    """
    one, other = copies[0].astype(np.float64), copies[1].astype(np.float64)
    alike = same_bits(copies[0], copies[1])
    if alike.any() and np.any(one[alike]):
        return False
    size = float(np.linalg.norm(one)) + float(np.linalg.norm(other))
    if size == 0.0:
        return None
    return float(np.linalg.norm(one - other)) > _FAR * size


def merged(plan: Plan, held: Sequence[Array], copies: Copies, first: int, summed: str) -> Array:
    """One tensor [n, columns] of what the ranks hold, by a plan.

    ``summed``: of which type the shares are that are added; empty for copies.
    """
    if plan.kind == "one":
        return held[0]
    if plan.kind == "vocabulary":
        whole = np.concatenate(held, axis=-1)
        return whole[:, : whole.shape[1] - plan.padding]
    if plan.kind == "whole":
        whole = _sum(held, summed) if summed else copies.compare(held, range(len(held)), first)
        return whole[:, : whole.shape[1] - plan.padding]
    parts, start = [], 0
    for window in plan.windows:
        dealt = window.on(len(held))
        assert dealt is not None
        width, same = dealt
        cut = [each[:, start : start + width] for each in held]
        for rank in range(0, len(held), same):
            group = range(rank, rank + same)
            parts.append(
                cut[rank] if same == 1 else copies.compare([cut[r] for r in group], group, first)
            )
        start += width
    return np.concatenate(parts, axis=-1)


def _sum(held: Sequence[Array], dtype: str) -> Array:
    """The sum of the ranks' shares, rounded once to their type: what the all-reduce hands on."""
    total = np.zeros(held[0].shape, np.float64)
    for each in held:
        total += each
    with np.errstate(over="ignore"):
        if dtype == "float16":
            return total.astype(np.float16)
        single = total.astype(np.float32)
    if dtype != "bfloat16":
        return single
    bits = single.view(np.uint32)
    nearest = (bits + (((bits >> 16) & 1) + 0x7FFF)) & np.uint32(0xFFFF0000)
    return np.where(np.isfinite(single), nearest, bits).view(np.float32)
