"""RoPE's frequencies kept in 16 bits are an honest arithmetic; a fault of theirs stays one. What a
runtime computes is numpy's own here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from aprtui.compare.bisect import bisect
from aprtui.compare.bisection import Bisection
from aprtui.compare.worker import Options
from aprtui.graph.rope import RopeTable
from tests.compare.planting import TOKENS, Plant, Scene, compute, model_of, write
from tests.support import FIXTURES, needs_fixtures

Array = npt.NDArray[np.float64]
Kept = Callable[[Array], Array]

pytestmark = needs_fixtures

MODELS: dict[str, tuple[str, tuple[tuple[str, str], ...]]] = {
    "halves": ("qwen2-q4_k_m.gguf", ()),
    "adjacent": ("llama-q4_k_m.gguf", (("rope_scaling", "llama3:8:1:4:16"),)),
}
Q, K = "layer-1/q_post_rope", "layer-1/k_post_rope"
ROTATED = Options(("q_post_rope",), (1,))


def exact(x: Array) -> Array:
    return x


def bf16(x: Array) -> Array:
    """x to nearest even in eight bits."""
    bits = x.astype(np.float32).view(np.uint32)
    whole = bits + 0x7FFF + ((bits >> 16) & 1) & np.uint32(0xFFFF0000)
    return np.asarray(whole.view(np.float32), np.float64)


def f16(x: Array) -> Array:
    return x.astype(np.float16).astype(np.float64)


KEPT: dict[str, Kept] = {"float16": f16, "bfloat16": bf16}


def frequencies(table: RopeTable, theta: float, scaled: bool) -> Array:
    made = theta ** (-2.0 * np.arange(table.dims // 2) / table.dims)
    return np.asarray(made / table.divisors if scaled and table.divisors else made)


def turned(
    kept: Kept,
    *,
    out: Kept = exact,
    tables: Kept = exact,
    theta: float | None = None,
    scaled: bool = True,
    divided: float = 1.0,
) -> Plant:
    """The rotation by frequencies and ``tables`` that were kept so, of another base, without their
    scaling, or with one that the model does not have."""

    def plant(scene: Scene) -> Array:
        heads, table = scene.own.heads, scene.own.table
        x = scene.inputs[0].reshape(len(TOKENS), -1)[:, heads.columns]
        x = x.reshape(len(TOKENS), heads.count, heads.size)
        turns = kept(frequencies(table, theta or table.theta, scaled) / divided)
        angle = np.outer(np.arange(len(TOKENS)), turns)[:, None]
        halves, half = table.pairs == "halves", table.dims // 2
        one, two = (x[..., :half], x[..., half:]) if halves else (x[..., ::2], x[..., 1::2])
        made = np.empty_like(x)
        first, second = (np.s_[:half], np.s_[half:]) if halves else (np.s_[::2], np.s_[1::2])
        cos, sin = tables(np.cos(angle)), tables(np.sin(angle))
        made[..., first] = one * cos - two * sin
        made[..., second] = two * cos + one * sin
        return out(made)

    return plant


def found(
    root: Path, pairs: str, plants: dict[str, Plant], options: Options | None = None
) -> Bisection:
    name, overrides = MODELS[pairs]
    model = model_of(FIXTURES / "models" / name, overrides)
    trace = write(root / "t", compute(model, plants))
    return bisect(model, trace, tokens=TOKENS, options=options)


def by(bisection: Bisection, name: str) -> str:
    return next(each.by for each in bisection.explained if str(each.key) == name)


@pytest.mark.parametrize("pairs", MODELS)
@pytest.mark.parametrize("kind", KEPT)
def test_frequencies_of_16_bits_are_honest(pairs: str, kind: str, tmp_path: Path) -> None:
    """As OpenVINO keeps them with an F16 GGUF, which computes in float32."""
    plant = turned(KEPT[kind])
    bisection = found(tmp_path, pairs, {Q: plant, K: plant})
    assert bisection.culprits == ()
    assert by(bisection, Q) == by(bisection, K) == f"RoPE's frequencies in {kind}"


@pytest.mark.parametrize("pairs", MODELS)
@pytest.mark.parametrize("kind", KEPT)
def test_also_where_the_output_has_16_bits(pairs: str, kind: str, tmp_path: Path) -> None:
    """As a model of transformers that was cast whole, its buffers too."""
    plant = turned(KEPT[kind], out=KEPT[kind])
    bisection = found(tmp_path, pairs, {Q: plant})
    assert bisection.culprits == ()
    assert f"RoPE's frequencies in {kind}" in by(bisection, Q)


ENGINES: dict[str, Kept] = {"float32": exact, **KEPT}


@pytest.mark.parametrize("what", ["frequencies", "tables"])
@pytest.mark.parametrize("kind", KEPT)
@pytest.mark.parametrize("engine", ENGINES)
def test_a_table_of_16_bits_is_honest_in_an_engine_of_any_type(
    engine: str, kind: str, what: str, tmp_path: Path
) -> None:
    """Its own type or the other one of 16 bits, as of a model that was cast twice."""
    kept, out = KEPT[kind], ENGINES[engine]
    plant = turned(kept, out=out) if what == "frequencies" else turned(exact, tables=kept, out=out)
    bias: Plant = lambda scene: out(scene.right)  # noqa: E731
    bisection = found(tmp_path, "halves", {"layer-1/qkv_bias": bias, Q: plant}, ROTATED)
    assert (bisection.culprits, bisection.within, bisection.unmeasured) == ((), (), ())
    named = "RoPE's frequencies" if what == "frequencies" else "RoPE tables"
    assert f"{named} in {kind}" in by(bisection, Q)


@pytest.mark.parametrize("pairs", MODELS)
def test_exact_frequencies_are_said_to_be_nothing_else(pairs: str, tmp_path: Path) -> None:
    for kind, kept in KEPT.items():
        bisection = found(tmp_path / kind, pairs, {Q: turned(exact, out=kept), K: turned(exact)})
        assert bisection.culprits == ()
        assert "frequencies" not in by(bisection, Q) + by(bisection, K)


FAULTS: dict[str, tuple[str, dict[str, Any], str]] = {
    "base": ("halves", {"theta": 5e5}, "rope_theta"),
    "odd base": ("halves", {"theta": 12000.0}, "rope_theta"),
    "base, adjacent": ("adjacent", {"theta": 1e4}, "rope_theta"),
    "linear": ("halves", {"divided": 4.0}, "rope_table"),
    "no scaling": ("adjacent", {"scaled": False}, "rope_freqs_ignored"),
}


@pytest.mark.parametrize("kind", ["float32", *KEPT])
@pytest.mark.parametrize("fault", FAULTS)
def test_another_base_or_no_scaling_is_a_culprit_with_its_name(
    fault: str, kind: str, tmp_path: Path
) -> None:
    """Alone, and where the frequencies were rounded as well."""
    pairs, wrong, name = FAULTS[fault]
    plant = turned(KEPT.get(kind, exact), **wrong)
    bisection = found(tmp_path, pairs, {Q: plant})
    named = {str(each.key): each.mistake and each.mistake.id for each in bisection.culprits}
    assert named == {Q: name}
    (culprit,) = bisection.culprits
    assert culprit.mistake is not None
    assert culprit.mistake.parameters.get("theta") == wrong.get("theta")


@pytest.mark.parametrize("kind", KEPT)
@pytest.mark.parametrize("fault", FAULTS)
def test_the_same_in_an_engine_of_16_bits(fault: str, kind: str, tmp_path: Path) -> None:
    pairs, wrong, name = FAULTS[fault]
    plant = turned(KEPT[kind], out=KEPT[kind], **wrong)
    bisection = found(tmp_path, pairs, {Q: plant})
    named = {str(each.key): each.mistake and each.mistake.id for each in bisection.culprits}
    assert named == {Q: name}
