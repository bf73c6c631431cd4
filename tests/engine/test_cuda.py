"""On a CUDA device: the CPU's values within the bar, its decoded weights bit for bit; nothing else.

Skipped where there is none. What can be shown without one is shown by test_triton_decoders.py,
test_staging.py, test_sessions.py and test_placement.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from aprtui.engine.staging import Staging
from aprtui.engine.weights import WeightStream
from aprtui.formats.aprt import read_values
from aprtui.model.open import open_model
from tests.engine.test_sessions import TOKENS, assert_same, stages
from tests.engine.test_trace_cli import files, trace
from tests.support import FIXTURES, needs_fixtures

COUNT = torch.cuda.device_count() if torch.cuda.is_available() else 0
pytestmark = pytest.mark.skipif(COUNT == 0, reason="there is no CUDA device")

LONG = ",".join(str(i * 37 % 500) for i in range(600))


def errors(a: Path, b: Path) -> dict[str, float]:
    """Relative RMS of every stage file of ``a`` against that of ``b``."""
    found = {}
    for path in sorted(b.rglob("*.bin")):
        name = str(path.relative_to(b))
        ours, theirs = (read_values(root / name).astype(np.float64) for root in (a, b))
        scale = np.sqrt(np.square(theirs).mean()) or 1.0
        found[name] = float(np.sqrt(np.square(ours - theirs).mean()) / scale)
    return found


@needs_fixtures
@pytest.mark.parametrize("tokens", ["54,71,271,312,220,17,10,17,30", LONG])
@pytest.mark.parametrize(
    "name", ["qwen2-q4_k_m", "llama-q4_k_m", "qwen3-q6_k", "qwen3moe-q4_k_m", "gemma3-q4_0"]
)
def test_every_stage_is_the_cpus_within_the_bar(name: str, tokens: str, tmp_path: Path) -> None:
    model = FIXTURES / "models" / f"{name}.gguf"
    for device in ("cpu", "cuda:0"):
        assert trace(model, tmp_path / device, "--tokens", tokens, "--device", device) == 0
    apart = errors(tmp_path / "cuda:0", tmp_path / "cpu")
    bar = 3e-5 if tokens == LONG else 1e-5
    assert {name: error for name, error in apart.items() if error > bar} == {}


def test_two_runs_write_the_same_bytes_whatever_is_watched(qwen2: Path, tmp_path: Path) -> None:
    for run in ("a", "b"):
        assert trace(qwen2, tmp_path / run, "--device", "cuda:0", "--tokens", LONG) == 0
    assert files(tmp_path / "a") == files(tmp_path / "b")
    one = ["--stages", "attn_scores", "--layers", "2"]
    assert trace(qwen2, tmp_path / "c", "--device", "cuda:0", "--tokens", LONG, *one) == 0
    for name, written in files(tmp_path / "c").items():
        assert written == files(tmp_path / "a")[name]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_dtypes_run(dtype: str, qwen2: Path, tmp_path: Path) -> None:
    assert trace(qwen2, tmp_path / "t", "--device", "cuda:0", "--dtype", dtype) == 0
    assert len(files(tmp_path / "t")) == 71


def test_resident_weights_change_no_byte_and_are_uploaded_once(
    qwen2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("one\nand another\nand a third one\n")
    options = ["--device", "cuda:0", "--prompts", str(prompts)]
    assert trace(qwen2, tmp_path / "streamed", *options) == 0
    uploads: list[int] = []
    kept, on_device = Staging.kept, Staging.on_device

    def counted(self: Staging, stored: torch.Tensor) -> torch.Tensor:
        uploads.append(stored.numel())
        return kept(self, stored)

    monkeypatch.setattr(Staging, "kept", counted)
    monkeypatch.setattr(Staging, "on_device", None)  # everything fits: nothing streams
    assert trace(qwen2, tmp_path / "resident", *options, "--resident") == 0
    monkeypatch.setattr(Staging, "on_device", on_device)
    assert files(tmp_path / "resident") == files(tmp_path / "streamed")
    matrices = [
        role
        for role, matrix in open_model(qwen2).weights.items()
        if len(matrix.entry.shape) > 1 and role.name != "embedding"
    ]
    assert len(uploads) == len(matrices)


def test_what_does_not_fit_streams_and_changes_no_byte(
    qwen2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aprtui.engine.session import Session

    prompts = tmp_path / "prompts.txt"
    prompts.write_text("one\nand another\n")
    options = ["--device", "cuda:0", "--prompts", str(prompts)]
    assert trace(qwen2, tmp_path / "streamed", *options) == 0
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1_000_000, 1_000_000))
    monkeypatch.setattr(Session, "_working_bytes", lambda self, plans, device: 100_000)
    assert trace(qwen2, tmp_path / "partly", *options, "--resident") == 0
    assert files(tmp_path / "partly") == files(tmp_path / "streamed")
    manifest = json.loads((tmp_path / "partly" / "prompt-2" / "trace.json").read_text())
    assert any("the rest streams" in note for note in manifest["notes"])


def test_the_manifest_says_who_decoded(qwen2: Path, tmp_path: Path) -> None:
    assert trace(qwen2, tmp_path / "t", "--device", "cuda") == 0
    engine: dict[str, Any] = json.loads((tmp_path / "t" / "trace.json").read_text())["engine"]
    assert engine["settings"]["decoder"].startswith(("triton ", "torch ("))
    assert engine["device"].startswith("cuda:")
    assert not engine["tf32"]


def test_a_second_pass_waits_for_no_first(qwen2: Path) -> None:
    """Kept, streamed and vectors shared between passes that are queued one behind the other."""
    stream = WeightStream(open_model(qwen2), torch.device("cuda", 0), torch.float32)
    first = {key: value.cpu() for key, value in stages(stream).items()}
    for _ in range(3):
        assert_same({key: value.cpu() for key, value in stages(stream, TOKENS).items()}, first)


@pytest.mark.skipif(COUNT < 2, reason="there are not two CUDA devices")
@pytest.mark.parametrize("resident", [False, True])
def test_layers_on_two_devices_write_the_bytes_of_one(
    resident: bool, qwen2: Path, tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("one\nand another\n")
    options = ["--prompts", str(prompts), *(["--resident"] if resident else [])]
    assert trace(qwen2, tmp_path / "one", "--device", "cuda:0", *options) == 0
    assert trace(qwen2, tmp_path / "two", "--device", "cuda:0,cuda:1", *options) == 0
    assert files(tmp_path / "one") == files(tmp_path / "two")
    engine = json.loads((tmp_path / "two" / "prompt-1" / "trace.json").read_text())["engine"]
    assert set(engine["settings"]["layers"]) == {"cuda:0", "cuda:1"}
