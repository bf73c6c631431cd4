"""What two rows of logits mean for the next token: what the user sees of a difference."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["LogitsMetrics", "TopLogits", "logits_metrics", "top_logits"]

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class LogitsMetrics:
    """What the user sees of two rows of logits. ``kl`` is KL(softmax A || softmax B) in nats."""

    argmax_a: int
    argmax_b: int
    argmax_equal: bool
    top5_overlap: int
    kl: float
    margin_a: float  # the largest logit less the second
    margin_b: float


@dataclass(frozen=True)
class TopLogits:
    """One of the likeliest next tokens."""

    token: int
    logit: float
    probability: float


def top_logits(x: Float32, most: int = 5) -> tuple[TopLogits, ...]:
    """The ``most`` largest of one row of logits [V], the largest first; none where not finite."""
    if not x.size or not np.isfinite(x).all():
        return ()
    wide = x.astype(np.float64)
    log_total = float(wide.max()) + math.log(float(np.exp(wide - wide.max()).sum()))
    most = min(most, wide.size)
    largest = np.argpartition(wide, wide.size - most)[wide.size - most :]
    order = sorted(largest.tolist(), key=lambda token: (-wide[token], token))
    return tuple(TopLogits(i, float(wide[i]), math.exp(float(wide[i]) - log_total)) for i in order)


def logits_metrics(x: Float32, y: Float32) -> LogitsMetrics | None:
    """What two rows of logits [V] mean for the next token; None where they are not finite."""
    if x.size < 2 or not (np.isfinite(x).all() and np.isfinite(y).all()):
        return None
    a, b = x.astype(np.float64), y.astype(np.float64)
    log_p, log_q = (side - side.max() for side in (a, b))
    log_p -= math.log(float(np.exp(log_p).sum()))
    log_q -= math.log(float(np.exp(log_q).sum()))
    k = min(5, a.size)
    tops = [set(np.argpartition(side, side.size - k)[side.size - k :].tolist()) for side in (a, b)]
    margins = [float(np.diff(np.partition(side, side.size - 2)[-2:])[0]) for side in (a, b)]
    best_a, best_b = int(a.argmax()), int(b.argmax())
    return LogitsMetrics(
        argmax_a=best_a,
        argmax_b=best_b,
        argmax_equal=best_a == best_b,
        top5_overlap=len(tops[0] & tops[1]),
        kl=max(0.0, float((np.exp(log_p) * (log_p - log_q)).sum())),
        margin_a=margins[0],
        margin_b=margins[1],
    )
