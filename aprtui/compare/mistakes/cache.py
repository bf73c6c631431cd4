"""Mistakes with a KV cache: codes without their scale, the scale of a neighbour, a stale slot."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from aprtui.compare.mistakes.attempt import Attempt, Candidate, Entry
from aprtui.engine.replay import heads_of
from aprtui.graph.ops import Attend, Scores

__all__ = ["CACHE", "keys_of", "with_keys"]

Float64 = npt.NDArray[np.float64]


def keys_of(at: Attempt[Scores]) -> Float64:
    """The keys [T,K,d] out of the inputs of scores."""
    k = at.inputs[1]
    return k if at.op.keys is None else heads_of(k, at.op.keys)


def with_keys(at: Attempt[Scores], keys: Float64) -> Float64:
    """The scores by other keys [T,K,d]."""
    return at.remade(replace(at.op, keys=None), inputs=(at.inputs[0], keys, *at.inputs[2:]))


def _with_values(at: Attempt[Attend], values: Float64) -> Float64:
    """The attention by other values [T,K,d]."""
    changed = at.inputs[1].reshape(len(values), -1).copy()
    changed[:, at.op.values.columns] = values.reshape(len(values), -1)
    return at.remade(inputs=(at.inputs[0], changed))


@dataclass(frozen=True)
class _Kind:
    """A quantised cache: so many values of a head share a scale (0: the head's), and what makes
    (codes, scales) of blocks [..., size]."""

    name: str
    size: int
    encode: Callable[[Float64], tuple[Float64, Float64]]


def _int8(blocks: Float64) -> tuple[Float64, Float64]:
    scale = np.abs(blocks).max(axis=-1, keepdims=True) / 127.0
    return np.rint(np.divide(blocks, scale, out=np.zeros_like(blocks), where=scale > 0)), scale


def _q8_0(blocks: Float64) -> tuple[Float64, Float64]:
    codes, scale = _int8(blocks)
    return codes, scale.astype(np.float16).astype(np.float64)


def _q4_0(blocks: Float64) -> tuple[Float64, Float64]:
    place = np.abs(blocks).argmax(axis=-1)[..., None]
    scale = np.take_along_axis(blocks, place, axis=-1) / -8.0
    codes = np.divide(blocks, scale, out=np.zeros_like(blocks), where=scale != 0)
    codes = np.clip(np.floor(codes + 8.5), 0.0, 15.0) - 8.0
    return codes, scale.astype(np.float16).astype(np.float64)


def _float8(blocks: Float64) -> tuple[Float64, Float64]:
    scale = np.abs(blocks).max(axis=-1, keepdims=True) / 448.0
    return np.divide(blocks, scale, out=np.zeros_like(blocks), where=scale > 0), scale


_KINDS = (
    _Kind("int8", 0, _int8),
    _Kind("q8_0", 32, _q8_0),
    _Kind("q4_0", 32, _q4_0),
    _Kind("float8 e4m3", 0, _float8),
)


def _encoded(rows: Float64, kind: _Kind) -> tuple[Float64, Float64] | None:
    """Rows [T,K,d] as (codes [T,K,n,size], scales [T,K,n,1]); None where blocks do not fit."""
    size = kind.size or rows.shape[-1]
    if rows.shape[-1] % size:
        return None
    return kind.encode(rows.reshape(*rows.shape[:-1], -1, size))


def _unscaled(rows: Float64) -> Iterator[tuple[Float64, str]]:
    for kind in _KINDS:
        found = _encoded(rows, kind)
        if found is None:
            continue
        codes, scale = found
        if kind.name == "int8":  # told by what is divided, whether or not the codes were rounded
            exact = rows.reshape(codes.shape)
            exact = np.divide(exact, scale, out=np.zeros_like(exact), where=scale != 0)
            yield exact.reshape(rows.shape), kind.name
        yield codes.reshape(rows.shape), kind.name


def _neighbours(rows: Float64) -> Iterator[tuple[Float64, str, str]]:
    """Rows of a quantised cache whose blocks have the scale of the one before, or after."""
    for kind in _KINDS:
        found = _encoded(rows, kind)
        if found is None:
            continue
        codes, scale = found
        for by, which in ((1, "before"), (-1, "after")):
            flat = np.roll(scale.reshape(-1), by).reshape(scale.shape)
            row = np.roll(scale.reshape(len(scale), -1), by, axis=1).reshape(scale.shape)
            first = flat.copy().reshape(-1)
            first[0 if by > 0 else -1] = scale.reshape(-1)[0 if by > 0 else -1]
            for moved in (flat, row, first.reshape(scale.shape)):
                yield (codes * moved).reshape(rows.shape), kind.name, which


_NO_SCALE = "{} are read from a cache of {} as codes, without their scale"
_NEIGHBOUR = "{} are read from a cache of {} with the scale of the block {}"


def keys_unscaled(at: Attempt[Scores]) -> Iterator[Candidate]:
    for keys, kind in _unscaled(keys_of(at)):
        parameters = {"of": "keys", "type": kind}
        yield Candidate(with_keys(at, keys), _NO_SCALE.format("keys", kind), parameters)


def values_unscaled(at: Attempt[Attend]) -> Iterator[Candidate]:
    for values, kind in _unscaled(heads_of(at.inputs[1], at.op.values)):
        parameters = {"of": "values", "type": kind}
        yield Candidate(_with_values(at, values), _NO_SCALE.format("values", kind), parameters)


def keys_of_neighbour(at: Attempt[Scores]) -> Iterator[Candidate]:
    for keys, kind, which in _neighbours(keys_of(at)):
        parameters = {"of": "keys", "type": kind, "block": which}
        text = _NEIGHBOUR.format("keys", kind, which)
        yield Candidate(with_keys(at, keys), text, parameters)


def values_of_neighbour(at: Attempt[Attend]) -> Iterator[Candidate]:
    for values, kind, which in _neighbours(heads_of(at.inputs[1], at.op.values)):
        parameters = {"of": "values", "type": kind, "block": which}
        text = _NEIGHBOUR.format("values", kind, which)
        yield Candidate(_with_values(at, values), text, parameters)


def slot_stale(at: Attempt[Scores]) -> Iterator[Candidate]:
    """One position's keys are another's, or nothing: the column of scores that is wrong tells."""
    if at.y is None:
        return
    away = np.square(at.y - at.base).sum(axis=(0, 1))
    wrong = np.flatnonzero(away > 1e-10 * max(float(np.square(at.base).sum()), 1e-300))
    if len(wrong) != 1:
        return
    slot, keys = int(wrong[0]), keys_of(at)
    choices: list[tuple[int | str, Float64]] = [("zero", np.zeros_like(keys[slot]))]
    choices += [(other, keys[other]) for other in range(len(keys)) if other != slot]
    for source, row in choices:
        changed = keys.copy()
        changed[slot] = row
        said = "zeros" if source == "zero" else f"those of position {source}"
        text = f"the cached keys of position {slot} are stale: {said} were used"
        parameters = {"position": slot, "taken_from": source}
        yield Candidate(with_keys(at, changed), text, parameters)


CACHE = (
    Entry("kv_no_scale", (Scores,), keys_unscaled),
    Entry("kv_no_scale", (Attend,), values_unscaled),
    Entry("kv_scale_of_neighbour", (Scores,), keys_of_neighbour),
    Entry("kv_scale_of_neighbour", (Attend,), values_of_neighbour),
    Entry("kv_slot_stale", (Scores,), slot_stale),
)
