"""LoRA adapters: read from where peft and llama.cpp keep them, and laid on a model's weights.

Sources: peft ``tuners/lora`` (config.py, layer.py, dora.py) and ``utils/save_and_load.py``;
llama.cpp ``src/llama-adapter.cpp``, ``llama-graph.cpp`` and ``convert_lora_to_gguf.py``.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from aprtui.errors import BadFileError, UsageError
from aprtui.formats.files import first_bytes, open_file
from aprtui.formats.gguf import read_gguf
from aprtui.formats.modelfile import ModelFile, TensorEntry
from aprtui.formats.other_kinds import refuse_folder
from aprtui.formats.peft_config import PeftConfig, read_peft_config
from aprtui.formats.quantised import refuse_unreadable
from aprtui.formats.quantised.coding import Adapted, Coding, Factor, Part
from aprtui.formats.safetensors import read_safetensors
from aprtui.text import clean, count

__all__ = ["Adapter", "adapted", "read_adapter"]

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
_PREFIX = "base_model.model."
_PART = re.compile(
    r"(?P<module>.+?)\.(?P<part>lora_[AB](?:\.default)?\.(?:weight|bias)"
    r"|lora_embedding_[AB](?:\.default)?|lora_magnitude_vector(?:\.default)?(?:\.weight)?)"
)
_KEPT = re.compile(r"\.(?:base_layer|modules_to_save(?:\.default)?)\.(?=(?:weight|bias)$)")
_HASHED_BYTES = 8 << 20
_UNNAMED_NORM = "_norm.weight"  # of a GGUF adapter: llama.cpp passes over them
_FACTORS = ("F32", "F16", "BF16", "F64", "Q8_0")


@dataclass(frozen=True)
class LowRank:
    """What is added to one weight: ``scale`` * left @ right; DoRA's lengths of the rows."""

    left: Factor
    right: Factor
    scale: float
    magnitude: TensorEntry | None = None


@dataclass(frozen=True)
class Adapter:
    """An adapter as its file tells it, by the names of the tensors that it changes or replaces.

    ``digest``: sha256 of all its bytes, the configuration's too.
    """

    path: Path
    kind: str  # "peft" or "gguf"
    digest: str
    changes: Mapping[str, LowRank]
    replaced: Mapping[str, TensorEntry]
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """For manifests and --json."""
        return {
            "path": str(self.path.absolute()),
            "kind": self.kind,
            "digest": f"sha256:{self.digest}",
            "weights": len(self.changes),
            "ranks": sorted({change.left.shape[-1] for change in self.changes.values()}),
            "replaced": sorted(self.replaced),
        }


def read_adapter(path: Path) -> Adapter:
    """The adapter in a peft folder, its ``.safetensors`` file, or a GGUF file.

    Raises BadFileError for what is none, is damaged, or changes weights in a way that is not
    computed here, by its name.
    """
    if path.is_dir():
        if not (path / WEIGHTS).is_file():
            refuse_folder(path)
            raise BadFileError(
                path, f"no adapter: no {WEIGHTS} is in it", hint="peft's save_pretrained writes it"
            )
        path = path / WEIGHTS
    if not path.exists():
        raise BadFileError(path, "does not exist")
    if first_bytes(path, 4) == b"GGUF":
        return _of_gguf(read_gguf(path))
    return _of_peft(read_safetensors(path))


def adapted(file: ModelFile, adapter: Adapter) -> ModelFile:
    """The model with the adapter's weights in place of its own. Raises BadFileError for a weight
    that the model does not have in that shape, UsageError for names of the other convention."""
    if (adapter.kind == "gguf") != (file.format == "gguf"):
        raise UsageError(
            f"{clean(str(adapter.path))}: names weights as {_convention(adapter.kind == 'gguf')}, "
            f"and the model as {_convention(file.format == 'gguf')}",
            hint="llama.cpp's convert_lora_to_gguf.py writes one for GGUF models",
        )
    _check_architecture(file, adapter)
    tensors = dict(file.tensors)
    for name, entry in adapter.replaced.items():
        base = _base(file, adapter, name, entry)
        if entry.shape != base.shape:
            _refuse(entry, f"is {list(entry.shape)}, and the model's {list(base.shape)}")
        tensors[name] = replace(entry, name=name)
    for name, change in adapter.changes.items():
        _base(file, adapter, name, change.left.entry)
        tensors[name] = _changed(tensors[name], change)
    digest = hashlib.sha256(f"{file.digest} {adapter.digest}".encode()).hexdigest()
    whole = f" and replaces {len(adapter.replaced)}" if adapter.replaced else ""
    told = f"adapter {clean(str(adapter.path))}: changes {count(len(adapter.changes), 'weight')}"
    return replace(
        file, tensors=tensors, digest=digest, adapter=adapter,
        notes=(*file.notes, f"{told}{whole}, in float32", *adapter.notes),
    )  # fmt: skip


def _convention(gguf: bool) -> str:
    return "GGUF does" if gguf else "Hugging Face does"


def _refuse(entry: TensorEntry, what: str, hint: str = "") -> NoReturn:
    raise BadFileError(entry.path, f"tensor {clean(entry.name)}: {what}", hint=hint)


def _base(file: ModelFile, adapter: Adapter, name: str, by: TensorEntry) -> TensorEntry:
    """The model's tensor of that name."""
    entry = file.tensors.get(name)
    if entry is None:
        _refuse(
            by,
            f"changes {clean(name)}, which {clean(file.path.name, 80)} does not hold",
            hint="it is an adapter of another model, or of a weight that this file stores fused, "
            "packed or tied; peft's merge_and_unload makes one checkpoint of both",
        )
    refuse_unreadable([entry])
    return entry


def _check_architecture(file: ModelFile, adapter: Adapter) -> None:
    """llama.cpp's own condition."""
    if adapter.kind != "gguf":
        return
    said = read_gguf(adapter.path).metadata.get("general.architecture")
    have = file.metadata.get("general.architecture")
    if said != have:
        raise BadFileError(
            adapter.path,
            f"an adapter of the architecture {clean(str(said), 40)}, and the model is "
            f"{clean(str(have), 40)}",
        )


def _changed(base: TensorEntry, change: LowRank) -> TensorEntry:
    """The tensor with what is added to it, every shape checked."""
    left, right = change.left, change.right
    rank = left.shape[-1] if len(left.shape) > 1 else 0
    if len(base.shape) < 2 or not rank or left.shape != (*base.shape[:-1], rank):
        _refuse(left.entry, f"is {list(left.entry.shape)}, and the weight {list(base.shape)}")
    if right.shape != (*base.shape[:-2], rank, base.shape[-1]):
        _refuse(
            right.entry,
            f"is {list(right.entry.shape)} beside {list(left.entry.shape)}, and the weight is "
            f"{list(base.shape)}",
        )
    rows, columns = math.prod(base.shape[:-1]), base.shape[-1]
    own = [left.entry, right.entry]
    if change.magnitude is not None:
        own.append(change.magnitude)
        if math.prod(change.magnitude.shape) != rows or len(base.shape) != 2:
            _refuse(change.magnitude, f"holds no length of each of the {rows} rows")
    for entry in own:
        if entry.type not in _FACTORS:
            _refuse(entry, f"is {clean(entry.type, 40)}, not one of {', '.join(_FACTORS)}")
    parts = base.coding.parts if base.coding is not None else (Part("base", base, "rows", rows),)
    kind = f"{base.type}+{'LoRA' if change.magnitude is None else 'DoRA'}"
    coding: Coding = Adapted(
        kind, rows, columns, (*parts, *(Part("adapter", entry, "whole") for entry in own)),
        base=base, left=left, right=right, scale=change.scale, magnitude=change.magnitude,
    )  # fmt: skip
    return replace(base, type=kind, size_bytes=coding.stored_bytes, flat=False, coding=coding)


# -- GGUF ------------------------------------------------------------------------------------------


def _of_gguf(file: ModelFile) -> Adapter:
    kind = file.metadata.get("adapter.type")
    if file.metadata.get("general.type") != "adapter" or kind != "lora":
        raise BadFileError(
            file.path,
            f"no LoRA adapter: its general.type is {_said(file, 'general.type')} and its "
            f"adapter.type {_said(file, 'adapter.type')}",
        )
    if "adapter.alora.invocation_tokens" in file.metadata:
        raise BadFileError(
            file.path,
            "an activated LoRA (aLoRA), which changes weights from certain tokens on: not computed",
        )
    alpha = file.metadata.get("adapter.lora.alpha", 0.0)
    if not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise BadFileError(file.path, f"its adapter.lora.alpha is {clean(repr(alpha), 40)}")
    halves: dict[str, dict[str, TensorEntry]] = {}
    passed: list[str] = []
    for name, entry in file.tensors.items():
        weight, dot, half = name.rpartition(".lora_")
        if dot and half in ("a", "b"):
            halves.setdefault(weight, {})[half] = entry
        elif name.endswith(_UNNAMED_NORM):
            passed.append(name)
        else:
            _refuse(entry, "is of no kind that a LoRA adapter has")
    notes: tuple[str, ...] = ()
    if passed:
        notes = (f"{count(len(passed), 'norm')} of the adapter passed over, as llama.cpp does: "
                 f"{clean(passed[0])}",)  # fmt: skip
    changes = {name: _pair(name, pair, float(alpha)) for name, pair in halves.items()}
    return Adapter(file.path, "gguf", _digest([file.path]), _some(file, changes, {}), {}, notes)


def _said(file: ModelFile, key: str) -> str:
    return clean(str(file.metadata.get(key, "not said")), 40)


def _pair(name: str, pair: Mapping[str, TensorEntry], alpha: float) -> LowRank:
    """Both halves of one weight's; of the token table they change places."""
    if len(pair) < 2:
        _refuse(next(iter(pair.values())), "its other half is not there")
    a, b = pair["a"], pair["b"]
    rank = b.shape[-1] if b.shape else 0
    scale = alpha / rank if alpha and rank else 1.0
    if name.endswith("token_embd.weight"):
        return LowRank(Factor(a), Factor(b, turned=True), scale)
    return LowRank(Factor(b), Factor(a), scale)


# -- peft ------------------------------------------------------------------------------------------


def _of_peft(file: ModelFile) -> Adapter:
    path = file.path.parent / CONFIG
    config = read_peft_config(path)
    modules: dict[str, dict[str, TensorEntry]] = {}
    replaced: dict[str, TensorEntry] = {}
    for entry in file.tensors.values():
        name = entry.name.removeprefix(_PREFIX)
        match = _PART.fullmatch(name)
        if match is None:
            replaced[_KEPT.sub(".", name)] = entry
        else:
            part = match["part"].replace(".default", "").removesuffix(".weight")
            modules.setdefault(match["module"], {})[part] = entry
    changes = {f"{name}.weight": _low_rank(config, name, own) for name, own in modules.items()}
    digest = _digest([file.path, path])
    some = _some(file, changes, replaced)
    return Adapter(file.path.parent, "peft", digest, some, replaced, config.notes)


def _low_rank(config: PeftConfig, module: str, parts: Mapping[str, TensorEntry]) -> LowRank:
    for name in parts:
        if name.endswith(".bias"):
            _refuse(parts[name], "a bias of the adapter's own (lora_bias), which is not computed")
    table = "lora_embedding_A" in parts or "lora_embedding_B" in parts
    names = ("lora_embedding_A", "lora_embedding_B") if table else ("lora_A", "lora_B")
    for name, other in (names, names[::-1]):
        if name not in parts:
            there = next(iter(parts.values()))
            _refuse(there, f"{clean(module)}.{name} is not there beside its {other}")
    a, b = (parts[name] for name in names)
    rank = a.shape[0] if a.shape else 0
    if rank not in config.ranks:
        said = " or ".join(map(str, sorted(config.ranks)))
        _refuse(a, f"is of rank {rank}, and {CONFIG} says {said}")
    scale = config.scale(module, rank)
    magnitude = parts.get("lora_magnitude_vector")
    if (magnitude is not None) != config.use_dora:
        said = "true" if config.use_dora else "false"
        _refuse(a, f"{CONFIG} says use_dora {said}, and its tensors say otherwise")
    if table and magnitude is not None:
        _refuse(magnitude, "DoRA of a token table, which is not computed")
    if table:
        return LowRank(Factor(a, turned=True), Factor(b, turned=True), scale)
    return LowRank(Factor(b), Factor(a), scale, magnitude)


def _some(
    file: ModelFile, changes: Mapping[str, LowRank], replaced: Mapping[str, TensorEntry]
) -> Mapping[str, LowRank]:
    if not changes and not replaced:
        raise BadFileError(file.path, "no adapter: it holds no tensor")
    return changes


def _digest(paths: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with open_file(path) as file:
            for start in range(0, file.size, _HASHED_BYTES):
                digest.update(file.read(start, min(_HASHED_BYTES, file.size - start)))
    return digest.hexdigest()
