"""Forward hooks that put a PyTorch model's tensors into a capture, by names of its modules.

stages = {"model.layers.{layer}.mlp.gate_proj": "ffn_gate",
          "model.layers.{layer}.mlp.down_proj:input": "ffn_swigl"}
with CaptureWriter("trace", tokens=tokens, engine={"name": "mine"}) as capture:
    with hooks(model, stages, capture):
        model(torch.tensor([tokens]))
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from aprtui.errors import UsageError
from aprtui.text import clean, nearest

__all__ = ["Stages", "Target", "hooks"]

Stages = Mapping[str | tuple[str, ...], str]
"""Module name(s) -> stage. ``{layer}`` stands for the layer's number. Behind the name, ``:input``
takes the module's first input (``:input[2]`` the third) in place of its output, and ``[1]`` one
element of an output that is a tuple. Of several names the tensors are joined along the last axis.
"""

_PATTERN = re.compile(r"(?P<name>[^:\[\]]*)(?P<input>:input)?(?:\[(?P<index>\d{1,3})\])?")


class Target(Protocol):
    """What takes the stages: a ``CaptureWriter``, or anything that puts as it does."""

    def put(self, stage: str, value: torch.Tensor, *, layer: int | None = None) -> None: ...


@dataclass(frozen=True)
class _Tap:
    """One module of one stage: which of its tensors is which part."""

    module: torch.nn.Module
    stage: str
    layer: int | None
    part: int
    parts: int
    of_input: bool
    index: int


@contextmanager
def hooks(
    model: torch.nn.Module, stages: Stages, capture: Target, *, batched: bool = False
) -> Iterator[None]:
    """While inside, every pass of ``model`` puts its tensors into ``capture``.

    A batch of one is expected and left out: [1,T,H] is put as [T,H]; ``batched``: tensors are put
    as they are. Watching changes no value.
    Raises UsageError for a name that no module has (with the nearest one) and, in the pass, for a
    batch of several prompts or an output that is no tensor.
    """
    modules = dict(model.named_modules())
    taps = [tap for names, stage in stages.items() for tap in _taps(modules, names, stage)]
    held: dict[tuple[str, int | None], dict[int, torch.Tensor]] = {}
    handles = []
    try:
        for tap in taps:
            handles.append(_watch(tap, held, capture, batched))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _taps(
    modules: Mapping[str, torch.nn.Module], names: str | tuple[str, ...], stage: str
) -> Iterator[_Tap]:
    """Every module that one entry of the mapping names."""
    patterns = (names,) if isinstance(names, str) else names
    for part, text in enumerate(patterns):
        found = _PATTERN.fullmatch(text)
        if found is None:
            raise UsageError(
                f"module name {clean(text)!r} cannot be read", hint="NAME, NAME:input or NAME[1]"
            )
        wanted = re.compile(re.escape(found["name"]).replace(r"\{layer\}", r"(\d+)"))
        matches = [(name, match) for name in modules if (match := wanted.fullmatch(name))]
        if not matches:
            raise UsageError(
                f"no module is named {clean(found['name'])}", hint=_hint(found["name"], modules)
            )
        for name, match in matches:
            layer = int(match[1]) if match.groups() else None
            index = int(found["index"] or 0)
            yield _Tap(
                modules[name], stage, layer, part, len(patterns), bool(found["input"]), index
            )


def _hint(name: str, modules: Mapping[str, Any]) -> str:
    near = nearest(name.replace("{layer}", "0"), modules)
    return f"did you mean {clean(near)}?" if near else "model.named_modules() lists them"


def _watch(
    tap: _Tap,
    held: dict[tuple[str, int | None], dict[int, torch.Tensor]],
    capture: Target,
    batched: bool,
) -> torch.utils.hooks.RemovableHandle:
    def take(value: Any) -> None:
        parts = held.setdefault((tap.stage, tap.layer), {})
        part = _tensor(value, tap.index)
        parts[tap.part] = part if batched else _unbatched(part, tap)
        if len(parts) == tap.parts:
            del held[tap.stage, tap.layer]
            ordered: Sequence[torch.Tensor] = [parts[part] for part in range(tap.parts)]
            joined = ordered[0] if tap.parts == 1 else torch.cat(list(ordered), dim=-1)
            capture.put(tap.stage, joined, layer=tap.layer)

    def before(module: torch.nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        take((*inputs, *named.values()))

    def after(module: torch.nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        take(output)

    if tap.of_input:
        return tap.module.register_forward_pre_hook(before, with_kwargs=True)
    hook: Callable[..., None] = after
    return tap.module.register_forward_hook(hook)


def _tensor(value: Any, index: int) -> torch.Tensor:
    chosen = value[index] if isinstance(value, (tuple, list)) else value
    if not isinstance(chosen, torch.Tensor):
        raise UsageError(
            f"a watched module gave {type(chosen).__name__}, not a tensor",
            hint="NAME[1] takes one element of a tuple",
        )
    return chosen.detach()


def _unbatched(value: torch.Tensor, tap: _Tap) -> torch.Tensor:
    """[T,...] of [1,T,...]; what has no batch is left as it is."""
    if value.dim() < 3:
        return value
    if value.shape[0] != 1:
        where = tap.stage if tap.layer is None else f"layer-{tap.layer}/{tap.stage}"
        raise UsageError(
            f"{where}: a batch of {value.shape[0]} prompts, or no batch at all",
            hint="run one prompt: model(torch.tensor([tokens]))",
        )
    return value[0]
