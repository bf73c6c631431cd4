"""Gemma 3n's streams in transformers, [S,B,T,H] there: seen where a layer predicts and corrects
them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle
from typing import Any

import torch

from aprtui.engine.adapters.shown import Shown
from aprtui.engine.adapters.watching import hooked

__all__ = ["STREAMS", "watch_streams"]

_MODES = ("altup_modes", "altup_correct_modes")
STREAMS = frozenset({*_MODES, "altup_streams", "altup_predicted", "altup_corrected", "altup_out"})
"""The stages that are shown so."""


@contextmanager
def watch_streams(layer: Any, number: int, shown: Shown) -> Iterator[None]:
    """While inside, what the layer makes of its streams is shown."""
    altup, turn = layer.altup, cycle(_MODES)
    predict, correct = altup.predict, altup.correct

    def put(stage: str, streams: torch.Tensor) -> None:
        shown.put(stage, streams.permute(1, 2, 0, 3).clone(), layer=number)  # written over later

    def predicted(streams: torch.Tensor) -> torch.Tensor:
        if number == 0:
            put("altup_streams", streams)
        made: torch.Tensor = predict(streams)
        put("altup_predicted", made)
        return made

    def corrected(predictions: torch.Tensor, activated: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = correct(predictions, activated)
        put("altup_corrected", made)
        return made

    def routed(module: Any, inputs: Any, output: torch.Tensor) -> None:
        shown.put(next(turn), torch.tanh(output.float()).to(output.dtype), layer=number)

    def left(module: Any, inputs: Any, output: Any) -> None:
        put("altup_out", output[0] if isinstance(output, tuple) else output)

    altup.predict, altup.correct = predicted, corrected
    hooks = altup.modality_router.register_forward_hook(routed), layer.register_forward_hook(left)
    try:
        with hooked(*hooks):
            yield
    finally:
        del altup.predict, altup.correct
