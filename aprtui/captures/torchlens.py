"""torchlens' bundles (.tlspec): a manifest that says which operation of which module each blob is.

A tensor is named ``MODULE/FUNCTION#N``: the N-th result of that function in that module, from 0.
The bundle's own pickle, where there is one, is not opened.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

from aprtui.errors import BadFileError
from aprtui.formats.strict_json import read_object

__all__ = ["MANIFEST", "blobs_of", "is_bundle"]

MANIFEST = "manifest.json"
_MAX_BYTES = 64 << 20
_BLOB = re.compile(r"blobs/[0-9]{1,12}\.safetensors")
_FIRST_CALL = ":1"


def is_bundle(folder: Path) -> bool:
    """Whether a folder is a bundle, by its name and what lies in it."""
    return folder.suffix == ".tlspec" and (folder / MANIFEST).is_file()


def blobs_of(folder: Path) -> dict[str, Path]:
    """The files of a bundle's tensors by name, those alone that are there. Raises BadFileError."""
    path = folder / MANIFEST
    said = read_object(path, "the bundle's manifest", _MAX_BYTES)
    sites, tensors = said.get("sites"), said.get("tensors")
    if not isinstance(sites, list) or not isinstance(tensors, list):
        raise BadFileError(path, "no manifest of torchlens: it needs sites and tensors")
    by_label = {_text(each, "layer_label"): each for each in sites}
    found: dict[str, Path] = {}
    counted: Counter[str] = Counter()
    for tensor in tensors:
        label, place = _text(tensor, "label"), _text(tensor, "relative_path")
        site = by_label.get(label.removesuffix(_FIRST_CALL))
        if site is None:
            continue
        if not _BLOB.fullmatch(place):
            raise BadFileError(path, "a tensor of it lies outside blobs/")
        module = _text(site, "module_path").removesuffix(_FIRST_CALL)
        name = f"{module}/{_text(site, 'function_path')}"
        if not module:
            name = label.removesuffix(_FIRST_CALL)
        else:
            counted[name] += 1
            name = f"{name}#{counted[name] - 1}"
        if name not in found and (folder / place).is_file():
            found[name] = folder / place
    return found


def _text(value: Any, key: str) -> str:
    found = value.get(key) if isinstance(value, dict) else None
    return found if isinstance(found, str) else ""
