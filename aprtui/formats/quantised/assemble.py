"""Stored tensors to logical weights: each module's parts recognised, checked, put together."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace

from aprtui.errors import BadFileError
from aprtui.formats.blocks import BLOCK_TYPES, INTEGERS
from aprtui.formats.modelfile import ModelFile, TensorEntry
from aprtui.formats.quantised.coding import Coding, Part
from aprtui.formats.quantised.declared import Quantisation, with_declared
from aprtui.formats.quantised.fourbit import read_float4, read_table4
from aprtui.formats.quantised.module import Module, modules_of
from aprtui.formats.quantised.packed import read_compressed, read_mlx, read_turned
from aprtui.formats.quantised.scaled import read_scaled
from aprtui.text import clean

__all__ = ["assembled", "refuse_unreadable"]

_READERS: tuple[tuple[Callable[[Module], Coding | None], frozenset[str]], ...] = (
    (read_turned, frozenset({"gptq", "awq", "auto-round", "auto_gptq"})),
    (read_compressed, frozenset({"compressed-tensors"})),
    (read_table4, frozenset({"bitsandbytes"})),
    (read_float4, frozenset({"mxfp4", "modelopt", "modelopt_fp4", "nvfp4", "compressed-tensors"})),
    (read_mlx, frozenset({"mlx", "metal"})),
    (read_scaled, frozenset({
        "fp8", "mxfp8", "fbgemm_fp8", "fp8_e4m3", "modelopt", "compressed-tensors", "bitsandbytes",
    })),
)  # fmt: skip
"""Readers of codings, each with the methods under which checkpoints declare them."""

_READ = frozenset().union(*(methods for _, methods in _READERS))
_UNREAD = {
    "aqlm": "AQLM's codebooks", "bitnet": "BitNet's packed ternaries", "eetq": "EETQ",
    "higgs": "HIGGS", "hqq": "HQQ", "quanto": "Quanto", "quark": "AMD Quark", "spqr": "SpQR",
    "torchao": "torchao's tensor classes", "vptq": "VPTQ", "fp_quant": "FP-Quant",
}  # fmt: skip

_UNREAD_PARTS = {".W_q": "hqq", "_weight_qdata": "torchao", ".codebooks": "aqlm"}
"""Endings of names by which a checkpoint is known to be of such a method, whatever it says."""
_READS = {
    "hqq": "hqq's HQQLinear.dequantize gives plain weights, which save_pretrained saves",
    "torchao": "torchao, of the version that saved it, dequantises each weight; save those plain",
}

_BESIDE = (
    "input_scale", "input_zero_point", "input_global_scale", "activation_scale", "output_scale",
    "qscale_act", "weight_format", "weight_shape",
)  # fmt: skip
"""Parts that no value of the weight depends on; activations are scaled with some."""


def assembled(file: ModelFile) -> ModelFile:
    """The file with each quantised weight as one tensor; other formats as they are.

    A tensor that no coding needs stays listed. Raises BadFileError that names the tensor and what
    contradicts itself: codes without scales, another shape, a group size that does not divide, a
    method that the configuration does not state.
    """
    if file.format != "safetensors":
        return file
    file = with_declared(file)
    _refuse_unread_parts(file)
    entries: dict[str, TensorEntry] = dict(file.tensors)
    kinds: Counter[str] = Counter()
    for module in modules_of(file).values():
        coding = _coding(module)
        if coding is None:
            continue
        kinds[coding.type_name] += 1
        for part in coding.parts:
            del entries[part.entry.name]
        logical = _logical(module, coding)
        entries[logical.name] = logical
    stated = file.quantisation is not None
    cache = sorted(name for name in entries if stated and name.endswith(_CACHE_SCALES))
    for name in cache:
        del entries[name]
    notes = list(file.notes)
    if cache:
        notes.append(
            f"{len(cache)} scales of a KV cache in eight bits ({clean(cache[0])}, ...): the cache "
            "is kept as computed here"
        )
    if kinds:
        told = ", ".join(f"{count} of {kind}" for kind, count in sorted(kinds.items()))
        notes.append(f"quantised weights: {told}; decoded to float32, activations not rounded")
    if not kinds and file.quantisation is not None:
        notes.append(_plain_or_refused(file, file.quantisation))
    return replace(file, tensors=entries, notes=tuple(notes))


_CACHE_SCALES = (".k_scale", ".v_scale", ".kv_scale", ".k_proj.output_scale",
                 ".v_proj.output_scale")  # fmt: skip


def _coding(module: Module) -> Coding | None:
    """The coding of a module's weight, all its parts with it; None for plain tensors."""
    for read, methods in _READERS:
        coding = read(module)
        if coding is None:
            continue
        entry = coding.parts[0].entry
        if not coding.rows or not coding.columns:
            module.refuse(entry, f"is {list(entry.shape)}: codes of no weight")
        if module.said is not None and module.method not in methods:
            module.refuse(
                entry,
                f"is stored as {coding.type_name}, and {module.said.source} says "
                f"{clean(module.method, 60)}",
                hint="two quantisations in one folder: it mixes two downloads",
            )
        beside = [
            Part(name, module.parts[name], "beside") for name in _BESIDE if name in module.parts
        ]
        return replace(coding, parts=(*coding.parts, *beside))
    _refuse_strays(module)
    return None


def _refuse_strays(module: Module) -> None:
    """Raises BadFileError for scales whose weight is no code, or is not there."""
    for name in ("weight_scale", "weight_scale_inv", "qscale_weight", "SCB", "weight_packed"):
        if name not in module.parts:
            continue
        weight = module.parts.get("weight")
        what = f"{weight.type} values, no codes" if weight is not None else "no weight"
        module.refuse(
            module.parts[name],
            f"belongs to {what}, or to codes that aprtui does not read",
            hint="the checkpoint mixes two downloads, or is of a method that is not known here",
        )


def _logical(module: Module, coding: Coding) -> TensorEntry:
    """One tensor of the weight's own shape, leading axes (packed experts) kept."""
    codes = coding.parts[0].entry
    leading = codes.shape[:-2] if coding.parts[0].lies == "rows" else ()
    if coding.parts[0].name == "codes" and module.has("_blocks"):
        leading = codes.shape[:-3]
    return TensorEntry(
        f"{module.name}.weight",
        coding.type_name,
        (*leading, coding.rows // math.prod(leading), coding.columns),
        codes.path,
        codes.offset,
        coding.stored_bytes,
        coding=coding,
    )


def _plain_or_refused(file: ModelFile, said: Quantisation) -> str:
    """What is said of a checkpoint in which no coding was met, and a quantisation is stated.

    Raises BadFileError where its method's codings are not read here.
    """
    if said.method in _READ:
        return f"{said.source} says {clean(said.method, 60)}, and every weight is stored plain"
    raise _unread(file, said.method, f"{said.source} says that its weights are")


def _refuse_unread_parts(file: ModelFile) -> None:
    """Raises BadFileError for tensors of a method whose codings are not read here.

    HQQ saves what its packing means as tensors of text, torchao what each class holds as JSON in
    the header, by a prototype that changes with its versions.
    """
    for name in file.tensors:
        for ending, method in _UNREAD_PARTS.items():
            if name.endswith(ending):
                raise _unread(file, method, f"tensor {clean(name)} is")


def _unread(file: ModelFile, method: str, whose: str) -> BadFileError:
    what = _UNREAD.get(method, clean(method, 60))
    return BadFileError(
        file.path,
        f"{whose} quantised by {what}, which aprtui does not read",
        hint=_READS.get(
            method, "its own library reads it: dequantise there and save plain weights"
        ),
    )


def refuse_unreadable(entries: Iterable[TensorEntry]) -> None:
    """Raises BadFileError for a weight whose type has no decoder, or that is integers alone.

    Codes without what they mean are never multiplied as numbers.
    """
    for entry in entries:
        if entry.coding is not None:
            continue
        if entry.type not in BLOCK_TYPES:
            raise BadFileError(
                entry.path,
                f"tensor {clean(entry.name)} is of the type {clean(entry.type, 40)}, which aprtui "
                "lists and cannot decode",
                hint="the library that wrote it can save it as bfloat16",
            )
        if entry.type in INTEGERS:
            raise BadFileError(
                entry.path,
                f"tensor {clean(entry.name)} is {entry.type}: codes of a quantiser, and nothing "
                "in the file says what they mean",
                hint="scales are missing, or config.json with its quantization_config",
            )
