"""Open a model file of any format: its configuration, its weights by role, its tokenizer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from aprtui.errors import BadFileError, UsageError
from aprtui.formats.apr import fits, read_apr, reversed_entry
from aprtui.formats.files import first_bytes, open_file
from aprtui.formats.gguf import read_gguf
from aprtui.formats.modelfile import ModelFile, TensorEntry
from aprtui.formats.safetensors import read_safetensors
from aprtui.formats.tracedir import holds_stage_files
from aprtui.model.config import ModelConfig
from aprtui.model.families import architecture_of, read_config
from aprtui.model.roles import Role, RoleTable, assign_roles
from aprtui.model.tokenizer import (
    Tokenizer,
    TokenizerSpec,
    Vocabulary,
    build_tokenizer,
    spec_from_apr,
    spec_from_folder,
    spec_from_gguf,
    vocabulary_of,
)
from aprtui.text import beginning, clean, quoted

__all__ = [
    "Matrix",
    "Model",
    "is_model_path",
    "open_model",
    "read_model_file",
    "settle_config",
    "sort_tensors",
]


@dataclass(frozen=True)
class Matrix:
    """Rows ``first_row .. first_row + rows`` of a tensor seen as [rows, columns].

    Packed experts and fused projections are windows of one tensor. A vector is one row of
    ``columns`` values; of a fused one, ``first_row`` is its first value.
    """

    entry: TensorEntry
    first_row: int
    rows: int
    columns: int


@dataclass(frozen=True)
class Model:
    """One model, opened: nothing of its weights is read yet."""

    path: Path
    file: ModelFile
    config: ModelConfig
    weights: Mapping[Role, Matrix]
    notes: tuple[str, ...]

    def types(self) -> dict[str, tuple[str, ...]]:
        """The block types of each role's tensors, for the manifest."""
        found: dict[str, set[str]] = {}
        for role, matrix in self.weights.items():
            found.setdefault(role.name, set()).add(matrix.entry.type)
        return {name: tuple(sorted(types)) for name, types in sorted(found.items())}

    @cached_property
    def tokenizer_spec(self) -> TokenizerSpec:
        """What the file says of its tokenizer. Raises UsageError when it has none."""
        if self.file.format == "gguf":
            return spec_from_gguf(self.file.metadata, path=self.path)
        if self.file.format == "apr":
            return spec_from_apr(self.file.metadata, self.config.architecture, path=self.path)
        folder = self.path if self.path.is_dir() else self.path.parent
        return spec_from_folder(folder)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The encoder. Raises an error that offers ``--tokens`` when it cannot be built."""
        try:
            return build_tokenizer(self.tokenizer_spec)
        except UsageError as error:
            raise UsageError(
                f"{clean(str(self.path))}: {error.message}", hint=error.hint
            ) from error

    @cached_property
    def vocabulary(self) -> Vocabulary | None:
        """The tokens' texts; None when the file holds no vocabulary."""
        try:
            return vocabulary_of(self.tokenizer_spec)
        except (BadFileError, UsageError):
            return None


def is_model_path(path: Path) -> bool:
    """Whether ``path`` looks like a model: by its ending, or a folder with a config or weights.

    Raises BadFileError for a folder that cannot be read.
    """
    try:
        if path.is_dir():
            return (path / "config.json").is_file() or any(path.glob("*.safetensors"))
    except OSError as error:
        raise BadFileError(path, f"cannot be read: {error.strerror}") from error
    return path.suffix.lower() in (".apr", ".gguf", ".safetensors")


def read_model_file(path: Path, *, verify: bool = False) -> ModelFile:
    """The file's metadata and tensor table, whatever its format, told by its first bytes.

    ``verify`` reads the whole file to compare its checksum, where the format has one.
    """
    if path.is_dir():
        if not is_model_path(path) and holds_stage_files(path):
            raise BadFileError(path, "a trace, not a model", hint=f"aprtui {quoted(path)} opens it")
        return read_safetensors(path)
    magic = first_bytes(path, 4)
    if magic == b"GGUF":
        return read_gguf(path)
    if magic[:3] == b"APR" and magic != b"APRT":
        return read_apr(path, verify=verify)
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    if magic == b"APRT":
        raise BadFileError(
            path, "a stage file, not a model", hint=f"aprtui {quoted(path)} opens it"
        )
    raise BadFileError(
        path,
        f"not a model file: {beginning(magic)}",
        hint=".apr, .gguf and .safetensors files can be opened",
    )


def open_model(
    path: Path, overrides: Mapping[str, str] | None = None, *, verify: bool = False
) -> Model:
    """Open a model and settle its configuration; no weight is read.

    ``overrides`` are the ``--set`` values. Raises BadFileError for a damaged file, a missing tensor
    or a shape that contradicts the configuration; UsageError for an override that makes no sense.
    """
    file = read_model_file(path, verify=verify)
    overrides = dict(overrides or {})
    architecture = overrides.get("architecture") or architecture_of(file)
    table = sort_tensors(file, architecture)
    notes = [*file.notes, *table.notes]
    if table.unknown and overrides.get("unknown_tensors") != "ignore":
        raise BadFileError(
            file.path,
            f"{len(table.unknown)} tensors play no part in the {architecture} pass, "
            f"the first {clean(table.unknown[0])}",
            hint="--set unknown_tensors=ignore computes without them",
        )
    if table.unknown:
        notes.append(f"{len(table.unknown)} tensors ignored, the first {clean(table.unknown[0])}")
    config, more = settle_config(file, architecture, table, overrides)
    notes.extend(more)
    weights = _matrices(file, config, table.entries)
    if file.metadata.get("tied_embeddings") is True and not config.tied_head:
        notes.append("tied_embeddings is true, and the head has bytes of its own: they are used")
    if config.rope_layout == "adjacent" and not table.gguf_names:
        notes.append("Hugging Face names over GGUF rows (original_format gguf): adjacent pairs")
    return Model(path, file, config, weights, tuple(dict.fromkeys(notes)))


def sort_tensors(file: ModelFile, architecture: str) -> RoleTable:
    """The file's tensors by role, their dims outermost first whatever order they are listed in.

    Raises BadFileError when only some dims are reversed; complete or not is for the caller to say.
    """
    table = assign_roles(file.tensors.values(), architecture)
    entries, turned = _oriented(file, table)
    return replace(table, entries=entries, notes=(*table.notes, *turned))


def settle_config(
    file: ModelFile, architecture: str, table: RoleTable, overrides: Mapping[str, str]
) -> tuple[ModelConfig, list[str]]:
    """The configuration that metadata and tensors give, and notes. Raises as read_config does."""
    return read_config(
        file,
        architecture,
        _Shapes(table.entries),
        gguf_names=table.gguf_names,
        freqs=_small_vector(table.entries.get(Role("rope_freqs"))),
        overrides=overrides,
    )


@dataclass(frozen=True)
class _Shapes:
    """The shape of the tensor in a role, of layer 0 where it is a layer's."""

    entries: Mapping[Role, TensorEntry]

    def __call__(self, name: str) -> tuple[int, ...] | None:
        for role in (Role(name), Role(name, 0), Role(name, 0, 0)):
            if role in self.entries:
                return self.entries[role].shape
        return None


def _oriented(file: ModelFile, table: RoleTable) -> tuple[dict[Role, TensorEntry], list[str]]:
    """The entries with their dims outermost first, whatever order the writer listed them in.

    ``apr convert`` lists 2-D dims fastest first: all are reversed when the embedding says so
    (specs/stages.md 3). Packed experts come as [E, out, in] or [in, out, E] (apr-format.md 3.2).
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
    router = entries.get(Role("router", 0))
    experts = router.shape[0] if router is not None else 0
    for role, entry in entries.items():
        if len(entry.shape) == 3 and entry.shape[0] != experts and entry.shape[2] == experts:
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


def _small_vector(entry: TensorEntry | None) -> tuple[float, ...]:
    """The values of a small F32 or F16 vector; empty when there is none."""
    if entry is None:
        return ()
    kind = {"F32": "<f4", "F16": "<f2"}.get(entry.type)
    if kind is None or math.prod(entry.shape) > 65_536:
        raise BadFileError(entry.path, f"{clean(entry.name)} is {entry.type}, not a small vector")
    with open_file(entry.path) as file:
        values = file.array(entry.offset, entry.size_bytes).view(kind)
    return tuple(map(float, values))


def _expected(config: ModelConfig) -> Iterable[tuple[Role, tuple[int, ...]]]:
    """Every tensor that the pass needs, with its row-major shape."""
    hidden, ffn = config.hidden_size, config.intermediate_size
    q, kv = config.q_size, config.kv_size
    yield Role("embedding"), (config.vocab_size, hidden)
    for layer in range(config.num_layers):
        shapes: dict[str, tuple[int, ...]] = {
            "attn_norm": (hidden,), "q": (q, hidden), "k": (kv, hidden), "v": (kv, hidden),
            "o": (hidden, q), "ffn_norm": (hidden,),
        }  # fmt: skip
        if config.qkv_bias:
            shapes |= {"q_bias": (q,), "k_bias": (kv,), "v_bias": (kv,)}
        if config.output_bias:
            shapes["o_bias"] = (hidden,)
        if config.qk_norm:
            shapes |= {"q_norm": (config.head_dim,), "k_norm": (config.head_dim,)}
        if config.post_norms:
            shapes |= {"attn_post_norm": (hidden,), "ffn_post_norm": (hidden,)}
        if config.num_experts:
            shapes["router"] = (config.num_experts, hidden)
        else:
            shapes |= {"gate": (ffn, hidden), "up": (ffn, hidden), "down": (hidden, ffn)}
        for name, shape in shapes.items():
            yield Role(name, layer), shape
        for expert in range(config.num_experts):
            yield Role("expert_gate", layer, expert), (ffn, hidden)
            yield Role("expert_up", layer, expert), (ffn, hidden)
            yield Role("expert_down", layer, expert), (hidden, ffn)
    yield Role("final_norm"), (hidden,)
    if not config.tied_head:
        yield Role("head"), (config.vocab_size, hidden)


def _matrices(
    file: ModelFile, config: ModelConfig, entries: Mapping[Role, TensorEntry]
) -> dict[Role, Matrix]:
    """The window of a tensor for every weight the pass needs. Raises BadFileError."""
    weights: dict[Role, Matrix] = {}
    for role, shape in _expected(config):
        rows, columns = shape if len(shape) == 2 else (1, shape[0])
        entry, first_row, whole = _locate(file, config, entries, role, shape)
        if entry.shape != whole and not (len(shape) == 1 and math.prod(entry.shape) == shape[0]):
            raise BadFileError(
                file.path,
                f"{clean(entry.name)} ({role}) is {list(entry.shape)} where the configuration "
                f"needs {list(whole)}",
                hint="the file contradicts itself; --set KEY=VALUE overrides its configuration",
            )
        if entry.size_bytes == 0 or not fits(entry):
            raise BadFileError(
                file.path,
                f"{clean(entry.name)} ({role}) has {entry.size_bytes:,} bytes, "
                f"not those of {list(entry.shape)} in {entry.type}",
            )
        weights[role] = Matrix(entry, first_row, rows, columns)
    if config.tied_head:
        weights[Role("head")] = weights[Role("embedding")]
    return weights


def _locate(
    file: ModelFile,
    config: ModelConfig,
    entries: Mapping[Role, TensorEntry],
    role: Role,
    shape: tuple[int, ...],
) -> tuple[TensorEntry, int, tuple[int, ...]]:
    """The tensor that holds a weight, the first row in it, and the whole tensor's needed shape."""
    if role in entries:
        return entries[role], 0, shape
    packed = entries.get(Role(role.name, role.layer))
    if role.expert is not None and packed is not None:
        return packed, role.expert * shape[0], (config.num_experts, *shape)
    part = role.name[0]
    fused_name = "qkv_bias" if role.name.endswith("_bias") else "qkv"
    fused = entries.get(Role(fused_name, role.layer))
    if fused is not None and part in "qkv" and role.name in (part, f"{part}_bias"):
        first = {"q": 0, "k": config.q_size, "v": config.q_size + config.kv_size}[part]
        total = config.q_size + 2 * config.kv_size
        return fused, first, (total, *shape[1:])
    raise BadFileError(
        file.path,
        f"the tensor for {role} is missing",
        hint="the file is incomplete; convert or download it again",
    )
