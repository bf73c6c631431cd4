"""The sequences of a run, cut out of its passes: which rows of which pass, at which positions.

A pass of a flat batch holds the rows of several sequences one after the other, and padding of a
captured graph behind them; a padded batch holds a row of columns a sequence, with a mask. Sequences
are linked from pass to pass by their positions, and where two could go on at the same one by the
token that was fed; never by their order in the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np

from aprtui.captures.dump import Array
from aprtui.errors import UsageError
from aprtui.formats.rows import Rows
from aprtui.text import count, ranges

__all__ = ["Batch", "CutSequence", "Run", "sequences_of", "with_prefix"]

NextToken = Callable[["Run"], "int | None"]
"""The likeliest token after a run's last row, by the logits that the dump holds of it."""


@dataclass(frozen=True)
class Batch:
    """What a pass was run on: token ids of all its rows, flat, and what the dump says of them.

    ``grid``: (sequences, columns) where every tensor has a leading axis of sequences; the rows are
    then the columns of the first, those of the second and so on. ``mask``: which columns are no
    padding, flat; of ``past`` columns before them too, which are those of earlier passes.
    ``lengths``: of the sequences of a flat batch, this pass included.
    """

    tokens: tuple[int, ...]
    positions: Array | None = None
    lengths: Array | None = None
    grid: tuple[int, int] | None = None
    mask: Array | None = None
    past: Array | None = None


@dataclass(frozen=True)
class Run:
    """The rows of one sequence in one pass: ``place`` among the pass's ``of`` sequences."""

    number: int
    place: int
    of: int
    total: int  # rows of the whole pass
    rows: tuple[int, ...]
    positions: tuple[int, ...]
    tokens: tuple[int, ...]
    first_key: int = 0
    columns: bool = False  # of a padded batch
    cut: bool = False  # its last rows were left out

    @property
    def padded_behind(self) -> bool:
        """Whether columns of padding follow its rows in its row of a padded batch."""
        columns = self.total // self.of
        end = (self.place + 1) * columns
        return self.columns and self.rows[-1] + 1 < end


@dataclass
class CutSequence:
    """One sequence: its runs, pass by pass."""

    runs: list[Run] = field(default_factory=list)

    @property
    def tokens(self) -> tuple[int, ...]:
        return tuple(token for run in self.runs for token in run.tokens)

    @property
    def next(self) -> int:
        """The position that goes on."""
        return self.runs[-1].positions[-1] + 1

    def rows(self, number: int | None) -> Rows:
        """Where its rows stand, and which pass made each."""
        positions = tuple(position for run in self.runs for position in run.positions)
        passes = tuple(run.number for run in self.runs for _ in run.rows)
        return Rows(positions, passes, self.runs[0].first_key, number)

    def __str__(self) -> str:
        first, last = self.runs[0].positions[0], self.next - 1
        return f"positions {ranges(range(first, last + 1))} from pass {self.runs[0].number} on"


def sequences_of(
    batches: Sequence[Batch], likeliest: NextToken
) -> tuple[list[CutSequence], list[str]]:
    """Every sequence in order of appearance, and what is to be said of them.

    Raises UsageError for rows that make no sequences: passes missing or out of order, positions
    that contradict lengths, a mask with holes.
    """
    notes: dict[str, None] = {}
    if any(batch.grid is not None for batch in batches):
        return _of_columns(batches, notes), list(notes)
    found: list[CutSequence] = []
    at = 0
    for number, batch in enumerate(batches):
        if batch.positions is None and batch.lengths is not None and len(batch.lengths) > 1:
            raise UsageError(
                f"pass {number} holds rows of {len(batch.lengths)} sequences, not their positions",
                hint="a map of your own says where they are: positions = ...",
            )
        positions = batch.positions
        if positions is None:
            positions = np.arange(at, at + len(batch.tokens))
            notes["positions: taken in the order of the rows; the dump does not say"] = None
        at += len(batch.tokens)
        if len(positions) != len(batch.tokens):
            raise UsageError(
                f"pass {number} has {len(batch.tokens)} token ids and {len(positions)} positions",
                hint="is the map one of this tool?",
            )
        runs = _runs(number, batch, positions)
        padding = len(positions) - sum(len(run.rows) for run in runs)
        if padding:
            notes[f"pass {number}: {count(padding, 'row')} of padding dropped"] = None
        _link(found, runs, likeliest)
    if not found:
        raise UsageError("no pass holds a row of any sequence, by their lengths and token ids")
    return found, list(notes)


def with_prefix(
    found: Sequence[CutSequence], late: CutSequence, tokens: Sequence[int]
) -> tuple[CutSequence, int] | None:
    """``late`` with the rows before it, of the sequence (its number) that had the same ``tokens``
    there in passes before: what a prefix cache handed on. None where none has all of them."""
    first, number = late.runs[0].positions[0], late.runs[0].number
    for at, other in enumerate(found):
        runs = [] if other is late else [_until(run, first) for run in other.runs]
        before = CutSequence([run for run in runs if run.rows and run.number < number])
        if before.runs and before.tokens == tuple(tokens[:first]):
            stand = [position for run in before.runs for position in run.positions]
            if stand == list(range(first)):
                return CutSequence([*before.runs, *late.runs]), at
    return None


def _until(run: Run, position: int) -> Run:
    """The rows of a run that stand before a position."""
    count = sum(each < position for each in run.positions)
    if count == len(run.rows):
        return run
    some = {name: getattr(run, name)[:count] for name in ("rows", "positions", "tokens")}
    return replace(run, cut=True, **some)


# -- a flat batch ----------------------------------------------------------------------------------


def _runs(number: int, batch: Batch, positions: Array) -> list[Run]:
    """The rows of each sequence of a pass, in the order of the batch."""
    lengths = batch.lengths
    ends = _breaks(positions) if lengths is None else _ends(number, positions, lengths)
    runs = []
    for place, (first, end) in enumerate(pairwise((0, *ends))):
        rows = tuple(range(first, end))
        places = tuple(int(position) for position in positions[first:end])
        tokens = batch.tokens[first:end]
        runs.append(Run(number, place, len(ends), len(positions), rows, places, tokens))
    return runs


def _breaks(positions: Array) -> list[int]:
    """The ends of stretches that go on by one."""
    jumps = np.flatnonzero(np.diff(positions) != 1) + 1
    return [*map(int, jumps), len(positions)]


def _ends(number: int, positions: Array, lengths: Array) -> list[int]:
    """Where each sequence ends: at the row that stands at its length less one."""
    ends, first = [], 0
    for place, length in enumerate(lengths):
        end = first
        while end < len(positions) and positions[end] == positions[first] + end - first:
            end += 1
            if positions[end - 1] == length - 1:
                break
        if end == first or positions[end - 1] != length - 1:
            stood = ", ".join(str(int(each)) for each in positions[first : first + 6])
            raise UsageError(
                f"pass {number}: sequence {place} of {len(lengths)} is {int(length)} long and its "
                f"rows do not end at position {int(length) - 1}: [{stood}]",
                hint="positions and lengths of a pass must belong together",
            )
        ends.append(end)
        first = end
    return ends


def _link(found: list[CutSequence], runs: Sequence[Run], likeliest: NextToken) -> None:
    """Put each run of a pass where it goes on; one that goes on nowhere begins a sequence."""
    waiting = list(found)
    begun: list[CutSequence] = []
    for run in runs:
        start = run.positions[0]
        could = [each for each in waiting if each.next == start and start > 0]
        if len(could) > 1:
            could = [each for each in could if likeliest(each.runs[-1]) == run.tokens[0]] or could
        if len(could) > 1:
            both = " and ".join(str(each) for each in could[:2])
            raise UsageError(
                f"pass {run.number}: position {start} could go on two sequences ({both}), and the "
                "token that was fed tells neither",
                hint="dump one request at a time",
            )
        if could:
            waiting.remove(could[0])
            could[0].runs.append(run)
        else:
            begun.append(CutSequence([run]))
    for sequence in begun:
        _check_beginning(sequence.runs[0], waiting)
    found += begun


def _check_beginning(run: Run, waiting: Sequence[CutSequence]) -> None:
    """Raise UsageError for rows that are a later part of a sequence whose middle is missing."""
    start = run.positions[0]
    if any(each.next < start for each in waiting):
        raise UsageError(
            f"pass {run.number} stands at positions {ranges(run.positions)}, and "
            f"{' or '.join(str(each.next) for each in waiting[:3])} would go on: passes are "
            "missing, out of order, or padded",
            hint="dump one request from its first token on",
        )
    late = [each for each in waiting if each.runs[0].positions[0] > start]
    if late:
        raise UsageError(
            f"pass {run.number} stands at positions {ranges(run.positions)}, before those of pass "
            f"{late[0].runs[0].number}: passes are out of order",
            hint="files are read in the order of the numbers in their names",
        )


# -- a padded batch --------------------------------------------------------------------------------


def _of_columns(batches: Sequence[Batch], notes: dict[str, None]) -> list[CutSequence]:
    """A sequence for each row of the batch: its columns that are no padding, pass after pass."""
    many = {batch.grid[0] for batch in batches if batch.grid is not None}
    if len(many) != 1:
        raise UsageError(
            f"its passes are batches of {' and '.join(map(str, sorted(many)))} sequences",
            hint="dump one batch at a time",
        )
    found = [CutSequence() for _ in range(many.pop())]
    for number, batch in enumerate(batches):
        assert batch.grid is not None
        dropped = 0
        for place, sequence in enumerate(found):
            run = _columns(number, place, batch, sequence, notes)
            dropped += batch.grid[1] - len(run.rows)
            sequence.runs += [run] if run.rows else []
        if dropped:
            notes[f"pass {number}: {dropped} columns of padding dropped"] = None
    if any(not sequence.runs for sequence in found):
        raise UsageError("a sequence of the batch has no rows: none, or nothing but padding")
    return found


def _columns(
    number: int, place: int, batch: Batch, sequence: CutSequence, notes: dict[str, None]
) -> Run:
    assert batch.grid is not None
    sequences, columns = batch.grid
    first = place * columns
    seen = np.ones(columns, bool)
    if batch.mask is not None:
        seen = batch.mask[first : first + columns] != 0
    elif sequences > 1:
        notes["the dump holds no attention mask: no column is taken for padding"] = None
    rows = np.flatnonzero(seen)
    if len(rows) and rows[-1] - rows[0] + 1 != len(rows):
        raise UsageError(
            f"pass {number}: the mask of sequence {place} has holes: {ranges(rows.tolist())}",
            hint="columns of padding lie before or after a sequence",
        )
    own = [int(row) + first for row in rows]
    start = sequence.next if sequence.runs else int(rows[0]) if len(rows) else 0
    if batch.positions is None:
        positions = tuple(range(start, start + len(own)))
        notes["positions: counted from the first column; the dump does not say"] = None
    else:
        positions = tuple(int(batch.positions[row]) for row in own)
    if own and (
        positions != tuple(range(positions[0], positions[0] + len(own)))
        or (sequence.runs and positions[0] != start)
    ):
        raise UsageError(
            f"pass {number}: sequence {place} stands at positions {ranges(positions)} where "
            f"{start} would go on: passes are missing or out of order",
            hint="dump one batch from its first token on",
        )
    past = 0 if batch.past is None or sequence.runs else int(np.sum(batch.past[place] != 0))
    key = max(0, positions[0] - past) if positions else 0
    tokens = tuple(batch.tokens[row] for row in own)
    size = sequences * columns
    return Run(number, place, sequences, size, tuple(own), positions, tokens, key, True)
