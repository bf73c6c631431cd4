"""SGLang's dumper: one file a tensor, whose name says of which step, rank and layer it is.

``step=0___rank=0___dump_index=7___name=attn_norm___layer_id=3.pt`` holds {value, meta}. The tensor
is named ``dumper/NAME/LAYER``; the second of that name in a step has ``#1`` behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from aprtui.captures.dump import Member, Pass, Rank
from aprtui.errors import BadFileError
from aprtui.text import clean

__all__ = ["are_dumpers", "dumped_ranks"]

_STEPS = ("step", "forward_pass_id")
_LARGEST = 1 << 30


def _fields(file: Path) -> dict[str, str]:
    pairs = (part.partition("=") for part in file.stem.split("___"))
    return {key: value for key, equals, value in pairs if equals}


def are_dumpers(files: Sequence[Path]) -> bool:
    """Whether all of a folder's files are named as the dumper names them."""
    return bool(files) and all({"name", "rank"} <= _fields(file).keys() for file in files)


def dumped_ranks(
    folder: Path, files: Sequence[Path], read: Callable[[Path], Pass]
) -> tuple[Rank, ...]:
    """The ranks and steps of a folder; ``read`` gives what one file holds. Raises BadFileError."""
    found: dict[int, dict[int, dict[str, Member]]] = {}
    for file in sorted(files, key=lambda each: _number(each, ("dump_index",))):
        fields = _fields(file)
        rank, step = _number(file, ("rank",)), _number(file, _STEPS)
        tensors = found.setdefault(rank, {}).setdefault(step, {})
        member = next(iter(_values(file, read(file)).values()))
        layer = fields.get("layer_id", "")
        name = f"dumper/{fields['name']}" + (f"/{layer}" if layer else "")
        again = sum(known.partition("#")[0] == name for known in tensors)
        tensors[f"{name}#{again}" if again else name] = member
    places = {rank: at for at, rank in enumerate(sorted(found))}
    if sorted(found) != list(range(len(found))):
        raise BadFileError(folder, f"its ranks make no whole: it holds those of {sorted(found)}")
    return tuple(
        Rank(
            f"rank={rank}",
            tuple(steps[step] for step in sorted(steps)),
            tuple(f"step={step}" for step in sorted(steps)),
            tensor=places[rank],
        )
        for rank, steps in sorted(found.items())
    )


def _values(file: Path, held: Pass) -> Mapping[str, Member]:
    """The value of a file: what stands under ``value``, or the file's one tensor."""
    values = {name: held[name] for name in held if name == "value"} or dict(held)
    if len(values) != 1:
        raise BadFileError(file, f"{len(values)} tensors, where the dumper writes one")
    return values


def _number(file: Path, keys: Sequence[str]) -> int:
    fields = _fields(file)
    text = next((fields[key] for key in keys if key in fields), "0")
    if not (text.isascii() and text.isdigit()) or int(text[:12]) > _LARGEST:
        raise BadFileError(file, f"{keys[0]} {clean(text, 40)!r} is no number")
    return int(text)
