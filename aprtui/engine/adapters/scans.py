"""What passes through the functions that a layer of transformers with a state calls: its
convolution and its scan, of many rows or of a decode step, looked up in the file of its model."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from types import ModuleType
from typing import Any, Protocol

import torch
from torch.nn.functional import softplus

from aprtui.engine.adapters.watching import hooked

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
    "delta_qkv", "delta_gate", "delta_beta", "delta_decay", "delta_row_decay", "delta_conv",
    "delta_out",
    "delta_state", "delta_norm", "conv_x", "conv",
    "ssm_in", "ssm_conv", "ssm_dt", "ssm_scan", "ssm_state", "ssm_norm", "ssm_gated",
    "ssm_low", "ssm_low_norm", "ssm_b", "ssm_b_norm", "ssm_c", "ssm_c_norm",
})  # fmt: skip
_CONVS = ("causal_conv1d_fn", "causal_conv1d_update")
_RULES = ("torch_chunk_gated_delta_rule", "torch_recurrent_gated_delta_rule")
_ROW_RULES = ("chunk_kimi_delta_attention", "recurrent_kimi_delta_attention")
_SCAN, _STEP = "mamba2_chunk_scan", "mamba2_selective_state_update"
_CHANNELS, _CHANNEL_STEP = "mamba_selective_scan", "mamba_selective_state_update"
_OF_CHANNELS = ("ssm_low", "ssm_b", "ssm_c")  # what is made of the convolved channels

Function = Callable[..., Any]


class Shown(Protocol):
    """What takes the stages, each with its batch; ``put_state`` those without tokens. ``width``:
    rows of the pass."""

    @property
    def width(self) -> int: ...

    def put(self, stage: str, value: torch.Tensor, *, layer: int | None = None) -> None: ...

    def put_state(self, stage: str, value: torch.Tensor, layer: int) -> None: ...


def delta_of(layer: torch.nn.Module) -> torch.nn.Module | None:
    """The layer's gated delta rule, where it has one."""
    by_rows = _calling(layer, ("self_attn",), _ROW_RULES[0])
    by_rows = by_rows if hasattr(by_rows, "forget_gate") else None
    return by_rows or _calling(layer, ("linear_attn",), _RULES[0])


def short_conv_of(layer: torch.nn.Module) -> torch.nn.Module | None:
    """The layer's short convolution, where it has one."""
    return _calling(layer, ("conv",), _CONVS[0])


def scan_of(
    layer: torch.nn.Module, number: int, shown: Shown
) -> AbstractContextManager[None] | None:
    """What watches the layer's scan, where it has one; it may stand in a layer inside."""
    layer = getattr(layer, "mamba_decoder", layer)
    for function, watch in ((_SCAN, _watch_scan), (_CHANNELS, _watch_channels)):
        module = _calling(layer, ("mixer", "mamba"), function)
        if module is not None and hasattr(module, "A_log"):
            return watch(module, number, shown)
    return None


def _calling(
    layer: torch.nn.Module, names: tuple[str, ...], function: str
) -> torch.nn.Module | None:
    """The layer's module of one of these names whose file has the function."""
    for name in names:
        module = getattr(layer, name, None)
        if isinstance(module, torch.nn.Module) and function in vars(_file_of(module)):
            return module
    return None


def _file_of(module: torch.nn.Module) -> ModuleType:
    return sys.modules[type(module).__module__]


@contextmanager
def _instead(
    module: torch.nn.Module, watching: Mapping[str, Callable[[Function], Function]]
) -> Iterator[None]:
    """While the module runs, its file's functions are those that ``watching`` makes of them."""
    code = _file_of(module)
    right: dict[str, Function] = {name: getattr(code, name) for name in watching}
    watched = {name: watching[name](function) for name, function in right.items()}

    def have(functions: Mapping[str, Function]) -> None:
        for name, function in functions.items():
            setattr(code, name, function)

    hooks = (
        module.register_forward_pre_hook(lambda *_: have(watched)),
        module.register_forward_hook(lambda *_: have(right)),
    )
    try:
        with hooked(*hooks):
            yield
    finally:
        have(right)


def _convs(shown: Shown, number: int, given: str, made: str) -> dict[str, Any]:
    """Shows what a convolution is given [B,C,t] and makes. Where a cache goes before the rows of
    the pass, those are the last."""

    def watching(right: Function) -> Function:
        def conv(x: torch.Tensor, *more: Any, **named: Any) -> torch.Tensor:
            out: torch.Tensor = right(x, *more, **named)
            for stage, value in ((given, x), (made, out)):
                if stage:
                    shown.put(stage, value.transpose(1, 2)[:, -shown.width :], layer=number)
            return out

        return conv

    return dict.fromkeys(_CONVS, watching)


@contextmanager
def watch_delta(module: torch.nn.Module, number: int, shown: Shown) -> Iterator[None]:
    """The stages inside the layer's rule: what it is given, what it makes, and the last state."""

    def watching(right: Function) -> Function:
        def rule(*given: Any, g: torch.Tensor, beta: torch.Tensor, **named: Any) -> Any:
            wanted = {**named, "output_final_state": True}
            out, state = right(*given, g=g, beta=beta, **wanted)
            shown.put("delta_decay" if g.dim() == 3 else "delta_row_decay", g, layer=number)
            shown.put("delta_beta", beta, layer=number)
            shown.put("delta_out", out, layer=number)
            shown.put_state("delta_state", state, number)
            return out, state if named.get("output_final_state") else None

        return rule

    def gate(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        shown.put("delta_gate", inputs[1], layer=number)

    def normed(_: Any, inputs: Any, output: torch.Tensor) -> None:
        shown.put("delta_norm", output, layer=number)

    norm: Any = getattr(module, "norm", None) or module.o_norm
    rules = [name for name in (*_RULES, *_ROW_RULES) if hasattr(_file_of(module), name)]
    convs = _convs(shown, number, "delta_qkv", "delta_conv")
    with (
        _instead(module, {**convs, **dict.fromkeys(rules, watching)}),
        hooked(norm.register_forward_pre_hook(gate), norm.register_forward_hook(normed)),
    ):
        yield


def watch_conv(module: torch.nn.Module, number: int, shown: Shown) -> AbstractContextManager[None]:
    """What the layer's convolution is given and makes."""
    return _instead(module, _convs(shown, number, "conv_x", "conv"))


@contextmanager
def _watch_scan(module: torch.nn.Module, number: int, shown: Shown) -> Iterator[None]:
    """The stages inside the layer's scan; the steps are computed once more from its arguments."""
    parts = dict(module.named_children())
    put = partial(shown.put, layer=number)

    def scanning(right: Function) -> Function:
        def scan(x: torch.Tensor, dt: torch.Tensor, *given: Any, **named: Any) -> Any:
            out, state = right(x, dt, *given, **{**named, "return_final_states": True})
            put("ssm_dt", softplus(dt + named["dt_bias"]).clamp(*named["dt_limit"]))
            put("ssm_scan", out)
            shown.put_state("ssm_state", state.transpose(2, 3), number)
            return (out, state) if named.get("return_final_states") else out

        return scan

    def stepping(right: Function) -> Function:
        def step(
            state: torch.Tensor, x: torch.Tensor, dt: torch.Tensor, *given: Any, **named: Any
        ) -> Any:
            out = right(state, x, dt, *given, **named)  # the state is written over
            put("ssm_dt", softplus(dt[..., 0] + named["dt_bias"][:, 0])[:, None])
            put("ssm_scan", out[:, None])
            shown.put_state("ssm_state", state.transpose(2, 3), number)
            return out

        return step

    def first(_: Any, __: Any, made: torch.Tensor) -> None:
        factors = getattr(module, "mup_vector", None)  # of its columns, which follow at once
        put("ssm_in", made if factors is None else made * factors)

    def ready(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        for stage in ("ssm_norm", "ssm_gated"):  # the one that the layer has
            put(stage, inputs[0])

    with (
        _instead(
            module, {**_convs(shown, number, "", "ssm_conv"), _SCAN: scanning, _STEP: stepping}
        ),
        hooked(
            parts["in_proj"].register_forward_hook(first),
            parts["out_proj"].register_forward_pre_hook(ready),
        ),
    ):
        yield


def _scans(shown: Shown, number: int) -> dict[str, Callable[[Function], Function]]:
    """Shows a scan of channels, of many rows or of a step. The library gates what it scans in the
    same function: its output before that is computed once more, and so are the steps."""
    put = partial(shown.put, layer=number)

    def scanning(right: Function) -> Function:
        def scan(x: torch.Tensor, dt: torch.Tensor, *given: Any, **named: Any) -> Any:
            ungated = {**named, "z": None, "return_last_state": True}
            out, state = right(x, dt, *given, **ungated)
            bias = named["delta_bias"].to(dt.dtype)
            put("ssm_dt", softplus(dt + bias[:, None]).transpose(1, 2))
            put("ssm_scan", out.transpose(1, 2)[..., None])
            shown.put_state("ssm_state", state[..., None], number)
            return right(x, dt, *given, **named)

        return scan

    def stepping(right: Function) -> Function:
        def step(
            state: torch.Tensor, x: torch.Tensor, dt: torch.Tensor, *given: Any, **named: Any
        ) -> Any:
            before = state.clone()  # it is written over
            ungated = right(before, x, dt, *given, **{**named, "z": None})
            out = right(state, x, dt, *given, **named)
            put("ssm_dt", softplus(dt + named["dt_bias"].to(dt.dtype))[:, None])
            put("ssm_scan", ungated[:, None, :, None])
            shown.put_state("ssm_state", state[..., None], number)
            return out

        return step

    return {_CHANNELS: scanning, _CHANNEL_STEP: stepping}


@contextmanager
def _watch_channels(module: torch.nn.Module, number: int, shown: Shown) -> Iterator[None]:
    """The stages of the layer's scan of channels, and those before and behind it."""
    parts = dict(module.named_children())
    put = partial(shown.put, layer=number)

    def told(stage: str) -> Callable[..., None]:
        return lambda _, __, made: put(stage, made)

    def split(_: Any, __: Any, made: torch.Tensor) -> None:
        state: Any = module.ssm_state_size
        sizes = [made.shape[-1] - 2 * state, state, state]
        for stage, value in zip(_OF_CHANNELS, torch.split(made, sizes, dim=-1), strict=True):
            put(stage, value)

    norms = {"dt_layernorm": "ssm_low_norm", "b_layernorm": "ssm_b_norm",
             "c_layernorm": "ssm_c_norm"}  # fmt: skip
    with (
        _instead(module, {**_convs(shown, number, "", "ssm_conv"), **_scans(shown, number)}),
        hooked(
            parts["in_proj"].register_forward_hook(told("ssm_in")),
            parts["x_proj"].register_forward_hook(split),
            parts["out_proj"].register_forward_pre_hook(lambda _, x: put("ssm_gated", x[0])),
            *(
                parts[name].register_forward_hook(told(stage))
                for name, stage in norms.items()
                if name in parts
            ),
        ),
    ):
        yield
