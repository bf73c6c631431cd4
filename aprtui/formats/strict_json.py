"""JSON from untrusted files: one object, no key twice, no NaN, bounded in size, depth and memory.

What a document will take is reckoned before anything is built: three bytes of text become an empty
list of a hundred.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any, NoReturn

from aprtui.errors import BadFileError
from aprtui.formats.files import read_whole
from aprtui.text import clean, size

__all__ = [
    "MAX_DEPTH",
    "MAX_MEMORY_BYTES",
    "built_bytes",
    "node_bytes",
    "parse_object",
    "read_object",
]

MAX_DEPTH = 64
MAX_MEMORY_BYTES = 256_000_000  # that reading one document may take, the text included
# What the parser allocates for one of each, at most (measured; CPython's sizes): a list's or
# object's head, an entry of an object with its pair, an item with a number, half a string's head.
_BUILT_BYTES = {b"[": 70, b"{": 70, b":": 110, b",": 40, b'"': 28}
_WIDE, _WIDER = re.compile(rb"[\xc4-\xff]"), re.compile(rb"[\xf0-\xff]")  # 2 and 4 bytes each


class _RefusedJsonError(ValueError):
    """Valid for Python's parser, not for us."""


def read_object(path: Path, what: str, most_bytes: int, *, unique: bool = True) -> dict[str, Any]:
    """``parse_object`` of the file ``path``, which has at most so many bytes."""
    return parse_object(path, read_whole(path, most_bytes, what), what, unique=unique)


def parse_object(
    path: Path, raw: bytes, what: str, *, unique: bool = True, infinite: bool = False
) -> dict[str, Any]:
    """The JSON object in ``raw``; ``what`` names it in messages ("the metadata").

    Raises BadFileError for anything but one UTF-8 JSON object without NaN, numbers that no double
    holds or more than ``MAX_DEPTH`` levels, and for one that would take more than
    ``MAX_MEMORY_BYTES`` to read. ``unique``: also for a key that stands twice, which readers
    disagree about; without it the last one counts (to look for them takes a fifth of the time).
    ``infinite``: an Infinity, which Python writes and JSON does not have, is the object that
    transformers 5 writes in its place.
    """
    if (needed := built_bytes(raw)) > MAX_MEMORY_BYTES:
        raise BadFileError(
            path,
            f"{what} is refused: to read its {size(len(raw))} of JSON may take {size(needed)} of "
            f"memory, over the limit of {size(MAX_MEMORY_BYTES)}",
        )
    large = _may_hold_large(raw)
    try:
        parsed = json.loads(
            str(raw, "utf-8"),
            object_pairs_hook=_unique if unique else None,
            parse_constant=_infinity if infinite else _refuse_constant,
            parse_float=_finite if large else None,
            parse_int=_whole if large else None,
        )
    except UnicodeDecodeError as error:
        raise BadFileError(
            path, f"{what} is not JSON: not UTF-8 at byte {error.start:,}"
        ) from error
    except RecursionError as error:
        raise BadFileError(path, f"{what} is nested deeper than {MAX_DEPTH} levels") from error
    except json.JSONDecodeError as error:
        raise BadFileError(
            path, f"{what} is not JSON: {error.msg} at character {error.pos:,}"
        ) from error
    except _RefusedJsonError as error:
        raise BadFileError(path, f"{what} is refused: {clean(str(error))}") from error
    if not isinstance(parsed, dict):
        raise BadFileError(path, f"{what} is a JSON {type(parsed).__name__}, not an object")
    if not _surely_flat(raw) and _deeper_than(parsed, MAX_DEPTH):
        raise BadFileError(path, f"{what} is nested deeper than {MAX_DEPTH} levels")
    return parsed


def built_bytes(raw: bytes) -> int:
    """The memory that parsing ``raw`` takes at most, its text as Python keeps it included."""
    width = 1 if raw.isascii() else 4 if _WIDER.search(raw) else 2 if _WIDE.search(raw) else 1
    return len(raw) * (1 + 2 * width) + node_bytes(raw)


def node_bytes(raw: bytes) -> int:
    """Of that, what its lists, objects, pairs, numbers and the heads of its texts take."""
    return sum(cost * raw.count(mark) for mark, cost in _BUILT_BYTES.items())


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _RefusedJsonError(f"the key {key!r} stands in it twice")
            seen.add(key)
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise _RefusedJsonError(f"{name} is not a JSON number")


def _infinity(name: str) -> dict[str, str]:
    if name == "NaN":
        _refuse_constant(name)
    return {"__float__": name}


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise _RefusedJsonError(f"no double holds the number {clean(text, 40)}")
    return value


_MOST_DIGITS = 308  # of a whole number that a double surely holds
_AS_ZERO = bytes(ord("0") if chr(byte).isdigit() else byte for byte in range(256))
_LARGE = (b"e000", b"E000", b"e+000", b"E+000", b"0" * (_MOST_DIGITS + 1))


def _may_hold_large(raw: bytes) -> bool:
    """Whether any number is written as only those that no double holds are: a search, no parse."""
    digits = raw.translate(_AS_ZERO)
    return any(start in digits for start in _LARGE)


def _whole(text: str) -> int:
    if len(text) > _MOST_DIGITS:
        raise _RefusedJsonError(f"no double holds the number {clean(text, 40)}")
    return int(text)


_NO_BRACKETS = bytes(set(range(256)) - set(b'[]{}"\\'))


def _surely_flat(raw: bytes) -> bool:
    """Whether brackets alone show that ``raw`` has no more than MAX_DEPTH levels.

    Brackets and escapes in strings stop the count: then the values have to be looked at.
    """
    left = raw.translate(None, _NO_BRACKETS).replace(b'""', b"")
    for _ in range(MAX_DEPTH):
        if not left:
            return True
        left = left.replace(b"[]", b"").replace(b"{}", b"")
    return False


def _deeper_than(value: Any, levels: int) -> bool:
    """Whether containers are nested in more than ``levels`` levels, without recursion."""
    level = [value]
    for _ in range(levels):
        level = [
            child
            for parent in level
            for child in (parent.values() if type(parent) is dict else parent)
            if type(child) is dict or type(child) is list
        ]
        if not level:
            return False
    return True
