"""RoPE's scalings as GGUF says them, held to llama.cpp.

tests/fixtures/llamacpp/scaling.npz holds libllama v0.5.0's logits of the last position (CPU, F32 KV
cache, no flash attention, one batch) on a fixture's GGUF with each case's keys, for the fixture's
own tokens.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aprtui.errors import BadFileError
from aprtui.model.open import open_model
from tests.engine.mutations import our_logits
from tests.gguf_keys import with_keys
from tests.support import FIXTURES, SMALL, needs_fixtures

BAR = 1e-5  # docs/numerics.md 1
_YARN = {"type": "yarn", "factor": 4.0, "original_context_length": 4096}
_BETAS = {"yarn_beta_fast": 300.0, "yarn_beta_slow": 30.0}
_SHARE = "yarn_log_multiplier"
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "whole": ("deepseek_v3", {**_YARN, _SHARE: 0.1}),  # Kimi K2, DeepSeek-V3
    "share": ("deepseek_v3", {**_YARN, _SHARE: 0.0707}),  # DeepSeek-V2
    "silent": ("deepseek_v3", _YARN),
    "factor": ("deepseek_v3", {**_YARN, _SHARE: 0.05, "attn_factor": 1.3}),
    "shrunk": ("deepseek_v3", {**_YARN, _SHARE: 0.1, "factor": 0.5}),
    "shrunk-silent": ("deepseek_v3", {**_YARN, "factor": 0.5}),
    "linear": ("deepseek_v3", {"type": "linear", "factor": 4.0}),
    "linear-share": ("deepseek_v3", {"type": "linear", "factor": 4.0, _SHARE: 0.1}),
    "none": ("deepseek_v3", {"type": "none", "factor": 4.0, _SHARE: 0.1, "attn_factor": 1.3}),
    "unread-betas": ("deepseek_v3", {**_YARN, _SHARE: 0.1, **_BETAS}),  # Kimi K2 says 1 and 1
    "whole-heads": ("minicpm3", _YARN),
    "other-unread-betas": ("seed_oss", {**_YARN, **_BETAS}),
    "read-betas": ("ministral3", {**_YARN, **_BETAS}),
}


def made(case: str, path: Path) -> Path:
    """The GGUF of a case."""
    fixture, keys = CASES[case]
    said = {f"rope.scaling.{key}": value for key, value in keys.items()}
    return with_keys(FIXTURES / "families" / fixture / "model.gguf", path / "model.gguf", said)


@needs_fixtures
@pytest.mark.parametrize("case", CASES)
def test_a_scaling_is_what_llama_cpp_makes_of_it(case: str, tmp_path: Path) -> None:
    with np.load(FIXTURES / "families" / CASES[case][0] / "expected.npz") as expected:
        tokens = tuple(int(token) for token in expected["tokens"])
    with np.load(SMALL / "llamacpp" / "scaling.npz") as recorded:
        theirs = recorded[case].astype(np.float64)
    ours = our_logits(made(case, tmp_path), tokens)[-1].double().numpy()
    assert np.linalg.norm(ours - theirs) / np.linalg.norm(theirs) <= BAR


@needs_fixtures
@pytest.mark.parametrize("case", ["silent", "unread-betas", "other-unread-betas"])
def test_what_llama_cpp_makes_of_it_otherwise_than_is_meant_is_told(
    case: str, tmp_path: Path
) -> None:
    word = _SHARE if case == "silent" else "yarn_beta_fast"
    assert any(word in note for note in open_model(made(case, tmp_path)).notes)


@needs_fixtures
def test_a_scaling_whose_factors_llama_cpp_does_not_read_is_refused(tmp_path: Path) -> None:
    source = FIXTURES / "families" / "deepseek_v3" / "model.gguf"
    keys = {"rope.scaling.type": "longrope", "rope.scaling.factor": 4.0}
    with pytest.raises(BadFileError, match="longrope"):
        open_model(with_keys(source, tmp_path / "model.gguf", keys))
