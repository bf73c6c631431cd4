"""Two model files made ready to be compared: tensors by role, row orders and norms reconciled."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from aprtui.errors import AprtuiError
from aprtui.formats.modelfile import ModelFile, TensorEntry
from aprtui.formats.quantised import refuse_unreadable
from aprtui.graph import Role
from aprtui.model.config import ModelConfig
from aprtui.model.families import architecture_of
from aprtui.model.open import Matrix, Model, read_model_file, settle_config, sort_tensors
from aprtui.model.operand import Operand
from aprtui.model.roles import RoleTable
from aprtui.model.tokenizer import TokenizerSpec
from aprtui.text import clean

__all__ = ["WeightSide", "operands", "read_sides"]

_EMBEDDING, _HEAD = Role("embedding"), Role("head")
_REORDERED = frozenset({"q", "k", "q_bias", "k_bias"})


@dataclass(frozen=True)
class WeightSide:
    """One model as far as its file goes: an incomplete or contradictory one is compared too.

    ``unstated`` are configuration keys that the file leaves out and the other file's value stands
    for. ``unused`` are tensors that play no part in the pass.
    """

    path: Path
    file: ModelFile
    config: ModelConfig
    weights: Mapping[Role, Matrix]
    unused: tuple[TensorEntry, ...]
    unstated: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def tied(self) -> bool:
        """Whether the head is the embedding because the file has no head of its own."""
        return self.weights.get(_HEAD) is self.weights.get(_EMBEDDING)

    @property
    def tokenizer_spec(self) -> TokenizerSpec:
        """As Model.tokenizer_spec. Raises UsageError when the file has none."""
        return Model(self.path, self.file, self.config, {}, ()).tokenizer_spec


def read_sides(a: Path, b: Path) -> tuple[WeightSide, WeightSide]:
    """Both models' tensor tables and configurations; no weight is read.

    Missing tensors, wrong shapes and tensors that play no part are for the comparison to name.
    Raises BadFileError for a damaged file or one whose configuration contradicts itself.
    """
    files = [read_model_file(path) for path in (a, b)]
    names = [architecture_of(file) for file in files]
    tables = [sort_tensors(file, name) for file, name in zip(files, names, strict=True)]
    read = [_try_config(*each, {}) for each in zip(files, names, tables, strict=True)]
    sides = []
    for place, (path, file, name, table) in enumerate(
        zip((a, b), files, names, tables, strict=True)
    ):
        found, other = read[place], read[1 - place]
        unstated: tuple[str, ...] = ()
        if isinstance(found, AprtuiError):
            lent = other[0] if isinstance(other, tuple) else None
            found, unstated = _with_lent(file, name, table, lent, found)
        sides.append(_side(path, file, table, found, unstated))
    return sides[0], sides[1]


_Settled = tuple[ModelConfig, list[str]]


def _try_config(
    file: ModelFile, name: str, table: RoleTable, lent: Mapping[str, str]
) -> _Settled | AprtuiError:
    try:
        return settle_config(file, name, table, lent)
    except AprtuiError as error:
        return error


def _with_lent(
    file: ModelFile, name: str, table: RoleTable, other: ModelConfig | None, error: AprtuiError
) -> tuple[_Settled, tuple[str, ...]]:
    """The configuration with what the file leaves out taken from the other model's.

    Weights can be compared without these keys; that they are missing is told. Where a tensor's own
    shape contradicts the file, the number of experts chosen is not the reason: the error stands.
    """
    per_token = 1 if other is None else max(other.num_experts_per_tok, 1)
    lent = {"num_experts_per_tok": str(per_token)}
    found = _try_config(file, name, table, lent)
    if isinstance(found, AprtuiError) and other is not None:
        keys = ("num_layers", "hidden_size", "num_heads", "num_kv_heads", "head_dim",
                "intermediate_size", "vocab_size", *lent)  # fmt: skip
        values = {key: getattr(other, key) for key in keys}
        lent = {key: str(value) for key, value in values.items() if value}
        found = _try_config(file, name, table, lent)
    if isinstance(found, AprtuiError):
        raise error
    config, notes = found
    return (config, [*notes, error.message]), tuple(lent)


def _side(
    path: Path, file: ModelFile, table: RoleTable, found: _Settled, unstated: tuple[str, ...]
) -> WeightSide:
    config, notes = found
    weights = dict(_windows(table.entries, config))
    if _HEAD not in weights and _EMBEDDING in weights:
        weights[_HEAD] = weights[_EMBEDDING]
    refuse_unreadable(matrix.entry for matrix in weights.values())
    used = {entry.name for entry in table.entries.values()}
    unused = tuple(
        file.tensors[tensor]
        for tensor in sorted(file.tensors)
        if tensor not in used and file.tensors[tensor].size_bytes
    )
    told = dict.fromkeys(clean(note, 500) for note in (*file.notes, *table.notes, *notes))
    return WeightSide(path, file, config, weights, unused, unstated, tuple(told))


def _windows(
    entries: Mapping[Role, TensorEntry], config: ModelConfig
) -> Iterator[tuple[Role, Matrix]]:
    """Each weight's window of a tensor: packed experts and fused projections taken apart."""
    for role, entry in entries.items():
        shape = entry.shape
        if role.name == "rope_freqs":  # stands in the configuration, computed or read
            continue
        if role.name in ("qkv", "qkv_bias"):
            yield from _fused(role, entry, config)
        elif len(shape) == 3 and role.expert is None:
            for expert in range(shape[0]):
                window = Matrix(entry, expert * shape[1], shape[1], shape[2])
                yield Role(role.name, role.layer, expert), window
        elif len(shape) == 2 and min(shape) > 1:
            yield role, Matrix(entry, 0, *shape)
        else:
            yield role, Matrix(entry, 0, 1, math.prod(shape))


def _fused(role: Role, entry: TensorEntry, config: ModelConfig) -> Iterator[tuple[Role, Matrix]]:
    sizes = (config.q_size, config.kv_size, config.kv_size)
    if entry.shape[0] != sum(sizes) or len(entry.shape) > 2:
        yield role, Matrix(entry, 0, entry.shape[0], math.prod(entry.shape[1:]))
        return
    first = 0
    for part, size in zip("qkv", sizes, strict=True):
        if len(entry.shape) == 2:
            yield Role(part, role.layer), Matrix(entry, first, size, entry.shape[1])
        else:
            yield Role(f"{part}_bias", role.layer), Matrix(entry, first, 1, size)
        first += size


def operands(a: WeightSide, b: WeightSide, role: Role) -> tuple[Operand, Operand]:
    """Both sides of one role in the same row order and with the same meaning of norm weights.

    Where the RoPE layouts differ the adjacent side is read as halves; where one side's norms are
    stored as w and mean 1 + w, 1 is added.
    """
    found = []
    for side, other in ((a, b), (b, a)):
        matrix, config = side.weights[role], side.config
        turned = (
            role.name in _REORDERED
            and config.rope_layout == "adjacent" != other.config.rope_layout
            and (matrix.rows if matrix.rows > 1 else matrix.columns) % config.head_dim == 0
        )
        offset = (
            config.norm_offset
            if role.name.endswith("norm") and config.norm_offset != other.config.norm_offset
            else 0.0
        )
        found.append(Operand(matrix, config.head_dim if turned else 0, offset))
    return found[0], found[1]
