"""Small captures that the comparing tests make for themselves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from aprtui.formats.aprt import write_stage
from aprtui.formats.tracedir import TraceDir, key_of, open_trace, write_manifest

Tensors = Mapping[str, tuple[npt.NDArray[np.float32], tuple[str, ...]]]

CONFIG: dict[str, Any] = {"num_layers": 4, "num_heads": 4, "num_kv_heads": 2, "head_dim": 8}


def write_capture(
    root: Path,
    tensors: Tensors,
    *,
    tokens: tuple[int, ...] = (1, 2, 3),
    engine: str = "aprtui",
    dtype: str = "float32",
    digest: str = "sha256:1",
    types: Mapping[str, list[str]] | None = None,
    rope_layout: str = "halves",
) -> TraceDir:
    """A complete trace of ``tensors`` by relative path, with a manifest of just what is read."""
    stages = []
    for path, (values, axes) in tensors.items():
        key = key_of(path)
        assert key is not None
        size = write_stage(root / path, key.layer, values)
        stages.append(
            {
                "path": path,
                "shape": list(values.shape),
                "axes": list(axes),
                "positions": "last" if key.stage == "lm_head" else "all",
                "bytes": size,
            }
        )
    write_manifest(
        root,
        {
            "schema": "aprtui-trace-v1",
            "model": {"path": "m.gguf", "digest": digest, "config": CONFIG, "types": types or {}},
            "engine": {"name": engine, "dtype": dtype},
            "tokens": {"ids": list(tokens), "text": []},
            "rope_layout": rope_layout,
            "stages": stages,
            "absent": [{"stage": "qkv_bias", "reason": "the layers have no q/k/v bias"}],
        },
    )
    return open_trace(root)


def split_by_position(source: Path, target: Path, tokens: int, *, drop: frozenset[str]) -> None:
    """A per-op side: each position of the capture in ``source`` in a folder of its own."""
    trace = open_trace(source)
    for key, record in trace.records.items():
        if key.stage in drop:
            continue
        values = record.values()
        for position in range(tokens):
            if key.stage == "lm_head":
                row = values
            elif key.stage in ("attn_scores", "attn_softmax"):
                row = values.reshape(-1, tokens, tokens)[:, position, : position + 1]
            else:
                row = values.reshape(tokens, -1)[position]
            write_stage(target / f"pos-{position:04d}" / f"{key}.bin", key.layer, row)


def load_json(text: str) -> Any:
    """Strict JSON: NaN and Infinity as bare words are refused."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    return json.loads(text, parse_constant=refuse)
