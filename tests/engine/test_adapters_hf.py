"""Hugging Face transformers as an engine: every stage of every family, against our own pass."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from aprtui.cli.main import main
from aprtui.engine.adapters import modules
from aprtui.engine.job import TraceJob
from aprtui.engine.plan import make_plan
from aprtui.engine.run import run_trace
from aprtui.errors import BadFileError, EngineError, UsageError
from aprtui.formats.tracedir import TraceDir, open_trace
from tests.support import FIXTURES, needs_fixtures

pytest.importorskip("transformers", reason="transformers is a dev dependency")

from tests.engine.test_against_transformers import CASES, TOKENS
from tests.families import TINY, save_tiny

BAR = 1e-5  # docs/numerics.md 1


_UNSHOWN = {
    "falcon",  # its attention asks no registry, and what it turns stays inside it
}


def trace(model: Path, directory: Path, engine: str, **job: object) -> TraceDir:
    tokens = job.pop("tokens", TOKENS)
    wanted = TraceJob(
        model=str(model), directory=str(directory), engine=engine, tokens=tokens, **job,  # type: ignore[arg-type]
    )  # fmt: skip
    run_trace(make_plan(wanted), lambda event: None)
    return open_trace(directory)


def worst_error(a: TraceDir, b: TraceDir) -> float:
    """The largest relative RMS difference of any stage; both sides must hold the same stages, but
    for those that the second engine says it does not compute."""
    assert b.manifest is not None
    absent = {item["stage"] for item in b.manifest["absent"]}
    assert {key for key in a.records if key.stage not in absent} == set(b.records)
    worst = 0.0
    for key in b.records:
        record = a.records[key]
        x, y = (np.asarray(r.values(), dtype=np.float64) for r in (record, b.records[key]))
        assert record.shape == b.records[key].shape, key
        worst = max(worst, float(np.linalg.norm(y - x) / np.linalg.norm(x)))
    return worst


# falcon-alibi: transformers' eager attention adds ALiBi twice, and bisect says so
# (tests/compare/test_planted_in_transformers.py)
@pytest.mark.parametrize("case", sorted(set(CASES) - _UNSHOWN - {"falcon-alibi"}))
def test_every_stage_of_a_family_is_captured_and_agrees(case: str, tmp_path: Path) -> None:
    family, settings = CASES[case]
    tiny = TINY[family]
    save_tiny(replace(tiny, settings={**tiny.settings, **settings}), tmp_path / "model")
    ours = trace(tmp_path / "model", tmp_path / "ours", "aprtui")
    theirs = trace(tmp_path / "model", tmp_path / "theirs", "hf")
    assert worst_error(ours, theirs) <= BAR


@pytest.mark.parametrize("family", sorted(_UNSHOWN))
def test_a_model_whose_modules_do_not_show_a_stage_is_refused_by_it(
    family: str, tmp_path: Path
) -> None:
    save_tiny(TINY[family], tmp_path / "model")
    with pytest.raises(EngineError, match="no module of it is known to give") as error:
        trace(tmp_path / "model", tmp_path / "theirs", "hf")
    assert "--stages" in str(error.value.hint)


@needs_fixtures
def test_a_real_model_agrees_with_our_own_pass(tmp_path: Path) -> None:
    model = FIXTURES / "models" / "pycode-5m"
    job = {"tokens": tuple(range(100, 140)), "logits": "all"}
    ours = trace(model, tmp_path / "ours", "aprtui", **job)
    theirs = trace(model, tmp_path / "theirs", "hf", **job)
    assert worst_error(ours, theirs) <= BAR


def test_watching_fewer_stages_changes_no_value(tmp_path: Path) -> None:
    save_tiny(TINY["gemma2"], tmp_path / "model")
    every = trace(tmp_path / "model", tmp_path / "all", "hf")
    few = trace(tmp_path / "model", tmp_path / "few", "hf", stages="attn_scores,ffn_out")
    assert {key.stage for key in few.records} == {"attn_scores", "ffn_out"}
    for key, record in few.records.items():
        assert record.path.read_bytes() == every.records[key].path.read_bytes()


def test_bfloat16_is_widened_and_stated(tmp_path: Path) -> None:
    save_tiny(TINY["qwen2"], tmp_path / "model")
    theirs = trace(tmp_path / "model", tmp_path / "t", "hf", dtype="bfloat16")
    assert theirs.manifest is not None
    engine = theirs.manifest["engine"]
    assert (engine["name"], engine["dtype"]) == ("transformers", "bfloat16")
    bits = np.ascontiguousarray(next(iter(theirs.records.values())).values()).view(np.uint32)
    assert not (bits & 0xFFFF).any()


def test_manifest_names_engine_version_and_settings(tmp_path: Path) -> None:
    import transformers

    save_tiny(TINY["mistral"], tmp_path / "model")
    theirs = trace(tmp_path / "model", tmp_path / "t", "hf")
    assert theirs.status == "complete" and theirs.manifest is not None
    engine = theirs.manifest["engine"]
    assert engine["version"] == transformers.__version__
    assert engine["settings"] == {"attention": "eager"}
    reasons = {item["stage"]: item["reason"] for item in theirs.manifest["absent"]}
    assert reasons["qkv_bias"] == "the layers have no q/k/v bias"


def test_a_stage_that_no_module_gives_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_tiny(TINY["llama"], tmp_path / "model")
    sources = tuple(each for each in modules.SOURCES if each.stage != "ffn_up")
    monkeypatch.setattr(modules, "SOURCES", sources)
    with pytest.raises(EngineError, match="no module of it is known to give layer-0/ffn_up"):
        trace(tmp_path / "model", tmp_path / "t", "hf")
    without = trace(tmp_path / "model", tmp_path / "u", "hf", stages="attn_*,ffn_gate")
    assert without.status == "complete"


def test_a_model_it_refuses_is_told_in_its_own_words(tmp_path: Path) -> None:
    save_tiny(TINY["llama"], tmp_path / "model")
    plan = make_plan(TraceJob(model=str(tmp_path / "model"), engine="hf", tokens=(1, 2)))
    (tmp_path / "model" / "config.json").unlink()
    with pytest.raises(BadFileError, match=r"transformers refuses it: .*config.json"):
        run_trace(plan, lambda event: None)


def test_apr_files_and_settings_are_refused_before_anything_runs(
    qwen2_apr: Path, qwen2: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["trace", str(qwen2_apr), "--engine", "hf"]) == 2
    assert "this model is apr" in capsys.readouterr().err
    assert main(["trace", str(qwen2), "--engine", "hf"]) == 2
    assert "reads Hugging Face folders, and this model is gguf" in capsys.readouterr().err
    assert main(["trace", str(qwen2), "--engine-arg", "kv=f16"]) == 2
    assert "takes no --engine-arg" in capsys.readouterr().err


def test_tokens_outside_the_vocabulary_are_refused_before_anything_is_loaded(
    tmp_path: Path,
) -> None:
    save_tiny(TINY["llama"], tmp_path / "model")
    with pytest.raises(UsageError, match="outside the vocabulary of 96 tokens"):
        make_plan(TraceJob(model=str(tmp_path / "model"), engine="hf", tokens=(96,)))
