"""JSON from untrusted files: one object, no key twice, no NaN, bounded in size and depth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

from aprtui.errors import BadFileError
from aprtui.text import clean

__all__ = ["MAX_DEPTH", "parse_object"]

MAX_DEPTH = 64


class _RefusedJsonError(ValueError):
    """Valid for Python's parser, not for us."""


def parse_object(path: Path, raw: bytes | memoryview, what: str) -> dict[str, Any]:
    """The JSON object in ``raw``; ``what`` names it in messages ("the metadata").

    Raises BadFileError for anything but one UTF-8 JSON object without duplicate keys, NaN,
    infinities or more than ``MAX_DEPTH`` levels.
    """
    try:
        parsed = json.loads(
            str(raw, "utf-8"), object_pairs_hook=_unique, parse_constant=_refuse_constant
        )
    except UnicodeDecodeError as error:
        raise BadFileError(path, f"{what} is not UTF-8 text at byte {error.start:,}") from error
    except RecursionError as error:
        raise BadFileError(path, f"{what} is nested deeper than {MAX_DEPTH} levels") from error
    except json.JSONDecodeError as error:
        raise BadFileError(
            path, f"{what} is not JSON: {error.msg} at character {error.pos:,}"
        ) from error
    except ValueError as error:  # ours, or a number of thousands of digits
        raise BadFileError(path, f"{what} is refused: {clean(str(error))}") from error
    if not isinstance(parsed, dict):
        raise BadFileError(path, f"{what} is a JSON {type(parsed).__name__}, not an object")
    if _deeper_than(parsed, MAX_DEPTH):
        raise BadFileError(path, f"{what} is nested deeper than {MAX_DEPTH} levels")
    return parsed


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


def _deeper_than(value: Any, levels: int) -> bool:
    """Whether containers are nested in more than ``levels`` levels, without recursion."""
    level = [value]
    for _ in range(levels):
        level = [
            child
            for parent in level
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, (dict, list))
        ]
        if not level:
            return False
    return True
