"""Hugging Face transformers as an engine: its own eager pass, watched by forward hooks.

What happens inside attention is seen through the library's own registry: a function that calls the
model's eager attention, watches its arguments, and the tensor that meets softmax.
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode

from aprtui.engine import ops
from aprtui.engine.adapters import Put, Ran, modules
from aprtui.engine.adapters.scans import (
    INSIDE,
    delta_of,
    scan_of,
    short_conv_of,
    watch_conv,
    watch_delta,
    watch_scan,
)
from aprtui.engine.device import torch_settings
from aprtui.engine.hooks import Stages, hooks
from aprtui.errors import BadFileError, EngineError, UsageError
from aprtui.formats.tracedir import StageKey
from aprtui.graph import Graph, Node
from aprtui.graph.ops import Activate, Attend, Clip, Combine, Norm, Op, Scores, Sigmoid
from aprtui.graph.vocabulary import facts_of, order_of
from aprtui.text import clean

if TYPE_CHECKING:
    from aprtui.engine.plan import Plan

__all__ = ["run"]

_ATTENTION = "aprtui-capture"  # our name in the registry


_OF_DECODER = frozenset({"embedding", "pos_embedding", "embedding_norm", "final_norm"})
# The stages of what the attention function is given, meets and returns.
_QUERY, _KEY, _SCORES, _WEIGHTS, _MIXED = _INSIDE = (
    "q_post_rope", "k_post_rope", "attn_scores", "attn_softmax", "attention",
)  # fmt: skip
_NORMED = ("q_norm", "k_norm", _QUERY, _KEY)
_PRODUCT, _BIASED = "qkv_matmul", "qkv_bias"


def run(plan: Plan, device: torch.device, put: Put) -> Ran:
    """One prefill of the plan's tokens with every planned stage given to ``put``.

    The whole model is loaded. Raises BadFileError with the library's own words when it refuses the
    model, EngineError when its modules are not those that are known.
    """
    import transformers

    version = str(transformers.__version__)
    model = _load(plan, device)
    shown = _Shown(plan, put, version)
    try:
        with ExitStack() as watching:
            decoder = model.get_decoder()
            for watch in _watches(decoder, shown):
                watching.enter_context(watch)
            watching.enter_context(_inside_attention(shown))
            watching.enter_context(_BestFirst())
            keep = 0 if plan.job.logits == "all" else 1
            tokens = torch.tensor([plan.tokens], device=device)
            logits = model(input_ids=tokens, use_cache=False, logits_to_keep=keep).logits[0]
    except UsageError as error:
        raise shown.differs(error.message) from error
    logits = logits if plan.job.logits == "all" else logits[-1]
    put(shown.graph.nodes[-1].key, logits)
    engine = {
        "name": "transformers",
        "version": version,
        **torch_settings(),
        "settings": {"attention": "eager"},
    }
    return Ran(logits, engine, _notes(shown.graph))


def _notes(graph: Graph) -> tuple[str, ...]:
    """What of the stages transformers does not hold by itself."""
    again = any(key.stage == _BIASED for key in graph.by_key)
    clips = dict.fromkeys(node.key.stage for node in graph if isinstance(node.op, Clip))
    return (
        *([f"{_PRODUCT} is computed once more without its bias"] if again else []),
        *(f"{stage} is computed once more from what it cuts" for stage in clips),
    )


def _load(plan: Plan, device: torch.device) -> Any:
    """The model on its device in the plan's dtype. Nothing is fetched, no code of its is run."""
    transformers: Any = importlib.import_module("transformers")
    where: Path = plan.model.path
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        _register()
        load = partial(
            transformers.AutoModelForCausalLM.from_pretrained,
            where if where.is_dir() else where.parent,
            dtype=getattr(torch, plan.job.dtype),
            local_files_only=True,
            trust_remote_code=False,
        )
        try:
            model = load(attn_implementation=_ATTENTION)
        except KeyError:  # some look it up in a table of their own
            model = load(attn_implementation="eager")
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

    def __init__(self, plan: Plan, put: Put, version: str) -> None:
        self.graph: Graph = plan.model.graph
        self.wanted = frozenset(file.key for file in plan.files)
        self.tokens = len(plan.tokens)
        self._put = put
        self._version = version
        self._seen: dict[StageKey, torch.Tensor] = {}
        self._followers: dict[StageKey, list[Node]] = {}
        for node in self.graph:
            if isinstance(node.op, Clip) and node.key in self.wanted:
                self.follow(node)
        taken = {node.key for nodes in self._followers.values() for node in nodes}
        self.watched = self.wanted.difference(taken).union(self._followers)

    def follow(self, node: Node) -> None:
        """Have a stage computed once more from its inputs, where no module shows it."""
        for key in node.inputs:
            self._followers.setdefault(key, []).append(node)

    def _follow(self, key: StageKey, value: torch.Tensor) -> None:
        """Compute what follows from a stage and those that were seen before."""
        self._seen[key] = value.clone()
        for node in self._followers[key]:
            if all(each in self._seen for each in node.inputs):
                given = [self._seen[each] for each in node.inputs]
                self._put(node.key, _followed(node.op, *given))

    def put(self, stage: str, value: torch.Tensor, *, layer: int | None = None) -> None:
        """Raises EngineError when the tensor is of another size than the stage."""
        key = StageKey(layer, stage)
        if key not in self.wanted and key not in self._followers:
            return
        node = self.graph[key]
        shape = node.shape(self.tokens)
        heads_first = shape[:2] != tuple(value.shape[:2]) == shape[1::-1]
        if isinstance(node.op, Norm) and value.dim() == 3 and heads_first:
            value = value.transpose(0, 1)
        elif isinstance(node.op, Norm) and value.dim() == 3 and value.stride(0) < value.stride(1):
            value = value.transpose(0, 1)  # gemma3 norms [heads, T, d], a view of [T, heads, d]
        elif stage in _NORMED and value.dim() == 3 and self.turns_first(layer):
            value = value.transpose(0, 1)
        if (
            isinstance(node.op, Sigmoid) and stage not in INSIDE
        ):  # the module is the product before it
            value = value.sigmoid()
        if value.numel() != math.prod(shape):
            raise self.differs(
                f"it gives {key} as {list(value.shape)} where {list(shape)} was expected"
            )
        if key in self.wanted:
            self._put(key, value.reshape(shape))
        if key in self._followers:
            self._follow(key, value.reshape(shape))

    def in_order(self, value: torch.Tensor, layer: int | None) -> torch.Tensor:
        """Columns of q, k and v of each key/value head as those of all queries, keys, values."""
        heads = self.graph.kv_heads[layer]
        size = next(
            node.op.values.size
            for node in self.graph
            if node.key.layer == layer and isinstance(node.op, Attend)
        )
        by_head = value.reshape(*value.shape[:-1], heads, -1, size)
        parts = (by_head[..., :-2, :], by_head[..., -2, :], by_head[..., -1, :])
        return torch.cat([part.flatten(value.dim() - 1) for part in parts], dim=-1)

    def turns_first(self, layer: int | None) -> bool:
        """Whether the layer normalises heads [heads,T,d] once they are turned."""
        norm = self.graph.by_key.get(StageKey(layer, "q_norm"))
        return norm is not None and norm.inputs[0].stage == _QUERY

    def differs(self, why: str) -> EngineError:
        return EngineError(
            f"transformers {self._version} builds this model differently: {why}",
            hint="5.23 is known to work; --stages may leave a stage out",
        )


@dataclass(frozen=True)
class _Part:
    """What ``hooks`` put into: the modules of one layer, or with None the decoder's own."""

    shown: _Shown
    layer: int | None

    def put(self, stage: str, value: torch.Tensor, *, layer: int | None = None) -> None:
        """The stage, or both of a fused gate and up; the embedding is a stage of layer 0."""
        if stage.endswith(modules.TOGETHER):
            stage = stage.removesuffix(modules.TOGETHER)
            self.shown.put(stage, self.shown.in_order(value, self.layer), layer=self.layer)
        elif stage == modules.QUERY_GATE:
            heads = self.shown.graph.query_heads[self.layer]
            size = self.shown.graph[StageKey(self.layer, _MIXED)].axes[-1].extent or 0
            both = value[..., : 2 * heads * size]
            both = both.reshape(*value.shape[:-1], heads, 2, size)
            rest = value[..., 2 * heads * size :]
            joined = torch.cat((both[..., 0, :].flatten(-2), rest), dim=-1)
            self.shown.put(_PRODUCT, joined, layer=self.layer)
            self.shown.put("attn_gate", both[..., 1, :].flatten(-2), layer=self.layer)
        elif (name := modules.HALVES.get(stage)) is not None:
            for part, half in zip(("gate", "up"), value.chunk(2, dim=-1), strict=True):
                self.shown.put(f"{name}_{part}", half, layer=self.layer)
        else:
            first = facts_of(stage).scope == "first"
            self.shown.put(stage, value, layer=0 if first else self.layer)


def _followed(op: Op, value: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
    """A limit, an activation or a sum of what modules show, which the library makes in passing."""
    if isinstance(op, Activate):
        return ops.ACTIVATIONS[op.name](value)
    if isinstance(op, Clip):
        return value.clamp(-op.limit, op.limit)
    assert isinstance(op, Combine)
    shared = others[0] * others[1] if len(others) > 1 else others[0]
    return value + shared


def _watches(decoder: Any, shown: _Shown) -> Iterator[AbstractContextManager[None]]:
    """The hooks that show what is wanted. Raises EngineError where a module for it is not there."""
    yield hooks(decoder, _chosen(decoder, None, shown), _Part(shown, None))
    for number, layer in enumerate(_layers_of(decoder, shown)):
        if (attention := _without_registry(layer)) is not None:
            yield _by_itself(attention, number, shown)
        if (rule := delta_of(layer)) is not None:
            yield watch_delta(rule, number, shown)
        if (scan := scan_of(layer)) is not None:
            yield watch_scan(scan, number, shown)
        if (conv := short_conv_of(layer)) is not None:
            yield watch_conv(conv, number, shown)
        yield hooks(layer, _chosen(layer, number, shown), _Part(shown, number))
        if StageKey(number, _PRODUCT) in shown.wanted and StageKey(number, _BIASED) in shown.graph:
            yield _before_bias(layer, number, shown)


def _layers_of(decoder: Any, shown: _Shown) -> Any:
    """The decoder's layers, whatever they are called."""
    for name in ("layers", "h", "blocks"):
        if isinstance(layers := getattr(decoder, name, None), torch.nn.ModuleList):
            return layers
    raise shown.differs("its decoder has no layers")


def _chosen(module: torch.nn.Module, layer: int | None, shown: _Shown) -> Stages:
    """Which module gives each wanted stage of the decoder or of a layer, and has it whole."""
    names = {name for name, _ in module.named_modules()}
    chosen: dict[str | tuple[str, ...], str] = {}
    todo = sorted(shown.watched, key=order_of)
    for key in todo:  # grows by what others follow from
        of_decoder = key.stage in _OF_DECODER
        if of_decoder != (layer is None) or (not of_decoder and key.layer != layer):
            continue
        again = key.stage == _PRODUCT and StageKey(layer, _BIASED) in shown.graph
        of_norm = key.stage in (_QUERY, _KEY) and shown.turns_first(layer)
        if key.stage in (_QUERY, _KEY) and _without_registry(module) is not None:
            raise shown.differs(f"no module of it is known to give {key}")
        inside = key.stage in _INSIDE or key.stage in INSIDE
        if (inside and not of_norm) or again:
            continue
        source = next(
            (s for s in modules.SOURCES if modules.gives(s, key, names, shown.graph)), None
        )
        if source is None and isinstance(shown.graph[key].op, Activate | Combine):
            shown.follow(shown.graph[key])
            todo += [each for each in shown.graph[key].inputs if each not in todo]
            continue
        if source is None:
            raise shown.differs(f"no module of it is known to give {key}")
        gated = StageKey(layer, "attn_gate") in shown.graph
        chosen[source.modules] = modules.meant(module, source, key.stage, gated=gated)
    return chosen


@contextmanager
def _before_bias(layer: Any, number: int, shown: _Shown) -> Iterator[None]:
    """The product of q, k and v, which the library fuses with its bias: alone, once more."""
    have = {name for name, _ in layer.named_modules()}
    biased = StageKey(number, _BIASED)
    source = next(s for s in modules.SOURCES if modules.gives(s, biased, have, shown.graph))
    names = (source.modules,) if isinstance(source.modules, str) else source.modules
    parts = [layer.get_submodule(name) for name in names]
    told = _Part(shown, number)

    def product(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        # Conv1D alone holds its matrix as [in,out]
        weights = [part.weight.T if hasattr(part, "nf") else part.weight for part in parts]
        joined = [torch.nn.functional.linear(inputs[0][0], weight) for weight in weights]
        told.put(modules.meant(layer, source, _PRODUCT), torch.cat(joined, dim=1))

    handle = parts[0].register_forward_pre_hook(product)
    try:
        yield
    finally:
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


class _BestFirst(TorchFunctionMode):
    """Has experts chosen in order: some routers leave open how their ids stand."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = dict(kwargs or {})
        if getattr(func, "__name__", "") == "topk" and "sorted" in named:
            named["sorted"] = True
        return func(*args, **named)


class _SoftmaxInput(TorchFunctionMode):
    """Keeps the tensor that meets the first softmax, and what it makes of it."""

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
        if self.scores is None and getattr(func, "__name__", "") == "softmax":
            self.scores = args[0]
            self.weights = func(*args, **(kwargs or {}))
            return self.weights
        return func(*args, **(kwargs or {}))


def _without_registry(layer: torch.nn.Module) -> torch.nn.Module | None:
    """The layer's attention where it is of a model that asks no registry for its function."""
    for name in ("self_attention", "attn"):
        module = getattr(layer, name, None)
        code = sys.modules[type(module).__module__]
        if module is not None and not hasattr(code, "eager_attention_forward"):
            found: torch.nn.Module = module
            return found
    return None


@contextmanager
def _by_itself(attention: torch.nn.Module, number: int, shown: _Shown) -> Iterator[None]:
    """Scores, softmax and what it mixes, of an attention that computes them in its own forward."""
    inside: list[tuple[_SoftmaxInput, ExitStack]] = []

    def begin(module: torch.nn.Module, inputs: Any) -> None:
        stack = ExitStack()
        inside.append((stack.enter_context(_SoftmaxInput()), stack))

    def end(module: torch.nn.Module, inputs: Any, output: Any) -> None:
        seen, stack = inside.pop()
        stack.close()
        if (scores := _masked(shown, number, seen.scores)) is not None:
            shown.put(_SCORES, scores, layer=number)
        if seen.weights is not None:
            shown.put(_WEIGHTS, seen.weights[0], layer=number)

    def mixed(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        shown.put(_MIXED, inputs[0][0], layer=number)

    out = next(m for name, m in attention.named_modules() if name in ("dense", "out_proj"))
    handles = (
        attention.register_forward_pre_hook(begin),
        attention.register_forward_hook(end),
        out.register_forward_pre_hook(mixed),
    )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


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
        if not shown.turns_first(layer):
            turned = _in_place(module, query), _in_place(module, key)
            shown.put(_QUERY, _cooled(shown, layer, turned[0][0].transpose(0, 1)), layer=layer)
            shown.put(_KEY, turned[1][0].transpose(0, 1), layer=layer)
        scores = _without_sinks(inside.scores, getattr(module, "sinks", None))
        if (scores := _masked(shown, layer, scores)) is not None:
            shown.put(_SCORES, scores, layer=layer)
        if weights is not None:
            shown.put(_WEIGHTS, weights[0], layer=layer)
        shown.put(_MIXED, output[0], layer=layer)
    return output, weights


def _in_place(module: Any, x: torch.Tensor) -> torch.Tensor:
    """Heads whose last channels were turned in neighbouring pairs and put into halves, as
    DeepSeek-V3's are: every channel back where its weights have it."""
    config = getattr(module, "config", None)
    turned = getattr(config, "qk_rope_head_dim", 0)
    if not turned or not getattr(config, "rope_interleave", False):
        return x
    one, two = x[..., -turned:].chunk(2, dim=-1)
    return torch.cat((x[..., :-turned], torch.stack((one, two), dim=-1).flatten(-2)), dim=-1)


def _cooled(shown: _Shown, layer: int, query: torch.Tensor) -> torch.Tensor:
    """Q [T,A,d] before the temperature that attention is given it with."""
    node = shown.graph.by_key.get(StageKey(layer, _SCORES))
    if node is None or not isinstance(node.op, Scores) or node.op.temperature is None:
        return query
    return query / ops.temperatures(node.op.temperature, range(len(query))).to(query)


def _without_sinks(scores: torch.Tensor | None, sinks: torch.Tensor | None) -> torch.Tensor | None:
    """Scores as they were before each head's sink was put behind them, and the largest was taken
    off both."""
    if scores is None or sinks is None:
        return scores
    return scores[..., :-1] - (scores[..., -1:] - sinks[:, None, None])


def _masked(shown: _Shown, layer: int, scores: torch.Tensor | None) -> torch.Tensor | None:
    """What met the softmax [A,T,T], 0 where the layer's mask hides the key."""
    node = shown.graph.by_key.get(StageKey(layer, _SCORES))
    if scores is None or node is None or not isinstance(node.op, Scores):
        return None
    seen = ops.visible(node.op.mask, 0, shown.tokens, shown.tokens, scores.device)
    return scores[0].masked_fill(~seen, 0.0)
