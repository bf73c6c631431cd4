"""Which convention a dump's names are in, and its passes as that convention means them."""

from __future__ import annotations

from collections.abc import Iterator

from aprtui.captures.dump import Dump, Member, Pass, Rank
from aprtui.captures.maps import CONVENTIONS, DumpMap, load_map
from aprtui.captures.naming import Names
from aprtui.errors import UsageError
from aprtui.text import clean, quoted

__all__ = ["passes_of", "recognised"]


def recognised(dump: Dump) -> DumpMap:
    """The one convention whose names the dump has. Raises UsageError for none and for several."""
    names = Names(_names(dump))
    fitting = [each for each in map(load_map, CONVENTIONS) if _fits(each, names)]
    if len(fitting) == 1:
        return fitting[0]
    where = clean(str(dump.path))
    if fitting:
        both = " and ".join(each.name for each in fitting)
        raise UsageError(
            f"{where}: its names are those of {both}", hint=f"--map {fitting[0].name} chooses one"
        )
    shown = ", ".join(clean(name, 60) for name in list(dict.fromkeys(_names(dump)))[:6])
    raise UsageError(
        f"{where}: no map knows its names: {shown[:300]}",
        hint=f"--map takes {', '.join(CONVENTIONS)}, or a map of your own: docs/captures.md",
    )


def _fits(each: DumpMap, names: Names) -> bool:
    return all(map(names.fits, each.recognise)) and not any(map(names.fits, each.unless))


def _names(dump: Dump) -> Iterator[str]:
    return (name for rank in dump.ranks for tensors in rank.passes for name in tensors)


def passes_of(dump: Dump, rank: Rank, convention: DumpMap) -> tuple[Pass, ...]:
    """A rank's passes, what is written one file late put where it belongs.

    Raises UsageError for a map that fits nothing.
    """
    late = frozenset(convention.off_by_one)
    own: list[dict[str, Member]] = [
        {name: member for name, member in tensors.items() if name not in late}
        for tensors in rank.passes
    ]
    for before, tensors in zip(own, rank.passes[1:], strict=False):
        before.update({name: member for name, member in tensors.items() if name in late})
    if late and len(own) > 1 and not own[-1]:
        own.pop()
    for tensors, file in zip(own, rank.files, strict=False):
        names = Names(tensors)
        if not all(map(names.fits, convention.recognise)):
            raise UsageError(
                f"{clean(file)}: the map {convention.name} fits nothing in it",
                hint=f"aprtui import-trace {quoted(dump.path)} without --map recognises its names",
            )
    return tuple(own)
