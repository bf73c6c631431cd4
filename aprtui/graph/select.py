"""Which stages and layers a person asked for, as they are typed."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import filter as matching

from aprtui.errors import UsageError
from aprtui.graph.vocabulary import ALIASES, STAGES
from aprtui.text import clean, nearest

__all__ = ["only_layers", "parse_layers", "parse_stages"]

_NAMES = tuple(stage.name for stage in STAGES)


def parse_stages(text: str) -> tuple[str, ...] | None:
    """The stages that ``text`` names, in order of computation; None means all.

    Names are case-insensitive and separated by commas; ``ffn_*`` names all that begin so. Raises
    UsageError for an empty name and for one that names no stage, with what was likely meant.
    """
    names: set[str] = set()
    everything = False
    for part in text.split(","):
        name = part.strip().lower()
        if name == "all":
            everything = True
            continue
        if not name:
            raise UsageError("an empty stage name", hint="name stages with commas between, or all")
        found = matching(_NAMES, ALIASES.get(name, name))
        if not found:
            raise UsageError(f"unknown stage {clean(part.strip())!r}", hint=_meant(name))
        names.update(found)
    return None if everything else tuple(sorted(names, key=_NAMES.index))


def _meant(name: str) -> str:
    """What a person who typed ``name`` may have meant: a pattern, the nearest stage, or any."""
    begin_so = [stage for stage in _NAMES if stage.startswith(name)]
    if len(begin_so) > 1:
        whole = all(stage.startswith(f"{name}_") for stage in begin_so)
        return f"did you mean '{name}_*'?" if whole else f"did you mean '{name}*'?"
    near = nearest(name, [*_NAMES, *ALIASES])
    return f"did you mean {near}?" if near else f"valid: {', '.join(_NAMES)}"


def parse_layers(text: str, num_layers: int) -> tuple[int, ...]:
    """The layers that ``all``, ``N``, ``START..END`` (END excluded) or a comma list names.

    Raises UsageError for anything else and for a layer outside the model.
    """
    chosen: set[int] = set()
    for part in text.split(","):
        chosen.update(_layer_range(part.strip().lower(), num_layers))
    return tuple(sorted(chosen))


def only_layers(text: str, num_layers: int) -> tuple[int, ...] | None:
    """The layers of a capture that are looked at; None is all, and the whole model's stages too.

    Raises as ``parse_layers`` does.
    """
    return None if text.strip().lower() == "all" else parse_layers(text, num_layers)


def _layer_range(part: str, num_layers: int) -> Iterable[int]:
    if part == "all":
        return range(num_layers)
    first, dots, last = part.partition("..")
    try:
        start = int(first)
        end = int(last) if dots else start + 1
    except ValueError:
        raise UsageError(
            f"layers {clean(part)!r} cannot be read",
            hint="write all, 3, 0,3,7 or 3..6: the end of a range is not included",
        ) from None
    if start == end or (dots and end < start):
        raise UsageError(
            f"layers {clean(part)} are none", hint="the end of a range is not included"
        )
    if not 0 <= start < end <= num_layers:
        raise UsageError(
            f"layers {clean(part)} lie outside the model, which has layers 0..{num_layers}",
            hint=f"the last layer is {num_layers - 1}; the end of a range is not included",
        )
    return range(start, end)
