"""Models that carry something along their tokens, in passes: against transformers' own cache, and
what is lost on the way from one pass to the next is located."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from aprtui.compare.bisect import bisect
from aprtui.compare.paths import compare_paths
from aprtui.engine import cached
from aprtui.engine.job import TraceJob
from aprtui.engine.plan import make_batch
from aprtui.engine.run import run_traces
from aprtui.errors import EngineError
from aprtui.formats.tracedir import open_trace
from aprtui.model.open import open_model
from tests.engine.test_adapters_hf import worst_error
from tests.engine.test_passes import TOKENS, run, saved

CHUNKED = {"tokens": TOKENS[:23], "chunk": 9, "steps": 3}
UNBOUNDED: dict[str, Any] = {"time_step_limit": (0.0, float("inf"))}
WITHOUT: dict[str, dict[str, Any]] = {
    "lfm2": {"conv_bias": False},
    "mamba2": {**UNBOUNDED, "use_bias": False},
    "granitemoehybrid": {"mamba_proj_bias": False},
    "falcon_h1": UNBOUNDED,
    "nemotron_h": {"use_bias": False, "time_step_min": 1e-9},
    "zamba2": {"add_bias_linear": False, "time_step_min": 1e-9},
    "mamba": {"use_bias": False},
    "jamba": {"mamba_proj_bias": False},
}
"""What transformers itself computes otherwise in passes (docs/numerics.md 6)."""
FAMILIES = (
    "lfm2", "mamba2", "granitemoehybrid", "bamba", "qwen3_next", "qwen3_5", "falcon_h1",
    "nemotron_h", "zamba2",
)  # fmt: skip
OF_CHANNELS = ("mamba", "falcon_mamba", "jamba")


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_carries_the_same_from_pass_to_pass(family: str, tmp_path: Path) -> None:
    model = saved(family, tmp_path / "model", **WITHOUT.get(family, {}))
    ours = run(model, tmp_path / "ours", **CHUNKED)
    theirs = run(model, tmp_path / "theirs", engine="hf", **CHUNKED)
    assert theirs.token_ids == ours.token_ids and theirs.rows == ours.rows
    assert worst_error(ours, theirs) <= 1e-5


@pytest.mark.parametrize("family", OF_CHANNELS)
def test_transformers_decodes_a_scan_of_channels_alike(family: str, tmp_path: Path) -> None:
    model = saved(family, tmp_path / "model", **WITHOUT.get(family, {}))
    ours = run(model, tmp_path / "ours", tokens=TOKENS[:20], steps=4)
    theirs = run(model, tmp_path / "theirs", engine="hf", tokens=TOKENS[:20], steps=4)
    assert theirs.token_ids == ours.token_ids and theirs.rows == ours.rows
    assert worst_error(ours, theirs) <= 1e-5


@pytest.mark.parametrize("family", OF_CHANNELS)
def test_that_transformers_begins_such_a_scan_anew_in_each_chunk_is_found(
    family: str, tmp_path: Path
) -> None:
    """Its function of many rows takes no state to begin with."""
    model = saved(family, tmp_path / "model", **WITHOUT.get(family, {}))
    chunked = run(model, tmp_path / "t", engine="hf", tokens=TOKENS[:23], chunk=9)
    found = bisect(open_model(model), chunked)
    named = {(each.key.stage, each.mistake and each.mistake.id) for each in found.culprits}
    assert named == {("ssm_scan", "state_lost"), ("ssm_state", "state_lost")}


@pytest.mark.parametrize("family", ["lfm2", "mamba2", "granitemoehybrid", "qwen3_next"])
def test_a_padded_batch_of_transformers_carries_nothing_of_its_padding(
    family: str, tmp_path: Path
) -> None:
    model = saved(family, tmp_path / "model", **WITHOUT.get(family, {}))
    job = TraceJob(str(model), str(tmp_path / "b"), logits="all", steps=2, engine="hf")
    prompts = (TOKENS[:12], TOKENS[3:9])
    run_traces(make_batch(job, prompts), lambda event: None)
    for at, tokens in enumerate(prompts, 1):
        ours = run(model, tmp_path / f"ours-{at}", tokens=tokens, steps=2)
        assert worst_error(ours, open_trace(tmp_path / "b" / f"prompt-{at}")) <= 1e-5


def test_what_transformers_decodes_without_its_limits_is_found(tmp_path: Path) -> None:
    """Its mamba2 keeps steps between limits in a prefill and not in decode steps."""
    model = saved("mamba2", tmp_path / "model")
    decoded = run(model, tmp_path / "decoded", engine="hf", tokens=TOKENS[:20], steps=3)
    once = run(model, tmp_path / "once", engine="hf", tokens=decoded.token_ids)
    (way,) = compare_paths([once, decoded])
    assert way.beyond is not None and str(way.beyond.key) == "layer-0/ssm_dt"
    assert way.beyond.positions == (20, 21, 22)
    found = bisect(open_model(model), decoded)
    assert {culprit.key.stage for culprit in found.culprits} == {"ssm_dt"}
    assert found.culprits[0].where == "positions 20-22 (passes 1-3)"


def _lost(patch: pytest.MonkeyPatch, code: Any, name: str, argument: str) -> None:
    """Every call begins without what it is given from the pass before."""
    right = getattr(code, name)
    patch.setattr(code, name, lambda *given, **named: right(*given, **{**named, argument: None}))


LOST = {
    "qwen3_5": ("torch_chunk_gated_delta_rule", "initial_state", {"delta_out", "delta_state"}),
    "mamba2": ("mamba2_chunk_scan", "initial_states", {"ssm_scan", "ssm_state"}),
}


@pytest.mark.parametrize("family", sorted(LOST))
def test_a_state_that_is_lost_at_a_chunks_edge_is_located_and_named(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = saved(family, tmp_path / "model", **WITHOUT.get(family, {}))
    name, argument, stages = LOST[family]
    code = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    _lost(monkeypatch, code, name, argument)
    chunked = run(model, tmp_path / "t", engine="hf", tokens=TOKENS[:23], chunk=9)
    found = bisect(open_model(model), chunked)
    named = {(each.key.stage, each.mistake and each.mistake.id) for each in found.culprits}
    assert named == {(stage, "state_lost") for stage in stages}
    for culprit in found.culprits:
        assert culprit.mistake is not None
        assert culprit.mistake.text == "what is carried along is lost between passes"
        state = culprit.key.stage.endswith("state")  # which has no rows
        assert culprit.where == "" if state else culprit.where.startswith("positions 9")


def test_a_convolution_that_forgets_the_pass_before_is_located_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.cache_utils import DynamicCache

    model = saved("lfm2", tmp_path / "model")
    monkeypatch.setattr(DynamicCache, "update_conv_state", lambda self, x, *more, **named: x)
    chunked = run(model, tmp_path / "t", engine="hf", tokens=TOKENS[:23], chunk=9)
    found = bisect(open_model(model), chunked)
    assert [str(each.key) for each in found.culprits] == ["layer-0/conv", "layer-2/conv"]
    assert {each.mistake and each.mistake.id for each in found.culprits} == {"state_lost"}
    assert found.culprits[0].where == "positions 9-10, 18-19 (passes 1-2)"


def test_an_operation_that_hands_nothing_on_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel of a new operation that forgets to say what it carries."""
    model = saved("lfm2", tmp_path / "model")
    monkeypatch.setattr(cached._Rows, "keep", lambda self, carried: None)
    with pytest.raises(EngineError, match="layer-0/conv hands nothing on from pass to pass"):
        run(model, tmp_path / "t", tokens=TOKENS[:12], chunk=5)


def test_our_states_are_those_of_one_pass_to_the_bit(tmp_path: Path) -> None:
    model = saved("qwen3_5", tmp_path / "model")
    once = run(model, tmp_path / "once", tokens=TOKENS[:23], kv="f32")
    chunked = run(model, tmp_path / "chunked", tokens=TOKENS[:23], chunk=9)
    (way,) = compare_paths([once, chunked])
    assert way.verdict == "same"
    plain = run(model, tmp_path / "plain", tokens=TOKENS[:23])
    (way,) = compare_paths([plain, chunked])
    assert way.verdict == "within"
    assert not bisect(open_model(model), chunked).culprits
