"""Reads ``.safetensors`` models: one file or a folder of shards, with the config beside them.

The safetensors library decides whether a file is valid; its header is then read once more for the
offsets, which the library does not tell, so that tensors stay in the memory map.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from aprtui.errors import BadFileError
from aprtui.formats.blocks import stored_bytes
from aprtui.formats.modelfile import HeaderField, ModelFile, TensorEntry
from aprtui.formats.strict_json import parse_object
from aprtui.text import clean

__all__ = ["read_safetensors"]

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
MAX_HEADER_BYTES = 100_000_000  # the library's own limit
_MAX_JSON_BYTES = 64 << 20
_TYPES = {name: name for name in ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8")}
_LONGEST_NAME = 200  # of a shard, in characters; file systems allow 255 bytes


def read_safetensors(path: Path) -> ModelFile:
    """The model in a ``.safetensors`` file or in a folder that holds one, whole or in shards.

    ``metadata`` is the ``config.json`` beside the tensors as it stands, empty without one.
    Raises BadFileError for a damaged file, a missing shard, a type that is no plain number.
    """
    folder = path if path.is_dir() else path.parent
    notes: list[str] = []
    weight_map: Mapping[str, str] = {}
    if path.is_dir():
        shards, weight_map = _shards(path, notes)
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
    _check_map(path, weight_map, tensors)
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


def _shards(folder: Path, notes: list[str]) -> tuple[list[Path], Mapping[str, str]]:
    """The files that hold a folder's model, and which tensor the index expects in which."""
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"], {}
    if (folder / INDEX).is_file():
        weight_map = _weight_map(folder / INDEX)
        shards = [folder / name for name in sorted(set(weight_map.values()))]
        for shard in shards:
            if not shard.is_file():
                raise BadFileError(
                    folder / INDEX,
                    f"names the shard {clean(shard.name)}, which is not beside it",
                    hint="download the missing file",
                )
        return shards, weight_map
    found = sorted(folder.glob("*.safetensors"))
    ours = [shard for shard in found if not shard.name.startswith("consolidated")]
    if ours and len(ours) < len(found):  # the same model twice, the rows of q and k in two orders
        notes.append("consolidated.safetensors is the same model in Mistral's layout: not read")
        found = ours
    if not found:
        raise BadFileError(folder, "no .safetensors file in this folder")
    if len(found) > 1:
        notes.append(f"no {INDEX}: its {len(found)} .safetensors files are taken as one model")
    return found, {}


def _weight_map(path: Path) -> dict[str, str]:
    """Tensor name to shard file name, each shard a plain name in the index's own folder."""
    weight_map = parse_object(path, _read_whole(path), "the index").get("weight_map")
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
    path: Path, weight_map: Mapping[str, str], tensors: Mapping[str, TensorEntry]
) -> None:
    for name, shard in weight_map.items():
        if name not in tensors or tensors[name].path.name != shard:
            raise BadFileError(
                path / INDEX,
                f"promises tensor {clean(name)} in {clean(shard)}, which does not hold it",
                hint="the folder mixes two downloads, or a file is damaged",
            )


def _config(folder: Path, notes: list[str]) -> tuple[dict[str, Any], bytes]:
    path = folder / CONFIG
    if not path.is_file():
        notes.append(f"no {CONFIG} beside it: the model's dimensions are not stated")
        return {}, b""
    raw = _read_whole(path)
    return parse_object(path, raw, "the config"), raw


def _read_whole(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_JSON_BYTES + 1)
    except OSError as error:
        raise BadFileError(path, f"cannot be read: {error.strerror}") from error
    if len(raw) > _MAX_JSON_BYTES:
        raise BadFileError(path, f"is larger than {_MAX_JSON_BYTES:,} bytes")
    return raw


def _read_file(path: Path) -> tuple[dict[str, TensorEntry], bytes, int]:
    """The tensors of one file, the bytes of its header (length included), and its size."""
    if path.exists() and not path.is_file():
        raise BadFileError(path, "a device, not a .safetensors file")
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size == 0:
                raise BadFileError(path, "not a .safetensors file: it is empty")
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
                raise BadFileError(
                    path,
                    f"not a whole .safetensors file: its header takes {length:,} bytes, "
                    f"the file has {size:,}",
                    hint="the file was cut short or is of another kind; copy it again",
                )
            file.seek(0)
            head = file.read(8 + length)
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
    listed = parse_object(path, head[8:], "its header")
    listed.pop("__metadata__", None)
    entries = {
        name: _entry(path, name, fields, start=len(head), end=size)
        for name, fields in listed.items()
    }
    return entries, head, size


def _entry(path: Path, name: str, fields: Any, *, start: int, end: int) -> TensorEntry:
    """One tensor of a header that the library has accepted, its range checked all the same."""
    what = f"tensor {clean(name)}"
    try:
        dtype, shape = str(fields["dtype"]), tuple(map(int, fields["shape"]))
        first, last = map(int, fields["data_offsets"])
    except (KeyError, TypeError, ValueError) as error:
        raise BadFileError(path, f"{what} lacks a dtype, shape or place") from error
    if dtype not in _TYPES:
        raise BadFileError(
            path,
            f"{what} is of the type {clean(dtype)}, which aprtui does not read",
            hint=f"convert it to one of {', '.join(_TYPES)}",
        )
    if not 0 <= first <= last <= end - start or last - first != stored_bytes(dtype, shape):
        raise BadFileError(
            path,
            f"{what} takes bytes {first:,}..{last:,} of the data, which does not fit "
            f"{math.prod(shape):,} values of {dtype} or the file",
        )
    return TensorEntry(name, dtype, shape, path, start + first, last - first)


def _header_field(path: Path, head: bytes, *, many: bool) -> HeaderField:
    where = f" of {clean(path.name)}" if many else ""
    return HeaderField(f"header_size{where}", 0, head[:8], f"{len(head) - 8:,} bytes of JSON")
