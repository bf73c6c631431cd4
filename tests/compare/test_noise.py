"""Fused kernels that no arithmetic reproduces are within rounding; mistakes inside them are not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from aprtui.compare.bisect import bisect
from aprtui.compare.bisection import Bisection
from aprtui.model.open import Model, open_model
from tests.compare.planting import Plant, Scene, compute, write
from tests.compare.test_runtimes import HIDDEN_PROBABILITIES, TOKENS, bf16, summed
from tests.support import FIXTURES, needs_fixtures

Array = npt.NDArray[np.float64]
NAME = "layer-1/attention"
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
