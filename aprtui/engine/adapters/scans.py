"""What passes through the functions that a layer of transformers with a state calls: its
convolution and its scan, looked up in the file of its model."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch

__all__ = [
    "INSIDE_SCANS",
    "Shown",
    "delta_of",
    "scan_of",
    "short_conv_of",
    "watch_conv",
    "watch_delta",
]

# The stages that are seen where they are used, not at a module.
INSIDE_SCANS = frozenset({
    "delta_qkv", "delta_gate", "delta_beta", "delta_decay", "delta_conv", "delta_out",
    "delta_state", "delta_norm", "conv_x", "conv",
    "ssm_in", "ssm_conv", "ssm_dt", "ssm_scan", "ssm_state", "ssm_norm", "ssm_gated",
    "ssm_low", "ssm_low_norm", "ssm_b", "ssm_b_norm", "ssm_c", "ssm_c_norm",
})  # fmt: skip
_CONV, _RULE = "causal_conv1d_fn", "torch_chunk_gated_delta_rule"
_SCAN, _CHANNELS = "mamba2_chunk_scan", "mamba_selective_scan"
_OF_CHANNELS = ("ssm_low", "ssm_b", "ssm_c")  # what is made of the convolved channels


class Shown(Protocol):
    """What takes the stages, each with its batch; ``put_state`` those without tokens."""

    def put(self, stage: str, value: torch.Tensor, *, layer: int | None = None) -> None: ...

    def put_state(self, stage: str, value: torch.Tensor, layer: int) -> None: ...

    def scaled(self, stage: str, value: torch.Tensor, layer: int | None) -> torch.Tensor: ...


def delta_of(layer: torch.nn.Module) -> torch.nn.Module | None:
    """The layer's gated delta rule, where it has one."""
    module = getattr(layer, "linear_attn", None)
    code = sys.modules[type(module).__module__]
    return module if module is not None and hasattr(code, _RULE) else None


@contextmanager
def watch_delta(module: torch.nn.Module, number: int, shown: Shown) -> Iterator[None]:
    """The stages inside the layer's rule: what it is given, what it makes, and the last state."""
    code = sys.modules[type(module).__module__]
    right: dict[str, Callable[..., Any]] = {name: getattr(code, name) for name in (_CONV, _RULE)}

    def conv(x: torch.Tensor, *given: Any, **named: Any) -> torch.Tensor:
        made: torch.Tensor = right[_CONV](x, *given, **named)
        shown.put("delta_qkv", x.transpose(1, 2), layer=number)
        shown.put("delta_conv", made.transpose(1, 2), layer=number)
        return made

    def rule(*given: Any, g: torch.Tensor, beta: torch.Tensor, **named: Any) -> Any:
        wanted = {**named, "output_final_state": True}
        out, state = right[_RULE](*given, g=g, beta=beta, **wanted)
        shown.put("delta_decay", g, layer=number)
        shown.put("delta_beta", beta, layer=number)
        shown.put("delta_out", out, layer=number)
        shown.put_state("delta_state", state, number)
        return out, state if named.get("output_final_state") else None

    def begin(*_: Any) -> None:
        setattr(code, _CONV, conv)
        setattr(code, _RULE, rule)

    def end(*_: Any) -> None:
        for name, function in right.items():
            setattr(code, name, function)

    def gate(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        shown.put("delta_gate", inputs[1], layer=number)

    def normed(_: Any, inputs: Any, output: torch.Tensor) -> None:
        shown.put("delta_norm", output, layer=number)

    norm: Any = module.norm
    handles = (
        module.register_forward_pre_hook(begin),
        module.register_forward_hook(end),
        norm.register_forward_pre_hook(gate),
        norm.register_forward_hook(normed),
    )
    try:
        yield
    finally:
        end()
        for handle in handles:
            handle.remove()


def short_conv_of(layer: torch.nn.Module) -> torch.nn.Module | None:
    """The layer's short convolution, where it has one."""
    module = getattr(layer, "conv", None)
    code = sys.modules[type(module).__module__]
    return module if module is not None and hasattr(code, _CONV) else None


@contextmanager
def watch_conv(module: torch.nn.Module, number: int, shown: Shown) -> Iterator[None]:
    """What the layer's convolution is given and makes."""
    code = sys.modules[type(module).__module__]
    right: Callable[..., torch.Tensor] = getattr(code, _CONV)

    def conv(x: torch.Tensor, *given: Any, **named: Any) -> torch.Tensor:
        made = right(x, *given, **named)
        shown.put("conv_x", x.transpose(1, 2), layer=number)
        shown.put("conv", made.transpose(1, 2), layer=number)
        return made

    handles = (
        module.register_forward_pre_hook(lambda *_: setattr(code, _CONV, conv)),
        module.register_forward_hook(lambda *_: setattr(code, _CONV, right)),
    )
    try:
        yield
    finally:
        setattr(code, _CONV, right)
        for handle in handles:
            handle.remove()


def scan_of(
    layer: torch.nn.Module, number: int, shown: Shown
) -> AbstractContextManager[None] | None:
    """What watches the layer's scan, where it has one."""
    for name in ("mixer", "mamba"):
        module = getattr(layer, name, None)
        code = sys.modules[type(module).__module__]
        if module is None or not hasattr(module, "A_log"):
            continue
        if hasattr(code, _SCAN):
            return _watch_scan(module, number, shown)
        if hasattr(code, _CHANNELS):
            return _watch_channels(module, number, shown)
    return None


@contextmanager
def _watch_scan(module: torch.nn.Module, number: int, shown: Shown) -> Iterator[None]:
    """The stages inside the layer's scan; the steps are computed once more from its arguments."""
    code, parts = sys.modules[type(module).__module__], dict(module.named_children())
    right: dict[str, Callable[..., Any]] = {name: getattr(code, name) for name in (_CONV, _SCAN)}

    def put(stage: str, value: torch.Tensor) -> None:
        shown.put(stage, value, layer=number)

    def first(_: Any, __: Any, made: torch.Tensor) -> None:
        put("ssm_in", shown.scaled("ssm_in", made, number))

    def ready(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        for stage in ("ssm_norm", "ssm_gated"):  # the one that the layer has
            put(stage, inputs[0])

    def conv(x: torch.Tensor, *given: Any, **named: Any) -> torch.Tensor:
        made: torch.Tensor = right[_CONV](x, *given, **named)
        put("ssm_conv", made.transpose(1, 2))
        return made

    def scan(x: torch.Tensor, dt: torch.Tensor, *given: Any, **named: Any) -> Any:
        out, state = right[_SCAN](x, dt, *given, **{**named, "return_final_states": True})
        steps = torch.nn.functional.softplus(dt + named["dt_bias"]).clamp(*named["dt_limit"])
        put("ssm_dt", steps)
        put("ssm_scan", out)
        shown.put_state("ssm_state", state.transpose(2, 3), number)
        return (out, state) if named.get("return_final_states") else out

    def begin(*_: Any) -> None:
        setattr(code, _CONV, conv)
        setattr(code, _SCAN, scan)

    def end(*_: Any) -> None:
        for name, function in right.items():
            setattr(code, name, function)

    handles = (
        module.register_forward_pre_hook(begin),
        module.register_forward_hook(end),
        parts["in_proj"].register_forward_hook(first),
        parts["out_proj"].register_forward_pre_hook(ready),
    )
    try:
        yield
    finally:
        end()
        for handle in handles:
            handle.remove()


@contextmanager
def _watch_channels(module: torch.nn.Module, number: int, shown: Shown) -> Iterator[None]:
    """The stages inside the layer's scan of channels. The library gates what it scans in the same
    function: its output before that is computed once more, and so are the steps."""
    code, parts = sys.modules[type(module).__module__], dict(module.named_children())
    right: dict[str, Callable[..., Any]] = {
        name: getattr(code, name) for name in (_CONV, _CHANNELS)
    }

    def put(stage: str, value: torch.Tensor) -> None:
        shown.put(stage, value, layer=number)

    def told(stage: str) -> Callable[..., None]:
        return lambda _, __, made: put(stage, made)

    def split(_: Any, __: Any, made: torch.Tensor) -> None:
        state: Any = module.ssm_state_size
        sizes = [made.shape[-1] - 2 * state, state, state]
        for stage, value in zip(_OF_CHANNELS, torch.split(made, sizes, dim=-1), strict=True):
            put(stage, value)

    def conv(x: torch.Tensor, *given: Any, **named: Any) -> torch.Tensor:
        made: torch.Tensor = right[_CONV](x, *given, **named)
        put("ssm_conv", made.transpose(1, 2))
        return made

    def scan(x: torch.Tensor, dt: torch.Tensor, *given: Any, **named: Any) -> Any:
        ungated = {**named, "z": None, "return_last_state": True}
        out, state = right[_CHANNELS](x, dt, *given, **ungated)
        steps = torch.nn.functional.softplus(dt + named["delta_bias"][:, None])
        put("ssm_dt", steps.transpose(1, 2))
        put("ssm_scan", out.transpose(1, 2)[..., None])
        shown.put_state("ssm_state", state[..., None], number)
        return right[_CHANNELS](x, dt, *given, **named)

    def begin(*_: Any) -> None:
        setattr(code, _CONV, conv)
        setattr(code, _CHANNELS, scan)

    def end(*_: Any) -> None:
        for name, function in right.items():
            setattr(code, name, function)

    norms = {"dt_layernorm": "ssm_low_norm", "b_layernorm": "ssm_b_norm",
             "c_layernorm": "ssm_c_norm"}  # fmt: skip
    handles = [
        module.register_forward_pre_hook(begin),
        module.register_forward_hook(end),
        parts["in_proj"].register_forward_hook(told("ssm_in")),
        parts["x_proj"].register_forward_hook(split),
        parts["out_proj"].register_forward_pre_hook(lambda _, given: put("ssm_gated", given[0])),
    ]
    handles += [
        parts[name].register_forward_hook(told(stage))
        for name, stage in norms.items()
        if name in parts
    ]
    try:
        yield
    finally:
        end()
        for handle in handles:
            handle.remove()
