"""Open a model file of any format: its configuration, its weights by role, its tokenizer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from aprtui.errors import BadFileError, UsageError
from aprtui.families.registry import Identity, identify, load_family
from aprtui.families.settings import Doubt, Settings
from aprtui.families.settle import Settled, settle, sort_tensors
from aprtui.families.tensors import Sorted, Table, Tensor
from aprtui.formats.adapters import adapted, read_adapter
from aprtui.formats.apr import fits, read_apr
from aprtui.formats.files import first_bytes
from aprtui.formats.gguf import read_gguf
from aprtui.formats.locate import holds_model, located
from aprtui.formats.modelfile import ModelFile, TensorEntry
from aprtui.formats.other_kinds import other_kind, refuse_beginning
from aprtui.formats.quantised import assembled, refuse_unreadable
from aprtui.formats.safetensors import read_safetensors
from aprtui.formats.tracedir import holds_stage_files
from aprtui.graph import Graph, Role
from aprtui.graph.ops import Experts, Norm
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
from aprtui.notebook import html_table
from aprtui.text import beginning, clean, count, quoted, size

__all__ = [
    "Matrix",
    "Model",
    "held_window",
    "is_model_path",
    "list_model_file",
    "open_model",
    "read_model_file",
    "tokenizer_spec_of",
]


@dataclass(frozen=True)
class Matrix:
    """A weight [rows, columns] as rows of a stored tensor, from ``first_row`` on.

    Packed experts and fused projections are windows of one tensor. Where ``period`` is set the
    rows come in groups of ``group``, ``period`` stored rows apart. ``transposed``: they are the
    tensor's columns, of packed experts those of the matrix ``stack``. A vector is one row of
    ``columns`` values, counted as rows are.
    """

    entry: TensorEntry
    first_row: int
    rows: int
    columns: int
    group: int = 0
    period: int = 0
    transposed: bool = False
    stack: int = 0

    @property
    def plain(self) -> bool:
        """Whether its rows lie one after the other."""
        return not self.period and not self.transposed

    def runs(self, first: int, count: int) -> list[tuple[int, int]]:
        """(first, count) of the stored rows, or of a vector's values, in runs without a gap."""
        if not self.period:
            return [(self.first_row + first, count)] if count else []
        found, last = [], first + count
        while first < last:
            number, place = divmod(first, self.group)
            length = min(self.group - place, last - first)
            found.append((self.first_row + number * self.period + place, length))
            first += length
        return found


@dataclass(frozen=True, repr=False)
class Model:
    """One model, opened: nothing of its weights is read yet.

    ``architecture``: the family, in our spelling; ``settings``: what the configuration came to, as
    plain values: shown, and written to manifests; ``max_positions``: those it was trained for, 0
    where it is not said. ``doubts``: what was ignored or overridden on a person's word;
    ``overrides``: that word, as ``--set`` gave it.
    """

    path: Path
    file: ModelFile
    architecture: str
    graph: Graph
    settings: Mapping[str, Any]
    max_positions: int
    weights: Mapping[Role, Matrix]
    notes: tuple[str, ...]
    doubts: tuple[Doubt, ...] = ()
    overrides: Mapping[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        types = sorted({matrix.entry.type for matrix in self.weights.values()})
        return (
            f"<model {quoted(self.path)}: {self.architecture}, {self.graph!r}, "
            f"{self.file.format} {' '.join(types)}, {size(self.file.size_bytes)}>"
        )

    def _repr_html_(self) -> str:
        """For notebooks: what the configuration came to, and what is odd about the file."""
        rows = [(key, str(value)) for key, value in self.settings.items()]
        return html_table(repr(self), ("", ""), [*rows, *(("note", note) for note in self.notes)])

    def types(self) -> dict[str, tuple[str, ...]]:
        """The block types of each role's tensors, for the manifest."""
        found: dict[str, set[str]] = {}
        for role, matrix in self.weights.items():
            found.setdefault(role.name, set()).add(matrix.entry.type)
        return {name: tuple(sorted(types)) for name, types in sorted(found.items())}

    @cached_property
    def tokenizer_spec(self) -> TokenizerSpec:
        """What the file says of its tokenizer. Raises UsageError when it has none."""
        return tokenizer_spec_of(self.file, self.path, self.architecture)

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
    """Whether ``path`` looks like a model, or like where programs keep one: by names, and a file's
    first bytes.

    Raises BadFileError for a folder that cannot be read.
    """
    try:
        return holds_model(path)
    except OSError as error:
        raise BadFileError(path, f"cannot be read: {error.strerror}") from error


def read_model_file(
    path: Path, *, verify: bool = False, adapter: str | Path | None = None
) -> ModelFile:
    """The file's metadata and its weights, each quantised one put together, an ``adapter`` laid on
    them: ``list_model_file``, ``formats.quantised.assembled``, ``formats.adapters``, and what they
    raise."""
    file = assembled(list_model_file(path, verify=verify))
    return file if adapter is None else adapted(file, read_adapter(Path(adapter)))


def list_model_file(path: Path, *, verify: bool = False) -> ModelFile:
    """The file's metadata and stored tensors, whatever its format, told by its first bytes.

    ``path`` may be where a program keeps the model (``formats.locate``). ``verify`` reads the whole
    file to compare its checksum, where the format has one.
    """
    place = located(path)
    file = _read(place.path, verify=verify)
    return replace(file, notes=(*place.notes, *file.notes)) if place.notes else file


def _read(path: Path, *, verify: bool) -> ModelFile:
    if path.is_dir():
        if not is_model_path(path) and holds_stage_files(path):
            raise BadFileError(path, "a trace, not a model", hint=f"aprtui {quoted(path)} opens it")
        return read_safetensors(path)
    head = first_bytes(path, 256)
    magic = head[:4]
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
    refuse_beginning(path, head)
    raise BadFileError(
        path,
        f"not a model file: {beginning(magic)}",
        hint=".apr, .gguf and .safetensors files can be opened",
    )


def tokenizer_spec_of(file: ModelFile, path: Path, architecture: str) -> TokenizerSpec:
    """What a file says of its tokenizer. Raises UsageError when it has none."""
    if file.format == "gguf":
        return spec_from_gguf(file.metadata, path=path)
    if file.format == "apr":
        return spec_from_apr(file.metadata, architecture, path=path)
    return spec_from_folder(path if path.is_dir() else path.parent)


_OPEN_KEYS = ("architecture", "ignore_keys", "unknown_tensors")


def open_model(
    path: str | Path,
    overrides: Mapping[str, str] | None = None,
    *,
    verify: bool = False,
    adapter: str | Path | None = None,
) -> Model:
    """Open a model and settle its configuration; no weight is read.

    ``overrides`` are the ``--set`` values, ``adapter`` a LoRA to lay on its weights. Raises
    BadFileError for a damaged file, a key that nothing reads, a missing tensor or a shape that
    contradicts the configuration; UsageError for an override that makes no sense.
    """
    file = read_model_file(Path(path), verify=verify, adapter=adapter)
    other = other_kind(file)
    if other is not None:
        raise other
    overrides = dict(overrides or {})
    who = identify(file, overrides.get("architecture"))
    found = sort_tensors(file, who.name)
    doubts = _architecture_doubt(file, who, overrides)
    notes = [*file.notes, *found.notes, *(str(doubt) for doubt in doubts)]
    doubts += _ignored_tensors(file, who, found, overrides.get("unknown_tensors"), notes)
    keys = {key: text for key, text in overrides.items() if key not in _OPEN_KEYS}
    settled = settle(file, who, found, keys)
    settings = settled.settings
    ignore = overrides.get("ignore_keys", "").replace(" ", "")
    settings.finish(frozenset(filter(None, ignore.split(","))))
    family = load_family(who.name)
    found = _with_lent(found, settings)
    weights = _matrices(file, settled, family.tensors, found)
    _check_adapted_head(file, settings, weights)
    notes += [*settings.notes, *_left_out(who, found)]
    stated = family.adjacent or found.gguf_names or found.mistral_names
    if settled.graph.rope_layout == "adjacent" and not stated:
        notes.append("Hugging Face names over GGUF rows (original_format gguf): adjacent pairs")
    return Model(
        file.path,
        file,
        who.name,
        settled.graph,
        {**settings.values, **_quantisation(file)},
        settings.values["max_positions"],
        weights,
        tuple(dict.fromkeys(notes)),
        (*doubts, *settings.doubts),
        overrides,
    )


def _check_adapted_head(
    file: ModelFile, settings: Settings, weights: Mapping[Role, Matrix]
) -> None:
    """Raises BadFileError for an adapter of a token table that is the head as well: peft changes
    one use of it, its merge both."""
    table = weights.get(Role("embedding"))
    adapter = file.adapter
    if adapter is None or table is None or not settings.values["tied_head"]:
        return
    if table.entry.name in {*adapter.changes, *adapter.replaced}:
        raise BadFileError(
            adapter.path,
            f"changes {clean(table.entry.name)}, which is the head of this model as well: peft's "
            "pass and its merge compute two models",
            hint="merge_and_unload makes a checkpoint of the one that is meant",
        )


def _quantisation(file: ModelFile) -> dict[str, Any]:
    """What a manifest and ``inspect`` say of it; nothing where the weights are plain."""
    return {"quantisation": file.quantisation.to_json()} if file.quantisation is not None else {}


def _architecture_doubt(
    file: ModelFile, who: Identity, overrides: Mapping[str, str]
) -> list[Doubt]:
    """The doubt that ``--set architecture=`` casts where the file says another one."""
    if "architecture" not in overrides:
        return []
    try:
        said = identify(file).name
    except BadFileError:
        said = ""
    if said == who.name:
        return []
    return [Doubt("architecture", f"--set architecture={who.name}, which the file does not say")]


def _ignored_tensors(
    file: ModelFile, who: Identity, found: Sorted, how: str | None, notes: list[str]
) -> list[Doubt]:
    """Tensors that no part of the pass reads: refused, or ignored as ``how`` says."""
    if how not in (None, "ignore"):
        raise UsageError(f"--set unknown_tensors={clean(how)}", hint="ignore")
    if not found.unknown:
        return []
    first = clean(min(found.unknown))
    if how is None:
        raise BadFileError(
            file.path,
            f"{count(len(found.unknown), 'tensor')} that the {who.name} family does not know, the "
            f"first {first}",
            hint="the model computes with what is not computed here: its numbers cannot be had",
        )
    told = f"{len(found.unknown)} tensors ignored, the first {first}"
    notes.append(told)
    return [Doubt("unknown_tensors", told)]


def _left_out(who: Identity, found: Sorted) -> list[str]:
    """What of a composite model is not traced, nor of one that drafts tokens."""
    notes = []
    if found.others or who.outer:
        kind = clean(str(who.outer.get("model_type", "a composite model")), 40)
        first = f", {_told(found.others)}" if found.others else ""
        notes.append(
            f"the text part of {kind} is traced; left out: {len(found.others)} tensors of other "
            f"parts{first}"
        )
    if found.drafts:
        number = count(len(found.drafts), "tensor")
        notes.append(f"left out: {number} of layers that draft tokens, {_told(found.drafts)}")
    return notes


def _told(entries: Sequence[TensorEntry]) -> str:
    size_bytes = sum(entry.size_bytes for entry in entries)
    return f"{size(size_bytes)}, the first {clean(entries[0].name)}"


def _with_lent(found: Sorted, settings: Settings) -> Sorted:
    """The tensors with those that several layers have in common under each of them."""
    entries = dict(found.entries)
    for role, others in settings.lent.items():
        holder = next((each for each in (role, *others) if each in entries), None)
        if holder is not None:
            entries[role] = entries[holder]
    return replace(found, entries=entries)


def _matrices(file: ModelFile, settled: Settled, table: Table, found: Sorted) -> dict[Role, Matrix]:
    """The window of a tensor for every weight the pass needs. Raises BadFileError."""
    graph, settings = settled.graph, settled.settings
    weights: dict[Role, Matrix] = {}
    used: set[str] = set()
    tied = settings.values["tied_head"]
    for role, shape in graph.weights.items():
        if tied and role == Role("head"):
            continue
        weights[role] = _matrix(file, settled, table, found, role, shape)
        used.add(weights[role].entry.name)
    if tied:
        weights[Role("head")] = weights[Role("embedding")]
    used |= {found.entries[role].name for role in settings.constants}
    _check_unused(file, settings, found, used)
    return weights


def _matrix(
    file: ModelFile, settled: Settled, table: Table, found: Sorted, role: Role,
    shape: tuple[int, ...],
) -> Matrix:  # fmt: skip
    matrix, whole = _locate(file, settled, table, found, role, shape)
    entry, rows, columns = matrix.entry, matrix.rows, matrix.columns
    if entry.shape != whole and not (rows == 1 and math.prod(entry.shape) == columns):
        raise BadFileError(
            file.path,
            f"{clean(entry.name)} ({role}) is {list(entry.shape)} where the configuration "
            f"needs {list(whole)}",
            hint=settled.settings.defaulted() or "the file contradicts itself",
        )
    refuse_unreadable([entry])
    if entry.size_bytes == 0 or not fits(entry):
        raise BadFileError(
            file.path,
            f"{clean(entry.name)} ({role}) has {entry.size_bytes:,} bytes, "
            f"not those of {list(entry.shape)} in {entry.type}",
        )
    return matrix


def held_window(
    tensor: Tensor, entry: TensorEntry, shapes: Sequence[tuple[int, ...]], place: int, expert: int,
    heads: int = 1,
) -> Matrix:  # fmt: skip
    """Where the weight at ``place`` of those that a fused or packed tensor holds lies in it.

    ``shapes``: of all that it holds, of one expert; ``heads``: by which it stands.
    """
    shape, total = shapes[place], sum(each[0] for each in shapes)
    rows, columns = shape if len(shape) == 2 else (1, shape[0])
    if (tensor.by_head or tensor.by_query) and heads > 1:
        first = sum(each[0] for each in shapes[:place]) // heads
        return Matrix(entry, first, rows, columns, shape[0] // heads, total // heads)
    turns = len(shapes) if tensor.in_turn else 0
    first = place if turns else sum(each[0] for each in shapes[:place])
    if tensor.transposed:
        return Matrix(entry, first, rows, columns, turns and 1, turns, True, expert)
    return Matrix(entry, expert * total + first, rows, columns, turns and 1, turns)


def _locate(
    file: ModelFile, settled: Settled, table: Table, found: Sorted, role: Role,
    shape: tuple[int, ...],
) -> tuple[Matrix, tuple[int, ...]]:  # fmt: skip
    """The window of the tensor that holds a weight, and the whole tensor's needed shape."""
    if role in found.entries:
        rows, columns = shape if len(shape) == 2 else (1, shape[0])
        return Matrix(found.entries[role], 0, rows, columns), shape
    needed = settled.graph.weights
    for tensor in table.holders.get(role.name, ()):
        entry = found.entries.get(Role(tensor.role, role.layer))
        if entry is None:
            continue
        parts = [needed.get(role._replace(name=part), ()) for part in tensor.holds]
        if () in parts:
            continue
        place = tensor.holds.index(role.name)
        reader = settled.graph.reader(role)
        graph = settled.graph
        each = graph.query_heads if tensor.by_query else graph.kv_heads
        heads = each.get(role.layer, 1)
        experts = reader.op.count if reader and isinstance(reader.op, Experts) else heads
        if reader and isinstance(reader.op, Norm) and reader.op.own:
            experts = len(reader.op.own)
        if role.layer is None:
            experts = sum(other.name == role.name for other in needed)
        if tensor.either and entry.shape != tensor.shape(parts, experts):
            tensor = replace(tensor, transposed=True)
        window = held_window(tensor, entry, parts, place, role.expert or 0, heads)
        return window, tensor.shape(parts, experts)
    raise BadFileError(
        file.path,
        f"the tensor for {role} is missing",
        hint=settled.settings.defaulted() or "the file is incomplete; convert or download it again",
    )


def _check_unused(file: ModelFile, settings: Settings, found: Sorted, used: set[str]) -> None:
    """A tensor that the family knows and this configuration does not read contradicts it."""
    spare = {"rope_freqs", "rope_long", "rope_short", "head"}
    for role, entry in found.entries.items():
        known = role.name in spare or role in settings.unread_roles
        if entry.name not in used and not known and entry.size_bytes:
            stated = {
                name: settings.values[name]
                for name in ("num_layers", "num_experts", "qkv_bias", "output_bias")
                if name in settings.values
            }
            said = ", ".join(f"{name} {value}" for name, value in stated.items())
            raise BadFileError(
                file.path,
                f"{clean(entry.name)} ({role}) plays no part by the configuration ({said})",
                hint=settings.defaulted() or "the file contradicts itself",
            )
