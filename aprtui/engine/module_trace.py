"""A prefill of any model that transformers loads, module by module."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch

from aprtui.engine.adapters.hf_attention import SoftmaxInput, chosen_mask, eager_of
from aprtui.engine.adapters.huggingface import load
from aprtui.engine.device import deterministic, resolve_devices, torch_settings
from aprtui.engine.module_job import ModulePlan
from aprtui.engine.modules import ModuleCapture, Target, layers_of, watched, watching_attention
from aprtui.errors import BadFileError, EngineError, UsageError
from aprtui.text import clean

__all__ = ["ModuleRun", "load_modules"]

_ATTENTION = "aprtui-modules"


class ModuleRun:
    """A plan whose model is loaded. ``engine`` is the manifest's, whole when ``run`` has returned;
    ``described`` the model's. Raises BadFileError."""

    def __init__(self, plan: ModulePlan) -> None:
        import transformers

        self._plan = plan
        self._device = resolve_devices(plan.job.device).first
        self._model = load_modules(plan.model, plan.job.dtype, self._device)
        _, self._layers = layers_of(self._model)
        self._calls: list[dict[str, Any]] = []
        self.engine: dict[str, Any] = {
            "name": "transformers",
            "version": str(transformers.__version__),
            "device": str(self._device),
            "dtype": plan.job.dtype,
            "threads": torch_settings()["threads"],
            "settings": {"attention": "eager", "modules": self._calls},
        }
        table = self._model.get_input_embeddings().weight
        self.described = plan.described(self._layers, int(table.shape[-1]), int(table.shape[0]))

    def run(self, target: Target) -> None:
        """One prefill, every module's tensors put into ``target``. Raises EngineError."""
        plan, model = self._plan, self._model
        capture = ModuleCapture(
            model, target, len(plan.tokens), plan.job.stages, plan.chosen(self._layers)
        )
        tokens = torch.tensor([plan.tokens], device=self._device)
        try:
            with (
                deterministic(),
                torch.inference_mode(),
                capture.watching(),
                watching_attention(capture),
            ):
                model(tokens, **_asked(model, plan.job.logits))
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
            first = clean(str(error).split("\n", 1)[0], 300)
            raise EngineError(f"transformers' pass failed: {first}") from error
        if not capture.calls:
            raise UsageError("no module has a name like that", hint="--stages 'mlp.*'")
        self._calls += capture.calls


def load_modules(where: Path, dtype: str, device: torch.device, **more: Any) -> Any:
    """The model, its attention seen where it goes through the library's registry; ``more`` is for
    ``from_pretrained``."""
    try:
        model = load(where, dtype, device, _ATTENTION, _attention, **more)
    except BadFileError:  # models that choose their attention's class by its name, or have none
        model = load(where, dtype, device, "eager", **more)
    model.config.use_cache = False
    return model


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **named: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The model's own eager attention, told to the capture that is watching."""
    capture = watched()
    attention_mask = chosen_mask(attention_mask, named.get("indices"))
    with SoftmaxInput() as inside:
        output, weights = eager_of(module)(module, query, key, value, attention_mask, **named)
    if capture is not None:
        given = {"query": query, "key": key, "value": value, "attention_mask": attention_mask}
        capture.attention(module, {**given, **named}, (output, weights), inside.scores)
    return output, weights


def _asked(model: Any, logits: str) -> dict[str, Any]:
    """What the model is called with beside its tokens, as far as it takes it."""
    takes = inspect.signature(model.forward).parameters
    asked = {"use_cache": False, "logits_to_keep": 0 if logits == "all" else 1}
    return {name: value for name, value in asked.items() if name in takes}
