"""The pass agrees with float64, whatever is watched, and in bounded memory."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from aprtui.engine.events import Event, Planned
from aprtui.engine.job import TraceJob
from aprtui.engine.plan import make_plan
from aprtui.engine.run import run_trace
from aprtui.errors import AprtuiError
from aprtui.formats.aprt import read_values
from tests.support import FIXTURES, SMALL, needs_fixtures

BAR = 1e-5  # docs/numerics.md 1


def trace(model: Path, out: Path, tokens: tuple[int, ...], **options: object) -> list[Event]:
    events: list[Event] = []
    job = TraceJob(model=str(model), directory=str(out), tokens=tokens, **options)  # type: ignore[arg-type]
    run_trace(make_plan(job), events.append)
    return events


def relative_rms(found: npt.NDArray[np.float32], reference: npt.NDArray[np.float32]) -> float:
    x = reference.astype(np.float64)
    return float(np.sqrt(((found - x) ** 2).sum() / max((x**2).sum(), 1e-300)))


def assert_agrees(out: Path, reference: Path, bar: float = BAR) -> None:
    files = sorted(reference.rglob("*.bin"))
    assert files
    for file in files:
        relative = file.relative_to(reference)
        expected, found = read_values(file), read_values(out / relative)
        assert found.size == expected.size, relative
        assert relative_rms(found, expected) <= bar, relative


def captures(root: Path) -> Iterator[tuple[Path, tuple[int, ...], Path]]:
    for folder in sorted((root / "captures").iterdir()):
        said = json.loads((folder / "capture.json").read_text())
        yield root / "models" / said["model"], tuple(said["token_ids"]), folder / "float64"


def test_every_stage_agrees_with_float64(tmp_path: Path) -> None:
    for model, tokens, reference in captures(SMALL):
        trace(model, tmp_path / model.stem, tokens)
        assert_agrees(tmp_path / model.stem, reference)


@needs_fixtures
@pytest.mark.parametrize("name", sorted(p.name for p in FIXTURES.glob("captures/*")))
def test_every_family_agrees_with_float64(name: str, tmp_path: Path) -> None:
    model, tokens, reference = next(c for c in captures(FIXTURES) if c[2].parent.name == name)
    trace(model, tmp_path / "out", tokens)
    assert_agrees(tmp_path / "out", reference)


APR_FILES: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "qwen2-import": ("captures/qwen2-q4_k_m/float64", {}),
    "llama-import": ("captures/llama-q4_k_m/float64", {}),
    "llama-convert": ("captures/llama-q4_k_m/float64", {}),
    "qwen3-import": ("captures/qwen3-q6_k/float64", {}),
    "gemma3-preserve": ("captures/gemma3-q4_0/float64", {"sliding_window": "4"}),
    "llamaspm-preserve": ("captures/llamaspm-q4_0/float64", {}),
    "qwen3moe-preserve": ("captures/qwen3moe-q4_k_m/float64", {"num_experts_per_tok": "3"}),
    "pycode-f16": ("apr/float64/pycode-f16", {}),
    "pycode-int8": ("apr/float64/pycode-int8", {}),
    "pycode-int4": ("apr/float64/pycode-int4", {}),
}


def reference_tokens(reference: Path) -> tuple[int, ...]:
    if reference.name == "float64":
        said = json.loads((reference.parent / "capture.json").read_text())
        return tuple(said["token_ids"])
    cases = json.loads((FIXTURES / "apr" / "cases.json").read_text())
    return tuple(next(c["token_ids"] for c in cases if c["model"] == "models/pycode-f16.apr"))


@needs_fixtures
@pytest.mark.parametrize("name", sorted(APR_FILES))
def test_files_of_the_public_apr_agree_with_float64(name: str, tmp_path: Path) -> None:
    relative, overrides = APR_FILES[name]
    reference = FIXTURES / relative
    model = FIXTURES / "apr" / "models" / f"{name}.apr"
    trace(model, tmp_path / "out", reference_tokens(reference), overrides=overrides)
    assert_agrees(tmp_path / "out", reference)


@needs_fixtures
def test_experts_per_token_are_never_guessed() -> None:
    model = FIXTURES / "apr" / "models" / "qwen3moe-preserve.apr"
    with pytest.raises(AprtuiError, match=r"num_experts_per_tok.*--set num_experts_per_tok="):
        make_plan(TraceJob(model=str(model), tokens=(1, 2)))


@needs_fixtures
def test_safetensors_folder_agrees_with_float64(tmp_path: Path) -> None:
    """The folder is the model that `pycode-f16.apr` was imported from."""
    reference = FIXTURES / "apr" / "float64" / "pycode-f16"
    trace(FIXTURES / "models" / "pycode-5m", tmp_path / "out", reference_tokens(reference))
    assert_agrees(tmp_path / "out", reference)


@pytest.mark.parametrize(("dtype", "bar"), [("bfloat16", 5e-2), ("float16", 6e-3)])
def test_lower_precision_stays_near_float64(
    dtype: str, bar: float, qwen2: Path, tmp_path: Path
) -> None:
    """The bars of docs/compare.md 3, doubled: errors add up over the layers."""
    reference = SMALL / "captures" / "qwen2-q4_k_m" / "float64"
    trace(qwen2, tmp_path / "out", reference_tokens(reference), dtype=dtype)
    final = read_values(tmp_path / "out" / "lm_head.bin")
    assert relative_rms(final, read_values(reference / "lm_head.bin")) <= bar
    assert not np.array_equal(final, read_values(reference / "lm_head.bin"))


def test_watching_changes_no_value(qwen2: Path, tmp_path: Path) -> None:
    trace(qwen2, tmp_path / "all", (5, 6, 7, 8))
    for stage in ("attn_scores", "ffn_gate", "lm_head", "attention"):
        trace(qwen2, tmp_path / stage, (5, 6, 7, 8), stages=stage)
        for file in (tmp_path / stage).rglob("*.bin"):
            whole = tmp_path / "all" / file.relative_to(tmp_path / stage)
            assert file.read_bytes() == whole.read_bytes(), file


def test_a_prompt_of_1500_tokens_is_causal(qwen2: Path, tmp_path: Path) -> None:
    """Attention goes in blocks of queries; what a token sees does not depend on what follows it."""
    long = tuple((7 * place) % 2000 for place in range(1500))
    trace(qwen2, tmp_path / "long", long, stages="post_ffn_residual,lm_head")
    trace(qwen2, tmp_path / "short", long[:700], stages="post_ffn_residual")
    whole = read_values(tmp_path / "long" / "layer-3" / "post_ffn_residual.bin").reshape(1500, -1)
    part = read_values(tmp_path / "short" / "layer-3" / "post_ffn_residual.bin").reshape(700, -1)
    assert relative_rms(whole[:700], part) <= BAR


def test_memory_does_not_grow_with_layers(qwen2: Path, tmp_path: Path) -> None:
    """What Python and torch hold at the end of a pass is no more than one layer's values."""
    from aprtui.engine.forward import forward
    from aprtui.engine.ops import Pass
    from aprtui.engine.weights import WeightStream
    from aprtui.formats.tracedir import StageKey
    from aprtui.model.open import open_model

    class Counting:
        """A tap that keeps nothing and counts the values that are alive at each stage."""

        def __init__(self) -> None:
            self.alive: dict[int, int] = {}

        def put(self, key: StageKey, value: torch.Tensor) -> None:
            if key.stage == "ffn_gate" and key.layer is not None:
                self.alive[key.layer] = tracemalloc.get_traced_memory()[0]

        def open_blocks(self, key: StageKey) -> None:
            return None

    model = open_model(qwen2)
    stream = WeightStream(model, torch.device("cpu"), torch.float32)
    tap = Counting()
    tracemalloc.start()
    with torch.inference_mode():
        forward(model.graph, Pass(stream, (1, 2, 3)), tap)
    tracemalloc.stop()
    assert tap.alive[3] <= tap.alive[1] + 100_000


def test_the_plan_is_sent_before_anything_is_computed(qwen2: Path, tmp_path: Path) -> None:
    events = trace(qwen2, tmp_path / "out", (1, 2, 3))
    assert isinstance(events[0], Planned)
    assert [event.event for event in events[:2]] == ["plan", "started"]
    assert events[-1].event == "done"


@needs_fixtures
def test_heads_of_latent_attention_are_no_experts_to_a_plan(tmp_path: Path) -> None:
    """A GGUF keeps each head's part of k and v apart: all are read, of dense layers too."""
    model = FIXTURES / "families" / "deepseek_v3" / "model.gguf"
    plan = make_plan(TraceJob(model=str(model), directory=str(tmp_path / "t"), tokens=(3, 5)))
    assert 0 < plan.read_bytes < model.stat().st_size
