"""Text that is safe to show: names from files cleaned once, numbers and sizes in human units."""

from __future__ import annotations

import difflib
import math
import shlex
import unicodedata
from collections.abc import Iterable

__all__ = [
    "beginning",
    "clean",
    "count",
    "duration",
    "nearest",
    "number",
    "quoted",
    "ranges",
    "size",
]

# Cc controls, Cf format (bidi overrides, zero width), Cs surrogates, Co private use, Zl/Zp breaks.
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


def clean(text: str, limit: int = 200) -> str:
    """``text`` with every character that a terminal could act on written as an escape.

    Control characters (ESC, newline, OSC introducers), bidi overrides, zero-width and unassigned
    characters become ``\\x1b`` or ``\\u202e``; beyond ``limit`` characters an ellipsis stands.
    """
    if len(text) <= limit and text.isprintable():  # nearly all: a trace names 10,000 files
        return text
    cut = text[: limit + 1]
    shown = "".join(
        character if unicodedata.category(character) not in _HIDDEN else _escape(character)
        for character in cut[:limit]
    )
    return shown + "…" if len(cut) > limit else shown


def quoted(path: object) -> str:
    """A path as a shell takes it, for a command that people paste."""
    return clean(shlex.quote(str(path)), 500)


def _escape(character: str) -> str:
    code = ord(character)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def beginning(head: bytes, due: bytes = b"") -> str:
    """How a file begins, for a message: ``it is empty``, ``it starts with 'PK', not 'GGUF'``."""
    if not head:
        return "it is empty"
    shown = [clean(part.decode("ascii", "backslashreplace")) for part in (head, due)]
    return f"it starts with '{shown[0]}'" + (f", not '{shown[1]}'" if due else "")


def size(byte_count: float) -> str:
    """A number of bytes in decimal units: ``63.8 MB``."""
    if byte_count < 1000:
        return f"{int(byte_count)} B"
    for unit in ("kB", "MB", "GB"):
        byte_count /= 1000
        if byte_count < 999.95:
            return f"{byte_count:.1f} {unit}"
    return f"{byte_count / 1000:.1f} TB"


def count(value: int, noun: str = "") -> str:
    """A whole number with separators, and what it counts: ``152,064``, ``1 file``, ``71 files``."""
    return f"{value:,} {noun}{'' if value == 1 else 's'}" if noun else f"{value:,}"


def ranges(numbers: Iterable[int]) -> str:
    """Whole numbers in order, neighbours joined: ``0-3, 5``."""
    runs: list[list[int]] = []
    for each in sorted(numbers):
        if runs and each == runs[-1][-1] + 1:
            runs[-1].append(each)
        else:
            runs.append([each])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def duration(seconds: float) -> str:
    """A time span: ``0.9 s``, ``3 min 20 s``, ``2 h 05 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def number(value: float, digits: int = 4) -> str:
    """A float in ``digits`` significant digits; NaN and infinities by name."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Inf" if value > 0 else "-Inf"
    return f"{value:.{digits}g}"


def nearest(name: str, valid: Iterable[str]) -> str | None:
    """The entry of ``valid`` that a person who typed ``name`` most likely meant, if one is near."""
    found = difflib.get_close_matches(name.lower(), list(valid), n=1, cutoff=0.6)
    return found[0] if found else None
