"""RoPE scaling: what files say of it, as divisors of the angles."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from aprtui.errors import BadFileError, UsageError
from aprtui.formats.modelfile import ModelFile
from aprtui.text import clean

__all__ = ["llama3_divisors", "rope_divisors", "rope_overrides"]


def llama3_divisors(
    head_dim: int, theta: float, factor: float, low: float, high: float, original: float
) -> tuple[float, ...]:
    """Llama 3.1's scaling as d/2 divisors of the angles; the values of a GGUF's rope_freqs tensor.

    Wavelengths shorter than original/high stay, those longer than original/low are divided by
    ``factor``, between them the two are blended.
    """
    divisors = []
    for pair in range(head_dim // 2):
        wavelength = 2 * math.pi * theta ** (2 * pair / head_dim)
        if wavelength < original / high:
            divisors.append(1.0)
        elif wavelength > original / low:
            divisors.append(factor)
        else:
            smooth = (original / wavelength - low) / (high - low)
            divisors.append(1.0 / ((1.0 - smooth) / factor + smooth))
    return tuple(divisors)


def rope_divisors(file: ModelFile, freqs: tuple[float, ...], head_dim: int) -> tuple[float, ...]:
    """The checked values of a rope_freqs tensor [d/2]."""
    if len(freqs) != head_dim // 2:
        raise BadFileError(
            file.path, f"rope_freqs has {len(freqs)} values where head_dim/2 is {head_dim // 2}"
        )
    if not all(math.isfinite(value) and value > 0 for value in freqs):
        raise BadFileError(file.path, "rope_freqs holds values that are not positive numbers")
    return freqs


def rope_overrides(
    file: ModelFile, raw: Mapping[str, Any], head_dim: int, theta: float, notes: list[str]
) -> dict[str, Any]:
    """The config fields that the file's RoPE scaling sets: none, linear or llama3.

    Raises BadFileError for a kind that would change the numbers and is not computed here.
    """
    scaling = raw.get("rope_scaling")
    if scaling is None:
        parameters = raw.get("rope_parameters")
        if isinstance(parameters, dict):
            scaling = parameters.get("full_attention", parameters)
    if isinstance(scaling, str):
        scaling = _from_text(scaling)
    if scaling is None:
        scaling = {"type": raw.get("rope_scaling_type"), "factor": raw.get("rope_scaling_factor")}
    if not isinstance(scaling, dict):
        raise BadFileError(file.path, f"rope_scaling cannot be read: {clean(repr(scaling), 80)}")
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind in (None, "none", "default", "mrope"):
        _warn_lost_scaling(file, raw, theta, notes)
        return {}
    try:
        factor = float(scaling.get("factor") or 1.0)
        if kind == "linear":
            return {"rope_scale": factor}
        if kind == "llama3":
            return {
                "rope_divisors": llama3_divisors(
                    head_dim,
                    theta,
                    factor,
                    float(scaling["low_freq_factor"]),
                    float(scaling["high_freq_factor"]),
                    float(scaling["original_max_position_embeddings"]),
                )
            }
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise BadFileError(
            file.path, f"rope_scaling cannot be read: {clean(repr(error), 80)}"
        ) from error
    raise BadFileError(
        file.path,
        f"RoPE scaling {clean(str(kind))!r} is not computed here",
        hint="--set rope_scaling=none traces without it (the values then differ from the model's)",
    )


def _from_text(text: str) -> dict[str, Any]:
    """``none``, ``linear:FACTOR`` or ``llama3:FACTOR:LOW:HIGH:ORIGINAL``, as ``--set`` gives it."""
    kind, *rest = text.split(":")
    names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    if {"none": 0, "linear": 1, "llama3": 4}.get(kind) != len(rest):
        raise UsageError(
            f"--set rope_scaling={clean(text)} cannot be read",
            hint="none, linear:FACTOR or llama3:FACTOR:LOW:HIGH:ORIGINAL",
        )
    return {"type": kind, **dict(zip(names, rest, strict=False))}


def _warn_lost_scaling(
    file: ModelFile, raw: Mapping[str, Any], theta: float, notes: list[str]
) -> None:
    """Say when an .apr file looks like Llama 3.1, whose scaling its metadata cannot hold."""
    looks = raw.get("architecture") == "llama" and theta == 500_000.0
    if file.format == "apr" and looks and (raw.get("max_positions") or 0) > 8192:
        if "rope_freqs.weight" in file.tensors or "rope_scaling" in raw:
            return
        notes.append(
            "this looks like Llama 3.1 or later, whose RoPE scaling .apr cannot hold; "
            "if the source had it: --set rope_scaling=llama3:8:1:4:8192"
        )
