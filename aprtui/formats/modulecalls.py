"""The calls of modules, or the nodes of llama.cpp, that a manifest lists, checked: it comes from a
file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aprtui.formats.layout import StageKey, key_of, relative_path
from aprtui.formats.tracedir import TraceDir

__all__ = ["calls_of", "nodes_of", "order_of_calls"]

_DEPTH = 8


def calls_of(trace: TraceDir) -> tuple[Mapping[str, Any], ...]:
    """The calls in the order in which they were made; none where the trace lists none, or where
    one is not what a call is."""
    calls = _settings(trace).get("modules")
    if not isinstance(calls, list) or not all(map(_is_call, calls)):
        return ()
    return tuple(calls)


def nodes_of(trace: TraceDir) -> tuple[StageKey, ...]:
    """The stages that are nodes of llama.cpp under its own names, in order of computation; none
    where the trace lists none, or where one is not what a node is."""
    nodes = _settings(trace).get("nodes")
    if not isinstance(nodes, list) or not all(map(_is_place, nodes)):
        return ()
    return tuple(StageKey(node["layer"], node["stage"]) for node in nodes)


def order_of_calls(trace: TraceDir) -> dict[StageKey, int]:
    """The place of each stage in the order of computation: what a module is given comes before
    what it makes."""
    order = {key: place for place, key in enumerate(nodes_of(trace))}
    for call in calls_of(trace):
        for said in (*call["args"], *call["kwargs"].values(), *call["out"]):
            for key in _keys(said):
                order.setdefault(key, len(order))
    return order


def _settings(trace: TraceDir) -> Mapping[str, Any]:
    engine = trace.stated.get("engine")
    settings = engine.get("settings") if isinstance(engine, dict) else None
    return settings if isinstance(settings, dict) else {}


def _is_call(call: Any) -> bool:
    return (
        isinstance(call, dict)
        and isinstance(call.get("name"), str)
        and isinstance(call.get("class"), str)
        and isinstance(call.get("args"), list)
        and isinstance(call.get("kwargs"), dict)
        and isinstance(call.get("out"), list)
        and all(_is_given(each) for each in (*call["args"], *call["kwargs"].values()))
        and all(_is_stage(each) and _is_index(each.get("index")) for each in call["out"])
    )


def _is_index(index: Any) -> bool:
    return index is None or (type(index) is int and 0 <= index < 1 << 10)


def _is_given(said: Any, depth: int = 0) -> bool:
    if not isinstance(said, dict) or depth > _DEPTH:
        return False
    if "items" in said:
        items = said["items"]
        return isinstance(items, list) and all(_is_given(each, depth + 1) for each in items)
    return "lost" in said or "value" in said or _is_stage(said)


def _is_place(said: Any) -> bool:
    if not isinstance(said, dict):
        return False
    layer, stage = said.get("layer"), said.get("stage")
    if not isinstance(stage, str) or not (layer is None or type(layer) is int):
        return False
    return key_of(relative_path(StageKey(layer, stage))) == StageKey(layer, stage)


def _is_stage(said: Any) -> bool:
    if not _is_place(said):
        return False
    shape = said.get("shape")
    whole = isinstance(shape, list) and all(type(each) is int and each >= 0 for each in shape)
    return whole and isinstance(said.get("dtype"), str)


def _keys(said: Mapping[str, Any]) -> list[StageKey]:
    if "items" in said:
        return [key for each in said["items"] for key in _keys(each)]
    return [StageKey(said["layer"], said["stage"])] if "stage" in said else []
