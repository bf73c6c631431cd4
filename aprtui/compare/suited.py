"""Whether tokens and positions can be those of a model."""

from __future__ import annotations

from aprtui.compare.captured import Captured
from aprtui.errors import UsageError
from aprtui.graph.ops import Positions
from aprtui.model.open import Model
from aprtui.text import clean

__all__ = ["check_ids", "check_positions"]


def check_ids(ids: tuple[int, ...] | None, model: Model) -> None:
    """Raises UsageError for a token that the vocabulary has not."""
    size = model.graph.vocab_size
    outside = next((each for each in ids or () if not 0 <= each < size), None)
    if outside is not None:
        raise UsageError(
            f"token {outside:,} lies outside the vocabulary of {size:,} tokens",
            hint="are these tokens of another model?",
        )


def check_positions(captured: Captured) -> None:
    """Raises UsageError for rows at positions that the model has never learned."""
    tables = [node.op for node in captured.graph if isinstance(node.op, Positions)]
    last = max(captured.rows.positions, default=0)
    for op in tables:
        if last + op.first >= op.rows:
            raise UsageError(
                f"{clean(str(captured.trace.root))}: a row stands at position {last:,}, and the "
                f"model has learned {op.rows - op.first:,} positions",
                hint="are the rows of its manifest those of this model?",
            )
