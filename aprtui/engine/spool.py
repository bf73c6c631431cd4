"""Rows of stages that come pass by pass, kept in one nameless file until each stage is whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aprtui.engine.arrays import Float32
from aprtui.engine.room import Room
from aprtui.errors import UsageError
from aprtui.formats.rows import Rows
from aprtui.formats.tracedir import StageKey

__all__ = ["Spool"]


@dataclass(frozen=True)
class _Piece:
    positions: tuple[int, ...]
    values: Float32


class Spool:
    """Pieces of stages: some rows of one, the first axis, with their positions.

    They lie on the disk. Memory is that of the piece that is put, then of the stage that is read.
    """

    def __init__(self, directory: Path) -> None:
        self._room = Room(directory)
        self._pieces: dict[StageKey, list[_Piece]] = {}
        self._passes: dict[tuple[int, ...], int] = {}  # positions -> their place in order of coming

    def __contains__(self, key: object) -> bool:
        return key in self._pieces

    def __iter__(self) -> Iterator[StageKey]:
        return iter(self._pieces)

    def put(self, key: StageKey, positions: Sequence[int], values: Float32, *, some: bool) -> None:
        """Keep the rows of one pass; ``some``: it may hold fewer than the pass had (logits).

        Raises UsageError for positions that the stage has already, EngineError for a disk.
        """
        given = tuple(int(position) for position in positions)
        if not given or min(given) < 0 or sorted(set(given)) != list(given):
            raise UsageError(f"{key}: positions ascend from 0 on, each once")
        if len(values) != len(given):
            raise UsageError(f"{key} has {len(values)} rows for {len(given)} positions")
        pieces = self._pieces.setdefault(key, [])
        known = {position for piece in pieces for position in piece.positions}
        if again := known.intersection(given):
            raise UsageError(f"{key} of position {min(again)} was put already")
        if not some:
            self._passes.setdefault(given, len(self._passes))
        kept = self._room.take(values.shape)
        kept[...] = values
        pieces.append(_Piece(given, kept))

    def rows(self) -> Rows:
        """The passes that came, one after the other. Raises UsageError where they overlap."""
        ordered = sorted(self._passes, key=lambda positions: positions[0])
        made = [(p, number) for number, run in enumerate(ordered) for p in run]
        positions = [position for position, _ in made]
        if sorted(set(positions)) != positions:
            raise UsageError(
                "two passes hold rows of the same position, or one inside another",
                hint="positions=... says where the rows of one pass stand; each position once",
            )
        return Rows(tuple(positions), tuple(number for _, number in made))

    def whole(self, key: StageKey) -> tuple[tuple[int, ...], Float32]:
        """A stage's positions, ascending, and its rows [n, ...]."""
        pieces = sorted(self._pieces[key], key=lambda piece: piece.positions[0])
        values = np.concatenate([piece.values for piece in pieces])
        return tuple(p for piece in pieces for p in piece.positions), values

    def close(self) -> None:
        self._pieces.clear()
        self._room.close()
