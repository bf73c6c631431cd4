"""Hugging Face transformers as an engine: its own eager pass, watched by forward hooks.

What happens inside attention is seen through the library's own registry: a function that calls the
model's eager attention, watches its arguments, and the tensor that meets softmax.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode

from aprtui.engine import ops
from aprtui.engine.adapters import Put, Ran
from aprtui.engine.device import torch_settings
from aprtui.engine.hooks import Stages, hooks
from aprtui.errors import BadFileError, EngineError, UsageError
from aprtui.formats.tracedir import StageKey
from aprtui.model.config import ModelConfig
from aprtui.text import clean

if TYPE_CHECKING:
    from aprtui.engine.plan import Plan

__all__ = ["run"]

_ATTENTION = "aprtui-capture"  # our name in the registry
_LAYER = "layers.{layer}."
_PARTS = tuple(f"{_LAYER}self_attn.{part}_proj" for part in "qkv")

_ALWAYS: Stages = {
    "embed_tokens": "embedding",
    f"{_LAYER}input_layernorm": "attn_norm",
    f"{_LAYER}self_attn.o_proj": "attn_out",
    f"{_LAYER}mlp": "ffn_out",
    "layers.{layer}": "post_ffn_residual",
    "norm": "final_norm",
}
_QK_NORM: Stages = {
    f"{_LAYER}self_attn.q_norm": "q_norm",
    f"{_LAYER}self_attn.k_norm": "k_norm",
}
_TWO_NORMS: Stages = {
    f"{_LAYER}post_attention_layernorm:input": "post_attn_residual",
    f"{_LAYER}post_attention_layernorm": "ffn_norm",
}
_FOUR_NORMS: Stages = {
    f"{_LAYER}post_attention_layernorm": "attn_post_norm",
    f"{_LAYER}pre_feedforward_layernorm:input": "post_attn_residual",
    f"{_LAYER}pre_feedforward_layernorm": "ffn_norm",
    f"{_LAYER}post_feedforward_layernorm": "ffn_post_norm",
}
_DENSE: Stages = {
    f"{_LAYER}mlp.gate_proj": "ffn_gate",
    f"{_LAYER}mlp.up_proj": "ffn_up",
    f"{_LAYER}mlp.act_fn": "ffn_silu",
    f"{_LAYER}mlp.down_proj:input": "ffn_swigl",
}
_EXPERTS: Stages = {
    f"{_LAYER}mlp.gate[1]": "moe_router",
    f"{_LAYER}mlp.gate[2]": "moe_router_indices",
}


def _stages(config: ModelConfig) -> Stages:
    """Which module of the decoder gives which stage, for this model."""
    return {
        **_ALWAYS,
        _PARTS: "qkv_bias" if config.qkv_bias else "qkv_matmul",
        **(_QK_NORM if config.qk_norm else {}),
        **(_FOUR_NORMS if config.post_norms else _TWO_NORMS),
        **(_EXPERTS if config.num_experts else _DENSE),
    }


def run(plan: Plan, device: torch.device, put: Put) -> Ran:
    """One prefill of the plan's tokens with every planned stage given to ``put``.

    The whole model is loaded. Raises BadFileError with the library's own words when it refuses the
    model, EngineError when its modules are not those that are known.
    """
    import transformers

    version = str(transformers.__version__)
    model = _load(plan, device)
    config = plan.model.config
    shown = _Shown(config, len(plan.tokens), put, version)
    try:
        with ExitStack() as watching:
            decoder = model.get_decoder()
            watching.enter_context(hooks(decoder, _stages(config), shown))
            if config.qkv_bias:
                watching.enter_context(_before_bias(decoder, shown))
            watching.enter_context(_inside_attention(shown))
            keep = 0 if plan.job.logits == "all" else 1
            tokens = torch.tensor([plan.tokens], device=device)
            logits = model(input_ids=tokens, use_cache=False, logits_to_keep=keep).logits[0]
    except UsageError as error:
        raise EngineError(
            f"transformers {version} builds this model differently: {error.message}",
            hint="5.23 is known to work",
        ) from error
    logits = logits if plan.job.logits == "all" else logits[-1]
    put(StageKey(None, "lm_head"), logits)
    engine = {
        "name": "transformers",
        "version": version,
        **torch_settings(),
        "settings": {"attention": "eager"},
    }
    notes = ("qkv_matmul is computed once more without its bias",) if config.qkv_bias else ()
    return Ran(logits, engine, notes)


def _load(plan: Plan, device: torch.device) -> Any:
    """The model on its device in the plan's dtype. Nothing is fetched, no code of its is run."""
    transformers: Any = importlib.import_module("transformers")
    where: Path = plan.model.path
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        _register()
        model = transformers.AutoModelForCausalLM.from_pretrained(
            where if where.is_dir() else where.parent,
            dtype=getattr(torch, plan.job.dtype),
            attn_implementation=_ATTENTION,
            local_files_only=True,
            trust_remote_code=False,
        )
        return model.eval().to(device)
    except torch.cuda.OutOfMemoryError:
        raise
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, AttributeError) as error:
        first = clean(str(error).strip().split("\n", 1)[0], 300)
        raise BadFileError(
            where, f"transformers refuses it: {first or type(error).__name__}",
            hint="--engine aprtui",
        ) from error  # fmt: skip
    finally:
        transformers.logging.set_verbosity(verbosity)
        transformers.logging.enable_progress_bar()


class _Shown:
    """Takes what the hooks see and puts it in our shapes."""

    def __init__(self, config: ModelConfig, tokens: int, put: Put, version: str) -> None:
        self.config = config
        self.tokens = tokens
        self._put = put
        self._version = version

    def put(self, stage: str, value: torch.Tensor, *, layer: int | None = None) -> None:
        """Raises EngineError when the tensor is of another size than the stage."""
        layer = 0 if stage == "embedding" else layer
        shape = stage_shape(stage, self.config, self.tokens)
        if stage in ("q_norm", "k_norm") and value.stride()[0] < value.stride()[1]:
            value = value.transpose(0, 1)  # gemma3 norms [heads, T, d], a view of [T, heads, d]
        if value.numel() != torch.Size(shape).numel():
            raise EngineError(
                f"transformers {self._version} gives {stage} as {list(value.shape)} where "
                f"{list(shape)} was expected",
                hint="5.23 is known to work",
            )
        self._put(StageKey(layer, stage), value.reshape(shape))
        if stage == "ffn_out" and self.config.num_experts:
            self._put(StageKey(layer, "moe_ffn_out"), value.reshape(shape))


@contextmanager
def _before_bias(decoder: torch.nn.Module, shown: _Shown) -> Iterator[None]:
    """qkv_matmul, which the library fuses with its bias: the product alone, computed once more."""
    handles = []

    def watch(layer: int, attention: Any) -> None:
        parts = [getattr(attention, f"{part}_proj") for part in "qkv"]

        def product(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            joined = [torch.nn.functional.linear(inputs[0][0], part.weight) for part in parts]
            shown.put("qkv_matmul", torch.cat(joined, dim=1), layer=layer)

        handles.append(parts[0].register_forward_pre_hook(product))

    layers: Any = decoder.layers
    try:
        for number, layer in enumerate(layers):
            watch(number, layer.self_attn)
        yield
    finally:
        for handle in handles:
            handle.remove()


# -- attention -------------------------------------------------------------------------------------

_watching: list[_Shown] = []  # the pass that is being watched; the registry knows only functions


@contextmanager
def _inside_attention(shown: _Shown) -> Iterator[None]:
    _watching.append(shown)
    try:
        yield
    finally:
        _watching.remove(shown)


def _register() -> None:
    """Our function in the library's registry, with the masks that its eager attention gets."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    AttentionInterface.register(_ATTENTION, _attention)
    AttentionMaskInterface.register(_ATTENTION, ALL_MASK_ATTENTION_FUNCTIONS["eager"])


class _SoftmaxInput(TorchFunctionMode):
    """Keeps the tensor that meets the first softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.scores: torch.Tensor | None = None

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if self.scores is None and getattr(func, "__name__", "") == "softmax":
            self.scores = args[0]
        return func(*args, **(kwargs or {}))


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **named: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The model's own eager attention, its inside shown: query and key [1,heads,T,d]."""
    eager = sys.modules[type(module).__module__].eager_attention_forward
    inside = _SoftmaxInput()
    with inside:
        output, weights = eager(module, query, key, value, attention_mask, **named)
    if _watching:
        shown = _watching[-1]
        layer = int(getattr(module, "layer_idx"))  # noqa: B009 - a plain number, not a module
        seen = ops.visible(shown.config, layer, 0, shown.tokens, shown.tokens, query.device)
        shown.put("q_post_rope", query[0].transpose(0, 1), layer=layer)
        shown.put("k_post_rope", key[0].transpose(0, 1), layer=layer)
        if inside.scores is not None:
            shown.put("attn_scores", inside.scores[0].masked_fill(~seen, 0.0), layer=layer)
        if weights is not None:
            shown.put("attn_softmax", weights[0], layer=layer)
        shown.put("attention", output[0], layer=layer)
    return output, weights
