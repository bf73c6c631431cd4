"""Each pair gets exactly one class, in order of computation; nothing unmeasured passes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from aprtui.compare.bars import parse_bar
from aprtui.compare.diff import Comparison, diff_traces
from aprtui.compare.infer import open_any, with_shapes
from aprtui.compare.pairs import DiffOptions, pair_up
from aprtui.errors import BadFileError, UsageError
from aprtui.formats.aprt import write_stage
from aprtui.formats.tracedir import StageKey, TraceDir, open_trace
from aprtui.graph.vocabulary import order_of
from tests.compare.captures import write_capture
from tests.support import FIXTURES, needs_fixtures

CAPTURES = FIXTURES / "captures"
CASES = FIXTURES / "faults/cases.json"
RNG = np.random.default_rng(0)


def _trace(path: Path) -> TraceDir:
    found = open_any(path)
    assert isinstance(found, TraceDir)
    return with_shapes(found)


def _diff(a: Path, b: Path, *bars: str, options: DiffOptions | None = None) -> Comparison:
    return diff_traces(_trace(a), _trace(b), options, [parse_bar(text) for text in bars])


def _kinds(found: Comparison) -> dict[str, str]:
    return {str(result.key): result.kind for result in found.results}


def _tensor(*shape: int) -> npt.NDArray[np.float32]:
    return RNG.standard_normal(shape).astype(np.float32)


@needs_fixtures
@pytest.mark.parametrize(
    "case",
    [c for c in json.loads(CASES.read_text()) if c["arithmetic"] == "float64"]
    if CASES.is_file()
    else [],
    ids=lambda case: str(case["capture"]),
)
def test_in_exact_arithmetic_the_first_divergence_is_the_first_culprit(
    case: dict[str, str],
) -> None:
    reference = CAPTURES / case["model"].removesuffix(".gguf") / "float64"
    found = _diff(reference, FIXTURES / "faults" / case["capture"], "rel_l2=1e-5")
    first = found.first_divergence
    assert (str(first.key) if first else None) == (case["culprits"] or [None])[0]
    assert found.exit_code() == (1 if case["culprits"] else 0)


@needs_fixtures
@pytest.mark.parametrize(
    "other",
    [p.parent for p in sorted(CAPTURES.glob("*/llamacpp*/layer-0")) if "moe" not in str(p)],
    ids=lambda p: f"{p.parent.name}-{p.name}",
)
def test_honest_captures_of_a_rounding_engine_pass(other: Path) -> None:
    found = _diff(other.parent / "float64", other)
    assert found.verdict == "pass"
    assert found.bars.rel_l2 == 0.1


@needs_fixtures
def test_pairs_come_in_order_of_computation_not_of_names() -> None:
    traces = FIXTURES / "apr/traces"
    found = _diff(traces / "qwen2-import", traces / "qwen2-import-fp32")
    keys = [result.key for result in found.results]
    assert keys == sorted(keys, key=order_of)
    assert [str(key) for key in keys[:3]] == [
        "layer-0/embedding", "layer-0/attn_norm", "layer-0/qkv_matmul",
    ]  # fmt: skip
    assert str(keys[-1]) == "lm_head"


@needs_fixtures
def test_a_folder_with_the_last_position_is_compared_only_when_asked() -> None:
    a, b = FIXTURES / "apr/float64/qwen3moe-gguf", FIXTURES / "apr/traces/qwen3moe-gguf"
    plain = _diff(a, b)
    assert _kinds(plain)["layer-0/moe_router"] == "shape"
    assert "--positions last" in next(r.message for r in plain.results if r.kind == "shape")
    last = _diff(a, b, options=DiffOptions(last_position=True))
    kinds = _kinds(last)
    assert [kinds[f"layer-{n}/moe_router_indices"] for n in range(4)] == ["equal"] * 4
    assert [kinds[f"layer-{n}/moe_router"] for n in range(4)] == ["within"] * 4
    assert kinds["layer-0/attn_norm"] == "missing-b"
    assert last.verdict == "unmeasured"
    assert last.exit_code() == 1
    assert last.exit_code(allow_unmeasured=True) == 0


@needs_fixtures
def test_the_last_position_of_every_kind_of_stage_is_its_last_row() -> None:
    a, b = (CAPTURES / "qwen2-q4_k_m" / name for name in ("float64", "llamacpp"))
    found = _diff(a, b, options=DiffOptions(last_position=True))
    by_key = {result.key: result for result in found.results}
    for stage, cut in (("ffn_gate", np.s_[-1]), ("attn_scores", np.s_[:, -1])):
        key = StageKey(1, stage)
        shape = _trace(a).records[key].shape
        assert shape is not None
        x, y = (
            _trace(side).records[key].values().reshape(shape)[cut].astype(np.float64)
            for side in (a, b)
        )
        metrics = by_key[key].metrics
        assert metrics is not None
        assert metrics.rel_l2 == pytest.approx(np.linalg.norm(y - x) / np.linalg.norm(x))


@needs_fixtures
def test_a_damaged_file_is_a_class_and_the_rest_goes_on(tmp_path: Path) -> None:
    reference = CAPTURES / "qwen2-q4_k_m/float64"
    shutil.copytree(reference, tmp_path / "b")
    damaged = tmp_path / "b/layer-1/ffn_up.bin"
    damaged.chmod(0o644)
    damaged.write_bytes(damaged.read_bytes()[:-40])
    found = _diff(reference, tmp_path / "b")
    assert found.counts == {"equal": 70, "unreadable": 1}
    assert "cut short" in next(r.message for r in found.results if r.kind == "unreadable")
    assert found.exit_code(allow_unmeasured=True) == 3


def test_missing_stages_are_listed_with_the_reason_and_never_pass(tmp_path: Path) -> None:
    norm = (_tensor(3, 4), ("token", "hidden"))
    bias = (_tensor(3, 64), ("token", "qkv"))
    a = write_capture(tmp_path / "a", {"layer-0/attn_norm.bin": norm, "layer-0/qkv_bias.bin": bias})
    b = write_capture(tmp_path / "b", {"layer-0/attn_norm.bin": norm, "layer-1/ffn_norm.bin": norm})
    found = diff_traces(a, b)
    assert _kinds(found) == {
        "layer-0/attn_norm": "equal",
        "layer-0/qkv_bias": "missing-b",
        "layer-1/ffn_norm": "missing-a",
    }
    assert "no q/k/v bias" in found.results[1].message
    assert all(result.metrics is None for result in found.results[1:])
    assert (found.verdict, found.exit_code()) == ("unmeasured", 1)


def test_a_file_gone_from_both_sides_is_not_passed_over(tmp_path: Path) -> None:
    norm = (_tensor(3, 4), ("token", "hidden"))
    for name in ("a", "b"):
        write_capture(
            tmp_path / name, {"layer-0/attn_norm.bin": norm, "layer-0/ffn_norm.bin": norm}
        )
        (tmp_path / name / "layer-0/ffn_norm.bin").unlink()
    found = diff_traces(open_trace(tmp_path / "a"), open_trace(tmp_path / "b"))
    assert _kinds(found)["layer-0/ffn_norm"] == "missing-a"
    assert "on both sides" in found.results[1].message
    assert found.exit_code() == 1


def test_nothing_compared_is_no_pass_even_when_unmeasured_is_allowed(tmp_path: Path) -> None:
    norm = (_tensor(3, 4), ("token", "hidden"))
    a = write_capture(tmp_path / "a", {"layer-0/attn_norm.bin": norm})
    b = write_capture(tmp_path / "b", {"layer-0/ffn_norm.bin": norm})
    assert diff_traces(a, b).exit_code(allow_unmeasured=True) == 1
    with pytest.raises(UsageError, match="no stage"):
        pair_up(a, b, DiffOptions(stages=("lm_head",)))


def test_a_trace_that_grows_is_compared_as_far_as_it_is(tmp_path: Path) -> None:
    norm = (_tensor(3, 4), ("token", "hidden"))
    a = write_capture(tmp_path / "a", {"layer-0/attn_norm.bin": norm, "lm_head.bin": norm})
    write_stage(tmp_path / "b/layer-0/attn_norm.bin", 0, norm[0])
    plan = {"event": "plan", "files": 2, "tokens": [1, 2, 3]}
    (tmp_path / "b/events.jsonl").write_text(json.dumps(plan) + "\n")
    b = open_trace(tmp_path / "b")
    assert b.token_ids == (1, 2, 3)
    found = diff_traces(a, b)
    assert _kinds(found) == {"layer-0/attn_norm": "equal", "lm_head": "missing-b"}
    assert any("still growing: 1 of 2 files" in note for note in found.notes)


def test_different_prompts_are_refused_unless_told_otherwise(tmp_path: Path) -> None:
    norm = {"layer-0/attn_norm.bin": (_tensor(3, 4), ("token", "hidden"))}
    a = write_capture(tmp_path / "a", norm, tokens=(1, 2, 3))
    b = write_capture(tmp_path / "b", norm, tokens=(1, 9, 3))
    with pytest.raises(UsageError, match="different from token 1 on"):
        diff_traces(a, b)
    assert diff_traces(a, b, ignore_tokens=True).verdict == "pass"


@pytest.mark.parametrize("layouts", [("halves", "adjacent"), ("adjacent", "halves")])
def test_row_orders_of_q_and_k_are_reconciled_and_said(
    tmp_path: Path, layouts: tuple[str, str]
) -> None:
    tokens, heads, kv_heads, channel = 3, 4, 2, 8
    halves = np.arange(channel)
    adjacent = np.array([j * 4 + i for i in range(4) for j in range(2)])
    order = dict(zip(("halves", "adjacent"), (halves, adjacent), strict=True))
    q, k = _tensor(tokens, heads, channel), _tensor(tokens, kv_heads, channel)
    v = _tensor(tokens, kv_heads * channel)

    def written(name: str, layout: str) -> TraceDir:
        pq, pk = q[..., order[layout]], k[..., order[layout]]
        qkv = np.concatenate([pq.reshape(tokens, -1), pk.reshape(tokens, -1), v], axis=1)
        return write_capture(
            tmp_path / name,
            {
                "layer-0/qkv_matmul.bin": (qkv, ("token", "qkv")),
                "layer-0/q_post_rope.bin": (pq, ("token", "head", "channel")),
                "layer-0/k_post_rope.bin": (pk, ("token", "kv_head", "channel")),
                "layer-0/attention.bin": (q, ("token", "head", "channel")),
            },
            rope_layout=layout,
        )

    found = diff_traces(written("a", layouts[0]), written("b", layouts[1]))
    assert found.counts == {"equal": 4}
    assert any("reordered inside each head" in note for note in found.notes)


def test_expert_ids_differ_as_whole_numbers(tmp_path: Path) -> None:
    axes = ("token", "rank")
    ids = np.array([[1, 5], [2, 3]], dtype=np.float32)
    a = write_capture(tmp_path / "a", {"layer-0/moe_router_indices.bin": (ids, axes)})
    b = write_capture(
        tmp_path / "b", {"layer-0/moe_router_indices.bin": (ids[:, ::-1].copy(), axes)}
    )
    found = diff_traces(a, b, overrides=[parse_bar("rel_l2=100")])
    assert _kinds(found) == {"layer-0/moe_router_indices": "differs"}
    assert "mismatches 4 > 0" in found.results[0].message


def test_the_same_nan_on_both_sides_is_no_difference_but_is_shown(tmp_path: Path) -> None:
    values = _tensor(3, 4)
    values[1, 2] = np.nan
    other = values * np.float32(1 + 1e-7)
    axes = ("token", "hidden")
    a = write_capture(tmp_path / "a", {"layer-0/attn_norm.bin": (values, axes)})
    b = write_capture(tmp_path / "b", {"layer-0/attn_norm.bin": (other, axes)})
    result = diff_traces(a, b).results[0]
    assert result.kind == "within"
    assert "1 NaN and 0 Inf at the same places" in result.message


def test_equal_counts_of_other_shapes_are_not_compared(tmp_path: Path) -> None:
    a = write_capture(
        tmp_path / "a", {"layer-0/attn_norm.bin": (_tensor(3, 4), ("token", "hidden"))}
    )
    b = write_capture(
        tmp_path / "b", {"layer-0/attn_norm.bin": (_tensor(4, 3), ("token", "hidden"))}
    )
    result = diff_traces(a, b).results[0]
    assert result.kind == "shape"
    assert "[3, 4] against [4, 3]" in result.message


@pytest.mark.parametrize(
    "damage",
    [
        {"tokens": 5},
        {"tokens": {"ids": 7}},
        {"tokens": {"ids": ["x"]}},
        {"absent": [3]},
        {"model": "m.gguf"},
        {"engine": []},
        {"stages": [{"path": "../x.bin"}]},
        {"stages": 1},
    ],
)
def test_a_damaged_manifest_is_a_bad_file(tmp_path: Path, damage: dict[str, object]) -> None:
    norm = {"layer-0/attn_norm.bin": (_tensor(3, 4), ("token", "hidden"))}
    write_capture(tmp_path, norm)
    path = tmp_path / "trace.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | damage))
    with pytest.raises(BadFileError, match="manifest"):
        open_trace(tmp_path)


@pytest.mark.parametrize("config", [None, 3, {"num_heads": "x", "head_dim": -8}, {"head_dim": 8}])
def test_an_odd_config_in_a_manifest_costs_no_traceback(tmp_path: Path, config: object) -> None:
    qkv = {"layer-0/qkv_matmul.bin": (_tensor(3, 64), ("token", "qkv"))}
    a = write_capture(tmp_path / "a", qkv)
    b = write_capture(tmp_path / "b", qkv, rope_layout="adjacent")
    assert b.manifest is not None
    manifest = dict(b.manifest) | {"model": {"config": config}}
    (tmp_path / "b/trace.json").write_text(json.dumps(manifest))
    assert diff_traces(a, open_trace(tmp_path / "b")).counts == {"equal": 1}
