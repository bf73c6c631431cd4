"""Hugging Face transformers as an engine: its own eager pass, watched by forward hooks.

What happens inside attention is seen through the library's own registry: a function that calls the
model's eager attention, watches its arguments, and the tensor that meets softmax.
"""

from __future__ import annotations

import importlib
import math
import re
import sys
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode

from aprtui.engine import ops
from aprtui.engine.adapters import Put, Ran
from aprtui.engine.adapters.hf_rows import Lane, Lanes
from aprtui.engine.device import torch_settings
from aprtui.engine.hooks import Stages, hooks
from aprtui.engine.passes import Piece
from aprtui.engine.stacking import Stack
from aprtui.errors import BadFileError, EngineError, UsageError
from aprtui.formats.tracedir import StageKey
from aprtui.graph import Graph
from aprtui.graph.ops import Norm, Scores, Sigmoid
from aprtui.graph.vocabulary import facts_of, order_of
from aprtui.text import clean

if TYPE_CHECKING:
    from aprtui.engine.plan import Plan

__all__ = ["SoftmaxInput", "eager_of", "load", "passes", "run"]

_ATTENTION = "aprtui-capture"  # our name in the registry


@dataclass(frozen=True)
class _Source:
    """Modules that give a stage, named as ``hooks`` names them: of the decoder for a stage of the
    whole model, else of its layer (whose own name is empty).

    ``unless``: not where the layer has this stage too; one module's name has two meanings then.
    ``beside``: only where there is this module as well, which tells which meaning it is.
    """

    stage: str
    modules: str | tuple[str, ...]
    unless: str = ""
    beside: str = ""


_PROJECTIONS = tuple(f"self_attn.{part}_proj" for part in "qkv")
_GATE_UP, _HALVES = "mlp.gate_up_proj", ("ffn_gate", "ffn_up")  # two stages, side by side

# The first that the model has the modules of is taken.
_SOURCES = (
    _Source("embedding", "layers.0:input"),  # the table's rows, scaled where the model scales them
    _Source("attn_norm", "input_layernorm"),
    _Source("attn_norm", "attention_layernorm"),
    _Source("qkv_matmul", _PROJECTIONS, unless="qkv_bias"),
    _Source("qkv_matmul", "self_attn.qkv_proj", unless="qkv_bias"),
    _Source("qkv_bias", _PROJECTIONS),
    _Source("qkv_bias", "self_attn.qkv_proj"),
    _Source("q_norm", "self_attn.q_norm"),
    _Source("k_norm", "self_attn.k_norm"),
    _Source("q_norm", "self_attn.query_layernorm"),
    _Source("k_norm", "self_attn.key_layernorm"),
    _Source("q_post_rope", "self_attn.query_layernorm:input"),
    _Source("k_post_rope", "self_attn.key_layernorm:input"),
    _Source("attn_out", "self_attn.o_proj"),
    _Source("attn_post_norm", "post_self_attn_layernorm"),
    _Source("attn_post_norm", "post_attention_layernorm"),
    _Source("post_attn_residual", "pre_feedforward_layernorm:input"),
    _Source("post_attn_residual", "feedforward_layernorm:input"),
    _Source("post_attn_residual", "post_attention_layernorm:input",
            beside="post_self_attn_layernorm"),
    _Source("post_attn_residual", "post_attention_layernorm:input", unless="attn_post_norm"),
    _Source("post_attn_residual", "mlp:input", unless="attn_norm"),
    _Source("ffn_norm", "pre_feedforward_layernorm"),
    _Source("ffn_norm", "feedforward_layernorm"),
    _Source("ffn_norm", "post_attention_layernorm", beside="post_self_attn_layernorm"),
    _Source("ffn_norm", "post_attention_layernorm", unless="attn_post_norm"),
    _Source("ffn_gate", "mlp.gate_proj"),
    _Source("ffn_gate", _GATE_UP),
    _Source("ffn_up", "mlp.up_proj"),
    _Source("ffn_up", _GATE_UP),
    _Source("ffn_silu", "mlp.act_fn"),
    _Source("ffn_silu", "mlp.activation_fn"),
    _Source("ffn_swigl", "mlp.down_proj:input"),
    _Source("router_logits", "mlp.gate[0]"),
    _Source("moe_router", "mlp.gate[1]"),
    _Source("moe_router_indices", "mlp.gate[2]"),
    _Source("router_logits", "mlp.router[0]"),
    _Source("moe_router", "mlp.router[1]"),
    _Source("moe_router_indices", "mlp.router[2]"),
    _Source("router_logits", "block_sparse_moe.router[0]"),
    _Source("moe_router", "block_sparse_moe.router[1]"),
    _Source("moe_router_indices", "block_sparse_moe.router[2]"),
    _Source("moe_ffn_out", "mlp.experts"),
    _Source("moe_ffn_out", "block_sparse_moe.experts"),
    *(
        _Source(f"shared_ffn_{stage}", f"mlp.{shared}.{module}")
        for shared in ("shared_expert", "shared_experts", "shared_mlp")
        for stage, module in {
            "gate": "gate_proj",
            "up": "up_proj",
            "silu": "act_fn",
            "swigl": "down_proj:input",
            "out": "down_proj",
        }.items()
    ),
    _Source("shared_gate", "mlp.shared_expert_gate"),
    _Source("ffn_out", "mlp"),
    _Source("ffn_out", "block_sparse_moe"),
    _Source("ffn_post_norm", "post_feedforward_layernorm"),
    _Source("ffn_post_norm", "post_mlp_layernorm"),
    _Source("post_ffn_residual", ""),
    _Source("final_norm", "norm"),
)  # fmt: skip
_OF_DECODER = frozenset({"embedding", "final_norm"})
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
    with _watched(plan, device) as (model, shown):
        shown.lanes = Lanes([Lane(put, 0, len(plan.tokens))])
        keep = 0 if plan.job.logits == "all" else 1
        tokens = torch.tensor([plan.tokens], device=device)
        logits = model(input_ids=tokens, use_cache=False, logits_to_keep=keep).logits[0]
    logits = logits if plan.job.logits == "all" else logits[-1]
    put(shown.graph.nodes[-1].key, logits)
    return Ran(logits, shown.engine(), shown.notes)


@contextmanager
def passes(plans: Sequence[Plan], device: torch.device, stacks: Sequence[Stack]) -> Iterator[_Run]:
    """The model loaded and watched, to be called with the pieces of one pass after the other."""
    with _watched(plans[0], device) as (model, shown):
        yield _Run(model, shown, plans, stacks, device)


class _Run:
    """Passes of sequences that run together, with the cache that the library makes. A batch is
    padded on the left, as its own ``generate`` does it."""

    def __init__(
        self,
        model: Any,
        shown: _Shown,
        plans: Sequence[Plan],
        stacks: Sequence[Stack],
        device: torch.device,
    ) -> None:
        self._model, self._shown, self._stacks, self._device = model, shown, stacks, device
        self._every = plans[0].job.logits == "all"
        self._pads = [max(len(plan.tokens) for plan in plans) - len(p.tokens) for p in plans]
        self._cache: Any = None

    @property
    def engine(self) -> Mapping[str, Any]:
        return self._shown.engine()

    @property
    def notes(self) -> tuple[str, ...]:
        return self._shown.notes

    def __call__(self, pieces: Sequence[Piece]) -> list[torch.Tensor]:
        lanes = Lanes([self._lane(piece) for piece in pieces])
        self._shown.lanes = lanes
        ids = torch.zeros(len(pieces), lanes.width, dtype=torch.long)
        seen = torch.zeros(len(pieces), lanes.columns, dtype=torch.long)
        for place, (piece, lane) in enumerate(zip(pieces, lanes.lanes, strict=True)):
            ids[place, lanes.width - lane.rows :] = torch.tensor(piece.tokens)
            seen[place, lane.pad :] = 1
        where = (seen.cumsum(1) - 1).clamp(min=0)[:, -lanes.width :]
        padded = {"attention_mask": seen, "position_ids": where} if any(self._pads) else {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # the cache has another name in 5.40
            out = self._model(
                input_ids=ids.to(self._device),
                use_cache=True,
                past_key_values=self._cache,
                logits_to_keep=0 if self._every else 1,
                **{name: value.to(self._device) for name, value in padded.items()},
            )
        self._cache = out.past_key_values
        head = self._shown.graph.nodes[-1].key
        for place, lane in enumerate(lanes.lanes):
            kept = lane.rows if self._every else 1
            lane.put(head, out.logits[place, -kept:])
        return [logits[-1] for logits in out.logits]

    def _lane(self, piece: Piece) -> Lane:
        at, stretch = piece.sequence, piece.stretch
        return Lane(self._stacks[at].put, stretch.first, stretch.rows, self._pads[at])


@contextmanager
def _watched(plan: Plan, device: torch.device) -> Iterator[tuple[Any, _Shown]]:
    """The model loaded, and what its passes show while inside. Raises EngineError."""
    import transformers

    model = load(plan.model.path, plan.job.dtype, device, _ATTENTION, _attention)
    shown = _Shown(plan, str(transformers.__version__))
    try:
        with ExitStack() as watching:
            for watch in _watches(model.get_decoder(), shown):
                watching.enter_context(watch)
            watching.enter_context(_inside_attention(shown))
            watching.enter_context(_BestFirst())
            yield model, shown
    except UsageError as error:
        raise shown.differs(error.message) from error


def load(
    where: Path,
    dtype: str,
    device: torch.device,
    attention: str,
    function: Callable[..., Any] | None = None,
    **more: Any,
) -> Any:
    """The model on its device in a dtype, its attention computed by ``function``, which the library
    will know as ``attention``. Nothing is fetched, no code of its is run. Raises BadFileError."""
    transformers: Any = importlib.import_module("transformers")
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        if function is not None:
            _register(attention, function)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            where if where.is_dir() else where.parent,
            dtype=getattr(torch, dtype),
            attn_implementation=attention,
            local_files_only=True,
            trust_remote_code=False,
            **more,
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

    def __init__(self, plan: Plan, version: str) -> None:
        self.graph: Graph = plan.model.graph
        self.wanted = frozenset(file.key for file in plan.files)
        self.lanes = Lanes([Lane(lambda key, value: None, 0, 1)])
        self._version = version

    def engine(self) -> dict[str, Any]:
        """The manifest's."""
        settings = {"attention": "eager"}
        name, version = "transformers", self._version
        return {"name": name, "version": version, **torch_settings(), "settings": settings}

    @property
    def notes(self) -> tuple[str, ...]:
        again = any(key.stage == _BIASED for key in self.graph.by_key)
        return (f"{_PRODUCT} is computed once more without its bias",) if again else ()

    def put(self, stage: str, value: torch.Tensor, *, layer: int | None = None) -> None:
        """Each sequence's rows of a tensor with its batch. Raises EngineError when they are of
        another size than the stage."""
        key = StageKey(layer, stage)
        if key in self.wanted:
            for place, lane in enumerate(self.lanes.lanes):
                self._put(key, self.lanes.of(value, place), lane)

    def _put(self, key: StageKey, value: torch.Tensor, lane: Lane) -> None:
        node, (layer, stage) = self.graph[key], key
        shape = node.shape(lane.rows)
        if isinstance(node.op, Norm) and value.dim() == 3 and value.stride(0) < value.stride(1):
            value = value.transpose(0, 1)  # gemma3 norms [heads, T, d], a view of [T, heads, d]
        elif stage in _NORMED and value.dim() == 3 and self.turns_first(layer):
            value = value.transpose(0, 1)
        if isinstance(node.op, Sigmoid):  # the module is the product before it
            value = value.sigmoid()
        value = value[-lane.rows :]
        if value.numel() != math.prod(shape):
            raise self.differs(
                f"it gives {key} as {list(value.shape)} where {list(shape)} was expected"
            )
        lane.put(key, value.reshape(shape))

    def put_scores(self, stage: str, value: torch.Tensor, layer: int) -> None:
        """Scores [B,A,width,keys], or what softmax makes of them: of each sequence [A,rows,keys]
        with those of its own, 0 where the layer's mask hides the key."""
        key = StageKey(layer, stage)
        scored = self.graph.by_key.get(StageKey(layer, _SCORES))
        if key not in self.wanted or scored is None or not isinstance(scored.op, Scores):
            return
        for place, lane in enumerate(self.lanes.lanes):
            whole = self.lanes.keys(value[place], lane)
            seen = ops.visible(scored.op.mask, lane.first, lane.end, lane.end, value.device)
            lane.put(key, whole.masked_fill(~seen, 0.0))

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
        if stage == _GATE_UP:
            for name, half in zip(_HALVES, value.chunk(2, dim=-1), strict=True):
                self.shown.put(name, half, layer=self.layer)
        else:
            first = facts_of(stage).scope == "first"
            self.shown.put(stage, value, layer=0 if first else self.layer)


def _watches(decoder: Any, shown: _Shown) -> Iterator[AbstractContextManager[None]]:
    """The hooks that show what is wanted. Raises EngineError where a module for it is not there."""
    yield hooks(decoder, _chosen(decoder, None, shown), _Part(shown, None), batched=True)
    for number, layer in enumerate(decoder.layers):
        yield hooks(layer, _chosen(layer, number, shown), _Part(shown, number), batched=True)
        if StageKey(number, _PRODUCT) in shown.wanted and StageKey(number, _BIASED) in shown.graph:
            yield _before_bias(layer, number, shown)


def _chosen(module: torch.nn.Module, layer: int | None, shown: _Shown) -> Stages:
    """Which module gives each wanted stage of the decoder or of a layer, and has it whole."""
    names = {name for name, _ in module.named_modules()}
    chosen: dict[str | tuple[str, ...], str] = {}
    for key in sorted(shown.wanted, key=order_of):
        of_decoder = key.stage in _OF_DECODER
        if of_decoder != (layer is None) or (not of_decoder and key.layer != layer):
            continue
        again = key.stage == _PRODUCT and StageKey(layer, _BIASED) in shown.graph
        of_norm = key.stage in (_QUERY, _KEY) and shown.turns_first(layer)
        if (key.stage in _INSIDE and not of_norm) or again:
            continue
        source = next((s for s in _SOURCES if _gives(s, key, names, shown.graph)), None)
        if source is None:
            raise shown.differs(f"no module of it is known to give {key}")
        chosen[source.modules] = _GATE_UP if source.modules == _GATE_UP else key.stage
    return chosen


def _gives(source: _Source, key: StageKey, names: Collection[str], graph: Graph) -> bool:
    """Whether the modules are there and mean this stage."""
    if source.stage != key.stage or StageKey(key.layer, source.unless) in graph:
        return False
    if source.beside and source.beside not in names:
        return False
    modules = (source.modules,) if isinstance(source.modules, str) else source.modules
    return all(re.split(r"[:\[]", name)[0] in names for name in modules)


@contextmanager
def _before_bias(layer: Any, number: int, shown: _Shown) -> Iterator[None]:
    """The product of q, k and v, which the library fuses with its bias: alone, once more."""
    attention = layer.self_attn
    fused = getattr(attention, "qkv_proj", None)
    parts = [getattr(attention, f"{part}_proj") for part in "qkv"] if fused is None else [fused]

    def product(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        joined = [torch.nn.functional.linear(inputs[0], part.weight) for part in parts]
        shown.put(_PRODUCT, torch.cat(joined, dim=-1), layer=number)

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


def _register(name: str, function: Callable[..., Any]) -> None:
    """A function in the library's registry, with the masks that its eager attention gets."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    AttentionInterface.register(name, function)
    AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS["eager"])


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


def eager_of(module: torch.nn.Module) -> Callable[..., Any]:
    """The eager attention of the file that a module's class is written in. Raises EngineError."""
    written = sys.modules[type(module).__module__]
    found: Callable[..., Any] | None = getattr(written, "eager_attention_forward", None)
    if found is None:
        raise EngineError(f"{type(module).__name__}'s attention has no eager function")
    return found


class SoftmaxInput(TorchFunctionMode):
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
    inside = SoftmaxInput()
    with inside:
        output, weights = eager_of(module)(module, query, key, value, attention_mask, **named)
    if _watching:
        shown = _watching[-1]
        layer = int(getattr(module, "layer_idx"))  # noqa: B009 - a plain number, not a module
        if not shown.turns_first(layer):
            new = key[:, :, key.shape[2] - query.shape[2] :]  # the others were cached before
            shown.put(_QUERY, _cooled(shown, layer, query.transpose(1, 2)), layer=layer)
            shown.put(_KEY, new.transpose(1, 2), layer=layer)
        scores = _without_sinks(inside.scores, getattr(module, "sinks", None))
        if scores is not None:
            shown.put_scores(_SCORES, scores, layer)
        if weights is not None:
            shown.put_scores(_WEIGHTS, weights, layer)
        shown.put(_MIXED, output, layer=layer)
    return output, weights


def _cooled(shown: _Shown, layer: int, query: torch.Tensor) -> torch.Tensor:
    """Q [B,T,A,d] before the temperature that attention is given it with."""
    node = shown.graph.by_key.get(StageKey(layer, _SCORES))
    if node is None or not isinstance(node.op, Scores) or node.op.temperature is None:
        return query
    lanes = shown.lanes
    warm = [
        ops.temperatures(node.op.temperature, range(lane.end - lanes.width, lane.end))
        for lane in lanes.lanes
    ]
    return query / torch.stack(warm).to(query)


def _without_sinks(scores: torch.Tensor | None, sinks: torch.Tensor | None) -> torch.Tensor | None:
    """Scores as they were before each head's sink was put behind them, and the largest was taken
    off both."""
    if scores is None or sinks is None:
        return scores
    return scores[..., :-1] - (scores[..., -1:] - sinks[:, None, None])
