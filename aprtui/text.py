"""Text that is safe to show: names from files cleaned once, numbers and sizes in human units."""

from __future__ import annotations

import difflib
import math
import shlex
import unicodedata
from collections.abc import Iterable

__all__ = [
    "MAX_MARKS",
    "beginning",
    "clean",
    "clean_lines",
    "cosine_text",
    "count",
    "duration",
    "is_hidden",
    "nearest",
    "number",
    "quoted",
    "ranges",
    "size",
    "told_token",
]

# Cc controls, Cf format (bidi overrides, zero width), Cs surrogates, Co private use, Zl/Zp breaks.
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
# Letters and marks that show nothing (Default_Ignorable_Code_Point), and the empty braille cell.
_FILLERS = frozenset(
    chr(code)
    for first, last in (
        *((0x034F, 0x034F), (0x115F, 0x1160), (0x17B4, 0x17B5), (0x180B, 0x180F)),
        *((0x2800, 0x2800), (0x3164, 0x3164), (0xFE00, 0xFE0F), (0xFFA0, 0xFFA0)),
        (0xE0100, 0xE01EF),
    )
    for code in range(first, last + 1)
)
_MARKS = frozenset({"Mn", "Me"})  # drawn over what stands before them
MAX_MARKS = 4  # over one character: the most that a living script needs


def told_token(text: str, id: object) -> str:
    """A token as it is written everywhere: ``' the'``, or ``id 5`` where no text is known."""
    return f"'{text}'" if text else f"id {id}"


def clean(text: str, limit: int = 200) -> str:
    """``text`` with every character that a terminal could act on written as an escape.

    Control characters (ESC, newline, OSC introducers), bidi overrides, zero-width, unassigned and
    invisible characters become ``\\x1b`` or ``\\u202e``, and so do marks beyond MAX_MARKS over one
    character; beyond ``limit`` characters an ellipsis stands.
    """
    if len(text) <= limit and text.isascii() and text.isprintable():  # nearly all
        return text
    cut = text[: limit + 1]
    shown: list[str] = []
    marks = 0
    for character in cut[:limit]:
        marks = marks + 1 if unicodedata.category(character) in _MARKS else 0
        hidden = marks > MAX_MARKS or is_hidden(character)
        shown.append(_escape(character) if hidden else character)
    return "".join(shown) + ("…" if len(cut) > limit else "")


def clean_lines(text: str) -> str:
    """``text`` of any length, cleaned, with its line ends and tabs."""
    if text.isascii() and text.translate(_BREAKS).isprintable():
        return text
    return "\n".join(
        "\t".join(clean(part, len(part)) for part in line.split("\t")) for line in text.split("\n")
    )


_BREAKS = {ord("\n"): " ", ord("\t"): " "}


def is_hidden(character: str) -> bool:
    """Whether a terminal could act on the character, or shows nothing of it."""
    return unicodedata.category(character) in _HIDDEN or character in _FILLERS


def quoted(path: object) -> str:
    """A path as a shell takes it, for a command that people paste."""
    plain = shlex.quote(str(path))
    shown = clean(plain, 500)
    if shown == plain or len(plain) > 500:
        return shown
    raw = str(path).encode("utf-8", "surrogateescape" if _is_path(str(path)) else "replace")
    return "$'" + "".join(map(_in_ansi_c_quotes, raw)) + "'"


def _is_path(text: str) -> bool:
    """Whether a file can have the name: what is no character in it stands for one byte."""
    return not any("\ud800" <= c <= "\udfff" and not "\udc80" <= c <= "\udcff" for c in text)


def _in_ansi_c_quotes(byte: int) -> str:
    plain = 0x20 <= byte < 0x7F and byte not in b"'\\"
    return chr(byte) if plain else f"\\x{byte:02x}"


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
    if isinstance(numbers, range) and numbers and numbers.step == 1:  # of any length
        return span(numbers[0], numbers[-1])
    runs: list[list[int]] = []
    for each in sorted(numbers):
        if runs and each == runs[-1][-1] + 1:
            runs[-1].append(each)
        else:
            runs.append([each])
    return ", ".join(span(run[0], run[-1]) for run in runs)


def span(first: int, last: int) -> str:
    """Neighbouring whole numbers: ``0-3``, or ``5`` alone."""
    return f"{first}-{last}" if last > first else str(first)


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


def cosine_text(value: float, places: int = 6) -> str:
    """A cosine in so many ``places``: what is not 1 never reads as a bare 1."""
    return "1" if value == 1.0 else f"{value:.{places}f}"


def nearest(name: str, valid: Iterable[str]) -> str | None:
    """The entry of ``valid`` that a person who typed ``name`` most likely meant, if one is near."""
    found = difflib.get_close_matches(name.lower(), list(valid), n=1, cutoff=0.6)
    return found[0] if found else None
