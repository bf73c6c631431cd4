"""The ranks of a parallel run: told by their folders' names, checked to be whole, put together."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path

from aprtui.captures.dump import Dump, Member, Pass, Rank
from aprtui.errors import BadFileError, UsageError
from aprtui.text import clean, quoted, ranges

__all__ = ["Place", "Shards", "in_order", "places_of", "together"]

Shards = Mapping[str, tuple[Member, ...]]
"""The tensors of one pass by name, each as the tensor-parallel ranks hold it, in their order."""

_NUMBER = "(?:^|[/_.-]){}[_=-]?([0-9]{{1,4}})(?![0-9])"
_TENSOR, _PIPELINE, _RANK, _STEP = (
    re.compile(_NUMBER.format(word), re.IGNORECASE) for word in ("tp", "pp", "rank", "step")
)
_NAMED = _TENSOR, _PIPELINE, _RANK, _STEP
_COMPARED_BYTES = 1 << 20


@dataclass(frozen=True, order=True)
class Place:
    """Where a folder of tensors stands in a run."""

    pipeline: int = 0
    tensor: int = 0
    step: int = 0


def places_of(root: Path, folders: Sequence[Path], chosen: Sequence[str]) -> dict[Path, Place]:
    """Each folder's place in the run, by its name, or by the order of ``chosen`` names.

    Raises UsageError for a chosen one that is not there, BadFileError for names that tell nothing,
    two folders of one place, and ranks that make no whole.
    """
    names = {folder: folder.relative_to(root).as_posix() for folder in folders}
    if chosen:
        found = {_chosen(root, names, name): Place(tensor=at) for at, name in enumerate(chosen)}
        _check_chosen(found, names, chosen)
        return found
    if len(folders) == 1:
        return {folders[0]: Place()}
    found = {}
    for folder, name in names.items():
        tensor, pipeline, rank, step = map(partial(_number, name), _NAMED)
        if tensor is None and pipeline is None and rank is None and step is None:
            raise _untold(root, list(names.values()), name)
        if tensor is None:
            tensor = rank if pipeline is None else 0
        found[folder] = Place(pipeline or 0, tensor or 0, step or 0)
    _check_whole(root, found, names)
    return found


def _number(name: str, word: re.Pattern[str]) -> int | None:
    found = word.search(name)
    return None if found is None else int(found[1])


def _check_chosen(
    found: Mapping[Path, Place], names: Mapping[Path, str], chosen: Sequence[str]
) -> None:
    """Raise UsageError for a folder that is named twice, and for names that tell another order."""
    if len(found) < len(chosen):
        raise UsageError("--ranks names a folder twice", hint="each rank's folder once")
    told = [(_number(names[folder], _TENSOR), folder) for folder in found]
    for (before, one), (after, other) in pairwise(told):
        if before is not None and after is not None and before >= after:
            both = f"{clean(names[one], 60)} before {clean(names[other], 60)}"
            raise UsageError(
                f"--ranks puts {both}, and their names tell another order",
                hint="leave --ranks out: the names tell it",
            )


def _chosen(root: Path, names: Mapping[Path, str], name: str) -> Path:
    for folder, known in names.items():
        if name.strip("/") in (known, folder.name):
            return folder
    shown = ", ".join(clean(known, 60) for known in list(names.values())[:6])
    raise UsageError(f"--ranks {clean(name)}: {clean(str(root))} has {shown}")


def _untold(root: Path, names: list[str], name: str) -> BadFileError:
    shown = ", ".join(clean(each, 60) for each in names[:4]) + ", …" * (len(names) > 4)
    first = ",".join(names[:2])
    return BadFileError(
        root,
        f"holds {len(names)} folders of tensors: {shown}; the name {clean(name, 60)} tells no rank",
        hint=f"--ranks {quoted(first)} names the ranks' folders in their order, or one alone",
    )


def _check_whole(root: Path, found: Mapping[Path, Place], names: Mapping[Path, str]) -> None:
    """Raise BadFileError unless every place of the run is there once."""
    by_place: dict[Place, Path] = {}
    for folder, place in found.items():
        other = by_place.setdefault(place, folder)
        if other is not folder:
            both = f"{clean(names[other], 60)} and {clean(names[folder], 60)}"
            raise BadFileError(
                root,
                f"{both} are of the same rank: two runs",
                hint="name the folders of one: --ranks",
            )
    steps = {place.step for place in found.values()}
    tensors = range(1 + max(place.tensor for place in found.values()))
    pipelines = range(1 + max(place.pipeline for place in found.values()))
    for step in sorted(steps):
        for pipeline in pipelines:
            lost = [t for t in tensors if Place(pipeline, t, step) not in by_place]
            if lost:
                where = f" of PP{pipeline}" if len(pipelines) > 1 else ""
                where += f" in step {step}" if len(steps) > 1 else ""
                raise BadFileError(
                    root,
                    f"its ranks make no whole: TP {ranges(lost)}{where} is missing, "
                    f"of TP 0-{tensors[-1]}",
                    hint="copy the folders of all ranks; --ranks names one that holds all alone",
                )


def together(dump: Dump, passes: Sequence[Sequence[Pass]]) -> tuple[list[Shards], list[str]]:
    """The passes of all ranks as one run's, and what is to be said of them.

    ``passes`` are each rank's as its convention means them. Pipeline ranks hold other layers: their
    tensors stand side by side. Raises BadFileError for ranks of other passes.
    """
    columns: dict[int, list[dict[str, Member]]] = {}
    notes: dict[str, None] = {}
    for rank, own in zip(dump.ranks, passes, strict=True):
        held = columns.setdefault(rank.tensor, [{} for _ in own])
        if len(held) != len(own):
            raise _other_passes(dump, rank, len(own), len(held))
        for tensors, further in zip(held, own, strict=True):
            for name, member in further.items():
                if tensors.setdefault(name, member) is not member and _differ(
                    tensors[name], member
                ):
                    notes[
                        f"{clean(name, 80)}: pipeline ranks hold it and differ: the first's is read"
                    ] = None
    first = columns[min(columns)]
    for tensor, own in columns.items():
        if len(own) != len(first):
            rank = next(each for each in dump.ranks if each.tensor == tensor)
            raise _other_passes(dump, rank, len(own), len(first))
    shards: list[Shards] = []
    for number in range(len(first)):
        every = [own[number] for own in columns.values()]
        common = [name for name in every[0] if all(name in other for other in every)]
        if alone := {name for other in every for name in other} - set(common):
            shown = ", ".join(clean(name, 60) for name in sorted(alone)[:3])
            notes[f"not read: {len(alone)} tensors that not every rank holds: {shown}"] = None
        shards.append({name: tuple(other[name] for other in every) for name in common})
    if len(columns) > 1 or len(dump.ranks) > 1:
        pipelines = 1 + max(rank.pipeline for rank in dump.ranks)
        said = f"{len(columns)} tensor-parallel ranks" if len(columns) > 1 else ""
        said += " of " * bool(said) + f"{pipelines} pipeline stages" if pipelines > 1 else ""
        notes[f"{said}, put together by the model's dimensions"] = None
    return shards, list(notes)


def _differ(one: Member, other: Member) -> bool:
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return True
    return one.nbytes <= _COMPARED_BYTES and one.read().tobytes() != other.read().tobytes()


def _other_passes(dump: Dump, rank: Rank, own: int, first: int) -> BadFileError:
    return BadFileError(
        dump.path,
        f"its ranks are not of one run: {clean(rank.name, 60)} holds {own} passes, another {first}",
        hint="passes are missing: copy the folders of all ranks whole",
    )


def in_order(ranks: Sequence[tuple[Place, Rank]]) -> tuple[Rank, ...]:
    """Ranks by place, the folders of several steps of one joined to its passes."""
    found: dict[tuple[int, int], Rank] = {}
    for place, rank in sorted(ranks, key=lambda each: (each[0].tensor, each[0])):
        at = (place.pipeline, place.tensor)
        known = found.get(at)
        if known is not None:
            rank = replace(known, passes=known.passes + rank.passes, files=known.files + rank.files)
        found[at] = replace(rank, tensor=place.tensor, pipeline=place.pipeline)
    return tuple(found.values())
