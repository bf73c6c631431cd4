"""From a file's keys and tensors to a graph, whatever the family."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from aprtui.errors import BadFileError
from aprtui.families.keys import stated_keys
from aprtui.families.registry import Identity, load_family
from aprtui.families.settings import Settings, Shapes
from aprtui.families.tensors import Sorted
from aprtui.formats.apr import reversed_entry
from aprtui.formats.modelfile import ModelFile, TensorEntry, tensor_bytes
from aprtui.graph import Graph, Role
from aprtui.text import clean

__all__ = ["FREQUENCY_TENSORS", "Settled", "settle", "sort_tensors"]

_FREQUENCY_ROLES = ("rope_freqs", "rope_long", "rope_short")
FREQUENCY_TENSORS = frozenset({
    "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight",
})  # fmt: skip
"""Tensors that hold RoPE's divisors: read into the graph, never multiplied by."""
_MAX_FREQUENCIES = 65_536


@dataclass(frozen=True)
class Settled:
    """A model's graph and the ledger that it was built from."""

    graph: Graph
    settings: Settings


def sort_tensors(file: ModelFile, family: str) -> Sorted:
    """The file's tensors by role, their dims outermost first whatever order they are listed in.

    Raises BadFileError when only some dims are reversed; complete or not is for the caller to say.
    """
    table = load_family(family).tensors
    found = table.sort(file.tensors.values())
    packed = frozenset(tensor.role for tensor in table.tensors if tensor.packed)
    entries, turned = _oriented(file, found, packed)
    return replace(found, entries=entries, notes=[*found.notes, *turned])


def settle(
    file: ModelFile, who: Identity, found: Sorted, overrides: Mapping[str, str] | None = None
) -> Settled:
    """The graph that keys and tensors give; unread keys are left in the ledger.

    Raises BadFileError for a missing or contradictory key, UsageError for a bad one in ``--set``.
    """
    family = load_family(who.name)
    rows = has_gguf_rows(file, found.gguf_names)
    permuted = rows and family.adjacent_in_gguf
    adjacent = family.adjacent or found.mistral_names or permuted
    settings = Settings(
        file,
        who.name,
        stated_keys(file, who.config, family.aliases),
        family.defaults,
        _shapes(found.entries),
        gguf_rows=rows,
        adjacent_rows=adjacent,
        overrides=overrides,
        freqs={
            name: _small_vector(found.entries[Role(name)])
            for name in _FREQUENCY_ROLES
            if Role(name) in found.entries
        },
        constants={
            role: _small_vector(entry)
            for role, entry in found.entries.items()
            if role.name in family.tensors.constants
        },
        published=family.published,
    )
    graph = family.build(settings)
    return Settled(replace(graph, rows=str(settings.values.get("rope_layout", ""))), settings)


def has_gguf_rows(file: ModelFile, gguf_names: bool) -> bool:
    """Whether q/k rows and norms are as llama.cpp's converter leaves them (docs/stages.md 3)."""
    if file.format == "gguf" or gguf_names:
        return True
    meta = file.metadata
    return (
        file.format == "apr"
        and meta.get("original_format") == "gguf"
        and ("model.architecture" in meta or "hf_model_type" not in meta)
    )


def _shapes(entries: Mapping[Role, TensorEntry]) -> Shapes:
    """The shape of the tensor in a role, of the first layer and expert that has one."""
    first: dict[str, tuple[int, ...]] = {}
    for role in sorted(entries, key=lambda role: (role.layer or 0, role.expert or 0)):
        first.setdefault(role.name, entries[role].shape)
    return first.get


def _oriented(
    file: ModelFile, table: Sorted, packed: frozenset[str]
) -> tuple[dict[Role, TensorEntry], list[str]]:
    """The entries with their dims outermost first, whatever order the writer listed them in.

    ``apr convert`` lists 2-D dims fastest first: all are reversed when the embedding says so
    (docs/stages.md 3). Packed experts come as [E, out, in] or [in, out, E]
    (docs/apr-format.md 3.2).
    """
    entries = dict(table.entries)
    notes: list[str] = []
    norm = entries.get(Role("final_norm")) or entries.get(Role("attn_norm", 0))
    embedding = entries.get(Role("embedding"))
    if file.format == "apr" and norm is not None and embedding is not None:
        hidden = math.prod(norm.shape)
        if _is_reversed(embedding, hidden):
            entries = {role: _reverse(file, role, entry) for role, entry in entries.items()}
            notes.append("2-D dims are listed fastest first (apr convert); all were reversed")
    router = _shapes(entries)("router")
    experts = router[0] if router is not None else 0
    for role, entry in entries.items():
        shape = entry.shape
        if role.name in packed and len(shape) == 3 and shape[0] != experts == shape[2]:
            entries[role] = reversed_entry(entry)
            notes.append("experts' dims are listed in GGUF order; they were reversed")
    return entries, notes


def _is_reversed(embedding: TensorEntry, hidden: int) -> bool:
    shape = embedding.shape
    return len(shape) == 2 and shape[0] == hidden and shape[1] != hidden


def _reverse(file: ModelFile, role: Role, entry: TensorEntry) -> TensorEntry:
    try:
        return reversed_entry(entry) if len(entry.shape) == 2 else entry
    except BadFileError as error:
        raise BadFileError(
            file.path,
            f"{clean(entry.name)} ({role}): the embedding's dims are reversed, this tensor's not",
            hint="some dims are reversed and some are not: convert the model again",
        ) from error


def _small_vector(entry: TensorEntry) -> tuple[float, ...]:
    """The values of a small F32, F16 or BF16 vector. Raises BadFileError for any other."""
    kind: Any = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}.get(entry.type)
    if kind is None or math.prod(entry.shape) > _MAX_FREQUENCIES:
        raise BadFileError(entry.path, f"{clean(entry.name)} is {entry.type}, not a small vector")
    stored = np.frombuffer(tensor_bytes(entry).tobytes(), kind)
    if entry.type == "BF16":  # the upper half of a float32
        stored = (stored.astype("<u4") << 16).view("<f4")
    return tuple(float(value) for value in stored)
