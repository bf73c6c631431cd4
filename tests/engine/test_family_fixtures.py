"""Checkpoints and the GGUFs that llama.cpp's converter made of them: each gives the numbers of the
program that it was made for (shared/fixtures/families/README.md)."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from aprtui.compare.bisect import bisect
from aprtui.engine.job import TraceJob
from aprtui.engine.plan import make_plan
from aprtui.errors import BadFileError, UnknownFamilyError
from aprtui.model.open import open_model
from tests.as_gguf import ARCHITECTURES, write_gguf
from tests.compare.planting import Array, Scene, compute, write
from tests.engine.mutations import our_logits
from tests.engine.written import WRITTEN
from tests.families import TINY, save_tiny
from tests.gguf_keys import with_keys
from tests.support import FIXTURES, SMALL, needs_fixtures

BAR = 1e-5  # docs/numerics.md 1
GELU_TABLE = 1e-3  # ggml's CPU GELU is a table in f16 (docs/numerics.md 1)
UNWINDOWED = ("starcoder2",)  # llama.cpp computes without the window
TIED = {"deepseek_v32": 6}  # from that position on the choice of keys lies between equal scores
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
    folder, rows = FIXTURES / "families" / name, slice(None, TIED.get(name))
    expected = dict(np.load(folder / "expected.npz"))
    assert distance(logits(folder, expected)[rows], expected["hf_logits"][rows]) <= BAR


@needs_fixtures
@pytest.mark.parametrize("name", CASES)
def test_the_gguf_has_llama_cpps_numbers(name: str) -> None:
    folder, rows = FIXTURES / "families" / name, slice(None, TIED.get(name))
    expected = dict(np.load(folder / "expected.npz"))
    about = json.loads((folder / "about.json").read_text())
    bar = GELU_TABLE if about["rel_l2_against_hf_logits_gelu_f16"] is not None else BAR
    if about["verdict"] == "agree":  # as near as transformers, where its own sums are rougher
        bar = max(bar, about["rel_l2_all_positions"])
    found = logits(folder / "model.gguf", expected)
    assert distance(found[rows], expected["llamacpp_logits"][rows]) <= bar


@needs_fixtures
@pytest.mark.parametrize(("file", "theirs"), [("", "hf_logits"), ("model.gguf", "llamacpp_logits")])
def test_of_keys_with_equal_scores_either_may_be_chosen(
    file: str, theirs: str, tmp_path: Path
) -> None:
    """Both programs chose another one than we do: with it we have their logits, and no culprit."""

    def other(s: Scene) -> Array:
        scores, out = s.inputs[0][0, -1], s.right.copy()
        assert scores[4] == scores[5] and list(out[0, -1, 4:6]) == [1, 0]
        out[0, -1, 4:6] = 0, 1
        return out

    folder = FIXTURES / "families" / "deepseek_v32"
    expected, model = dict(np.load(folder / "expected.npz")), open_model(folder / file)
    tokens = tuple(int(token) for token in expected["tokens"])
    values = compute(model, {"layer-1/index_keys": other}, tokens=tokens)
    assert distance(values[model.graph.nodes[-1].key], expected[theirs][-1]) <= BAR
    assert bisect(model, write(tmp_path / "trace", values), tokens=tokens).culprits == ()


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


@needs_fixtures
@pytest.mark.parametrize("case", sorted(WRITTEN))
def test_a_gguf_that_no_fixture_holds_has_llama_cpps_logits(case: str, tmp_path: Path) -> None:
    """tests/fixtures/llamacpp/written.npz: libllama v0.5.0's logits of the last position."""
    with np.load(SMALL / "llamacpp" / "written.npz") as recorded:
        theirs = recorded[case].astype(np.float64)
    ours = our_logits(WRITTEN[case](tmp_path))[-1].double().numpy()
    assert np.linalg.norm(ours - theirs) / np.linalg.norm(theirs) <= BAR


def test_a_pair_of_channels_without_an_axis_does_not_turn_as_in_llama_cpp(tmp_path: Path) -> None:
    (note,) = (n for n in open_model(WRITTEN["qwen3vl"](tmp_path)).notes if "sections" in n)
    assert "1 of 4 pairs of channels without an axis" in note


def test_positions_that_no_key_says_are_not_guessed(tmp_path: Path) -> None:
    """Baichuan's: RoPE's with 32 layers and ALiBi's with 40, as llama.cpp has it."""
    source = WRITTEN["baichuan"](tmp_path)
    made = with_keys(source, tmp_path / "other.gguf", {"block_count": 31}, without=r"blk\.31\.")
    with pytest.raises(BadFileError, match=r"num_layers is 31: .* no key of a GGUF says which"):
        open_model(made)


@pytest.mark.parametrize("kind", ["internlm2", "minicpm", "baichuan", "bailing_moe"])
def test_a_folder_whose_code_is_elsewhere_says_that_its_gguf_is_read(
    kind: str, tmp_path: Path
) -> None:
    save_tiny(TINY["llama"], tmp_path)
    config = tmp_path / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_type": kind}))
    with pytest.raises(UnknownFamilyError, match=f"a folder of '{kind}' cannot be traced") as told:
        open_model(tmp_path)
    assert "a GGUF of it can" in told.value.hint


def test_a_ggufs_layers_that_draft_tokens_are_left_out_and_told(tmp_path: Path) -> None:
    save_tiny(TINY["glm4moe"], tmp_path / "folder")
    write_gguf(tmp_path / "folder", "glm4moe", tmp_path / "model.gguf", drafting=True)
    folder, made = our_logits(tmp_path / "folder"), our_logits(tmp_path / "model.gguf")
    assert float((made - folder).norm() / folder.norm()) <= BAR
    told = [note for note in open_model(tmp_path / "model.gguf").notes if "draft tokens" in note]
    assert len(told) == 1 and told[0].startswith("left out: ")
