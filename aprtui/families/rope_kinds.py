"""One rope object of config.json: its keys, each read once, and the table of its kind of scaling.

Formulas: transformers' modeling_rope_utils.py, llama.cpp's ggml_rope_yarn.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from aprtui.families.settings import Settings
from aprtui.graph.rope import RopeTable
from aprtui.text import clean

__all__ = [
    "PROPORTIONAL", "STILL", "RopeKeys", "checked", "llama3_divisors", "original_of",
    "outer_original", "proportional", "scaled", "yarn_divisors", "yarn_growth",
]  # fmt: skip

PROPORTIONAL = "proportional"
STILL = 1e30  # divides the angles of pairs that do not turn, as llama.cpp's converter has it
_HOW_MADE = "finetuned"  # whether the model was trained on the scaling, which no one reads


class RopeKeys:
    """The keys of one rope object, each taken once."""

    def __init__(self, s: Settings, keys: Mapping[str, Any]) -> None:
        self._s, self._keys, self._read = s, keys, {"rope_type", "type", "rope_theta"}

    def number(self, name: str, default: Any = None) -> Any:
        """A positive number; ``default`` where the key is absent; null where it is null."""
        self._read.add(name)
        value = self._keys.get(name, default)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e12:
            raise self._s.fail(f"{name} of rope_scaling is {clean(repr(value), 60)}")
        return float(value)

    def says(self, name: str) -> bool:
        return name in self._keys

    def refuse_null(self, name: str) -> None:
        """Raises where the key is there and null."""
        if name in self._keys and self._keys[name] is None:
            raise self._s.fail(f"{name} of rope_scaling is null, which is no value of it")

    def need(self, name: str) -> float:
        value = self.number(name)
        if value is None:
            raise self._s.fail(f"rope_scaling does not say {name}")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        self._read.add(name)
        value = self._keys.get(name, default)
        if not isinstance(value, bool):
            raise self._s.fail(f"{name} of rope_scaling is {clean(repr(value), 60)}")
        return value

    def numbers(self, name: str, count: int) -> tuple[float, ...]:
        self._read.add(name)
        values = self._keys.get(name)
        if not isinstance(values, list):
            raise self._s.fail(f"rope_scaling does not say {name}")
        return checked(self._s, name, tuple(values), 2 * count)

    def finish(self, kind: str) -> None:
        """Every key is read, or the table is not what the object says."""
        left = sorted(set(self._keys) - self._read - {_HOW_MADE})
        if left:
            value = clean(repr(self._keys[left[0]]), 60)
            raise self._s.fail(
                f"{clean(left[0])} = {value} of rope_scaling is not read for its type {kind}"
            )


def original_of(s: Settings, group: RopeKeys) -> float:
    group.refuse_null("original_max_position_embeddings")
    inner = group.number("original_max_position_embeddings")
    found = outer_original(s) or inner or s.values.get("max_positions")
    if not found:
        raise s.fail("rope_scaling does not say original_max_position_embeddings")
    return float(found)


def outer_original(s: Settings) -> int | None:
    """``original_max_position_embeddings`` beside the object, where the family has such a key."""
    name = "original_max_position_embeddings"
    found: int | None = s.integer(name) if s.known(name) else s.integer(name, None)
    return found


def proportional(s: Settings, group: RopeKeys, table: RopeTable, share: float) -> RopeTable:
    """The first ``share`` of the pairs turns, at the angles that they would have if all did."""
    pairs, factor = table.dims // 2, group.number("factor") or 1.0
    turned = int(share * table.dims // 2)
    if not 0 < turned <= pairs:
        raise s.fail(f"partial_rotary_factor is {share}: {turned} of {pairs} pairs turn")
    return replace(table, divisors=(factor,) * turned + (STILL,) * (pairs - turned))


def scaled(s: Settings, group: RopeKeys, kind: Any, table: RopeTable) -> RopeTable:
    """``table`` with the scaling of a kind that is computed here."""
    dims, theta = table.dims, table.theta
    if kind == "default":
        return table
    if kind == "linear":
        return replace(table, position_divisor=group.need("factor"))
    if kind == "dynamic":
        trained = s.values.get("max_positions") or 0
        if not trained or dims <= 2:
            raise s.fail("dynamic RoPE scaling needs max_position_embeddings and 4 channels")
        return replace(table, dynamic=group.need("factor"), trained=trained)
    if kind == "short":
        return _short(s, group, table)
    if kind == "alpha":
        return _alpha(group, table)
    if kind == "llama3":
        factor = group.need("factor")
        low, high = group.need("low_freq_factor"), group.need("high_freq_factor")
        if low == high:
            raise s.fail("low_freq_factor and high_freq_factor of rope_scaling are equal")
        original = original_of(s, group)
        return replace(table, divisors=llama3_divisors(dims, theta, factor, low, high, original))
    if kind == "yarn":
        return _yarn(s, group, table)
    if kind == "longrope":
        return _longrope(s, group, table)
    raise s.fail(
        f"RoPE scaling {clean(str(kind))!r} is not computed here",
        hint="default, linear, dynamic, llama3, yarn, longrope and proportional are",
    )


def _short(s: Settings, group: RopeKeys, table: RopeTable) -> RopeTable:
    """Phi-3.5-MoE's longrope in transformers: the short factors at any length, and a magnitude that
    the object says for both."""
    short, long = group.need("short_mscale"), group.need("long_mscale")
    if short != long:
        raise s.fail(f"short_mscale is {short} and long_mscale is {long}, of rope_scaling")
    original_of(s, group)
    group.number("factor")
    group.numbers("long_factor", table.dims // 2)
    factors = group.numbers("short_factor", table.dims // 2)
    return replace(table, divisors=factors, magnitude=short)


def _alpha(group: RopeKeys, table: RopeTable) -> RopeTable:
    """Hunyuan's: the base grows by alpha; the rest of the object is not read there either."""
    for name in ("factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"):
        group.number(name)
    grown: float = group.need("alpha") ** (table.dims / (table.dims - 2))
    return replace(table, theta=table.theta * grown)


def _yarn(s: Settings, group: RopeKeys, table: RopeTable) -> RopeTable:
    original = original_of(s, group)
    if not group.says("factor"):
        raise s.fail("rope_scaling does not say factor")
    name = "original_max_position_embeddings"
    if group.says(name) and group.number(name) is None:
        raise s.fail(f"{name} of rope_scaling is null, which is no value of it")
    factor = group.number("factor") or (s.values.get("max_positions") or original) / original
    fast, slow = group.number("beta_fast") or 32.0, group.number("beta_slow") or 1.0
    divisors = yarn_divisors(
        table.dims, table.theta, factor, original, fast, slow,
        truncate=s.say("rope_truncate", group.flag("truncate", True)),
    )  # fmt: skip
    one, all_dims = group.number("mscale"), group.number("mscale_all_dim")
    magnitude = group.number("attention_factor")
    if magnitude is None and one and all_dims:
        magnitude = yarn_growth(factor, one) / yarn_growth(factor, all_dims)
    return replace(
        table,
        divisors=divisors,
        magnitude=yarn_growth(factor) if magnitude is None else magnitude,
    )


def _longrope(s: Settings, group: RopeKeys, table: RopeTable) -> RopeTable:
    original = original_of(s, group)
    factor = group.number("factor") or (s.values.get("max_positions") or original) / original
    magnitude = group.number("attention_factor")
    if magnitude is None:
        magnitude = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    return replace(
        table,
        divisors=group.numbers("short_factor", table.dims // 2),
        long_divisors=group.numbers("long_factor", table.dims // 2),
        trained=int(original),
        magnitude=magnitude,
    )


def checked(s: Settings, name: str, values: tuple[Any, ...], dims: int) -> tuple[float, ...]:
    """The divisors of dims/2 pairs, positive finite numbers."""
    if len(values) != dims // 2:
        raise s.fail(f"{name} has {len(values)} values for {dims // 2} pairs of channels")
    if not all(
        isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf
        for value in values
    ):
        raise s.fail(f"{name} holds values that are not positive numbers")
    return tuple(float(value) for value in values)


def llama3_divisors(
    dims: int, theta: float, factor: float, low: float, high: float, original: float
) -> tuple[float, ...]:
    """Llama 3.1's scaling as dims/2 divisors of the angles; the values of a GGUF's rope_freqs.

    Wavelengths shorter than original/high stay, those longer than original/low are divided by
    ``factor``, between them the two are blended.
    """
    divisors = []
    for pair in range(dims // 2):
        wavelength = 2 * math.pi * theta ** (2 * pair / dims)
        if wavelength < original / high:
            divisors.append(1.0)
        elif wavelength > original / low:
            divisors.append(factor)
        else:
            smooth = (original / wavelength - low) / (high - low)
            divisors.append(1.0 / ((1.0 - smooth) / factor + smooth))
    return tuple(divisors)


def yarn_divisors(
    dims: int, theta: float, factor: float, original: float,
    fast: float = 32.0, slow: float = 1.0, *, truncate: bool = True,
) -> tuple[float, ...]:  # fmt: skip
    """YaRN's scaling as dims/2 divisors of the angles.

    Pairs that turn more than ``fast`` times within ``original`` positions stay, those that turn
    less than ``slow`` times are divided by ``factor``, between them the two are blended.
    """

    def pair_of(rotations: float) -> float:
        return dims * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair_of(fast), pair_of(slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dims - 1)
    high = high + 0.001 if low == high else high
    divisors = []
    for pair in range(dims // 2):
        divided = min(max((pair - low) / (high - low), 0.0), 1.0)
        divisors.append(1.0 / (divided / factor + (1.0 - divided)))
    return tuple(divisors)


def yarn_growth(factor: float, by: float = 1.0) -> float:
    """How much YaRN lets magnitudes grow (arXiv 2309.00071); ``by``: a model's own share of it."""
    return 0.1 * by * math.log(factor) + 1.0 if factor > 1 else 1.0
