"""What no module of a transformers model shows: seen by the functions that its pass calls.

Some layers add both branches in one line, use one norm for queries and keys, or give the weights of
all experts instead of the chosen ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from itertools import cycle
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from aprtui.engine.adapters.adapted import ADAPTED, watch_adapters
from aprtui.engine.adapters.indexers import INDEX, watch_indexer
from aprtui.engine.adapters.shown import Part, Shown
from aprtui.engine.adapters.streams import STREAMS, watch_streams
from aprtui.engine.adapters.watching import hooked
from aprtui.graph import Node
from aprtui.graph.ops import Add

__all__ = ["OWN_INPUTS", "Functions", "beyond", "own_inputs"]

OWN_INPUTS = "per_layer_input"

Watch = tuple[frozenset[str], AbstractContextManager[None]]
"""The stages that are shown so, and what shows them while it is entered."""


class Functions(TorchFunctionMode):
    """Watches the functions of a pass, and has experts chosen in order: some routers leave open how
    their ids stand.

    ``chosen``: given the ids of the next choice, once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.chosen: Callable[[torch.Tensor], None] | None = None

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named, name = dict(kwargs or {}), getattr(func, "__name__", "")
        if name == "topk" and "sorted" in named:
            named["sorted"] = True
        made = func(*args, **named)
        if name == "topk" and self.chosen is not None:
            tell, self.chosen = self.chosen, None
            tell(made[1])
        return made


def beyond(layer: Any, number: int, shown: Shown, functions: Functions) -> Iterator[Watch]:
    """What a layer's modules do not show, and the hooks that do."""
    for stage in shown.graph.parallel_sums:
        if stage.key.layer == number:
            yield frozenset({stage.key.stage}), _stream(layer, stage, shown)
    norm = getattr(_attention_of(layer), "qk_norm", None)
    if norm is not None:
        stages = {f"{which}_{step}" for which in "qk" for step in ("norm", "post_rope")}
        yield frozenset(stages), _one_norm(norm, number, shown)
    if getattr(_attention_of(layer), "indexer", None) is not None:
        yield INDEX, watch_indexer(_attention_of(layer).indexer, number, shown)
    if hasattr(layer, "shared_transformer"):
        yield ADAPTED, watch_adapters(layer.shared_transformer, number, shown)
    if hasattr(layer, "altup"):
        yield STREAMS, watch_streams(layer, number, shown)
    ffn = getattr(layer, "feed_forward", None)
    if hasattr(ffn, "router") and hasattr(ffn, "shared_expert"):
        stages = {"moe_router_indices", "moe_router", "moe_ffn_out"}
        yield frozenset(stages), _all_experts(ffn, number, shown, functions)


def _attention_of(layer: Any) -> Any:
    """The layer's attention, whatever it is called; None without one."""
    names = ("self_attn", "attn", "attention", "self_attention")
    return next((getattr(layer, name) for name in names if hasattr(layer, name)), None)


def _stream(layer: Any, stage: Node, shown: Shown) -> AbstractContextManager[None]:
    """Both branches are added in one line, in any order: the stream with the attention's alone,
    once more."""
    assert isinstance(stage.op, Add)
    scale, hidden = stage.op.scale, []

    def began(module: Any, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        hidden.append(inputs[0] if inputs else named["hidden_states"])

    def attended(module: Any, inputs: Any, output: Any) -> None:
        branch = output[0] if isinstance(output, tuple) else output
        made = hidden.pop() + (branch if scale == 1.0 else branch * scale)
        shown.put(stage.key.stage, made, layer=stage.key.layer)

    return hooked(
        layer.register_forward_pre_hook(began, with_kwargs=True),
        _attention_of(layer).register_forward_hook(attended),
    )


@contextmanager
def own_inputs(decoder: Any, shown: Shown) -> Iterator[None]:
    """What the layers are given of embeddings of their own, as the decoder makes it."""
    right, told = decoder.project_per_layer_inputs, Part(shown, None)

    def project(*given: Any, **named: Any) -> torch.Tensor:
        made: torch.Tensor = right(*given, **named)
        told.put(OWN_INPUTS, made)
        return made

    decoder.project_per_layer_inputs = project
    try:
        yield
    finally:
        del decoder.project_per_layer_inputs


def _one_norm(norm: torch.nn.Module, number: int, shown: Shown) -> AbstractContextManager[None]:
    """One norm for what is turned: the queries first, then the keys, [B,T,heads,d] both."""
    turn = cycle("qk")

    def normed(module: Any, inputs: Any, output: Any) -> None:
        which = next(turn)
        for step, value in (("post_rope", inputs[0]), ("norm", output)):
            shown.put(f"{which}_{step}", value.flatten(2), layer=number)

    return hooked(norm.register_forward_hook(normed))


def _all_experts(
    ffn: Any, number: int, shown: Shown, functions: Functions
) -> AbstractContextManager[None]:
    """The router gives each expert's weight [B*T,E], and every expert is computed: the ids that it
    chose, their weights, and the sum of the experts' outputs [E*B*T,H] once more."""
    held: list[torch.Tensor] = []

    def before(module: Any, inputs: Any) -> None:
        functions.chosen = held.append

    def routed(module: Any, inputs: Any, output: Any) -> None:
        ids = held.pop()
        shown.put("moe_router_indices", ids, layer=number)
        shown.put("moe_router", output[0].gather(1, ids), layer=number)

    def computed(module: Any, inputs: Any, output: torch.Tensor) -> None:
        by_expert = output.reshape(ffn.num_experts, -1, output.shape[-1])
        shown.put("moe_ffn_out", by_expert.sum(dim=0), layer=number)

    return hooked(
        ffn.router.register_forward_pre_hook(before),
        ffn.router.register_forward_hook(routed),
        ffn.experts.register_forward_hook(computed),
    )
