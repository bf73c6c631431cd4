"""Checkpoints and the GGUFs that llama.cpp's converter made of them: each gives the numbers of the
program that it was made for (shared/fixtures/families/README.md)."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from aprtui.engine.job import TraceJob
from aprtui.engine.plan import make_plan
from aprtui.model.open import open_model
from tests.as_gguf import ARCHITECTURES, write_gguf
from tests.engine.mutations import our_logits
from tests.families import TINY, save_tiny
from tests.support import FIXTURES, needs_fixtures

BAR = 1e-5  # docs/numerics.md 1
GELU_TABLE = 1e-3  # ggml's CPU GELU is a table in f16 (docs/numerics.md 1)
UNWINDOWED = ("starcoder2",)  # llama.cpp computes without the window
CASES = [name for tiny in TINY.values() for name in tiny.fixtures]


def distance(found: npt.NDArray[np.float64], expected: npt.NDArray[np.float32]) -> float:
    wide = expected.astype(np.float64)
    return float(np.linalg.norm(found - wide) / np.linalg.norm(wide))


def logits(path: Path, expected: dict[str, npt.NDArray[np.float32]]) -> npt.NDArray[np.float64]:
    tokens = tuple(int(token) for token in expected["tokens"])
    return np.asarray(our_logits(path, tokens).double().numpy())


@needs_fixtures
@pytest.mark.parametrize("name", CASES)
def test_the_folder_has_transformers_numbers(name: str) -> None:
    folder = FIXTURES / "families" / name
    expected = dict(np.load(folder / "expected.npz"))
    assert distance(logits(folder, expected), expected["hf_logits"]) <= BAR


@needs_fixtures
@pytest.mark.parametrize("name", CASES)
def test_the_gguf_has_llama_cpps_numbers(name: str) -> None:
    folder = FIXTURES / "families" / name
    expected = dict(np.load(folder / "expected.npz"))
    about = json.loads((folder / "about.json").read_text())
    bar = GELU_TABLE if about["rel_l2_against_hf_logits_gelu_f16"] is not None else BAR
    if about["verdict"] == "agree":  # as near as transformers, where its own sums are rougher
        bar = max(bar, about["rel_l2_all_positions"])
    assert distance(logits(folder / "model.gguf", expected), expected["llamacpp_logits"]) <= bar


@needs_fixtures
@pytest.mark.parametrize("name", CASES)
def test_what_a_ggufs_pass_reads_is_known_before_it_runs(name: str) -> None:
    path = FIXTURES / "families" / name / "model.gguf"
    plan = make_plan(TraceJob(model=str(path), tokens=tuple(range(40))))
    assert 0 < plan.read_bytes <= path.stat().st_size


@pytest.mark.parametrize("family", sorted(ARCHITECTURES))
def test_a_gguf_as_the_converter_writes_it_has_the_folders_numbers(
    family: str, tmp_path: Path
) -> None:
    tiny = TINY[family]
    if family in UNWINDOWED:
        tiny = replace(tiny, settings={**tiny.settings, "sliding_window": None})
    save_tiny(tiny, tmp_path / "folder")
    write_gguf(tmp_path / "folder", family, tmp_path / "model.gguf")
    folder, made = our_logits(tmp_path / "folder"), our_logits(tmp_path / "model.gguf")
    assert float((made - folder).norm() / folder.norm()) <= BAR


def test_a_ggufs_layers_that_draft_tokens_are_left_out_and_told(tmp_path: Path) -> None:
    save_tiny(TINY["glm4moe"], tmp_path / "folder")
    write_gguf(tmp_path / "folder", "glm4moe", tmp_path / "model.gguf", drafting=True)
    folder, made = our_logits(tmp_path / "folder"), our_logits(tmp_path / "model.gguf")
    assert float((made - folder).norm() / folder.norm()) <= BAR
    told = [note for note in open_model(tmp_path / "model.gguf").notes if "draft tokens" in note]
    assert len(told) == 1 and told[0].startswith("left out: ")
