"""Which of a folder's ``.safetensors`` files are its model: one set, and what else lies there."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from aprtui.errors import BadFileError
from aprtui.formats.other_kinds import refuse_folder
from aprtui.text import clean, count

__all__ = ["INDEX", "shards_of"]

INDEX = "model.safetensors.index.json"
_WHOLE = "model.safetensors"
_MISTRAL_INDEX = "consolidated.safetensors.index.json"
_OF = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors")
_LISTED = 4


def shards_of(
    folder: Path, weight_map: Callable[[Path], dict[str, str]], notes: list[str]
) -> tuple[list[Path], Mapping[str, str], str]:
    """The files of a folder's model, what its index (of the name given last) expects in which.

    ``model.safetensors`` or transformers' index decides; without them the files that are numbered,
    or all that are neither Mistral's own copy (``consolidated``) nor an adapter, or Mistral's. What
    is left out is noted. Raises BadFileError for missing files, all of them named.
    """
    found = sorted(folder.glob("*.safetensors"))
    index = INDEX
    listed: Mapping[str, str] = {}
    if (folder / _WHOLE).is_file():
        chosen = [folder / _WHOLE]
    elif (folder / INDEX).is_file():
        listed = weight_map(folder / INDEX)
        chosen = _listed(folder / INDEX, listed)
    elif not found:
        refuse_folder(folder)
        if (folder / "config.json").is_file():
            raise BadFileError(
                folder,
                "a configuration without weights: no .safetensors file is beside its config.json",
                hint="the download is not complete: fetch the model's .safetensors files too",
            )
        raise BadFileError(folder, "no .safetensors file in this folder")
    else:
        chosen = _unlisted(folder, found, notes)
        if (folder / _MISTRAL_INDEX).is_file() and all(map(_of_mistral, chosen)):
            index, listed = _MISTRAL_INDEX, weight_map(folder / _MISTRAL_INDEX)
            chosen = _listed(folder / index, listed)
    left = [path for path in found if path not in chosen]
    if left:
        names = ", ".join(clean(path.name, 60) for path in left[:_LISTED])
        notes.append(f"{count(len(left), 'file')} beside the model, not part of it: {names}")
    return chosen, listed, index


def _listed(index: Path, weight_map: Mapping[str, str]) -> list[Path]:
    shards = [index.parent / name for name in sorted(set(weight_map.values()))]
    missing = [shard for shard in shards if not shard.is_file()]
    if missing:
        names = ", ".join(clean(path.name, 60) for path in missing[:_LISTED])
        more = f" and {len(missing) - _LISTED} more" if len(missing) > _LISTED else ""
        which = "the shard" if len(missing) == 1 else f"{len(missing)} of {len(shards)} shards,"
        raise BadFileError(
            index,
            f"names {which} {names}{more}, which {'is' if len(missing) == 1 else 'are'} not "
            "beside it",
            hint="download what is missing",
        )
    return shards


def _of_mistral(path: Path) -> bool:
    return path.name.startswith("consolidated")


def _unlisted(folder: Path, found: list[Path], notes: list[str]) -> list[Path]:
    """The files of a folder without an index."""
    model = [p for p in found if not _of_mistral(p) and not p.name.startswith("adapter_")]
    chosen = model or [path for path in found if _of_mistral(path)] or found
    numbered = [match for path in chosen if (match := _OF.fullmatch(path.name))]
    if len(numbered) == len(chosen) and len({(m[1], m[3]) for m in numbered}) == 1:
        there = {int(match[2]) for match in numbered}
        absent = sorted(set(range(1, int(numbered[0][3]) + 1)) - there)
        if absent:
            raise BadFileError(
                folder,
                f"shard {absent[0]} of {int(numbered[0][3])} is missing"
                + (f", and {len(absent) - 1} more" if len(absent) > 1 else ""),
                hint="download what is missing",
            )
    if len(chosen) > 1:
        notes.append(f"no {INDEX}: its {len(chosen)} .safetensors files are taken as one model")
    return chosen
