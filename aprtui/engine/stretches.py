"""How a sequence is cut into passes: a prefill or chunks of it, then one row a decode step.

No torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

from aprtui.text import count

__all__ = ["KV_TYPES", "Stretch", "stretches", "words"]

KV_TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0")
"""What a cache of keys and values may hold, by llama.cpp's names."""


@dataclass(frozen=True)
class Stretch:
    """Consecutive rows of one sequence that one pass computes."""

    kind: str  # "prefill", "chunk" or "decode"
    first: int
    rows: int


def stretches(tokens: int, chunk: int, steps: int) -> tuple[Stretch, ...]:
    """The passes of a prompt of ``tokens`` in chunks of ``chunk`` (0: at once), then ``steps``."""
    kind, size = ("chunk", chunk) if chunk else ("prefill", tokens)
    prompt = [Stretch(kind, at, min(size, tokens - at)) for at in range(0, tokens, size)]
    return (*prompt, *(Stretch("decode", tokens + step, 1) for step in range(steps)))


def words(passes: tuple[Stretch, ...]) -> str:
    """``3 chunks of 4, 4 and 2 rows, 8 decode steps``."""
    said = []
    for kind, run in groupby(passes, key=lambda each: each.kind):
        rows = [each.rows for each in run]
        if kind == "decode":
            said.append(count(len(rows), "decode step"))
        elif len(rows) == 1:
            said.append(f"a {kind} of {count(rows[0], 'row')}")
        else:
            last = f", the last of {rows[-1]}" if rows[-1] != rows[0] else ""
            said.append(f"{len(rows)} {kind}s of {count(rows[0], 'row')}{last}")
    return ", ".join(said)
