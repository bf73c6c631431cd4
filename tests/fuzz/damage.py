"""Damage by kind of file: bytes, JSON trees, lines of JSON, YAML text. One number, one result."""

from __future__ import annotations

import copy
import json
import random
import struct
from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["Damage", "in_bytes", "in_json", "in_lines", "in_yaml"]

# (seeds, source of chance) -> damaged bytes
Damage = Callable[[Sequence[bytes], random.Random], bytes]

_EDGES: tuple[int, ...] = (
    *(0, 1, 2, 7, 8, 31, 127, 128, 255, 256, 32767, 65535, 65536, 1 << 24, (1 << 31) - 1),
    *(1 << 31, (1 << 32) - 1, 1 << 32, (1 << 53) + 1, 1 << 62, (1 << 63) - 1, 1 << 63),
    (1 << 64) - 1,
)
_RAW = "\ufdd0raw\ufdd0"  # brackets a text that is to stand in the JSON as it is
_ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 3, 0.5, -0.0, 1e308, 1e-320, 1 << 31, 1 << 53, 1 << 63, 10**300,
    "", "a", "\x1b]52;c;aGk=\x07", "\u202e", "\ud800", "blk.\u00b2.x", "../../x", "NaN", "Infinity",
    "-1", "x" * 5000, "\u0301" * 300, [], {}, [[]], [0] * 9, [1 << 40] * 8, ["a", "b"], {"": None},
    *(f"{_RAW}{text}{_RAW}" for text in (
        "NaN", "-Infinity", "1e999", "-1e999", "1" * 400, "9" * 5000, "-0", "1E400", "[" * 80,
        "[" * 70 + "]" * 70, "01",
    )),
)  # fmt: skip


def in_bytes(seeds: Sequence[bytes], chance: random.Random, front: float = 3.0) -> bytes:
    """A seed with one to four wounds; the further ``front`` is above 1 the nearer to its start."""
    found = bytearray(chance.choice(seeds))
    for _ in range(chance.choice((1, 1, 2, 4))):
        at = int(len(found) * chance.random() ** front)
        span = chance.choice((1, 2, 4, 8, 16, 64))
        match chance.randrange(8):
            case 0 if found:
                found[min(at, len(found) - 1)] ^= 1 << chance.randrange(8)
            case 1:
                found[at : at + 1] = bytes([chance.choice((0, 1, 0x7F, 0x80, 0xFF, 0x22, 0x5C))])
            case 2:
                form = chance.choice(("<Q", "<I", "<H"))
                value = chance.choice(_EDGES) % (1 << 8 * struct.calcsize(form))
                found[at : at + struct.calcsize(form)] = struct.pack(form, value)
            case 3:
                del found[at : at + span]
            case 4:
                found[at:at] = found[at : at + span]
            case 5:
                del found[at:]
            case 6:
                found[at:at] = chance.randbytes(span)
            case _:
                other = chance.choice(seeds)
                start = int(len(other) * chance.random() ** front)
                found[at : at + span] = other[start : start + span]
    return bytes(found)


def in_json(seeds: Sequence[bytes], chance: random.Random) -> bytes:
    """A seed's tree with some values and keys replaced; one time in five its text is damaged."""
    if chance.random() < 0.2:
        return in_bytes(seeds, chance, front=1.0)
    try:
        tree = json.loads(chance.choice(seeds))
    except (ValueError, RecursionError):
        return in_bytes(seeds, chance, front=1.0)
    for _ in range(chance.choice((1, 1, 2, 3))):
        tree = _wounded(tree, chance)
    text = json.dumps(tree, ensure_ascii=chance.random() < 0.7)
    for mark in (json.dumps(_RAW)[1:-1], _RAW):
        text = text.replace(f'"{mark}', "").replace(f'{mark}"', "")
    return text.encode("utf-8", "surrogatepass")


def in_lines(seeds: Sequence[bytes], chance: random.Random) -> bytes:
    """Lines of JSON: one of them damaged, now and then left out, doubled or cut."""
    lines = chance.choice(seeds).splitlines() or [b"{}"]
    at = chance.randrange(len(lines))
    match chance.randrange(6):
        case 0:
            del lines[at]
        case 1:
            lines.insert(at, chance.choice(lines))
        case 2:
            lines[at] = lines[at][: chance.randrange(len(lines[at]) + 1)]
        case _:
            lines[at] = in_json([lines[at]], chance).replace(b"\n", b"")
    return b"\n".join(lines) + b"\n" * chance.randrange(2)


_TOKENS = (
    "&a ", "*a", "!!int ", "!x ", "{", "}", "[", "]", "[]", "{}", "- ", "? ", ": ", "|", ">", "---",
    "...", "%YAML 1.2", "\t", "'", '"', "~", "null", ".nan", ".inf", "0x1F", "0o777", "1e999",
    "-1", "9" * 400, "<<: *a", "#", "\ufeff", "\u0085", "\x1b[31m", "&a [*a]", "true", "metadata:",
)  # fmt: skip


def in_yaml(seeds: Sequence[bytes], chance: random.Random) -> bytes:
    """Lines of YAML moved, doubled, indented otherwise, with tokens that mean something."""
    lines = chance.choice(seeds).decode("utf-8", "replace").split("\n")
    for _ in range(chance.choice((1, 2, 4))):
        at = chance.randrange(len(lines))
        line = lines[at]
        match chance.randrange(6):
            case 0:
                del lines[at]
                lines = lines or [""]
            case 1:
                lines[at:at] = lines[at : at + chance.choice((1, 3))]
            case 2:
                lines[at] = " " * chance.randrange(9) + line.lstrip()
            case 3:
                key, colon, _ = line.partition(":")
                lines[at] = f"{key}{colon} {chance.choice(_TOKENS)}"
            case 4:
                place = chance.randrange(len(line) + 1)
                lines[at] = line[:place] + chance.choice(_TOKENS) + line[place:]
            case _:
                other = chance.randrange(len(lines))
                lines[at], lines[other] = lines[other], line
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def _wounded(tree: Any, chance: random.Random) -> Any:
    """The tree with one place in it changed."""
    holders: list[Any] = []
    waiting = [tree]
    while waiting and len(holders) < 2000:
        node = waiting.pop()
        if isinstance(node, dict | list) and node:
            holders.append(node)
            waiting += node.values() if isinstance(node, dict) else node
    if not holders or chance.random() < 0.02:
        return copy.deepcopy(chance.choice(_ODD))
    holder = chance.choice(holders)
    place = (
        chance.choice(list(holder)) if isinstance(holder, dict) else chance.randrange(len(holder))
    )
    match chance.randrange(8):
        case 0:
            del holder[place]
        case 1 if isinstance(holder, dict):
            holder[chance.choice(("", "a", "\ud800", str(place) + "\u00b2"))] = holder.pop(place)
        case 1:
            holder.insert(place, copy.deepcopy(holder[place]))
        case 2:
            holder[place] = [holder[place]]
        case 3:
            other = chance.choice(holders)
            holder[place] = copy.deepcopy(other) if other is not tree else []
        case 4 if type(holder[place]) in (int, float):
            holder[place] = chance.choice(
                (holder[place] * 2, -holder[place], chance.choice(_EDGES))
            )
        case _:
            holder[place] = copy.deepcopy(chance.choice(_ODD))
    return tree
