"""The manifest that every engine writes, ours or another's: contracts/manifest.schema.json."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from aprtui.formats.rows import Rows
from aprtui.formats.tracedir import SCHEMA, StageKey, relative_path
from aprtui.graph import Absent
from aprtui.model.open import Model

__all__ = ["Written", "build_manifest", "model_entry"]


@dataclass(frozen=True)
class Written:
    """One stage file as the manifest lists it; ``stats`` are ``formats.summary.summarise``'s."""

    key: StageKey
    shape: tuple[int, ...]
    axes: tuple[str, ...]
    positions: str | tuple[int, ...]  # "all", "last", or those that it holds
    bytes: int
    stats: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        return {
            "stage": self.key.stage,
            "layer": self.key.layer,
            "path": relative_path(self.key),
            "shape": self.shape,
            "axes": self.axes,
            "positions": self.positions,
            "bytes": self.bytes,
            "stats": self.stats,
            "sha256": None,
        }


def model_entry(model: Model) -> dict[str, Any]:
    """The model as the manifest names it; ``doubts``: what was ignored or overridden; ``adapter``
    where one was laid on its weights."""
    adapter = model.file.adapter
    return {
        "path": str(model.path),
        "format": model.file.format,
        "format_version": model.file.version,
        "size_bytes": model.file.size_bytes,
        "digest": f"sha256:{model.file.digest}",
        "architecture": model.architecture,
        "config": model.settings,
        "types": model.types(),
        "doubts": [
            {"key": each.key, "value": each.value, "stages": each.stages} for each in model.doubts
        ],
        **({} if adapter is None else {"adapter": adapter.to_json()}),
    }


def build_manifest(
    *,
    model: Mapping[str, Any],
    tokens: Sequence[int],
    token_texts: Sequence[str],
    prompt: str | None,
    logits: str,
    engine: Mapping[str, Any],
    rope_layout: str | None,
    written: Iterable[Written],
    layers: Sequence[int],
    absent: Iterable[Absent],
    notes: Sequence[str],
    elapsed_s: float,
    peak_memory_bytes: int | None,
    peak_device_bytes: int | None,
    rows: Rows | None = None,
) -> dict[str, Any]:
    """The whole manifest; what is not known is empty or null. ``rows`` where the capture is not one
    pass from position 0 on. Raises ValueError for what JSON cannot hold, before any file is
    touched."""
    files = [each.to_json() for each in written]
    manifest = {
        "schema": SCHEMA,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": model,
        "tokens": {"ids": tuple(tokens), "text": tuple(token_texts)},
        "prompt": prompt,
        "rows": None if rows is None else rows.to_json(),
        "selection": {
            "stages": list(dict.fromkeys(file["stage"] for file in files)),
            "layers": tuple(layers),
            "logits": logits,
        },
        "engine": engine,
        "rope_layout": rope_layout,
        "stages": files,
        "absent": [{"stage": item.stage, "reason": item.reason} for item in absent],
        "notes": tuple(notes),
        "elapsed_s": elapsed_s,
        "peak_memory_bytes": peak_memory_bytes,
        "peak_device_bytes": peak_device_bytes,
    }
    json.dumps(manifest, allow_nan=False)
    return manifest
