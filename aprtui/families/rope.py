"""What a model says of RoPE, in any format, as tables: which object of config.json is whose
layers', and llama.cpp's keys as its loader reads them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from aprtui.errors import UsageError
from aprtui.families.rope_kinds import (
    PROPORTIONAL,
    RopeKeys,
    checked,
    original_of,
    outer_original,
    proportional,
    scaled,
    yarn_divisors,
    yarn_growth,
)
from aprtui.families.settings import Settings
from aprtui.graph.rope import PAIRS, RopeTable
from aprtui.text import clean

__all__ = [
    "YARN_BETAS", "YARN_SHARE", "original_positions", "read_nested_rope", "read_rope",
    "read_rope_by_layer_type", "rope_object", "turns_by_axes",
]  # fmt: skip

YARN_SHARE = "rope.scaling.yarn_log_multiplier"  # of GGUF: how much of the magnitude is taken back
YARN_BETAS = {"rope.scaling.yarn_beta_fast": 32.0, "rope.scaling.yarn_beta_slow": 1.0}
_TEXT_KEYS = {
    "none": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor", "original_max_position_embeddings"),
}


def read_rope(
    s: Settings, head_dim: int, *, partial: bool = False, kinds: Mapping[str, str] | None = None,
    absent: Mapping[str, Any] | None = None, beside: Sequence[str] = (), factors: bool = False,
) -> RopeTable:  # fmt: skip
    """The one table of a model's layers. ``partial``: the family may rotate some channels only;
    ``kinds``: the types that it has, and what each means where not any type is what it says;
    ``absent``: the object of the family's configuration class where the file has none; ``beside``:
    keys of the object that are not RoPE's, and the family reads. ``factors``: llama.cpp takes the
    tensors of longrope of this family whatever a GGUF's type is."""
    if s.file.format == "gguf":
        return _said(s, _gguf_table(s, head_dim, partial, factors=factors))
    keys = rope_object(s, absent)
    for name in beside:
        keys.pop(name, None)
    return _said(s, _one_table(s, head_dim, partial, kinds, keys))


def rope_object(s: Settings, absent: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The object that says how positions are turned: rope_scaling, which transformers prefers, or
    rope_parameters; ``absent`` where there is none."""
    scaling, parameters = _mapping(s, "rope_scaling"), _mapping(s, "rope_parameters")
    found = dict(scaling or parameters)
    if not found and s.take("rope_parameters", None) is None:
        found = dict(absent or {})
    return found


def original_positions(s: Settings, keys: Mapping[str, Any]) -> float:
    """The positions of the first training: beside the object, in it, or those of the model."""
    return original_of(s, RopeKeys(s, keys))


def read_rope_by_layer_type(s: Settings, head_dim: int, local: float) -> dict[str, RopeTable]:
    """The tables of "full_attention" and "sliding_attention" layers.

    ``local``: the base of the latter where the file is silent.
    """
    layout = _layout(s)
    if s.file.format == "gguf":
        full = _gguf_table(s, head_dim, partial=False)
        sliding = RopeTable(head_dim, s.number("rope_theta_local", local), layout)
        return {"full_attention": _said(s, full), "sliding_attention": sliding}
    scaling = _mapping(s, "rope_scaling")
    by_type = dict(_mapping(s, "rope_parameters"))
    if by_type and not set(by_type) <= {"full_attention", "sliding_attention"}:
        raise s.fail(
            f"rope_parameters has {', '.join(map(clean, by_type))} where this family has one table "
            "for full_attention and one for sliding_attention"
        )
    if "type" in scaling and "rope_type" not in scaling:
        raise s.fail("rope_scaling says type and not rope_type: transformers reads the other alone")
    of_full, of_sliding = (
        _object(s, f"rope_parameters.{kind}", by_type.get(kind))
        for kind in ("full_attention", "sliding_attention")
    )
    full_keys = {**of_full, **scaling}
    found = {
        "full_attention": _table(s, head_dim, full_keys, "rope_theta", layout, partial=False),
        "sliding_attention": _table(
            s, head_dim, of_sliding, "rope_theta_local", layout, partial=False
        ),
    }  # fmt: skip
    _said(s, found["full_attention"])
    s.say("rope_theta_local", found["sliding_attention"].theta)
    return found


def read_nested_rope(
    s: Settings, head_dim: int | Mapping[str, int], defaults: Mapping[str, Mapping[str, Any]], *,
    partial: bool = False, unsaid: float = 1.0,
) -> dict[str, RopeTable]:  # fmt: skip
    """The tables of "full_attention" and "sliding_attention" layers where rope_parameters says all
    of each, and transformers reads nothing beside it.

    ``head_dim``: of all layers, or of each kind; ``defaults``: the objects without it, of the plain
    kind where they say none. ``partial``: a share of the channels may turn, ``unsaid`` that share
    where an object of the plain kind does not say it.
    """
    by_type = s.take("rope_parameters", None)
    if by_type is None:
        by_type = {kind: {"rope_type": "default", **its} for kind, its in defaults.items()}
    found: dict[str, RopeTable] = {}
    for kind in ("full_attention", "sliding_attention"):
        keys = by_type.get(kind) if isinstance(by_type, dict) else None
        if not isinstance(keys, dict) or not {"rope_type", "rope_theta"} <= set(keys):
            raise s.fail(f"rope_parameters does not say rope_type and rope_theta of {kind}")
        if partial or keys["rope_type"] == PROPORTIONAL:
            share = unsaid if keys["rope_type"] == "default" else 1.0
            keys = {"partial_rotary_factor": share, **keys}
        size = head_dim if isinstance(head_dim, int) else head_dim[kind]
        found[kind] = _table(s, size, keys, "rope_theta", _layout(s), partial=partial)
    s.say("rope_theta_local", found["sliding_attention"].theta)
    _said(s, found["full_attention"])
    s.say("partial_rotary_factor", None)  # each kind's object says its own
    return found


def turns_by_axes(s: Settings) -> bool:
    """Whether a GGUF gives the pairs to axes of pictures; of text all are the one position."""
    sections = s.take("rope.dimension_sections", None) or ()
    if not isinstance(sections, list | tuple) or not all(type(each) is int for each in sections):
        raise s.fail(f"rope.dimension_sections is {clean(repr(sections), 60)}")
    if len(sections) > 3 and any(sections[3:]):
        raise s.fail("rope.dimension_sections has a fourth axis, which of text is no position")
    return any(sections)


def _said(s: Settings, table: RopeTable) -> RopeTable:
    """The table, its parts recorded among the settings."""
    s.say("rope_theta", table.theta)
    s.say("rope_layout", table.pairs)
    s.say("rope_dim", table.dims)
    s.say("rope_scale", table.position_divisor)
    s.say("rope_divisors", table.divisors)
    s.say("rope_magnitude", table.magnitude)
    if table.long_divisors:
        s.say("rope_long_divisors", table.long_divisors)
    if table.trained:
        s.say("rope_trained", table.trained)
    return table


def _layout(s: Settings) -> str:
    """Which channels are pairs: by the order of the q and k rows (docs/stages.md 3)."""
    due = "adjacent" if s.adjacent_rows else "halves"
    said = s.take("rope_type", None) if s.file.format == "apr" else None
    claimed = due if said is None else {0: "adjacent", 2: "halves"}.get(said, due)
    if claimed != due:
        s.note(f"rope_type says {said} ({claimed} pairs); these {s.family} rows need {due}")
    return s.choice("rope_layout", PAIRS, due)


def _mapping(s: Settings, name: str) -> Mapping[str, Any]:
    """A key that holds an object, or text from ``--set``; empty where it is null or absent."""
    value = s.take(name, None)
    return _from_text(value) if isinstance(value, str) else _object(s, name, value)


def _object(s: Settings, name: str, value: Any) -> Mapping[str, Any]:
    """A value that is an object; empty where it is null or absent."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise s.fail(f"{name} cannot be read: {clean(repr(value), 80)}")
    return value


def _from_text(text: str) -> dict[str, Any]:
    """``none``, ``linear:FACTOR``, ``llama3:FACTOR:LOW:HIGH:ORIGINAL``, as ``--set`` gives it."""
    kind, *rest = text.split(":")
    names = _TEXT_KEYS.get(kind)
    try:
        numbers = [float(part) for part in rest]
    except ValueError:
        names = None
    if names is None or len(names) != len(rest):
        forms = ", ".join(":".join((kind, *keys)) for kind, keys in _TEXT_KEYS.items())
        raise UsageError(f"--set rope_scaling={clean(text)} cannot be read", hint=forms)
    return {"rope_type": "default" if kind == "none" else kind,
            **dict(zip(names, numbers, strict=True))}  # fmt: skip


def _one_table(
    s: Settings, head_dim: int, partial: bool, kinds: Mapping[str, str] | None,
    keys: dict[str, Any],
) -> RopeTable:  # fmt: skip
    """The table of the object ``keys``."""
    if kinds is not None:
        kind = keys.get("rope_type", keys.get("type", "default"))
        if kind not in kinds:
            raise s.fail(f"RoPE scaling {clean(str(kind))!r}, which {s.family} does not have")
        if "mrope" in kinds:  # the channels of each axis, which all turn by the one position
            keys.pop("mrope_section", None)
            keys.pop("type", None)
        keys["rope_type"] = kinds[kind]
    table = _table(s, head_dim, keys, "rope_theta", _layout(s), partial=partial)
    freqs = s.freqs.get("rope_freqs", ())
    if freqs:
        return replace(table, divisors=checked(s, "rope_freqs", freqs, table.dims))
    return table


def _table(
    s: Settings, head_dim: int, keys: Mapping[str, Any], theta_key: str, layout: str, *,
    partial: bool,
) -> RopeTable:  # fmt: skip
    """The table of one rope object; what it leaves out stands beside it or is the family's."""
    group = RopeKeys(s, keys)
    if "rope_theta" in keys:
        s.take(theta_key, None)
        theta = group.need("rope_theta")
    else:
        theta = s.number(theta_key)
    kind = keys.get("rope_type", keys.get("type", "default"))
    if kind == PROPORTIONAL and partial:
        raise s.fail(f"proportional RoPE, and {s.family} turns the first channels alone")
    share = _share(s, group, partial or kind == PROPORTIONAL)
    dims = head_dim if kind == PROPORTIONAL else int(head_dim * share)
    if dims < 2 or dims % 2:
        raise s.fail(f"RoPE over {dims} of {head_dim} channels: it needs pairs")
    table = RopeTable(dims, theta, layout)
    if s.known("original_max_position_embeddings"):
        outer_original(s)
    made = (
        proportional(s, group, table, share)
        if kind == PROPORTIONAL
        else scaled(s, group, kind, table)
    )
    group.finish(str(kind))
    return made


def _share(s: Settings, group: RopeKeys, partial: bool) -> float:
    name = "partial_rotary_factor"
    outer = s.number(name, *(() if s.known(name) else (1.0,)), null=1.0)
    if partial:
        group.refuse_null(name)
    share = float(group.number(name, outer) or 1.0)
    if share != 1.0 and not partial:
        raise s.fail(f"partial_rotary_factor is {share}, and {s.family} rotates all channels")
    if not 0 < share <= 1:
        raise s.fail(f"partial_rotary_factor is {share}, outside 0..1")
    return share


def _gguf_table(s: Settings, head_dim: int, partial: bool, *, factors: bool = False) -> RopeTable:
    """The table as llama.cpp makes it: without a type a factor is linear."""
    dims = s.integer("rope_dim", head_dim)
    if dims != head_dim and not partial:
        raise s.fail(f"RoPE over {dims} of {head_dim} channels, and {s.family} rotates all")
    if not 2 <= dims <= head_dim or dims % 2:
        raise s.fail(f"RoPE over {dims} of {head_dim} channels")
    table = RopeTable(dims, s.number("rope_theta"), _layout(s))
    override = _mapping(s, "rope_scaling")
    if override:
        return scaled(s, RopeKeys(s, override), override["rope_type"], table)
    kind = s.take("rope.scaling.type", "linear")
    return _with_factors(s, _gguf_scaled(s, table, kind), kind, always=factors)


def _gguf_scaled(s: Settings, table: RopeTable, kind: Any) -> RopeTable:
    """``table`` with a scaling that keys say, or rope_freqs."""
    factor = _if_stated(s, s.number, "rope.scaling.factor")
    older = _if_stated(s, s.number, "rope.scale_linear")
    factor = (older if factor is None else factor) or 1.0
    magnitude = _if_stated(s, s.number, "rope.scaling.attn_factor") or 1.0
    original = _gguf_original(s)
    if s.freqs.get("rope_freqs"):
        divisors = checked(s, "rope_freqs", s.freqs["rope_freqs"], table.dims)
        table = replace(table, divisors=divisors)
    if kind == "none":
        return replace(table, magnitude=magnitude)
    if kind in ("linear", "longrope"):
        return replace(table, position_divisor=factor, magnitude=magnitude)
    if kind == "yarn":
        fast, slow = (_yarn_bound(s, *key) for key in YARN_BETAS.items())
        s.say("rope_truncate", True)  # ggml always does, and no key of GGUF could say otherwise
        divisors = yarn_divisors(table.dims, table.theta, factor, original or 1, fast, slow)
        share = s.number(YARN_SHARE) if s.known(YARN_SHARE) else 0.0
        if table.divisors:  # rope_freqs divides before the correction range blends
            divisors = tuple(a * b for a, b in zip(divisors, table.divisors, strict=True))
        grown = yarn_growth(factor)
        for name, due in (("ext", 1.0), ("attn", grown)):
            _yarn_bound(s, f"rope.scaling.yarn_{name}_factor", due)
        magnitude *= grown / (yarn_growth(factor, share) if share else 1.0)
        return replace(table, divisors=divisors, magnitude=magnitude)
    raise s.fail(f"RoPE scaling {clean(str(kind))!r} is not computed here")


def _gguf_original(s: Settings) -> int:
    """The positions of the first training, of the model where they are not said."""
    stated = _if_stated(s, s.integer, "rope.scaling.original_context_length")
    return int(stated or s.values.get("max_positions") or 0)


def _yarn_bound(s: Settings, name: str, due: float) -> float:
    """A number of YaRN's, which llama.cpp reads of few architectures: else it is ``due``."""
    if s.known(name):
        return float(s.number(name))
    stated = _if_stated(s, s.number, name)
    if stated is not None and not math.isclose(stated, due, rel_tol=1e-6):
        s.note(f"{name} is {stated:g}, which llama.cpp does not read of this architecture: {due:g}")
    return due


def _if_stated(s: Settings, read: Callable[..., Any], name: str) -> Any:
    """The key's value; one that the file does not have is None and no setting of the model."""
    value = read(name, None)
    if value is None:
        s.values.pop(name, None)
    return value


def _with_factors(s: Settings, table: RopeTable, kind: Any, *, always: bool) -> RopeTable:
    """The table with longrope's factors, which stand in tensors. ``always``: llama.cpp takes them
    of this family whatever ``rope.scaling.type`` is, and its converter writes none."""
    short, long = s.freqs.get("rope_short", ()), s.freqs.get("rope_long", ())
    stated = kind == "longrope"
    if not (short or long or stated):
        return table
    if not short or not long:
        raise s.fail("longrope without its tensors rope_factors_short and rope_factors_long")
    if not (always or stated):
        raise s.fail(
            "tensors of longrope (rope_factors_short, rope_factors_long), and rope.scaling.type is "
            "another: llama.cpp does not load such a file"
        )
    if table.divisors:
        raise s.fail("longrope's factors beside another scaling of RoPE")
    trained = _gguf_original(s)
    s.note(
        f"longrope: rope_factors_short up to {trained:,} tokens, rope_factors_long beyond, as in "
        "transformers; llama.cpp chooses by the context that it is given"
    )
    return replace(
        table,
        divisors=checked(s, "rope_factors_short", short, table.dims),
        long_divisors=checked(s, "rope_factors_long", long, table.dims),
        trained=trained,
    )
