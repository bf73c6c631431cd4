"""What passes through an indexer of keys: its queries and keys once they are turned, its scores,
and which keys it chose. Its module gives their numbers alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode

from aprtui.engine.adapters.watching import hooked, while_running
from aprtui.formats.tracedir import StageKey
from aprtui.graph.ops import Rope

if TYPE_CHECKING:
    from aprtui.engine.adapters.shown import Shown

__all__ = ["INDEX", "watch_indexer"]

TURNED, SCORES, CHOSEN = ("index_q_rope", "index_k_rope"), "index_scores", "index_keys"
INDEX = frozenset({*TURNED, SCORES, CHOSEN})


class _Inside(TorchFunctionMode):
    """Keeps what the first product of the indexer is given, and what its choice is."""

    def __init__(self) -> None:
        super().__init__()
        self.met: tuple[torch.Tensor, torch.Tensor] | None = None
        self.scores: torch.Tensor | None = None

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name == "matmul" and self.met is None:
            self.met = (args[0], args[1])
        if name == "topk":
            self.scores = args[0]
        return func(*args, **(kwargs or {}))


def watch_indexer(
    indexer: torch.nn.Module, number: int, shown: Shown
) -> AbstractContextManager[None]:
    """The stages inside the indexer of a layer."""

    def tell(seen: _Inside, ids: torch.Tensor) -> None:
        if seen.met is None or seen.scores is None:
            raise shown.differs(f"its indexer in layer {number} chooses otherwise")
        q, k = seen.met[0], seen.met[1][:, 0].transpose(1, 2)[:, -shown.width :]
        for stage, value in zip(TURNED, (q, k.unsqueeze(2)), strict=True):
            shown.put(stage, _in_place(shown, StageKey(number, stage), value), layer=number)
        chosen = torch.zeros_like(seen.scores).scatter(-1, ids.long(), 1.0)
        shown.put_scores(CHOSEN, chosen[:, None], number)
        shown.put_scores(SCORES, seen.scores[:, None], number)

    return hooked(*while_running(indexer, _Inside, tell))


def _in_place(shown: Shown, key: StageKey, x: torch.Tensor) -> torch.Tensor:
    """Heads whose first channels were turned in neighbouring pairs and put into halves: every
    channel back where its weights have it."""
    op = shown.graph[key].op
    if not isinstance(op, Rope) or op.table.pairs == "halves":
        return x
    one, two = x[..., : op.table.dims].chunk(2, dim=-1)
    turned = torch.stack((one, two), dim=-1).flatten(-2)
    return torch.cat((turned, x[..., op.table.dims :]), dim=-1)
