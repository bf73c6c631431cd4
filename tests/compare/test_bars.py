"""The bar follows from what is compared, says why, and can be overridden."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from aprtui.compare.bars import (
    Bars,
    Override,
    check_overrides,
    choose_bars,
    floor_of,
    judge,
    parse_bar,
)
from aprtui.compare.metrics import compare_values
from aprtui.errors import UsageError
from aprtui.formats.tracedir import StageKey, TraceDir
from tests.benchmarks import format_floors
from tests.compare.captures import write_capture

KEY = StageKey(3, "ffn_gate")
TENSORS = {"layer-0/attn_norm.bin": (np.ones((3, 4), dtype=np.float32), ("token", "hidden"))}


@pytest.mark.parametrize(
    ("left", "right", "bar", "reason"),
    [
        ({}, {}, 1e-5, "both float32"),
        ({}, {"dtype": "bfloat16"}, 2e-2, "bfloat16"),
        ({"dtype": "float16"}, {}, 3e-3, "float16"),
        ({}, {"engine": "llama.cpp", "types": {"q": ["Q4_K"]}}, 0.1, "quantises activations"),
        (
            {"digest": "sha256:1", "types": {"q": ["Q4_K"], "attn_norm": ["F32"]}},
            {"digest": "sha256:2", "types": {"q": ["Q8_0"], "attn_norm": ["F32"]}},
            math.hypot(0.07, 0.005) * 2,
            "different quantisation: Q4_K 0.07 and Q8_0 0.005",
        ),
        (
            {"digest": "sha256:1", "types": {"q": ["Q4_K"]}},
            {"digest": "sha256:2", "types": {"q": ["Q4_K"]}},
            1e-5,
            "same block types",
        ),
    ],
)
def test_the_bar_is_that_of_the_table(
    tmp_path: Path, left: dict[str, str], right: dict[str, str], bar: float, reason: str
) -> None:
    a = write_capture(tmp_path / "a", TENSORS, **left)  # type: ignore[arg-type]
    b = write_capture(tmp_path / "b", TENSORS, **right)  # type: ignore[arg-type]
    found = choose_bars(a, b)
    assert found.rel_l2 == pytest.approx(bar)
    assert found.worst_row_rel_l2 == pytest.approx(bar * (10 if bar == 1e-5 else 4))
    assert reason in found.reason
    assert choose_bars(b, a).rel_l2 == pytest.approx(bar)


def test_a_side_without_manifest_is_unknown_arithmetic(tmp_path: Path) -> None:
    a = write_capture(tmp_path / "a", TENSORS)
    b = TraceDir(a.root, "foreign", a.records, None, None)
    found = choose_bars(a, b)
    assert (found.rel_l2, found.worst_row_rel_l2) == (0.1, 0.4)
    assert "unknown arithmetic (B has no manifest)" in found.reason


def test_overrides_are_read() -> None:
    assert parse_bar("rel_l2=1e-3") == Override("rel_l2", 1e-3)
    assert parse_bar("ffn_*:rel_l2=5e-2") == Override("rel_l2", 0.05, "ffn_*")
    assert parse_bar("layer-3/*:cosine_sim=0.999") == Override("cosine", 0.999, "layer-3/*")


@pytest.mark.parametrize(
    "text", ["rel_l2", "rel_l2=", "rel_l2=nan", "rel_l2=-1", "=1", "ffn_*:=1", "rel_l3=1", ""]
)
def test_a_bar_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_bar(text)


def test_an_override_must_name_a_known_or_a_captured_stage() -> None:
    held = (StageKey(3, "ffn_up"), StageKey(0, "their_own"))
    for text in ("rel_l2=1", "ffn_*:rel_l2=1", "layer-3/*:rel_l2=1", "their_*:rel_l2=1"):
        check_overrides((parse_bar(text),), held)
    for text in ("zzz_*:rel_l2=1", "layer-4/*:rel_l2=1"):
        with pytest.raises(UsageError, match="no stage is called"):
            check_overrides((parse_bar(text),), held)


def test_an_override_reaches_the_stages_it_names_and_moves_the_worst_row_along() -> None:
    bars = Bars(1e-5, 1e-4, "r", (parse_bar("ffn_*:rel_l2=1e-2"), parse_bar("max_abs=3")))
    assert bars.limits(KEY) == pytest.approx(
        {"rel_l2": 1e-2, "worst_row_rel_l2": 1e-1, "max_abs": 3.0}
    )
    assert bars.limits(StageKey(3, "attn_norm"))["rel_l2"] == 1e-5


def test_metrics_are_held_against_their_bars_each_in_its_direction() -> None:
    x = np.array([3.0, 4.0], dtype=np.float32)
    metrics = compare_values(x, x * np.float32(1.5))
    names = ["rel_l2=0.4", "cosine=0.9999", "scale=0.4", "std_ratio=0.6", "max_abs=1.9"]
    bars = Bars(0.1, 0.4, "r", tuple(parse_bar(name) for name in names))
    assert {e.metric for e in judge(metrics, bars, KEY)} == {"rel_l2", "scale", "max_abs"}
    loose = Bars(0.6, 0.6, "r")
    assert judge(metrics, loose, KEY) == ()


def test_what_is_not_a_number_never_passes() -> None:
    zero, one = np.zeros(2, dtype=np.float32), np.ones(2, dtype=np.float32)
    metrics = compare_values(zero, one)
    assert judge(metrics, Bars(1e9, 1e9, "r"), KEY)
    scale = judge(metrics, Bars(math.inf, math.inf, "r", (parse_bar("scale=1e9"),)), KEY)
    assert [e.metric for e in scale] == ["scale"]


_BY_GGUF = ("Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0", "TQ1_0", "TQ2_0", "MXFP4")  # without C


@pytest.mark.parametrize("kind", [*format_floors.PLAIN, *_BY_GGUF])
def test_a_floor_is_what_the_formats_own_rounding_leaves(kind: str) -> None:
    """Between normal values' and heavier tails', a little room on either side; the types that only
    ggml's C quantises are in the table that the script prints."""
    found = []
    for weights in (format_floors.normal()[:16], format_floors.tailed()[:16]):
        found.append(format_floors.left(weights, format_floors.rounded(kind, weights)))
    assert 0.9 * min(found) <= floor_of(kind) <= 1.25 * max(found), found


def test_an_adapted_weight_has_its_bases_floor() -> None:
    assert floor_of("Q4_K+LoRA") == floor_of("Q4_K")
