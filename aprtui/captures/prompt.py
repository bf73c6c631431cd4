"""What a dump was run on: the token ids of each pass, and where their rows stand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from aprtui.captures.dump import Array, Member
from aprtui.captures.maps import DumpMap
from aprtui.captures.naming import Names
from aprtui.captures.ranks import Shards
from aprtui.captures.sequences import Batch
from aprtui.errors import BadFileError, UsageError
from aprtui.formats.strict_json import read_object
from aprtui.text import clean

__all__ = ["batches_of"]

_MAX_TOKENS = 1 << 24
_MAX_JSON_BYTES = 16 << 20


def batches_of(
    source: Path, passes: Sequence[Shards], convention: DumpMap, given: Sequence[int] | None
) -> tuple[list[Batch], list[str]]:
    """What each pass was run on: from the dump, ``given``, or a JSON beside the file; and notes.

    Raises UsageError where nothing says it or two sources differ.
    """
    names = [Names(tensors) for tensors in passes]
    found = [
        _numbers(tensors, known, convention.tokens)
        for tensors, known in zip(passes, names, strict=True)
    ]
    held = [numbers for numbers in found if numbers is not None]
    if len(held) == len(passes):
        note = "token ids: the dump's own"
    elif len(passes) > 1:
        raise UsageError(
            f"{clean(str(source))}: holds {len(passes)} passes and not their token ids",
            hint="name the file of one pass, with --tokens",
        )
    else:
        told, note = _told(source, given)
        held = [np.array(told, np.int64)]
    batches = [
        _batch(number, tokens, tensors, known, convention)
        for number, (tokens, tensors, known) in enumerate(zip(held, passes, names, strict=True))
    ]
    return batches, [note]


def _batch(number: int, tokens: Array, tensors: Shards, names: Names, convention: DumpMap) -> Batch:
    flat = tuple(int(token) for token in tokens.reshape(-1))
    lengths = _numbers(tensors, names, convention.lengths)
    positions = _numbers(tensors, names, convention.positions)
    if not convention.batch:
        return Batch(
            flat,
            None if positions is None else positions.reshape(-1),
            None if lengths is None else lengths.reshape(-1),
        )
    grid = (1, len(flat)) if tokens.ndim < 2 else (tokens.shape[0], len(flat) // tokens.shape[0])
    if positions is not None:
        if positions.size not in (grid[1], len(flat)):
            raise UsageError(
                f"pass {number} has positions {list(positions.shape)} for token ids {list(grid)}",
                hint="is the map one of this tool?",
            )
        positions = np.broadcast_to(positions.reshape(-1, grid[1]), grid).reshape(-1)
    mask = _numbers(tensors, names, convention.mask)
    if mask is None or mask.ndim != 2 or mask.shape[0] != grid[0] or mask.shape[1] < grid[1]:
        return Batch(flat, positions, grid=grid)
    before = mask.shape[1] - grid[1]
    return Batch(flat, positions, None, grid, mask[:, before:].reshape(-1), mask[:, :before])


def _told(source: Path, given: Sequence[int] | None) -> tuple[tuple[int, ...], str]:
    """Token ids that the dump does not hold, and where they come from."""
    if given is not None:
        return tuple(given), "token ids: as given; the dump does not hold them"
    beside = source.with_suffix(".json")
    if source.is_file() and beside.is_file():
        said = read_object(beside, "the JSON beside the dump", _MAX_JSON_BYTES).get("tokens")
        if isinstance(said, list) and said and all(type(token) is int for token in said):
            return tuple(said), f"token ids: from {clean(beside.name)} beside the dump"
    raise UsageError(
        f"{clean(str(source))}: does not hold the token ids that it was run on",
        hint="say them: --tokens 1,2,3 or --prompt TEXT",
    )


def _numbers(tensors: Shards, names: Names, patterns: Sequence[str]) -> Array | None:
    """Whole numbers of the first pattern that a name fits; None where none does."""
    for pattern in patterns:
        for name in names.all(pattern, None)[:1]:
            return _whole(tensors[name][0])
    return None


def _whole(member: Member) -> Array:
    count = int(np.prod(member.shape, dtype=object)) if member.shape else 1
    if count > _MAX_TOKENS:
        raise BadFileError(member.path, f"{clean(member.name)} has {count:,} values: no token ids")
    values = member.read()
    with np.errstate(invalid="ignore"):  # NaN is no whole number either
        whole = values.astype(np.int64)
    if not np.array_equal(whole, values):
        raise BadFileError(member.path, f"{clean(member.name)} holds no whole numbers")
    return whole
