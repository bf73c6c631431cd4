"""What a checkpoint says of its quantisation: method, bits, groups, what happens to activations.

Sources: transformers' ``quantization_config`` (and ``compression_config``), ModelOpt's
``hf_quant_config.json``, AutoGPTQ's ``quantize_config.json``, AWQ's ``quant_config.json``, MLX's
``quantization``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from aprtui.errors import BadFileError
from aprtui.formats.files import read_whole
from aprtui.formats.modelfile import ModelFile
from aprtui.formats.strict_json import read_object
from aprtui.text import clean

__all__ = ["QUANTISATION_KEYS", "Quantisation", "declared", "with_declared"]

_MAX_JSON_BYTES = 4 << 20
QUANTISATION_KEYS = ("quantization_config", "compression_config", "quantization")
_FILES = {"hf_quant_config.json": "modelopt", "quantize_config.json": "gptq",
          "quant_config.json": "awq"}  # fmt: skip
_COMPARED = ("bits", "group_size", "desc_act", "quant_algo")  # where a folder says them twice


@dataclass(frozen=True)
class Quantisation:
    """One quantisation as its configuration states it; ``keys`` are the file's own."""

    method: str  # "fp8", "gptq", "mlx", ...: transformers' names, "mlx" where there is none
    source: str  # where it is said
    keys: Mapping[str, Any] = field(default_factory=dict)

    @property
    def activations(self) -> str:
        """What the checkpoint's own runtime does to activations before a product; "" for nothing.

        The words of the configuration: "fp8 dynamic", "int8 dynamic, one scale a token".
        """
        return _activations(self)

    def to_json(self) -> dict[str, Any]:
        """For manifests and --json: method, activations and the keys that decide numbers."""
        kept = {key: self.keys[key] for key in _SHOWN if key in self.keys}
        return {"method": self.method, "activations": self.activations or None, **kept}


_SHOWN = (
    "bits", "group_size", "fmt", "weight_block_size", "checkpoint_format", "format", "version",
    "desc_act", "sym", "zero_point", "load_in_8bit", "load_in_4bit", "bnb_4bit_quant_type",
    "bnb_4bit_use_double_quant", "bnb_4bit_compute_dtype", "llm_int8_threshold",
    "activation_scheme", "quant_algo", "kv_cache_quant_algo", "kv_cache_scheme", "mode",
)  # fmt: skip


def declared(file: ModelFile) -> Quantisation | None:
    """What ``config.json`` or a file beside it says; None where nothing does.

    Raises BadFileError where two places contradict each other, or one is no quantisation.
    """
    beside = [_from_file(_folder(file) / name) for name in _FILES]
    said = [*_from_config(file), *(each for each in beside if each is not None)]
    for other in said[1:]:
        _agree(file.path, said[0], other)
    if len(said) > 1:  # config.json's words, completed by what only the other says
        return replace(said[0], keys={**said[1].keys, **said[0].keys})
    return said[0] if said else None


def with_declared(file: ModelFile) -> ModelFile:
    """The file with what is said of its quantisation; a file beside it joins the digest."""
    found = declared(file)
    if found is None:
        return file
    beside = [path for name in _FILES if (path := _folder(file) / name).is_file()]
    digest = hashlib.sha256(file.digest.encode())
    for path in beside:
        digest.update(read_whole(path, _MAX_JSON_BYTES, "a quantisation"))
    return replace(file, quantisation=found, digest=digest.hexdigest() if beside else file.digest)


def _folder(file: ModelFile) -> Path:
    return file.path if file.path.is_dir() else file.path.parent


def _from_config(file: ModelFile) -> list[Quantisation]:
    """All that config.json holds, in the part of a composite model that is a text model too."""
    found: list[Quantisation] = []
    places: list[tuple[str, Mapping[str, Any]]] = [("", file.metadata)]
    for part in ("text_config", "llm_config"):
        inner = file.metadata.get(part)
        if isinstance(inner, Mapping):
            places.append((f"{part}.", inner))
    for where, config in places:
        for key in QUANTISATION_KEYS:
            value = config.get(key)
            if value is None:
                continue
            if not isinstance(value, Mapping):
                raise BadFileError(file.path, f"{where}{key} is no object")
            if value:
                source = f"config.json {where}{key}"
                found.append(Quantisation(_method(key, value), source, dict(value)))
    return found


def _method(key: str, value: Mapping[str, Any]) -> str:
    method = value.get("quant_method")
    if isinstance(method, str):
        return method
    if key == "compression_config" or "config_groups" in value:
        return "compressed-tensors"
    if "group_size" in value and "bits" in value:
        return "mlx"
    if "qformat_weight" in value:  # Mistral's params.json
        return str(value["qformat_weight"])
    return "unknown"


def _from_file(path: Path) -> Quantisation | None:
    if not path.is_file():
        return None
    keys = read_object(path, "the quantisation", _MAX_JSON_BYTES)
    inner = keys.get("quantization")
    if path.name == "hf_quant_config.json":
        if not isinstance(inner, Mapping):
            raise BadFileError(path, "has no quantization object")
        return Quantisation("modelopt", path.name, dict(inner))
    return Quantisation(str(keys.get("quant_method", _FILES[path.name])), path.name, keys)


def _agree(path: Path, a: Quantisation, b: Quantisation) -> None:
    """Raises BadFileError where two sources say two things."""
    if a.method != b.method and not {a.method, b.method} <= {"modelopt", "modelopt_fp4"}:
        raise BadFileError(
            path,
            f"two quantisations in one folder: {a.source} says {clean(a.method, 60)}, "
            f"{b.source} says {clean(b.method, 60)}",
            hint="the folder mixes two downloads; keep the file that belongs to the weights",
        )
    for key in _COMPARED:
        x, y = a.keys.get(key), b.keys.get(key)
        if x is not None and y is not None and x != y:
            raise BadFileError(
                path,
                f"{key} is {clean(repr(x), 60)} in {a.source} and {clean(repr(y), 60)} in "
                f"{b.source}",
                hint="the folder mixes two downloads; keep the file that belongs to the weights",
            )


def _activations(said: Quantisation) -> str:
    if said.method == "compressed-tensors":
        return _compressed_activations(said.keys)
    if said.method in ("fp8", "mxfp8"):
        kind = "mxfp8" if said.method == "mxfp8" else f"fp8 {said.keys.get('fmt', 'e4m3')}"
        return f"{kind}, {said.keys.get('activation_scheme', 'dynamic')}"
    if said.method == "fbgemm_fp8":
        return "fp8 e4m3, dynamic, one scale a token"
    if said.method.startswith("modelopt"):
        algorithm = str(said.keys.get("quant_algo", ""))
        return {"FP8": "fp8 e4m3, static", "NVFP4": "nvfp4, static global scale"}.get(algorithm, "")
    if said.method == "bitsandbytes" and said.keys.get("load_in_8bit") is True:
        threshold = said.keys.get("llm_int8_threshold", 6.0)
        return f"int8, one scale a token, columns beyond {threshold} in 16 bits"
    return ""


def _compressed_activations(keys: Mapping[str, Any]) -> str:
    """Of compressed-tensors' groups: those that are the same are said once."""
    groups = keys.get("config_groups")
    said: list[str] = []
    for group in groups.values() if isinstance(groups, Mapping) else ():
        inputs = group.get("input_activations") if isinstance(group, Mapping) else None
        if isinstance(inputs, Mapping):
            kind = f"{inputs.get('type', 'int')}{inputs.get('num_bits', 8)}"
            when = "dynamic" if inputs.get("dynamic") else "static"
            said.append(f"{kind}, {when}, one scale a {inputs.get('strategy', 'tensor')}")
    return clean("; ".join(dict.fromkeys(said)), 200)
