"""Hugging Face transformers as an engine: its own eager pass, watched by forward hooks."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from aprtui.engine.adapters import Put, Ran, modules
from aprtui.engine.adapters.between import OWN_INPUTS, Functions, beyond, own_inputs
from aprtui.engine.adapters.hf_attention import (
    ATTENTION,
    attention_shown,
    by_itself,
    inside_attention,
    register,
    without_registry,
)
from aprtui.engine.adapters.hf_rows import Lane, Lanes
from aprtui.engine.adapters.scans import (
    INSIDE_SCANS,
    delta_of,
    scan_of,
    short_conv_of,
    watch_conv,
    watch_delta,
)
from aprtui.engine.adapters.shown import BIASED, INSIDE_ATTENTION, KEY, PRODUCT, QUERY, Part, Shown
from aprtui.engine.adapters.watching import hooked
from aprtui.engine.hooks import Stages, hooks
from aprtui.engine.passes import Piece
from aprtui.engine.stacking import Stack
from aprtui.errors import BadFileError, UsageError
from aprtui.formats.tracedir import StageKey
from aprtui.graph.ops import Activate, Add, Combine, Op
from aprtui.graph.vocabulary import order_of
from aprtui.text import clean

if TYPE_CHECKING:
    from aprtui.engine.plan import Plan

__all__ = ["load", "passes", "run"]

_LAYERS = ("layers", "h", "blocks")  # what decoders call theirs
_CACHES = ("cache", "past_key_values", "cache_params")  # its name, the newest first
_OF_DECODER = frozenset({
    "embedding_narrow", "embedding", "pos_embedding", "embedding_norm", "final_norm",
    "head_narrow", "per_layer_embedding",
    "per_layer_projection", "per_layer_norm", "per_layer_input", "altup_projected",
    "altup_unprojected", "altup_merged",
})  # fmt: skip


def run(plan: Plan, device: torch.device, put: Put) -> Ran:
    """One prefill of the plan's tokens with every planned stage given to ``put``.

    The whole model is loaded. Raises BadFileError with the library's own words when it refuses the
    model, EngineError when its modules are not those that are known.
    """
    with _watched(plan, device) as (model, shown):
        shown.lanes = Lanes([Lane(put, 0, len(plan.tokens))])
        keep = 0 if plan.job.logits == "all" or _cuts_rows(model) else 1
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
        shown: Shown,
        plans: Sequence[Plan],
        stacks: Sequence[Stack],
        device: torch.device,
    ) -> None:
        self._model, self._shown, self._stacks, self._device = model, shown, stacks, device
        self._every = plans[0].job.logits == "all"
        self._pads = [max(len(plan.tokens) for plan in plans) - len(p.tokens) for p in plans]
        self._cache: Any = None
        self._taken = inspect.signature(model.forward).parameters
        self._cache_name = next(name for name in _CACHES if name in self._taken)

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
        said = {"attention_mask": seen} if any(self._pads) else {}
        if "position_ids" in self._taken:  # some count them from 0 in every pass
            said["position_ids"] = (seen.cumsum(1) - 1).clamp(min=0)[:, -lanes.width :]
        out = self._model(
            input_ids=ids.to(self._device),
            use_cache=True,
            logits_to_keep=0 if self._every or _cuts_rows(self._model) else 1,
            **{self._cache_name: self._cache},
            **{name: value.to(self._device) for name, value in said.items()},
        )
        self._cache = getattr(out, self._cache_name)
        head = self._shown.graph.nodes[-1].key
        for place, lane in enumerate(lanes.lanes):
            kept = lane.rows if self._every else 1
            lane.put(head, out.logits[place, -kept:])
        return [logits[-1] for logits in out.logits]

    def _lane(self, piece: Piece) -> Lane:
        at, stretch = piece.sequence, piece.stretch
        return Lane(self._stacks[at].put, stretch.first, stretch.rows, self._pads[at])


@contextmanager
def _watched(plan: Plan, device: torch.device) -> Iterator[tuple[Any, Shown]]:
    """The model loaded, and what its passes show while inside. Raises EngineError."""
    import transformers

    adapter = plan.job.adapter
    model = load(
        plan.model.path, plan.job.dtype, device, ATTENTION, attention_shown, adapter=adapter
    )
    shown = Shown(plan, str(transformers.__version__))
    try:
        with ExitStack() as watching:
            functions = Functions()
            for watch in _watches(_decoder(model), shown, functions):
                watching.enter_context(watch)
            watching.enter_context(inside_attention(shown))
            watching.enter_context(functions)
            yield model, shown
    except UsageError as error:
        raise shown.differs(error.message) from error


def load(
    where: Path,
    dtype: str,
    device: torch.device,
    attention: str,
    function: Callable[..., Any] | None = None,
    *,
    adapter: str = "",
    **more: Any,
) -> Any:
    """The model on its device in a dtype, its attention computed by ``function``, which the library
    will know as ``attention``; ``adapter``: a LoRA that is laid on its weights. Nothing is fetched,
    no code of its is run. Raises BadFileError."""
    transformers: Any = importlib.import_module("transformers")
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        if function is not None:
            register(attention, function)
        loading = partial(
            transformers.AutoModelForCausalLM.from_pretrained,
            where if where.is_dir() else where.parent,
            dtype=getattr(torch, dtype),
            local_files_only=True,
            trust_remote_code=False,
            **more,
        )
        try:
            model = loading(attn_implementation=attention)
        except KeyError:  # some look it up in a table of their own
            model = loading(attn_implementation="eager")
        return _adapted(model, adapter).eval().to(device)
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


def _adapted(model: Any, adapter: str) -> Any:
    """The model with an adapter merged into its weights by peft; as it is without one."""
    if not adapter:
        return model
    peft: Any = importlib.import_module("peft")
    folder = Path(adapter) if Path(adapter).is_dir() else Path(adapter).parent
    return peft.PeftModel.from_pretrained(model, folder).merge_and_unload()


def _cuts_rows(model: Any) -> bool:
    """Whether layers that share keys would compute only the rows whose logits are kept."""
    return hasattr(_decoder(model), "_maybe_slice_kv_shared_inputs")


def _decoder(model: Any) -> Any:
    """The module that has the layers. llama4's text model does not find its own."""
    found = model.get_decoder()
    return found if any(hasattr(found, name) for name in _LAYERS) else model.model


def _watches(
    decoder: Any, shown: Shown, functions: Functions
) -> Iterator[AbstractContextManager[object]]:
    """The hooks that show what is wanted. Raises EngineError where a module for it is not there."""
    seen: set[str] = set()
    if hasattr(decoder, "project_per_layer_inputs"):
        seen.add(OWN_INPUTS)
        yield own_inputs(decoder, shown)
    yield hooks(decoder, _chosen(decoder, None, shown, seen), Part(shown, None), batched=True)
    for number, layer in enumerate(_layers_of(decoder, shown)):
        if (attention := without_registry(layer)) is not None:
            yield by_itself(attention, number, shown)
        if (rule := delta_of(layer)) is not None:
            yield watch_delta(rule, number, shown)
        if (scan := scan_of(layer, number, shown)) is not None:
            yield scan
        if (conv := short_conv_of(layer)) is not None:
            yield watch_conv(conv, number, shown)
        given: set[str] = set()
        for stages, watch in beyond(layer, number, shown, functions):
            given |= stages
            yield watch
        part = Part(shown, number, _routed_scale(layer))
        chosen = _chosen(layer, number, shown, given)
        for module, stage in chosen.items():
            if stage in ("q_norm", "k_norm") and isinstance(module, str):
                yield _head_order(layer.get_submodule(module), StageKey(number, stage), shown)
        yield hooks(layer, chosen, part, batched=True)
        if StageKey(number, PRODUCT) in shown.wanted and StageKey(number, BIASED) in shown.graph:
            yield _before_bias(layer, number, shown)


def _head_order(norm: torch.nn.Module, key: StageKey, shown: Shown) -> AbstractContextManager[None]:
    """Has it known whether a norm is given heads first: a view then of [B,T,heads,d]."""

    def given(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        x = inputs[0]
        shown.heads_first[key] = x.dim() == 4 and x.stride(1) < x.stride(2)

    return hooked(norm.register_forward_pre_hook(given))


def _layers_of(decoder: Any, shown: Shown) -> Any:
    """The decoder's layers, whatever they are called."""
    for name in _LAYERS:
        if isinstance(layers := getattr(decoder, name, None), torch.nn.ModuleList):
            return layers
    raise shown.differs("its decoder has no layers")


def _routed_scale(layer: Any) -> float:
    """The factor that an FFN multiplies its experts' sum by, where its router has not done so."""
    ffn, name = getattr(layer, "mlp", None), "routed_scaling_factor"
    by_router = hasattr(getattr(ffn, "gate", None), name)
    return 1.0 if by_router else float(getattr(ffn, name, 1.0))


def _chosen(
    module: torch.nn.Module, layer: int | None, shown: Shown, given: Collection[str] = ()
) -> Stages:
    """Which module gives each wanted stage of the decoder or of a layer, and has it whole;
    ``given``: those that are seen otherwise."""
    names = {name for name, _ in module.named_modules()}
    chosen: dict[str | tuple[str, ...], str] = {}
    gate = modules.source_of(StageKey(layer, "attn_gate"), names, shown.graph)
    todo = sorted(shown.watched, key=order_of)
    for key in todo:  # grows by what others follow from
        of_decoder = key.stage in _OF_DECODER
        if of_decoder != (layer is None) or (not of_decoder and key.layer != layer):
            continue
        again = key.stage == PRODUCT and StageKey(layer, BIASED) in shown.graph
        of_norm = key.stage in (QUERY, KEY) and shown.turns_first(layer)
        if key.stage in (QUERY, KEY) and without_registry(module) is not None:
            raise shown.differs(f"no module of it is known to give {key}")
        inside = key.stage in INSIDE_ATTENTION or key.stage in INSIDE_SCANS
        if (inside and not of_norm) or again or key.stage in given:
            continue
        source = modules.source_of(key, names, shown.graph)
        if source is None and _follows(shown.graph[key].op):
            shown.follow(shown.graph[key])
            todo += [each for each in shown.graph[key].inputs if each not in todo]
            continue
        if source is None:
            raise shown.differs(f"no module of it is known to give {key}")
        chosen[source.modules] = modules.meant(module, source, key.stage, gate)
    return chosen


def _follows(op: Op) -> bool:
    """Whether a stage that no module shows is computed once more from what others show."""
    return isinstance(op, Activate | Add | Combine)


def _before_bias(layer: Any, number: int, shown: Shown) -> AbstractContextManager[None]:
    """The product of q, k and v, which the library fuses with its bias: alone, once more."""
    have = {name for name, _ in layer.named_modules()}
    biased = StageKey(number, BIASED)
    source = modules.source_of(biased, have, shown.graph)
    if source is None:
        raise shown.differs(f"no module of it is known to give {biased}")
    names = (source.modules,) if isinstance(source.modules, str) else source.modules
    parts = [layer.get_submodule(name) for name in names]
    told = Part(shown, number)

    def product(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        # Conv1D alone holds its matrix as [in,out]
        weights = [part.weight.T if hasattr(part, "nf") else part.weight for part in parts]
        joined = [torch.nn.functional.linear(inputs[0], weight) for weight in weights]
        told.put(modules.meant(layer, source, PRODUCT), torch.cat(joined, dim=-1))

    return hooked(parts[0].register_forward_pre_hook(product))
