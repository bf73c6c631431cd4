"""Fused kernels that no arithmetic reproduces are within rounding; mistakes inside them are not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import jsonschema
import numpy as np
import numpy.typing as npt
import pytest

from aprtui.cli.main import main
from aprtui.compare.bisect import bisect
from aprtui.compare.bisection import Bisection
from aprtui.compare.diff import diff_traces
from aprtui.compare.wire import from_json
from aprtui.formats.tracedir import open_trace
from aprtui.model.open import Model, open_model
from aprtui.report.build import build_report
from aprtui.tui.bisected import seen
from tests.compare.planting import Plant, Scene, compute, write
from tests.compare.test_runtimes import HIDDEN_PROBABILITIES, TOKENS, bf16, summed
from tests.support import FIXTURES, needs_fixtures

Array = npt.NDArray[np.float64]
NAME = "layer-1/attention"
CONTRACTS = Path(__file__).resolve().parents[2] / "contracts"
pytestmark = needs_fixtures


@pytest.fixture(scope="module")
def model() -> Model:
    return open_model(FIXTURES / "models" / "qwen2-q4_k_m.gguf")


def online(
    scene: Scene,
    *,
    scale: float = 1.0,
    dealt: bool = False,
    ahead: int = 0,
    shifted: int | None = None,
) -> Array:
    """Attention over keys in pairs, with everything that is carried from one to the next rounded:
    an order of its own that nothing else here has. The rest are the mistakes that are planted."""
    count, kv_heads, size = scene.heads
    q, k = scene.value("q_post_rope"), scene.value("k_post_rope")
    v = scene.inputs[1].reshape(len(TOKENS), -1)[:, scene.own.values.columns]
    v = v.reshape(len(TOKENS), kv_heads, size)
    out = np.zeros((len(TOKENS), count, size))
    for head in range(count):
        shared = head % kv_heads if dealt else head * kv_heads // count
        for row in range(len(TOKENS)):
            last = min(len(TOKENS), row + 1 + ahead)
            top, total, held = -np.inf, 0.0, np.zeros(size)
            for first in range(0, last, 2):
                keys = slice(first, min(first + 2, last))
                s = scale * (k[keys, shared] @ q[row, head]) / np.sqrt(size)
                above = max(top, s.max())
                p = bf16(np.exp(s - above))
                down = float(bf16(np.exp(np.array([top - above])))[0]) if first else 0.0
                held = bf16(held * down + p @ v[keys, shared])
                total, top = total * down + p.sum(), above
            out[row, head] = held / total
    made = bf16(out)
    if shifted is not None:
        made[shifted] = made[shifted - 1]
    return made


def bisected(root: Path, model: Model, attention: Plant) -> Bisection:
    plants: dict[str, Plant] = dict.fromkeys(
        ("layer-1/q_post_rope", "layer-1/k_post_rope", "layer-1/qkv_bias"), summed
    )
    values = compute(model, {**plants, NAME: attention}, tokens=TOKENS)
    return bisect(model, write(root / "trace", values, HIDDEN_PROBABILITIES), tokens=TOKENS)


def test_a_kernel_of_an_order_of_its_own_is_within_rounding(tmp_path: Path, model: Model) -> None:
    found = bisected(tmp_path, model, online)
    assert found.culprits == () and found.exit_code == 0
    (within,) = found.within
    assert str(within.key) == NAME and within.type == "bfloat16"
    assert 0.3 < within.units < within.bar_units < 1.5
    assert within.span == ("attn_scores", "attn_softmax")
    assert "1 of them within rounding" in found.headline
    (told,) = found.to_json()["within_rounding"]
    assert told["stage"] == "attention" and told["units"] == within.units


MISTAKES: dict[str, Callable[[Scene], Array]] = {
    "a score scale off by 2 %": lambda scene: online(scene, scale=1.02),
    "a score scale off by 1 %": lambda scene: online(scene, scale=1.01),
    "kv heads dealt round": lambda scene: online(scene, dealt=True),
    "a mask off by one": lambda scene: online(scene, ahead=1),
    "a stale row": lambda scene: online(scene, shifted=5),
    "an output off by half a percent": lambda scene: bf16(1.005 * online(scene)),
    "one channel of one head off by 3 %": lambda scene: one_channel(online(scene)),
}


def one_channel(made: Array) -> Array:
    changed = made.copy()
    changed[:, 2, 7] *= 1.03
    return bf16(changed)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_inside_such_a_kernel_is_a_culprit(
    tmp_path: Path, model: Model, mistake: str
) -> None:
    found = bisected(tmp_path, model, MISTAKES[mistake])
    assert [str(each.key) for each in found.culprits] == [NAME]
    assert not found.within


def test_every_surface_shows_it_apart(
    tmp_path: Path, model: Model, capsys: pytest.CaptureFixture[str]
) -> None:
    found = bisected(tmp_path, model, online)
    trace = tmp_path / "trace"
    words = [
        "bisect",
        str(trace),
        "--model",
        str(model.path),
        "--tokens",
        ",".join(map(str, TOKENS)),
    ]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert "\nwithin rounding: fused steps of 16 bits" in text
    assert f"1 stage attention: {found.within[0].text}" in text
    assert main([*words, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    jsonschema.validate(document, json.loads((CONTRACTS / "bisect.schema.json").read_text()))
    screen = seen(from_json(document))
    assert screen.value.to_json() == document, "the same value in every process"
    assert screen.count("within") == 1 and "1 within rounding" in screen.verdict_line().plain
    shown = screen.findings[found.within[0].key].text
    assert found.within[0].text in shown and "units of bfloat16" in shown
    capture = open_trace(trace)
    same = diff_traces(capture, capture)
    report = build_report(capture, capture, same, model=model, bisection=found)
    assert any("within rounding" in each.by for each in report.explanations)
