"""What happens inside the attention of a transformers model.

It is seen through the library's own registry: a function that calls the model's eager attention,
watches its arguments, and the tensor that meets softmax. A model that asks no registry is watched
while its attention's own forward runs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from aprtui.engine import ops
from aprtui.engine.adapters.shown import JOINED, KEY, MIXED, QUERY, SCORES, WEIGHTS, Shown
from aprtui.engine.adapters.watching import hooked, while_running
from aprtui.errors import EngineError
from aprtui.formats.tracedir import StageKey
from aprtui.graph.ops import Scores

__all__ = [
    "ATTENTION",
    "SoftmaxInput",
    "attention_shown",
    "by_itself",
    "chosen_mask",
    "eager_of",
    "inside_attention",
    "register",
    "without_registry",
]

ATTENTION = "aprtui-capture"  # our name in the registry

_watching: list[Shown] = []  # the pass that is being watched; the registry knows only functions


@contextmanager
def inside_attention(shown: Shown) -> Iterator[None]:
    """While inside, the function in the registry shows what it meets."""
    _watching.append(shown)
    try:
        yield
    finally:
        _watching.remove(shown)


def register(name: str, function: Callable[..., Any]) -> None:
    """A function in the library's registry, with the masks that its eager attention gets."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    AttentionInterface.register(name, function)
    AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS["eager"])


def eager_of(module: torch.nn.Module) -> Callable[..., Any]:
    """The eager attention of the file that a module's class is written in. Raises EngineError."""
    written = sys.modules[type(module).__module__]
    found: Callable[..., Any] | None = getattr(written, "eager_attention_forward", None)
    if found is None:
        raise EngineError(f"{type(module).__name__}'s attention has no eager function")
    return found


class SoftmaxInput(TorchFunctionMode):
    """Keeps the tensor that meets the first softmax, and what it makes of it; where its rows'
    maximum is taken off before, as it was."""

    def __init__(self) -> None:
        super().__init__()
        self.scores: torch.Tensor | None = None
        self.weights: torch.Tensor | None = None

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if self.scores is None and getattr(func, "__name__", "") in ("max", "softmax"):
            self.scores = args[0]
            self.weights = func(*args, **(kwargs or {}))
            return self.weights
        return func(*args, **(kwargs or {}))


def without_registry(layer: torch.nn.Module) -> torch.nn.Module | None:
    """The layer's attention where it is of a model that asks no registry for its function."""
    for name in ("self_attention", "attn"):
        module = getattr(layer, name, None)
        code = sys.modules[type(module).__module__]
        if module is not None and not hasattr(code, "eager_attention_forward"):
            found: torch.nn.Module = module
            return found
    return None


def by_itself(
    attention: torch.nn.Module, number: int, shown: Shown
) -> AbstractContextManager[None]:
    """Scores, softmax and what it mixes, of an attention that computes them in its own forward."""

    def tell(seen: SoftmaxInput, output: Any) -> None:
        for stage, value in ((SCORES, seen.scores), (WEIGHTS, seen.weights)):
            if value is not None:
                shown.put_scores(stage, value, number)

    def mixed(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        shown.put(MIXED, inputs[0], layer=number)

    out = next(m for name, m in attention.named_modules() if name in ("dense", "out_proj"))
    return hooked(
        *while_running(attention, SoftmaxInput, tell), out.register_forward_pre_hook(mixed)
    )


def attention_shown(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **named: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The model's own eager attention, its inside shown: query [B,heads,T,d], key [B,heads,S,d]."""
    inside = SoftmaxInput()
    mask = chosen_mask(attention_mask, named.get("indices"))
    with inside:
        output, weights = eager_of(module)(module, query, key, value, mask, **named)
    if _watching:
        shown = _watching[-1]
        layer = int(getattr(module, "layer_idx"))  # noqa: B009 - a plain number, not a module
        keys, cached = key.shape[2], key.shape[2] - query.shape[2]
        if not shown.turns_first(layer):
            warm = _in_place(module, query).transpose(1, 2)
            shown.put(QUERY, _cooled(shown, layer, module, warm), layer=layer)
            keyed = _in_place(module, key[:, :, cached:]).transpose(1, 2)
            shown.put(KEY, keyed, layer=layer)
            shown.put(JOINED, keyed, layer=layer)
        if inside.scores is not None:  # behind the keys stand the sinks
            shown.put_scores(SCORES, inside.scores[..., :keys], layer)
        if weights is not None:
            shown.put_scores(WEIGHTS, weights, layer)
        shown.put(MIXED, output, layer=layer)
    return output, weights


def chosen_mask(mask: torch.Tensor | None, indices: torch.Tensor | None) -> torch.Tensor | None:
    """The mask [B,1,T,S] of an attention whose keys an indexer chose [B,T,k]: the library hides the
    others by itself only where the attention bears its own name."""
    if indices is None or mask is None:
        return mask
    chosen = torch.zeros_like(mask[:, 0], dtype=torch.bool).scatter(-1, indices.long(), True)
    return mask.masked_fill(~chosen[:, None], torch.finfo(mask.dtype).min)


def _in_place(module: Any, x: torch.Tensor) -> torch.Tensor:
    """Heads whose last channels were turned in neighbouring pairs and put into halves, as
    DeepSeek-V3's are: every channel back where its weights have it."""
    config = getattr(module, "config", None)
    turned = getattr(config, "qk_rope_head_dim", 0)
    if not turned or not getattr(config, "rope_interleave", hasattr(module, "indexer")):
        return x
    one, two = x[..., -turned:].chunk(2, dim=-1)
    return torch.cat((x[..., :-turned], torch.stack((one, two), dim=-1).flatten(-2)), dim=-1)


def _cooled(shown: Shown, layer: int, module: torch.nn.Module, query: torch.Tensor) -> torch.Tensor:
    """Q [B,T,A,d] before the temperature that attention is given it with."""
    node = shown.graph.by_key.get(StageKey(layer, SCORES))
    if node is None or not isinstance(node.op, Scores) or node.op.temperature is None:
        return query
    lanes = shown.lanes
    with_padding = hasattr(module, "attn_temperature_tuning")  # which llama4 counts, too
    ends = [lanes.columns if with_padding else lane.end for lane in lanes.lanes]
    warm = [ops.temperatures(node.op.temperature, range(end - lanes.width, end)) for end in ends]
    return query / torch.stack(warm).to(query)
