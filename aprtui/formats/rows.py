"""The rows of a capture: which position each stands at, and which pass of the runtime made it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeGuard

from aprtui.text import ranges

__all__ = ["Rows"]

_GAPS = 6  # that are told


@dataclass(frozen=True)
class Rows:
    """One sequence of a capture, row by row (docs/stages.md 4).

    ``positions``: where each row stands in its sequence, ascending: what RoPE turns by.
    ``passes``: which forward pass computed it: the prefill or a chunk of it, then decode steps.
    ``first_key``: the first position that its queries see: those before it are padding that was
    masked. Positions from there to the first row were seen and are not in the capture.
    ``sequence``: which of the run's sequences it is, None where there was one.
    """

    positions: tuple[int, ...]
    passes: tuple[int, ...]
    first_key: int = 0
    sequence: int | None = None

    @classmethod
    def plain(cls, tokens: int) -> Rows:
        """One pass over one sequence from its first token on."""
        return cls(tuple(range(tokens)), (0,) * tokens)

    @classmethod
    def read(cls, said: Mapping[str, Any]) -> Rows:
        """From a manifest's ``rows``. Raises ValueError for what no rows can be."""
        known = ("positions", "passes", "first_key", "sequence")
        if not isinstance(said, dict) or any(key not in known for key in said):
            raise ValueError(f"rows is not an object of {', '.join(known)}")
        positions, passes = (said.get(key) for key in known[:2])
        first, sequence = said.get("first_key", 0), said.get("sequence")
        if not _whole(positions) or not _whole(passes) or len(positions) != len(passes):
            raise ValueError("rows.positions and rows.passes are not equally many whole numbers")
        if any(a >= b for a, b in pairwise(positions)) or any(a > b for a, b in pairwise(passes)):
            raise ValueError("rows.positions and rows.passes do not ascend")
        if not _whole([first]) or (positions and first > positions[0]):
            raise ValueError("rows.first_key is no position that the first row sees")
        if sequence is not None and not _whole([sequence]):
            raise ValueError("rows.sequence is not a whole number")
        return cls(tuple(positions), tuple(passes), first, sequence)

    def to_json(self) -> dict[str, Any]:
        return {
            "positions": self.positions,
            "passes": self.passes,
            "first_key": self.first_key,
            "sequence": self.sequence,
        }

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def is_plain(self) -> bool:
        return self == Rows.plain(len(self))

    @property
    def unseen(self) -> str:
        """Which keys the rows saw that no row holds, in words; empty where there are none."""
        before = (self.first_key - 1, *self.positions)
        gaps = [(last + 1, next_) for last, next_ in pairwise(before) if next_ > last + 1]
        if not gaps:
            return ""
        told = ", ".join(ranges(range(first, end)) for first, end in gaps[:_GAPS])
        more = ", …" if len(gaps) > _GAPS else ""
        return f"the keys of positions {told}{more} are not in the dump"

    def at(self, positions: Iterable[int]) -> tuple[int, ...]:
        """The rows that stand at ``positions``. Raises KeyError for one that none does."""
        place = {position: row for row, position in enumerate(self.positions)}
        return tuple(place[position] for position in positions)

    def only(self, rows: Sequence[int]) -> Rows:
        """Some of the rows, by number."""
        return Rows(
            tuple(self.positions[row] for row in rows),
            tuple(self.passes[row] for row in rows),
            self.first_key,
            self.sequence,
        )

    def label(self, row: int) -> str:
        """One row in a word: ``12``, or ``12 p3`` where there are several passes."""
        several = self.passes[0] != self.passes[-1]
        return f"{self.positions[row]}" + (f" p{self.passes[row]}" if several else "")

    def where(self, rows: Sequence[int]) -> str:
        """Some rows by their positions and passes: ``positions 10-13 (passes 1-4)``."""
        positions = ranges(self.positions[row] for row in rows)
        said = f"position{'s' * (len(rows) > 1)} {positions}"
        if len(set(self.passes)) < 2:
            return said
        made = sorted({self.passes[row] for row in rows})
        return f"{said} (pass{'es' * (len(made) > 1)} {ranges(made)})"

    def __str__(self) -> str:
        """``positions 0-15 in 5 passes, sequence 1``."""
        said = f"positions {ranges(self.positions)}" if self.positions else "no rows"
        many = len(set(self.passes))
        said += f" in {many} passes" if many > 1 else ""
        said += f", keys from {self.first_key}" if self.first_key else ""
        return said if self.sequence is None else f"{said}, sequence {self.sequence}"


def _whole(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)
