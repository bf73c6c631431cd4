"""Which dimensions the sizes of a folder's files mean, when only one set of them fits."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from aprtui.errors import BadFileError
from aprtui.formats.aprt import read_values
from aprtui.formats.tracedir import StageKey, StageRecord
from aprtui.graph.vocabulary import axes_of, facts_of
from aprtui.text import count

__all__ = ["Reading", "distinct_experts", "readings"]

_MASK_ROWS = 256  # rows of the first head that are looked at to tell the mask


@dataclass(frozen=True)
class Reading:
    """One consistent set of dimensions; 0 where no file tells the dimension."""

    tokens: int
    hidden: int
    heads: int
    kv_heads: int
    channel: int
    ffn: int
    rank: int
    vocab: int

    def __str__(self) -> str:
        parts = [f"{count(self.tokens)} token{'s' * (self.tokens != 1)}"]
        parts += [f"hidden {self.hidden}"] if self.hidden else []
        if self.heads and self.channel:
            parts.append(f"heads {self.heads}/{self.kv_heads or '?'} x {self.channel}")
        parts += [f"ffn {self.ffn}"] if self.ffn else []
        parts += [f"experts per token {self.rank}"] if self.rank else []
        parts += [f"vocabulary {count(self.vocab)}"] if self.vocab else []
        return ", ".join(parts)


def readings(records: dict[StageKey, StageRecord], known: int | None) -> tuple[list[Reading], str]:
    """Every set of dimensions that fits all files, and why there is not exactly one."""
    sizes: dict[str, int] = {}
    for key in sorted(records, key=str):
        kind = _size_class(key.stage)
        if kind is None:
            continue
        found = records[key].count
        if sizes.setdefault(kind, found) != found:
            return [], f"{key} has {count(found)} values, others of its kind {count(sizes[kind])}"
    per_token = [size for kind, size in sizes.items() if kind not in ("scores", "vocab")]
    divisor = math.gcd(*per_token) if per_token else 0
    if known is not None:
        if known < 1:
            return [], "a prompt without tokens"
        candidates = [known]
    elif "scores" in sizes:
        total = sizes["scores"]
        candidates = [t for t in range(1, math.isqrt(total) + 1) if total % (t * t) == 0]
        candidates = [t for t in candidates if divisor % t == 0]
    elif divisor == 1:
        candidates = [1]
    else:
        return [], "no attention scores to tell the number of tokens by"
    stacked = any(record.parts for record in records.values())
    fitting = [r for t in candidates if (r := _reading(sizes, t, stacked)) is not None]
    if len(fitting) > 1:
        fitting = [reading for reading in fitting if _mask_fits(records, reading.tokens)]
    if not fitting:
        return [], "no set of dimensions fits every file"
    return fitting, f"{len(fitting)} sets of dimensions fit"


def _size_class(stage: str) -> str | None:
    """Stages of one class have equal counts."""
    axes = axes_of(stage)
    if axes is None:
        return None
    if axes == ("token", "head", "channel"):
        return "q"
    if axes == ("token", "kv_head", "channel"):
        return "kv"
    return "scores" if facts_of(stage).scores else axes[-1]


def _reading(sizes: dict[str, int], tokens: int, stacked: bool) -> Reading | None:
    """The dimensions that ``sizes`` mean at so many tokens, or None when they contradict."""
    width: dict[str, int] = {}
    for kind, size in sizes.items():
        divisor = tokens
        if kind == "scores":
            divisor = tokens * tokens
        elif kind == "vocab" and not stacked:
            divisor = 1
        if size % divisor:
            return None
        width[kind] = size // divisor
    heads, q, kv, qkv = (width.get(kind, 0) for kind in ("scores", "q", "kv", "qkv"))
    if q and kv and qkv and qkv != q + 2 * kv:
        return None
    channel = kv_heads = 0
    if heads and q:
        if q % heads or (q // heads) % 2:
            return None
        channel = q // heads
    if channel and kv:
        if kv % channel or heads % (kv // channel):
            return None
        kv_heads = kv // channel
    return Reading(
        tokens,
        width.get("hidden", 0),
        heads,
        kv_heads,
        channel,
        width.get("ffn", 0),
        width.get("rank", 0),
        width.get("vocab", 0),
    )


def _mask_fits(records: dict[StageKey, StageRecord], tokens: int) -> bool:
    """Whether most scores, read as [query, key], are 0 where key > query and sum to 1 by row.

    The sum is the softmax's; NaN says nothing. Only the first rows are looked at.
    """
    verdicts = []
    for key, record in records.items():
        facts = facts_of(key.stage)
        if not facts.scores or record.parts:
            continue
        values = read_values(record.path)
        rows = min(_MASK_ROWS, values.size // tokens)
        block = np.asarray(values[: rows * tokens]).reshape(rows, tokens)
        hidden = np.arange(tokens)[None, :] > (np.arange(rows) % tokens)[:, None]
        masked = not np.any(block[hidden & np.isfinite(block)])
        sums = block.astype(np.float64).sum(axis=1)
        off = np.abs(sums[np.isfinite(sums)] - 1) > 0.02
        verdicts.append(masked and not (facts.shares and off.any()))
    return 2 * sum(verdicts) > len(verdicts)


def distinct_experts(records: dict[StageKey, StageRecord]) -> bool:
    for key, record in records.items():
        if facts_of(key.stage).integers:
            try:
                values = read_values(record.path)
            except BadFileError:
                continue
            if np.unique(values).size != values.size:
                return False
    return True
