"""What a dump was run on: its token ids and positions, pass by pass, checked to be one sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aprtui.captures.dump import Array, Member, Pass
from aprtui.captures.maps import DumpMap
from aprtui.captures.naming import Names
from aprtui.errors import BadFileError, UsageError
from aprtui.formats.strict_json import read_object
from aprtui.text import clean

__all__ = ["Prompt", "prompt_of"]

_MAX_TOKENS = 1 << 24
_MAX_JSON_BYTES = 16 << 20


@dataclass(frozen=True)
class Prompt:
    """The token ids of all passes, how many rows each pass has, and what is to be said of them."""

    tokens: tuple[int, ...]
    rows: tuple[int, ...]
    notes: tuple[str, ...]


def prompt_of(
    source: Path, passes: Sequence[Pass], convention: DumpMap, given: Sequence[int] | None
) -> Prompt:
    """The sequence that the passes stand for: from the dump, ``given``, or a JSON beside the file.

    Raises UsageError where nothing says it, two sources differ, or the rows are not one sequence
    from position 0 on.
    """
    found = [_numbers(tensors, convention.tokens, convention) for tensors in passes]
    held = [numbers for numbers in found if numbers is not None]
    notes: list[str] = []
    if len(held) == len(passes):
        rows = tuple(len(numbers) for numbers in held)
        tokens = tuple(int(token) for numbers in held for token in numbers)
        if given is not None and tuple(given) != tokens:
            raise UsageError(
                f"the dump was run on {_few(tokens)}, not on {_few(given)}",
                hint="leave the tokens out: the dump holds them",
            )
        notes.append("token ids: the dump's own")
    elif len(passes) > 1:
        raise UsageError(
            f"{clean(str(source))}: holds {len(passes)} passes and not their token ids",
            hint="name the file of one pass, with --tokens",
        )
    else:
        tokens, note = _told(source, given)
        rows, notes = (len(tokens),), [note]
    notes += _checked_positions(passes, rows, convention)
    if len(rows) > 1:
        notes.append(f"{len(rows)} passes of {', '.join(map(str, rows))} rows, stacked by position")
    return Prompt(tokens, rows, tuple(notes))


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


def _checked_positions(
    passes: Sequence[Pass], rows: Sequence[int], convention: DumpMap
) -> list[str]:
    """What is to be said of positions. Raises UsageError unless all rows are one sequence."""
    start, stated = 0, 0
    for place, (tensors, count) in enumerate(zip(passes, rows, strict=True)):
        lengths = _numbers(tensors, convention.lengths, convention)
        if lengths is not None and len(lengths) > 1:
            raise UsageError(
                f"pass {place} holds rows of {len(lengths)} sequences; one alone can be imported",
                hint="run one request at a time",
            )
        positions = _numbers(tensors, convention.positions, convention)
        if positions is not None:
            stated += 1
            wanted = np.arange(start, start + count)
            if not np.array_equal(positions, wanted):
                raise UsageError(
                    f"pass {place} stands at positions {_few(positions)} where {start}.."
                    f"{start + count - 1} would go on: passes are missing, out of order, or padded",
                    hint="dump one request from its first token on",
                )
        start += count
    if stated == len(passes):
        return []
    return ["positions: 0, 1, 2, ... taken in the order of the rows; the dump does not say"]


def _numbers(tensors: Pass, patterns: Sequence[str], convention: DumpMap) -> Array | None:
    """Whole numbers [n] of the first pattern that a name fits; None where none does."""
    names = Names(tensors)
    for pattern in patterns:
        for name in names.all(pattern, None)[:1]:
            return _whole(tensors[name], convention)
    return None


def _whole(member: Member, convention: DumpMap) -> Array:
    count = int(np.prod(member.shape, dtype=object)) if member.shape else 1
    if count > _MAX_TOKENS:
        raise BadFileError(member.path, f"{clean(member.name)} has {count:,} values: no token ids")
    if convention.batch and len(member.shape) > 1 and member.shape[0] != 1:
        raise UsageError(
            f"{clean(member.name)} is {list(member.shape)}: a batch of {member.shape[0]} sequences",
            hint="one alone can be imported: run one prompt",
        )
    values = member.read().reshape(-1)
    whole = values.astype(np.int64)
    if not np.array_equal(whole, values):
        raise BadFileError(member.path, f"{clean(member.name)} holds no whole numbers")
    return whole


def _few(numbers: Sequence[int] | Array) -> str:
    shown = ", ".join(str(int(number)) for number in numbers[:6])
    return f"[{shown}{', …' if len(numbers) > 6 else ''}]"
