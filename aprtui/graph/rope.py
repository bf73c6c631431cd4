"""RoPE tables: by which angle each pair of channels turns from one position to the next."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["PAIRS", "RopeTable"]

PAIRS = ("halves", "adjacent")


@dataclass(frozen=True)
class RopeTable:
    """Pair i of ``dims`` channels turns by position / ``position_divisor`` * theta^(-2i/dims)
    / ``divisors[i]``; cos and sin are multiplied by ``magnitude``.

    ``pairs``: "halves" (i, i+dims/2) or "adjacent" (2i, 2i+1). Channels beyond ``dims`` stay as
    they are. ``divisors`` [dims/2] is empty where every one is 1.
    """

    dims: int
    theta: float
    pairs: str = "halves"
    divisors: tuple[float, ...] = ()
    position_divisor: float = 1.0
    magnitude: float = 1.0
