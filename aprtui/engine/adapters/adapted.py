"""Zamba 2's shared block in transformers: what a layer's own adapters add to its products, which no
module shows, and whose attention it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from aprtui.engine.adapters.shown import Shown
from aprtui.engine.adapters.watching import hooked

__all__ = ["ADAPTED", "watch_adapters"]

ADAPTED = frozenset({
    "qkv_low", "qkv_adapted", "block_low", "block_gate_adapted", "block_up_adapted",
})  # fmt: skip
"""The stages that are shown so."""

_Tensors = list[torch.Tensor]
_Handles = list[torch.utils.hooks.RemovableHandle]


@contextmanager
def watch_adapters(block: Any, number: int, shown: Shown) -> Iterator[None]:
    """While inside, the sums of products and adapters are shown, and the attention, which bears no
    number of its own, bears its layer's."""
    attention, ffn = block.self_attn, block.feed_forward
    use = attention.layer_dic[number]

    def of_attention(lows: _Tensors, sums: _Tensors) -> None:
        shown.put("qkv_low", torch.cat(lows, dim=-1), layer=number)
        shown.put("qkv_adapted", torch.cat(sums, dim=-1), layer=number)

    def of_ffn(lows: _Tensors, sums: _Tensors) -> None:
        shown.put("block_low", lows[0], layer=number)
        for part, half in zip(("gate", "up"), sums[0].chunk(2, dim=-1), strict=True):
            shown.put(f"block_{part}_adapted", half, layer=number)

    handles = _sums([(ffn.gate_up_proj, ffn.gate_up_proj_adapter_list[use])], of_ffn)
    if hasattr(attention, "linear_q_adapter_list"):
        named = [(f"{n}_proj", f"linear_{n}_adapter_list") for n in "qkv"]
        pairs = [(getattr(attention, p), getattr(attention, uses)[use]) for p, uses in named]
        handles += _sums(pairs, of_attention)
    before, attention.layer_idx = attention.layer_idx, number
    try:
        with hooked(*handles):
            yield
    finally:
        attention.layer_idx = before


def _sums(pairs: Sequence[tuple[Any, Any]], tell: Callable[[_Tensors, _Tensors], None]) -> _Handles:
    """Has ``tell`` given the latents of all adapters, and each product plus its adapter, once all
    have run; an adapter is a product of low rank and one of it."""
    made: dict[int, torch.Tensor] = {}
    lows: _Tensors = []
    sums: _Tensors = []

    def product(place: int) -> Callable[..., None]:
        return lambda module, inputs, output: made.__setitem__(place, output)

    def raised(place: int) -> Callable[..., None]:
        def hook(module: Any, inputs: Any, output: torch.Tensor) -> None:
            sums.append(made.pop(place) + output)
            if len(sums) == len(pairs):
                tell(lows[:], sums[:])
                lows.clear()
                sums.clear()

        return hook

    def low(module: Any, inputs: Any, output: torch.Tensor) -> None:
        lows.append(output)

    handles: _Handles = []
    for place, (matrix, adapter) in enumerate(pairs):
        handles += [
            matrix.register_forward_hook(product(place)),
            adapter[0].register_forward_hook(low),
            adapter.register_forward_hook(raised(place)),
        ]
    return handles
