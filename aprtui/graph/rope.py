"""RoPE tables: by which angle each pair of channels turns from one position to the next."""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = ["PAIRS", "RopeTable"]

PAIRS = ("halves", "adjacent")


@dataclass(frozen=True)
class RopeTable:
    """Pair i of ``dims`` channels turns by position / ``position_divisor`` * theta^(-2i/dims)
    / ``divisors[i]``; cos and sin are multiplied by ``magnitude``.

    ``pairs``: "halves" (i, i+dims/2) or "adjacent" (2i, 2i+1). Channels beyond ``dims`` stay as
    they are. ``divisors`` [dims/2] is empty where every one is 1.

    Of prompts longer than ``trained`` positions: ``long_divisors`` take the place of ``divisors``
    (longrope), and theta grows with the prompt by the factor ``dynamic`` (dynamic NTK).
    """

    dims: int
    theta: float
    pairs: str = "halves"
    divisors: tuple[float, ...] = ()
    position_divisor: float = 1.0
    magnitude: float = 1.0
    trained: int = 0
    long_divisors: tuple[float, ...] = ()
    dynamic: float = 0.0

    def at(self, tokens: int) -> RopeTable:
        """The table that a prompt of ``tokens`` tokens is turned by, as transformers chooses it."""
        if tokens <= self.trained or not (self.long_divisors or self.dynamic):
            return self
        if self.long_divisors:
            return replace(self, divisors=self.long_divisors, long_divisors=())
        grown = self.dynamic * tokens / self.trained - (self.dynamic - 1)
        theta = self.theta * grown ** (self.dims / (self.dims - 2))
        return replace(self, theta=theta, dynamic=0.0)
