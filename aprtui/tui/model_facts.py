"""What the Model screen says of a file: header, configuration, metadata, one tensor, one layer."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from aprtui.errors import AprtuiError
from aprtui.families.registry import identify
from aprtui.families.settle import sort_tensors
from aprtui.formats.blocks import BLOCK_TYPES
from aprtui.formats.modelfile import ModelFile, TensorEntry
from aprtui.graph import Role
from aprtui.model.open import Model
from aprtui.text import clean, count, number, size
from aprtui.tui.weight_sample import WeightLook
from aprtui.tui.widgets.facts import Fact

__all__ = [
    "TensorRow", "config_facts", "header_facts", "layer_facts", "metadata_facts",
    "tensor_facts", "tensor_rows", "value_facts",
]  # fmt: skip

FIRST_ITEMS = 16  # of a list in the metadata
MOST_KEYS = 64  # of a table in the metadata
MOST_TEXT = 4000


@dataclass(frozen=True)
class TensorRow:
    """One tensor of the file: ``role`` empty where it plays none, ``label`` as people say it.

    ``used_by`` names the stages that read it, ``place`` is where the first one stands in the pass;
    of a model that has no graph the tensor's place in the file.
    """

    role: str
    layer: int | None
    entry: TensorEntry
    expert: int | None = None
    used_by: tuple[str, ...] = ()
    place: float = math.inf

    @property
    def label(self) -> str:
        text = self.role.replace("_", " ")
        return text if self.expert is None else f"{text} of expert {self.expert}"


def tensor_rows(file: ModelFile, model: Model | None) -> list[TensorRow]:
    """Every tensor of the file, in the order of the file, with its role where it has one."""
    readers = _readers(model)
    rows: dict[str, TensorRow] = {}
    for role, entry in _entries_by_role(file, model):
        packed = len(entry.shape) == 3  # all experts in one tensor
        expert = None if packed else role.expert
        row = rows.setdefault(entry.name, TensorRow(role.name, role.layer, entry, expert))
        for place, stage in readers.get(role, ()):
            used_by = tuple(dict.fromkeys((*row.used_by, stage)))
            row = replace(row, used_by=used_by, place=min(row.place, place))
        rows[entry.name] = row
    found = [
        rows.get(entry.name) or TensorRow("", _layer_in(entry.name), entry)
        for entry in file.tensors.values()
    ]
    return found if model is not None else [replace(r, place=n) for n, r in enumerate(found)]


def _readers(model: Model | None) -> Mapping[Role, list[tuple[int, str]]]:
    """The stages that read each weight, with the place of each reading in the pass."""
    found: dict[Role, list[tuple[int, str]]] = {}
    place = itertools.count()
    for node in model.graph if model is not None else ():
        for role in node.op.weights:
            found.setdefault(role, []).append((next(place), node.key.stage))
    return found


def _entries_by_role(file: ModelFile, model: Model | None) -> Iterable[tuple[Role, TensorEntry]]:
    """What each tensor is for: as the model uses it, else by its name alone."""
    if model is not None:
        return [(role, matrix.entry) for role, matrix in model.weights.items()]
    try:
        return sort_tensors(file, identify(file).name).entries.items()
    except AprtuiError:
        return ()


def _layer_in(name: str) -> int | None:
    """The layer that a tensor's name carries: ``blk.3.`` or ``layers.3.``."""
    parts = name.split(".")
    for before, part in itertools.pairwise(parts):
        if before in ("blk", "layers", "h") and part.isdigit() and len(part) < 6:
            return int(part)
    return None


# -- one tensor, one layer -------------------------------------------------------------------------


def tensor_facts(row: TensorRow) -> list[Fact]:
    """Everything the index says of one tensor."""
    entry = row.entry
    values = math.prod(entry.shape)
    kind = BLOCK_TYPES.get(entry.type)
    bits = 8 * entry.size_bytes / max(values, 1)
    aligned = min(entry.offset & -entry.offset if entry.offset else 4096, 4096)
    facts = [
        Fact("name", clean(entry.name, 400)),
        Fact("used by", ", ".join(row.used_by) or "no stage of the pass"),
        Fact("type", entry.type, f"{bits:.4g} bits a value"),
        Fact("shape", " x ".join(map(count, entry.shape)) or "scalar", f"{count(values)} values"),
    ]
    if entry.coding is None:
        place = f"{entry.offset:,} .. {entry.offset + entry.size_bytes:,}"
        facts.append(Fact("bytes", place, f"{size(entry.size_bytes)}, {aligned}-aligned"))
    else:
        several = f"in {len(entry.coding.parts)} tensors"
        facts.append(Fact("bytes", f"{entry.size_bytes:,}", several))
    if kind is not None and kind.values > 1:
        flat = "run over the flat tensor" if entry.flat else ""
        blocks = -(-entry.size_bytes // kind.bytes)
        facts.append(
            Fact("blocks", f"{count(blocks)} of {kind.values} values in {kind.bytes} B", flat)
        )
    for part in entry.coding.parts if entry.coding is not None else ():
        shape = " x ".join(map(count, part.entry.shape)) or "scalar"
        facts.append(Fact(part.name, f"{part.entry.type}, {shape}", clean(part.entry.name, 200)))
    facts.append(Fact("file", clean(entry.path.name, 200)))
    return facts


def value_facts(look: WeightLook) -> list[Fact]:
    """A weight's values in numbers, what is wrong with them first."""
    s = look.statistics
    infinite = s.pos_inf + s.neg_inf
    odd = "bad" if s.nan or infinite else ""
    zeros = f"{100 * s.zeros / max(s.count, 1):.2g} %" if s.zeros else ""
    sampled = "" if look.exact else "of the sample"
    rows = [
        Fact("range", f"{number(s.min)} .. {number(s.max)}", f"mean {number(s.mean, 3)}"),
        Fact("rms", number(s.rms), f"std {number(s.std)}"),
        Fact(
            "values",
            f"NaN {count(s.nan)}  Inf {count(infinite)}  zeros {count(s.zeros)}",
            zeros,
            odd,
        ),
    ]
    if s.percentiles:
        shown = [f"p{p:g} {number(v, 3)}" for p, v in s.percentiles if p in (1, 5, 50, 95, 99)]
        rows.append(Fact("", " · ".join(shown), sampled if look.count > look.looked else ""))
    return rows


def layer_facts(layer: int | None, rows: Iterable[TensorRow], whole: int) -> list[Fact]:
    """What a layer's tensors take together; ``whole`` is what all of the file's take, bytes."""
    entries = [row.entry for row in rows if row.layer == layer]
    total = sum(entry.size_bytes for entry in entries)
    values = sum(math.prod(entry.shape) for entry in entries)
    types: dict[str, int] = {}
    for entry in entries:
        types[entry.type] = types.get(entry.type, 0) + entry.size_bytes
    facts = [
        Fact("tensors", count(len(entries)), f"{count(values)} values"),
        Fact("bytes", f"{total:,}", f"{100 * total / max(whole, 1):.1f} % of the tensors"),
    ]
    for name in sorted(types, key=lambda name: -types[name]):
        facts.append(Fact(name, size(types[name]), f"{100 * types[name] / max(total, 1):.0f} %"))
    return facts


# -- the file --------------------------------------------------------------------------------------


def header_facts(file: ModelFile, notes: Iterable[str]) -> list[Fact]:
    """Every field of the header beside its bytes, the files, and all that is odd."""
    facts = [
        Fact(clean(field.name, 40), clean(field.value, 200) or "nothing",
             f"at {field.offset:,}  {field.raw[:16].hex(' ')}{' …' * (len(field.raw) > 16)}"
             if field.raw else "")
        for field in file.header
    ]  # fmt: skip
    facts.append(Fact("digest", f"sha256:{file.digest}", "of header, metadata and tensor index"))
    facts += [Fact("file", clean(str(path), 400)) for path in file.files]
    facts += [Fact("note", clean(note, 600), "", "warn") for note in notes]
    return facts


def config_facts(model: Model) -> list[Fact]:
    """Every setting that the family read, as the pass uses it; what is not set comes last."""
    fields = model.settings
    unset = [name for name, value in fields.items() if value is None or value == ()]
    facts = [Fact(name, _told(value)) for name, value in fields.items() if name not in unset]
    return [*facts, Fact("not set", ", ".join(unset) or "nothing")]


def metadata_facts(metadata: Mapping[str, Any]) -> list[Fact]:
    """Every key as the file has it: lists by their length and first items, tables key by key."""
    return [fact for key, value in metadata.items() for fact in _facts_of(str(key), value, 0)]


def _facts_of(key: str, value: Any, depth: int) -> Iterator[Fact]:
    if isinstance(value, Mapping) and value and depth < 3:
        for number_, (inner, below) in enumerate(value.items()):
            if number_ == MOST_KEYS:
                yield Fact(clean(key, 80), f"and {len(value) - MOST_KEYS:,} more keys")
                return
            yield from _facts_of(f"{key}.{inner}", below, depth + 1)
    elif hasattr(value, "__len__") and hasattr(value, "__getitem__") and not isinstance(value, str):
        yield Fact(clean(key, 80), _told(value), f"{len(value):,} items")
    else:
        yield Fact(clean(key, 80), _told(value))


def _told(value: Any) -> str:
    if isinstance(value, str):
        return clean(value, MOST_TEXT) if value else "empty"
    if isinstance(value, Mapping):
        return clean(str(dict(value)), MOST_TEXT)
    if hasattr(value, "__len__") and hasattr(value, "__getitem__"):
        first = [_plain(value[place]) for place in range(min(FIRST_ITEMS, len(value)))]
        more = " …" if len(value) > FIRST_ITEMS else ""
        return clean(", ".join(map(str, first)), MOST_TEXT) + more if first else "empty"
    return clean(str(_plain(value)), MOST_TEXT)


def _plain(value: Any) -> Any:
    found = value.item() if hasattr(value, "item") and getattr(value, "ndim", 0) == 0 else value
    return repr(found) if isinstance(found, str) else found
