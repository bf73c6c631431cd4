"""A GGUF with other keys than one that is there, or other tensors, by the gguf package."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

__all__ = ["add_key", "with_keys"]


def with_keys(
    source: Path,
    path: Path,
    keys: Mapping[str, Any],
    tensors: Mapping[str, npt.NDArray[np.float32]] = MappingProxyType({}),
    without: str | None = None,
) -> Path:
    """``keys`` without the architecture's name before them, the tokenizer's and xIELU's as they
    stand; None takes one away. ``tensors``: in place of those of their names, and more;
    ``without``: a pattern of names that are left out."""
    reader = _read(source, source.stat().st_mtime_ns)
    arch = reader.fields["general.architecture"].contents()
    kept = {name: field for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    writer = gguf.GGUFWriter(path, arch)
    changed = {
        key if key.startswith(("tokenizer.", "xielu.")) else f"{arch}.{key}": value
        for key, value in keys.items()
    }
    for name, field in kept.items():
        if name != "general.architecture" and name not in changed:
            kind = field.types[0]
            writer.add_key_value(name, field.contents(), kind, field.types[-1])
    for name, value in changed.items():
        if value is not None:
            add_key(writer, name, value)
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    for tensor in reader.tensors:
        if tensor.name in tensors or (without and re.search(without, tensor.name)):
            continue
        writer.add_tensor(tensor.name, np.asarray(tensor.data), raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@lru_cache(maxsize=1)
def _read(source: Path, changed_ns: int) -> Any:
    """Read once for all the files that are made of it: that takes ten times what a pass does."""
    return gguf.GGUFReader(source)


def add_key(writer: Any, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)
