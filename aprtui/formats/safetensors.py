"""Reads ``.safetensors`` models: one file or a folder of shards, with the config beside them.

The safetensors library decides whether a file is valid; its header is then read once more for the
offsets, which the library does not tell, so that tensors stay in the memory map.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from aprtui.errors import BadFileError
from aprtui.formats.blocks import BLOCK_TYPES, MAX_TENSORS, stored_bytes, value_count
from aprtui.formats.files import cut_short, open_file, read_whole
from aprtui.formats.modelfile import HeaderField, ModelFile, TensorEntry
from aprtui.formats.other_kinds import refuse_beginning
from aprtui.formats.shards import INDEX, shards_of
from aprtui.formats.strict_json import parse_object, read_object
from aprtui.text import clean

__all__ = ["read_safetensors"]

CONFIG = "config.json"
MAX_HEADER_BYTES = 100_000_000  # the library's own limit
MAX_JSON_BYTES = 64 << 20
_LONGEST_NAME = 200  # of a shard, in characters; file systems allow 255 bytes


def read_safetensors(path: Path) -> ModelFile:
    """The model in a ``.safetensors`` file or in a folder that holds one, whole or in shards.

    ``metadata`` is the ``config.json`` beside the tensors as it stands, empty without one.
    Raises BadFileError for a damaged file or a missing shard.
    """
    folder = path if path.is_dir() else path.parent
    notes: list[str] = []
    weight_map: Mapping[str, str] = {}
    index = INDEX
    if path.is_dir():
        shards, weight_map, index = shards_of(path, _weight_map, notes)
    else:
        shards = [path]
        if (folder / INDEX).is_file() and path.name in _weight_map(folder / INDEX).values():
            notes.append(f"one shard of several: open the folder {clean(folder.name)} for them all")
    tensors: dict[str, TensorEntry] = {}
    header: tuple[HeaderField, ...] = ()
    digest = hashlib.sha256()
    size_bytes = 0
    for shard in shards:
        entries, head, shard_bytes = _read_file(shard)
        for name, entry in entries.items():
            if name in tensors:
                raise BadFileError(
                    shard, f"tensor {clean(name)} stands in {clean(tensors[name].path.name)} too"
                )
            tensors[name] = entry
        digest.update(head)
        size_bytes += shard_bytes
        header += (_header_field(shard, head, many=len(shards) > 1),)
    _check_map(path / index, weight_map, tensors)
    metadata, raw_config = _config(folder, notes)
    digest.update(raw_config)
    return ModelFile(
        path=path,
        format="safetensors",
        version="",
        metadata=metadata,
        tensors=tensors,
        files=tuple(shards),
        size_bytes=size_bytes,
        digest=digest.hexdigest(),
        notes=tuple(notes),
        header=header,
    )


def _weight_map(path: Path) -> dict[str, str]:
    """Tensor name to shard file name, each shard a plain name in the index's own folder."""
    weight_map = read_object(path, "the index", MAX_JSON_BYTES).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise BadFileError(path, "the index has no weight_map of tensors to files")
    for shard in set(map(str, weight_map.values())):
        if Path(shard).name != shard or shard in ("", "..") or set(shard) & set("\\\0:"):
            raise BadFileError(path, f"names a shard outside its folder: {clean(repr(shard))}")
        if len(shard) > _LONGEST_NAME:
            raise BadFileError(path, f"names a shard that no file can have: {clean(shard, 60)}")
    if not all(isinstance(shard, str) for shard in weight_map.values()):
        raise BadFileError(path, "the index maps a tensor to something that is no file name")
    return weight_map


def _check_map(
    index: Path, weight_map: Mapping[str, str], tensors: Mapping[str, TensorEntry]
) -> None:
    for name, shard in weight_map.items():
        if name not in tensors or tensors[name].path.name != shard:
            raise BadFileError(
                index,
                f"promises tensor {clean(name)} in {clean(shard)}, which does not hold it",
                hint="the folder mixes two downloads, or a file is damaged",
            )


def _config(folder: Path, notes: list[str]) -> tuple[dict[str, Any], bytes]:
    path = folder / CONFIG
    if not path.exists():
        notes.append(f"no {CONFIG} beside it: the model's dimensions are not stated")
        return {}, b""
    raw = read_whole(path, MAX_JSON_BYTES, "the config")
    return parse_object(path, raw, "the config", infinite=True), raw


def _read_file(path: Path) -> tuple[dict[str, TensorEntry], bytes, int]:
    """The tensors of one file, the bytes of its header (length included), and its size."""
    with open_file(path) as file:
        size = file.size
        if size == 0:
            raise BadFileError(path, "not a .safetensors file: it is empty")
        refuse_beginning(path, file.read(0, 256))
        length = int.from_bytes(file.read(0, 8), "little")
        if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
            raise BadFileError(
                path,
                f"not a whole .safetensors file: its header takes {length:,} bytes, "
                f"the file has {size:,}",
                hint="the file was cut short or is of another kind; copy it again",
            )
        head = file.read(0, 8 + length)
    if len(head) < 8 + length:
        raise cut_short(path)
    listed = parse_object(path, head[8:], "its header")  # bounds what the library will build, too
    listed.pop("__metadata__", None)
    if len(listed) > MAX_TENSORS:
        raise BadFileError(path, f"{len(listed):,} tensors; {MAX_TENSORS:,} is the most")
    _check_valid(path)
    entries = {
        name: _entry(path, name, fields, start=len(head), end=size)
        for name, fields in listed.items()
    }
    return entries, head, size


def _check_valid(path: Path) -> None:
    """Have the library look at the file's header. Raises BadFileError."""
    try:
        with safe_open(path, framework="numpy"):
            pass
    except SafetensorError as error:
        raise BadFileError(
            path,
            f"not a valid .safetensors file: {clean(str(error))}",
            hint="the file is damaged or was cut short; copy it again",
        ) from error
    except OSError as error:
        raise BadFileError(
            path, f"cannot be read: {error.strerror or clean(str(error))}"
        ) from error


def _entry(path: Path, name: str, fields: Any, *, start: int, end: int) -> TensorEntry:
    """One tensor of a header that the library has accepted, its range checked all the same."""
    what = f"tensor {clean(name)}"
    try:
        dtype, shape = str(fields["dtype"]), tuple(map(int, fields["shape"]))
        values = value_count(shape)
        first, last = map(int, fields["data_offsets"])
    except (KeyError, TypeError, ValueError) as error:
        raise BadFileError(path, f"{what} lacks a dtype, shape or place") from error
    needed = stored_bytes(dtype, shape) if dtype in BLOCK_TYPES else last - first
    if not 0 <= first <= last <= end - start or last - first != needed:
        raise BadFileError(
            path,
            f"{what} takes bytes {first:,}..{last:,} of the data, which does not fit "
            f"{values:,} values of {dtype} or the file",
        )
    return TensorEntry(name, dtype, shape, path, start + first, last - first)


def _header_field(path: Path, head: bytes, *, many: bool) -> HeaderField:
    where = f" of {clean(path.name)}" if many else ""
    return HeaderField(f"header_size{where}", 0, head[:8], f"{len(head) - 8:,} bytes of JSON")
