"""GGUFs whose keys say less, or other, than published ones do, held to llama.cpp.

tests/fixtures/llamacpp/defaults.npz: libllama v0.5.0's logits of the last position (CPU, F32 cache,
one batch) on a shared fixture with a case's keys, or on what numpy draws.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import load_file, save_file

from aprtui.errors import BadFileError
from aprtui.model.open import open_model
from tests.as_gguf import write_gguf
from tests.engine.mutations import our_logits
from tests.families import TINY, save_tiny
from tests.gguf_keys import with_keys
from tests.support import FIXTURES, SMALL, needs_fixtures

Tensors = dict[str, npt.NDArray[Any]]

BAR = 1e-5  # docs/numerics.md 1
_PATTERN, _WINDOW = "attention.sliding_window_pattern", "attention.sliding_window"
_YARN = {
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 4.0,
    "rope.scaling.original_context_length": 16,
}
_WARM = {"attention.temperature_scale": 0.5, "attention.temperature_length": 3}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt-oss without a base": ("gpt_oss", {"rope.freq_base": None}),
    "lfm2 without a base": ("lfm2", {"rope.freq_base": None}),
    "mimo without a base of windows": ("mimo_v2_flash", {"rope.freq_base_swa": None}),
    "mellum without a pattern": ("mellum", {_PATTERN: None, _WINDOW: 4}),
    "mellum, YaRN of layers without a window": ("mellum", {_WINDOW: 4, **_YARN}),
    "afmoe with a pattern": ("afmoe", {_WINDOW: 4, _PATTERN: 2}),
    "laguna with a pattern": ("laguna", {_WINDOW: 4, _PATTERN: 2}),
    "exaone4 with a pattern": ("exaone4_swa", {_WINDOW: 4, _PATTERN: 3, "block_count": 64}),
    "cohere without a logit scale": ("cohere", {"logit_scale": None}),
    "Mistral Large 3's temperature": ("deepseek_v3", _WARM),
    "deepseek2, gates and ups in one": ("deepseek_v3", {}),
    "qwen35moe, gates and ups in one": ("qwen3_5_moe_text", {}),
    "GLM-4.1V, pairs of three axes": ("glm4", {"rope.dimension_sections": [2, 1, 1, 0]}),
    "apertus, one beta of all layers": ("apertus", {"xielu.beta": 0.75}),
    "granitemoe, whatever finetuned says": ("granitemoe", {"rope.scaling.finetuned": False}),
}


def _merged(tensors: Tensors) -> Tensors:
    """The gates and ups of a layer's experts in one tensor (``--fuse-gate-up-exps``)."""
    return {
        name.replace("gate", "gate_up"): np.concatenate(
            [each, tensors[name.replace("gate", "up")]], 1
        )
        for name, each in tensors.items()
        if "ffn_gate_exps" in name
    }


def _sixteen_times(tensors: Tensors) -> Tensors:
    """Four layers over and over."""
    return {
        f"blk.{4 * times + int(name[4])}{name[5:]}": values
        for times in range(16)
        for name, values in tensors.items()
        if name.startswith("blk.")
    }


def _granitemoe(folder: Path) -> Path:
    """The tiny folder's, with weights that numpy draws."""
    save_tiny(TINY["granitemoe"], folder)
    path, rng = folder / "model.safetensors", np.random.default_rng(19)
    shapes = {name: each.shape for name, each in sorted(load_file(path).items())}
    drawn = {
        name: (0.2 * rng.standard_normal(shape)).astype(np.float32)
        for name, shape in shapes.items()
    }
    save_file(drawn, path, {"format": "pt"})
    write_gguf(folder, "granitemoe", folder / "drawn.gguf")
    return folder / "drawn.gguf"


def made(case: str, folder: Path) -> Path:
    """The GGUF of a case."""
    fixture, keys = CASES[case]
    drawn = fixture == "granitemoe"
    source = _granitemoe(folder) if drawn else FIXTURES / "families" / fixture / "model.gguf"
    make: Callable[[Tensors], Tensors] | None = None
    if "in one" in case:
        make = _merged
    elif "block_count" in keys:
        make = _sixteen_times
    tensors: Tensors = {}
    if make is not None:
        tensors = make({each.name: each.data for each in gguf.GGUFReader(source).tensors})
    gone = r"ffn_(gate|up)_exps" if make is _merged else None
    return with_keys(source, folder / "model.gguf", keys, tensors, without=gone)


@needs_fixtures
@pytest.mark.parametrize("case", CASES)
def test_what_a_file_does_not_say_is_what_llama_cpp_takes(case: str, tmp_path: Path) -> None:
    ours = our_logits(made(case, tmp_path))[-1].double().numpy()
    with np.load(SMALL / "llamacpp" / "defaults.npz") as recorded:
        theirs = recorded[case].astype(np.float64)
    assert np.linalg.norm(ours - theirs) / np.linalg.norm(theirs) <= BAR


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "gemma3n caps at 30": ("gemma3n_text", {"final_logit_softcapping": 3.0}, "caps at 30"),
    "minimax scales nothing": ("minimax_m2", {"expert_weights_scale": 2.0}, "computes with 1.0"),
    "minimax divides": ("minimax_m2", {"expert_weights_norm": False}, "computes with True"),
    "lfm2moe scales nothing": ("lfm2_moe", {"expert_weights_scale": 2.0}, "computes with 1.0"),
    "a temperature without a length": (
        "deepseek_v3", {"attention.temperature_scale": 0.5}, "temperature_length is 0",
    ),
    "a fourth axis": ("glm4", {"rope.dimension_sections": [2, 1, 1, 4]}, "a fourth axis"),
    "ollama's base": ("gemma2", {"rope.global.freq_base": 1e6}, "rope.global.freq_base"),
    "a base of windows that is not computed": (
        "cohere2", {"rope.freq_base_swa": 5e3}, "rope.freq_base_swa",
    ),
}  # fmt: skip
"""Values that llama.cpp v0.5.0 does not read, or aborts on, or that are not computed here."""


@needs_fixtures
@pytest.mark.parametrize("case", REFUSED)
def test_a_value_that_llama_cpp_does_not_read_is_refused(case: str, tmp_path: Path) -> None:
    fixture, keys, told = REFUSED[case]
    source = FIXTURES / "families" / fixture / "model.gguf"
    with pytest.raises(BadFileError, match=told):
        open_model(with_keys(source, tmp_path / "other.gguf", keys))
