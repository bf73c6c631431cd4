"""What two rows of logits mean for the next token: what the user sees of a difference."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["LogitsMetrics", "logits_metrics"]

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
