"""Forward hooks that put a PyTorch model's tensors into a capture, by names of its modules.

stages = {"model.layers.{layer}.mlp.gate_proj": "ffn_gate",
          "model.layers.{layer}.mlp.down_proj:input": "ffn_swigl"}
with CaptureWriter("trace", tokens=tokens, engine={"name": "mine"}) as capture:
    with hooks(model, stages, capture):
        model(torch.tensor([tokens]))

Several passes, each with its rows' positions:

    with hooks(model, stages, capture, flat=True) as watched:
        watched.at(range(12))
        model(prompt)
        watched.at([12])
        model(step)
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from aprtui.errors import UsageError
from aprtui.text import clean, nearest

__all__ = ["Stages", "Target", "Watched", "hooks"]

Stages = Mapping[str | tuple[str, ...], str]
"""Module name(s) -> stage. ``{layer}`` stands for the layer's number. Behind the name, ``:input``
takes the module's first input (``:input[2]`` the third, ``:input[name]`` the one passed by that
name) in place of its output, and ``[1]`` or ``[name]`` one element of an output that is a tuple or
a dict. Of several names the tensors are joined along the last axis.

``#1`` right behind the name takes the module's second call in a pass; ``#{layer}`` the calls of a
module that all layers share, each the next layer's. One that stands under every layer's name is
dealt out so by itself. Calls that nothing names are kept as ``STAGE.call1`` and so on.
"""

_PATTERN = re.compile(
    r"(?P<name>[^:\[\]#]*)(?:#(?P<call>\d{1,4}|\{layer\}))?(?P<input>:input)?"
    r"(?:\[(?P<index>\w{1,60})\])?"
)


class Target(Protocol):
    """What takes the stages: a ``CaptureWriter``, or anything that puts as it does; ``positions``
    are passed only where ``Watched.at`` said them."""

    def put(self, stage: str, value: torch.Tensor, *, layer: int | None = None) -> None: ...


@dataclass(frozen=True)
class _Tap:
    """One module of one stage: which of its tensors, of which call, is which part."""

    module: torch.nn.Module
    stage: str
    layer: int | None
    part: int
    parts: int
    of_input: bool
    index: int | str
    call: int | None = None  # of each layer's; None: the first
    by_call: bool = False  # each call is the next layer's


class Watched:
    """What the hooks know of the coming pass."""

    def __init__(self, capture: Target, flat: bool, batched: bool) -> None:
        self._capture, self._flat, self._batched = capture, flat, batched
        self._positions: tuple[int, ...] | None = None
        self._rows: list[int] | None = None
        self._held: dict[tuple[str, int | None], dict[int, torch.Tensor]] = {}
        self._calls: Counter[tuple[int, bool]] = Counter()

    def at(self, positions: Sequence[int], rows: Sequence[int] | None = None) -> None:
        """Say where the rows of the coming pass stand. ``rows``: which of a pass's rows are this
        sequence's, in a batch of several; of [B,T,...] the T of the first prompt come first."""
        self._positions = tuple(int(position) for position in positions)
        self._rows = None if rows is None else [int(row) for row in rows]
        if self._rows is not None and len(self._rows) != len(self._positions):
            raise UsageError(f"{len(self._rows)} rows for {len(self._positions)} positions")
        self.begin()

    def begin(self, *_: Any) -> None:
        """A pass begins: calls are counted anew."""
        self._calls.clear()
        self._held.clear()

    def next_call(self, module: torch.nn.Module, of_input: bool) -> int:
        """The number of this call of a module in the pass."""
        key = (id(module), of_input)
        self._calls[key] += 1
        return self._calls[key] - 1

    def take(self, tap: _Tap, layer: int | None, stage: str, value: torch.Tensor) -> None:
        """One part of a stage. What waits for other parts is cloned: a kernel may write over it."""
        if tap.parts == 1:
            self._put(stage, layer, value)
            return
        parts = self._held.setdefault((stage, layer), {})
        parts[tap.part] = value.clone()
        if len(parts) == tap.parts:
            del self._held[stage, layer]
            self._put(stage, layer, torch.cat([parts[part] for part in range(tap.parts)], dim=-1))

    def _put(self, stage: str, layer: int | None, value: torch.Tensor) -> None:
        if self._batched:
            self._capture.put(stage, value, layer=layer)
            return
        where = stage if layer is None else f"layer-{layer}/{stage}"
        positions = self._positions
        if self._rows is not None and not self._flat and value.dim() > 2:
            value = value.flatten(0, 1)
        elif not self._flat:
            value = _unbatched(value, where)
        if positions is None:
            self._capture.put(stage, value, layer=layer)
            return
        if self._rows is not None and len(value) > max(self._rows):
            value = value[self._rows]
        if value.dim() and len(value) < len(positions):  # logits of the last rows
            positions = positions[len(positions) - len(value) :]
        self._capture.put(stage, value, layer=layer, positions=positions)  # type: ignore[call-arg]


@contextmanager
def hooks(
    model: torch.nn.Module,
    stages: Stages,
    capture: Target,
    *,
    flat: bool = False,
    batched: bool = False,
) -> Iterator[Watched]:
    """While inside, every pass of ``model`` puts its tensors into ``capture``.

    A batch of one is expected and left out: [1,T,H] is put as [T,H]. ``flat``: tensors have no
    batch, their first axis is tokens, as serving runtimes have them. ``batched``: tensors are put
    as they are, for a capture that knows whose rows they are. Watching changes no value.
    Raises UsageError for a name that no module has (with the nearest one) and, in the pass, for a
    batch of several prompts or an output that is no tensor.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    taps = [tap for names, stage in stages.items() for tap in _taps(modules, names, stage)]
    watched = Watched(capture, flat, batched)
    handles = [model.register_forward_pre_hook(watched.begin)]
    try:
        for group in _by_module(taps):
            handles.append(_watch(group, watched))
        yield watched
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
                f"module name {clean(text)!r} cannot be read",
                hint="NAME, NAME#1, NAME:input or NAME[1]",
            )
        wanted = re.compile(re.escape(found["name"]).replace(r"\{layer\}", r"(\d+)"))
        matches = [(name, match) for name in modules if (match := wanted.fullmatch(name))]
        if not matches:
            raise UsageError(
                f"no module is named {clean(found['name'])}", hint=_hint(found["name"], modules)
            )
        index: int | str = found["index"] or 0
        index = int(index) if str(index).isdigit() else index
        call = int(found["call"]) if found["call"] and found["call"].isdigit() else None
        for name, match in matches:
            yield _Tap(
                modules[name],
                stage,
                int(match[1]) if match.groups() else None,
                part,
                len(patterns),
                bool(found["input"]),
                index,
                call,
                found["call"] == "{layer}",
            )


def _hint(name: str, modules: Mapping[str, Any]) -> str:
    near = nearest(name.replace("{layer}", "0"), modules)
    return f"did you mean {clean(near)}?" if near else "model.named_modules() lists them"


def _by_module(taps: Sequence[_Tap]) -> list[list[_Tap]]:
    """The taps of each module, of its inputs and of its outputs."""
    found: dict[tuple[int, bool], list[_Tap]] = {}
    for tap in taps:
        found.setdefault((id(tap.module), tap.of_input), []).append(tap)
    return list(found.values())


def _watch(taps: Sequence[_Tap], watched: Watched) -> torch.utils.hooks.RemovableHandle:
    module, of_input = taps[0].module, taps[0].of_input
    layers = sorted({tap.layer for tap in taps if tap.layer is not None})
    each = 1 + max((tap.call or 0 for tap in taps), default=0)  # calls of one layer

    def take(value: Any, named: Mapping[str, Any]) -> None:
        number = watched.next_call(module, of_input)
        shared = len(layers) > 1
        layer = layers[number // each % len(layers)] if shared else None
        for tap in taps:
            if shared and tap.layer != layer:
                continue
            call = number % each if shared else number
            own, stage = tap.layer, tap.stage
            if tap.by_call:
                own = number
            elif tap.call is not None and call != tap.call:
                continue
            elif tap.call is None and call:
                stage = f"{stage}.call{call}"
            watched.take(tap, own, stage, _tensor(value, named, tap.index))

    def before(module: torch.nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        take((*inputs, *named.values()), named)

    def after(module: torch.nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        take(output, output if isinstance(output, Mapping) else {})

    if of_input:
        return module.register_forward_pre_hook(before, with_kwargs=True)
    hook: Callable[..., None] = after
    return module.register_forward_hook(hook)


def _tensor(value: Any, named: Mapping[str, Any], index: int | str) -> torch.Tensor:
    if isinstance(index, str):
        if index not in named:
            raise UsageError(
                f"a watched module has no {clean(index)!r}",
                hint=f"it has {', '.join(clean(str(name), 40) for name in named) or 'no names'}",
            )
        chosen = named[index]
    elif isinstance(value, Mapping):
        chosen = list(value.values())[index]
    else:
        chosen = value[index] if isinstance(value, (tuple, list)) else value
    if not isinstance(chosen, torch.Tensor):
        raise UsageError(
            f"a watched module gave {type(chosen).__name__}, not a tensor",
            hint="NAME[1] takes one element of a tuple",
        )
    return chosen.detach()


def _unbatched(value: torch.Tensor, where: str) -> torch.Tensor:
    """[T,...] of [1,T,...]; what has no batch is left as it is."""
    if value.dim() < 3:
        return value
    if value.shape[0] != 1:
        raise UsageError(
            f"{where}: a batch of {value.shape[0]} prompts, or no batch at all",
            hint="run one prompt, say flat=True, or which rows: watched.at(positions, rows)",
        )
    return value[0]
