"""Two model files made ready to be compared: tensors by role, row orders and norms reconciled."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from aprtui.compare.weight_heads import by_key_head, dealt_columns
from aprtui.errors import AprtuiError
from aprtui.families.registry import Identity, identify, load_family
from aprtui.families.settle import FREQUENCY_TENSORS, Settled, settle, sort_tensors
from aprtui.families.tensors import Sorted, Table, Tensor
from aprtui.formats.modelfile import ModelFile, TensorEntry
from aprtui.formats.quantised import refuse_unreadable
from aprtui.graph import Graph, Role
from aprtui.graph.heads import head_windows
from aprtui.graph.ops import Bias, Embed, Norm, Product
from aprtui.graph.recurrent import ChannelScan, Decay, Scan
from aprtui.model.open import Matrix, held_window, read_model_file, tokenizer_spec_of
from aprtui.model.operand import Operand
from aprtui.model.tokenizer import TokenizerSpec
from aprtui.text import clean

__all__ = ["WeightSide", "operands", "read_sides"]

_EMBEDDING, _HEAD = Role("embedding"), Role("head")
_REORDERED = frozenset({"q", "k", "q_bias", "k_bias"})


@dataclass(frozen=True)
class WeightSide:
    """One model as far as its file goes: an incomplete or contradictory one is compared too.

    ``unstated`` are configuration keys that the file leaves out and the other file's value stands
    for. ``dealt``: ``Operand.dealt`` of roles. ``unused`` are tensors without a part in the pass.
    """

    path: Path
    file: ModelFile
    graph: Graph
    settings: Mapping[str, Any]
    weights: Mapping[Role, Matrix]
    unused: tuple[TensorEntry, ...]
    unstated: tuple[str, ...]
    notes: tuple[str, ...]
    settle: Callable[[Mapping[str, str]], Settled | AprtuiError]
    dealt: Mapping[Role, tuple[int, int]] = field(default_factory=dict)

    def changes(self, key: str, value: Any) -> bool | None:
        """Whether the pass is another one with ``value`` for ``key``; None where the family reads
        no such key, or refuses the value."""
        found = self.settle({key: str(value)})
        if isinstance(found, AprtuiError) or key in found.settings.unread():
            return None
        return found.graph != self.graph

    @property
    def tied(self) -> bool:
        """Whether the head is the embedding because the file has no head of its own."""
        return self.weights.get(_HEAD) is self.weights.get(_EMBEDDING)

    @property
    def tokenizer_spec(self) -> TokenizerSpec:
        """As Model.tokenizer_spec. Raises UsageError when the file has none."""
        return tokenizer_spec_of(self.file, self.path, self.architecture)

    @property
    def architecture(self) -> str:
        return str(self.settings["architecture"])

    @property
    def rope_layout(self) -> str:
        """How the rows of q and k lie, of a model that turns nothing too."""
        return self.graph.rope_layout

    @property
    def norm_offset(self) -> float:
        """1 where the stored weights of norms mean 1 + w."""
        norms = (node.op for node in self.graph if isinstance(node.op, Norm))
        return next((norm.offset for norm in norms if norm.weight is not None), 0.0)

    @cached_property
    def logged(self) -> frozenset[Role]:
        """The weights of decays that mean -exp(w)."""
        decays = (node.op for node in self.graph if isinstance(node.op, Decay | Scan | ChannelScan))
        return frozenset(decay.a for decay in decays if decay.logged)

    @cached_property
    def factors(self) -> Mapping[Role, float]:
        """What the pass multiplies by what a weight makes."""
        found: dict[Role, float] = {}
        for node in self.graph:
            if isinstance(node.op, Embed):
                found[node.op.table] = node.op.scale
            elif isinstance(node.op, Product):
                found |= {part.weight: node.op.whole_factor(part) for part in node.op.parts}
        return found

    @cached_property
    def norms(self) -> frozenset[Role]:
        """The weights of norms that ``norm_offset`` counts for."""
        norms = (node.op for node in self.graph if isinstance(node.op, Norm))
        return frozenset(norm.weight for norm in norms if norm.weight is not None)

    def head_size(self, role: Role) -> int:
        """The width d of a head of the queries, keys or values that a weight makes, or 0."""
        return self._head_sizes.get(role, 0)

    @cached_property
    def _head_sizes(self) -> Mapping[Role, int]:
        return dict(_head_sizes(self.graph))


def _head_sizes(graph: Graph) -> Iterator[tuple[Role, int]]:
    """The roles of q, k and v (and their biases) with the sizes of the heads that are cut out of
    what they make."""
    windows = head_windows(graph)
    for node in graph:
        op = node.op
        if isinstance(op, Product | Bias) and len(op.parts) > 1:
            sizes = {window.heads.first: window.heads.size for window in windows.get(node.key, ())}
            for part in op.parts:
                size = sizes.get(op.columns(part).start, 0)
                yield part.weight, size
                if part.bias is not None:
                    yield part.bias, size


def read_sides(
    a: Path, b: Path, adapters: tuple[Path | None, Path | None] = (None, None)
) -> tuple[WeightSide, WeightSide]:
    """Both models' tensor tables and configurations, each with its adapter; no weight is read.

    Missing tensors, wrong shapes, unread keys and tensors that play no part are for the comparison
    to name. Raises BadFileError for a damaged file or one whose configuration contradicts itself.
    """
    files = [
        read_model_file(path, adapter=adapter)
        for path, adapter in zip((a, b), adapters, strict=True)
    ]
    who = [identify(file) for file in files]
    tables = [sort_tensors(file, each.name) for file, each in zip(files, who, strict=True)]
    read = [_try_settle(*each, {}) for each in zip(files, who, tables, strict=True)]
    sides = []
    for place, (path, file, name, table) in enumerate(zip((a, b), files, who, tables, strict=True)):
        found, other = read[place], read[1 - place]
        unstated: tuple[str, ...] = ()
        notes: tuple[str, ...] = ()
        if isinstance(found, AprtuiError):
            lent = other if isinstance(other, Settled) else None
            notes = (found.message,)
            found, unstated = _with_lent(file, name, table, lent, found)
        again = partial(_try_settle, file, name, table)
        sides.append(_side(path, file, table, found, unstated, notes, again))
    return _as_cut(*sides), _as_cut(*reversed(sides))


def _try_settle(
    file: ModelFile, who: Identity, table: Sorted, lent: Mapping[str, str]
) -> Settled | AprtuiError:
    try:
        return settle(file, who, table, lent)
    except AprtuiError as error:
        return error


_LENT = (
    "num_layers", "hidden_size", "num_heads", "num_kv_heads", "head_dim", "intermediate_size",
    "moe_intermediate_size", "vocab_size", "num_experts_per_tok",
)  # fmt: skip


def _with_lent(
    file: ModelFile, who: Identity, table: Sorted, other: Settled | None, error: AprtuiError
) -> tuple[Settled, tuple[str, ...]]:
    """The configuration with what the file leaves out taken from the other model's.

    Weights can be compared without these keys; that they are missing is told. Where a tensor's own
    shape contradicts the file, the number of experts chosen is not the reason: the error stands.
    """
    theirs = {} if other is None else other.settings.values
    lent = {"num_experts_per_tok": str(theirs.get("num_experts_per_tok") or 1)}
    found = _try_settle(file, who, table, lent)
    if isinstance(found, AprtuiError) and other is not None:
        lent = {key: str(theirs[key]) for key in _LENT if theirs.get(key)}
        found = _try_settle(file, who, table, lent)
    if isinstance(found, AprtuiError):
        raise error
    return found, tuple(lent)


def _side(
    path: Path, file: ModelFile, table: Sorted, found: Settled, unstated: tuple[str, ...],
    notes: tuple[str, ...], again: Callable[[Mapping[str, str]], Settled | AprtuiError],
) -> WeightSide:  # fmt: skip
    settings = found.settings
    if not settings.has("max_positions"):
        unstated = (*unstated, "max_positions")
    weights = dict(_windows(table.entries, found.graph, load_family(settings.family).tensors))
    if _HEAD not in weights and _EMBEDDING in weights:
        weights[_HEAD] = weights[_EMBEDDING]
    refuse_unreadable(matrix.entry for matrix in weights.values())
    used = {entry.name for entry in table.entries.values()}
    unused = tuple(
        file.tensors[tensor]
        for tensor in sorted(file.tensors)
        if tensor not in used and file.tensors[tensor].size_bytes
    )
    unread = (f"{key} = {value!r} is read by no one" for key, value in settings.unread().values())
    told = (*file.notes, *table.notes, *settings.notes, *notes, *unread)
    return WeightSide(
        path, file, found.graph, settings.values, weights, unused, unstated,
        tuple(dict.fromkeys(clean(note, 500) for note in told)), again,
    )  # fmt: skip


def _as_cut(side: WeightSide, other: WeightSide) -> WeightSide:
    """The side with each product's one matrix taken apart where the other keeps it in several, and
    value heads where the other has them in another order."""
    weights = by_key_head(side.weights, side.graph, other.graph)
    for node in side.graph:
        theirs = other.graph.by_key.get(node.key)
        if theirs is None or not (isinstance(node.op, Product) and isinstance(theirs.op, Product)):
            continue
        parts = theirs.op.parts
        if len(node.op.parts) > 1 or len(parts) == 1:
            continue
        whole = weights.get(node.op.parts[0].weight)
        if whole is None or not whole.plain or sum(part.rows for part in parts) != whole.rows:
            continue
        del weights[node.op.parts[0].weight]
        for part in parts:
            first = whole.first_row + theirs.op.columns(part).start
            weights[part.weight] = Matrix(whole.entry, first, part.rows, whole.columns)
    return replace(side, weights=weights, dealt=dealt_columns(side.graph, other.graph))


def _windows(
    entries: Mapping[Role, TensorEntry], graph: Graph, table: Table
) -> Iterator[tuple[Role, Matrix]]:
    """Each weight's window of a tensor: packed experts and fused projections taken apart."""
    holds = {tensor.role: tensor for tensor in table.tensors if tensor.holds}
    for role, entry in entries.items():
        constant = entry.name in FREQUENCY_TENSORS or role.name in table.constants
        if constant:  # stands in the configuration, computed or read
            continue
        if role.name in holds:
            yield from _held(role, entry, graph, holds[role.name])
        elif len(wide := [extent for extent in entry.shape if extent > 1]) == 2:
            yield role, Matrix(entry, 0, wide[0], wide[1])
        else:
            yield role, Matrix(entry, 0, 1, math.prod(entry.shape))


def _held(
    role: Role, entry: TensorEntry, graph: Graph, tensor: Tensor
) -> Iterator[tuple[Role, Matrix]]:
    """The windows of a fused or packed tensor; one window where its rows are not the model's."""
    packs = entry.shape[0] if tensor.packed else 1
    each = [Role(part, role.layer, 0 if tensor.packed else None) for part in tensor.holds]
    shapes = [graph.weights.get(part, ()) for part in each]
    if len(each) == 1 and not tensor.transposed:  # whole, whatever its size
        shapes = [entry.shape[1:] if tensor.packed else entry.shape]
    if () in shapes or tensor.shape(shapes, packs) != entry.shape:
        yield role, Matrix(entry, 0, math.prod(entry.shape[:-1]), entry.shape[-1])
        return
    for expert in range(packs):
        for place, part in enumerate(each):
            own = part._replace(expert=expert if tensor.packed else None)
            of = graph.query_heads if tensor.by_query else graph.kv_heads
            heads = of.get(role.layer, 1)
            yield own, held_window(tensor, entry, shapes, place, expert, heads)


def operands(a: WeightSide, b: WeightSide, role: Role) -> tuple[Operand, Operand]:
    """Both sides of one role in the same row order and with the same meaning of norm weights.

    Where the RoPE layouts differ the adjacent side is read as halves; where one side's norms are
    stored as w and mean 1 + w, 1 is added; where one side's decays are stored as their logarithms,
    they are taken out of them.
    """
    found = []
    for side, other in ((a, b), (b, a)):
        matrix, size = side.weights[role], side.head_size(role)
        turned = (
            role.name in _REORDERED
            and side.rope_layout == "adjacent" != other.rope_layout
            and size > 0
            and (matrix.rows if matrix.rows > 1 else matrix.columns) % size == 0
        )
        offset = (
            side.norm_offset
            if role in side.norms and side.norm_offset != other.norm_offset
            else 0.0
        )
        whole = role._replace(expert=None)
        logged = whole in side.logged and whole not in other.logged
        found.append(Operand(matrix, size if turned else 0, offset, logged, side.dealt.get(role)))
    return found[0], found[1]
