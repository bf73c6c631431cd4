"""The scale that is shown beside a value is the one that it was multiplied with."""

from __future__ import annotations

import math
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from aprtui.engine.dequantise import decode_tensor
from aprtui.formats.blocks import BLOCK_TYPES
from aprtui.formats.modelfile import TensorEntry
from aprtui.formats.quantised.scales import BLOCK_SCALES, scale_of
from aprtui.model.open import read_model_file
from tests.support import SMALL

Q = "model.layers.0.self_attn.q_proj"
# By case: the part that is the scale, and what is added to codes (taken away here).
CASES = {
    "fp8-block": "weight_scale_inv", "fp8-tensor": "weight_scale",
    "fp8-e5m2-channel": "weight_scale", "ct-w8a8": "weight_scale", "ct-int4": "weight_scale",
    "gptq-4-actorder": "scales", "gptq-4": "scales", "awq-4": "scales", "mlx-4": "scales",
    "ct-mxfp4": "weight_scale", "ct-nvfp4": "weight_scale", "modelopt-nvfp4": "weight_scale",
    "mlx-mxfp4": "scales", "bnb-nf4": "weight.absmax", "bnb-int8": "SCB",
}  # fmt: skip


def values(folder: Path) -> tuple[TensorEntry, np.ndarray]:
    entry = read_model_file(folder).tensors[f"{Q}.weight"]
    return entry, decode_tensor(entry, torch.device("cpu")).double().numpy()


def with_scales(case: str, folder: Path, distinct: bool) -> Path:
    """A copy whose scales are all one, or all different (of few values where they have few)."""
    folder.mkdir()
    tensors = load_file(SMALL / "quantised" / case / "model.safetensors")
    name = f"{Q}.{CASES[case]}"
    old = tensors[name]
    if old.dtype == torch.uint8:
        new = 127 + (torch.arange(old.numel()) % 23 if distinct else torch.zeros(old.numel()))
    else:
        new = 1 + (torch.arange(old.numel()) % 97 / 8 if distinct else torch.zeros(old.numel()))
    tensors[name] = new.reshape(old.shape).to(old.dtype)
    if f"{Q}.biases" in tensors:
        tensors[f"{Q}.biases"].zero_()
    save_file(tensors, folder / "model.safetensors")
    for beside in (SMALL / "quantised" / case).glob("*.json"):
        (folder / beside.name).write_text(beside.read_text())
    return folder


@pytest.mark.parametrize("case", CASES)
def test_a_value_is_its_code_times_the_scale_that_is_shown(case: str, tmp_path: Path) -> None:
    one, codes = values(with_scales(case, tmp_path / "one", False))
    entry, found = values(with_scales(case, tmp_path / "distinct", True))
    unit = scale_of(one, 0, 0)
    assert unit is not None
    for row, column in ((0, 0), (5, 70), (127, 127), (64, 31), (33, 32), (90, 95)):
        scale = scale_of(entry, row, column)
        assert scale is not None and scale.first <= column <= scale.last
        due = codes[row, column] * scale.value / unit.value
        # Distinct FP8 scales are rounded as they are stored: both sides read them.
        assert math.isclose(found[row, column], due, rel_tol=1e-6, abs_tol=1e-12), (row, column)


def test_a_nested_absmax_is_the_one_that_its_library_decodes() -> None:
    """The largest value of a block of nf4 is its absmax: a code of 1 or -1 is in every block."""
    entry, found = values(SMALL / "quantised" / "bnb-nf4-nested")
    for row, column in ((0, 0), (3, 64), (127, 127)):
        scale = scale_of(entry, row, column)
        assert scale is not None
        most = np.abs(found[row, scale.first : scale.last + 1]).max()
        assert math.isclose(most, abs(scale.value), rel_tol=1e-6)


@pytest.mark.parametrize("kind", sorted(set(BLOCK_SCALES) - {"APR_Q4"}))
def test_a_blocks_scale_is_where_ggml_has_it(kind: str, tmp_path: Path) -> None:
    """gguf's values are linear in it: at 0, 1, 2 times they are evenly apart, and not all alike."""
    random, size = np.random.default_rng(3), BLOCK_TYPES[kind].bytes
    raw = random.integers(0, 128, (6, size), dtype=np.uint8)
    code, at = gguf.GGMLQuantizationType[kind], BLOCK_SCALES[kind]
    found = []
    for number in (0.0, 0.25, 0.5):
        raw[:, at : at + 2] = np.frombuffer(np.float16(number).tobytes(), np.uint8)
        found.append(gguf.quants.dequantize(raw, code))
    assert np.allclose(found[2] - found[1], found[1] - found[0], rtol=1e-5, atol=1e-6)
    assert np.abs(found[1] - found[0]).max() > 0
    path = tmp_path / "t.bin"
    path.write_bytes(raw.tobytes())
    entry = TensorEntry("t", kind, (3, 2 * BLOCK_TYPES[kind].values), path, 0, raw.size)
    scale = scale_of(entry, 2, BLOCK_TYPES[kind].values + 3)
    assert scale is not None and scale.value == 0.5 and scale.block == 1


def test_a_type_without_scales_has_none() -> None:
    entry = read_model_file(SMALL / "adapters" / "base").tensors[f"{Q}.weight"]
    assert scale_of(entry, 0, 0) is None
