"""Any model that transformers loads, seen module by module: what each was given and what it made.

Every module without children or with parameters of its own, and every attention function. Names are
the modules' own paths; what a module was given is kept only where no earlier tensor has its bits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Protocol

import torch

from aprtui.formats.tracedir import StageKey
from aprtui.graph.vocabulary import stage_of

__all__ = ["ATTENTION", "ModuleCapture", "layers_of", "watched", "watching_attention"]

Tensor = torch.Tensor
ATTENTION = ".attention"  # behind the name of a module: the function that it calls
_PLAIN = (bool, int, float, str, type(None))
_MOST_TEXT = 200


class Target(Protocol):
    """A ``CaptureWriter``, or what puts as it does."""

    def put(
        self, stage: str, value: Tensor, *, layer: int | None = None, axes: tuple[str, ...] = ...
    ) -> None: ...

    def note(self, text: str) -> None: ...


def layers_of(model: torch.nn.Module) -> tuple[str, int]:
    """The path of the list that the layers lie in, and how many they are; ("", 0) without one."""
    lists = {
        name: len(module)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList) and not _inside_list(name)
    }
    longest = max(lists, key=lambda name: lists[name], default="")
    return longest, lists.get(longest, 0)


def _inside_list(name: str) -> bool:
    return any(part.isdecimal() for part in name.split("."))


@dataclass
class ModuleCapture:
    """What the hooks put into ``target``. ``calls`` are, in order, what is needed to run each
    module again: plain values, for the manifest."""

    model: torch.nn.Module
    target: Target
    tokens: int
    stages: str = "all"
    layers: frozenset[int] | None = None
    calls: list[dict[str, Any]] = field(default_factory=list)
    _seen: dict[bytes, dict[str, Any]] = field(default_factory=dict)
    _times: dict[str, int] = field(default_factory=dict)
    _path: str = ""

    @contextmanager
    def watching(self) -> Iterator[None]:
        """While inside, every pass of the model is captured."""
        self._path, _ = layers_of(self.model)
        with ExitStack() as held:
            for name, module in self.model.named_modules():
                own = next(module.parameters(recurse=False), None) is not None
                if name and (own or not list(module.children())):
                    self._hook(name, module, held)
            yield

    def attention(
        self,
        module: torch.nn.Module,
        given: Mapping[str, Any],
        made: tuple[Tensor, Tensor | None],
        scores: Tensor | None,
    ) -> None:
        """An attention function's call: its arguments by name, its output, and its scores."""
        name = next((n for n, each in self.model.named_modules() if each is module), "")
        if not name or not self._wanted(name):
            return
        call = self._begun(f"{name}{ATTENTION}", module, (), given)
        layer = self._key(name).layer
        if scores is not None and layer is not None and call["shown"] == call["name"]:
            axes = ("head", "query", "key")
            hidden = scores[0] <= torch.finfo(scores.dtype).min / 2  # the mask was added
            shown = scores[0].masked_fill(hidden, 0.0)
            self.target.put("attn_scores", shown, layer=layer, axes=axes)
        self._ended(call, made)

    # -- hooks -----------------------------------------------------------------------------------

    def _hook(self, name: str, module: torch.nn.Module, held: ExitStack) -> None:
        begun: list[dict[str, Any]] = []

        def before(module: torch.nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            if self._wanted(name):
                begun.append(self._begun(name, module, args, named))

        def after(module: torch.nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if begun:
                self._ended(begun.pop(), output)

        held.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
        hook: Callable[..., None] = after
        held.callback(module.register_forward_hook(hook).remove)

    def _wanted(self, name: str) -> bool:
        key = self._key(name)
        if self.layers is not None and key.layer is not None and key.layer not in self.layers:
            return False
        patterns = [part.strip() for part in self.stages.split(",")]
        return patterns == ["all"] or any(fnmatchcase(key.stage, each) for each in patterns)

    def _begun(
        self, name: str, module: torch.nn.Module, args: tuple[Any, ...], named: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The call with what the module is given, copied before it can be changed in place."""
        times = self._times[name] = self._times.get(name, 0) + 1
        shown = name if times == 1 else f"{name}.call-{times}"
        number = iter(range(1, 1 << 16))
        return {
            "name": name,
            "shown": shown,
            "class": type(module).__name__,
            "args": [self._given(shown, value, number) for value in args],
            "kwargs": {key: self._given(shown, value, number) for key, value in named.items()},
        }

    def _ended(self, call: dict[str, Any], output: Any) -> None:
        outputs = output if isinstance(output, tuple | list) else [output]
        made = []
        for place, value in enumerate(outputs):
            if isinstance(value, Tensor) and value.numel() and not value.is_complex():
                alone = not isinstance(output, tuple | list)
                shown = call["shown"] if alone else f"{call['shown']}.{place}"
                made.append({"index": None if alone else place, **self._put(shown, value)})
        del call["shown"]
        if made:
            self.calls.append({**call, "out": made})

    def _given(self, shown: str, value: Any, number: Iterator[int]) -> dict[str, Any]:
        """One argument: a tensor's place in the capture, a plain value, or what is lost."""
        if isinstance(value, Tensor):
            known = self._seen.get(_digest(value))
            if known is not None:
                return {**known, "shape": list(value.shape), "dtype": _dtype(value)}
            place = next(number)
            return self._put(f"{shown}.in{place if place > 1 else ''}", value)
        if isinstance(value, tuple | list):
            return {"items": [self._given(shown, each, number) for each in value]}
        if isinstance(value, _PLAIN) and len(str(value)) <= _MOST_TEXT:
            return {"value": value} if value == value else {"lost": "nan"}
        return {"lost": type(value).__name__}

    def _put(self, shown: str, value: Tensor) -> dict[str, Any]:
        """Write a tensor under its module's name; where it is."""
        if value.is_complex() or not value.numel():
            return {"lost": _dtype(value)}
        value = value.detach().clone()
        key = self._key(shown)
        stage = key.stage
        if stage_of(stage) is not None and stage != "lm_head":
            stage = f"{stage}.out"
        whole = value[0] if value.dim() > 1 and value.shape[0] == 1 else value
        whole = whole.reshape(1) if whole.dim() == 0 else whole
        if stage == "lm_head" and whole.dim() == 2 and len(whole) == 1:
            whole = whole[0]
        self.target.put(stage, whole, layer=key.layer, axes=self._axes(whole))
        where = {"stage": stage, "layer": key.layer}
        self._seen.setdefault(_digest(value), where)
        return {**where, "shape": list(value.shape), "dtype": _dtype(value)}

    def _axes(self, value: Tensor) -> tuple[str, ...]:
        """Names of the dimensions: rows are tokens where there are as many."""
        first = "token" if value.shape[0] == self.tokens and value.dim() > 1 else "dim0"
        if value.dim() == 1:
            return ("channel",)
        return (first, *(f"dim{place}" for place in range(1, value.dim() - 1)), "channel")

    def _key(self, shown: str) -> StageKey:
        """``model.layers.3.mlp.up_proj`` is ``mlp.up_proj`` of layer 3."""
        if self._path and shown.startswith(f"{self._path}."):
            number, _, rest = shown[len(self._path) + 1 :].partition(".")
            if number.isdecimal():
                return StageKey(int(number), rest or "layer")
        return StageKey(None, shown)


def _digest(value: Tensor) -> bytes:
    raw = value.detach().cpu().contiguous()
    raw = raw.view(torch.uint8) if raw.dim() else raw.reshape(1).view(torch.uint8)
    made = hashlib.blake2b(raw.numpy().tobytes(), digest_size=16)
    made.update(f"{_dtype(value)}{value.numel()}".encode())
    return made.digest()


def _dtype(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


_watching: list[ModuleCapture] = []  # the registry of attention knows functions alone


@contextmanager
def watching_attention(capture: ModuleCapture) -> Iterator[None]:
    """While inside, attention functions tell ``capture`` what they are given and make."""
    _watching.append(capture)
    try:
        yield
    finally:
        _watching.remove(capture)


def watched() -> ModuleCapture | None:
    """The capture that attention tells, if any."""
    return _watching[-1] if _watching else None
