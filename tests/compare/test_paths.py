"""One engine's ways to the same rows: where they first part, which rows, which passes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from aprtui.cli.main import main
from aprtui.compare.paths import compare_paths
from aprtui.engine.job import TraceJob
from aprtui.engine.plan import make_plan
from aprtui.engine.run import run_trace
from aprtui.errors import UsageError
from aprtui.formats.aprt import read_values, write_stage
from aprtui.formats.tracedir import StageKey, TraceDir, open_trace

TOKENS = tuple(range(40, 52))


def run(model: Path, out: Path, **job: object) -> TraceDir:
    wanted = TraceJob(model=str(model), directory=str(out), **job)  # type: ignore[arg-type]
    run_trace(make_plan(wanted), lambda event: None)
    return open_trace(out)


@pytest.fixture
def ways(qwen2: Path, tmp_path: Path) -> list[TraceDir]:
    """Prefill, chunks, and a prompt of 8 with 4 tokens decoded, which are others."""
    return [
        run(qwen2, tmp_path / "prefill", tokens=TOKENS, kv="f32"),
        run(qwen2, tmp_path / "chunked", tokens=TOKENS, chunk=5),
        run(qwen2, tmp_path / "decoded", tokens=TOKENS[:8], steps=4),
    ]


def spoil(trace: TraceDir, key: StageKey, row: int, by: float) -> None:
    """One row of a stage off by a factor, as a faulty cache would leave it."""
    record = trace.records[key]
    assert record.shape is not None
    values = read_values(record.path).copy().reshape(record.shape)
    values[row] *= by
    write_stage(record.path, key.layer, values)


def test_ways_of_one_engine_are_the_same_bits_over_the_tokens_they_share(
    ways: list[TraceDir],
) -> None:
    chunked, decoded = compare_paths(ways)
    assert (chunked.verdict, chunked.equal, chunked.tokens) == ("same", chunked.stages, 12)
    assert (decoded.verdict, decoded.tokens) == ("unmeasured", 8)
    assert decoded.alone == (StageKey(None, "lm_head"),)  # of no position that both hold
    assert decoded.equal == decoded.stages - 1


def test_the_first_stage_that_parts_is_named_with_its_rows_and_passes(
    ways: list[TraceDir], capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(ways[1], StageKey(2, "ffn_gate"), 11, 1.001)
    spoil(ways[1], StageKey(3, "attn_out"), 3, 2.0)
    (found,) = compare_paths(ways[:2])
    assert found.verdict == "differs" and found.beyond is not None
    assert found.beyond.key == StageKey(2, "ffn_gate")
    assert (found.beyond.positions, found.beyond.passes) == ((11,), (2,))
    assert "parts first at layer-2/ffn_gate, position 11 (pass 2)" in found.sentence
    roots = [str(trace.root) for trace in ways[:2]]
    assert main(["diff", "--paths", *roots]) == 1
    told = capsys.readouterr().out
    assert "chunked  differs: parts first at layer-2/ffn_gate" in told and "bisect" in told
    assert main(["diff", "--paths", *roots, "--json"]) == 1
    said = json.loads(capsys.readouterr().out)["ways"][0]
    assert said["beyond"]["positions"] == [11] and said["largest"]["stage"] == "attn_out"


def test_rounding_is_within_and_its_first_stage_is_told(ways: list[TraceDir]) -> None:
    spoil(ways[1], StageKey(1, "attn_norm"), 5, 1 + 1e-6)
    (found,) = compare_paths(ways[:2])
    assert found.verdict == "within" and found.first is not None
    assert "other bits first at layer-1/attn_norm, position 5 (pass 1)" in found.sentence


def test_a_wrong_row_of_scores_counts_over_all_heads(ways: list[TraceDir]) -> None:
    record = ways[1].records[StageKey(0, "attn_scores")]
    values = read_values(record.path).copy().reshape(record.shape or ())
    values[3, 9, :4] += 1.0
    write_stage(record.path, 0, values)
    (found,) = compare_paths(ways[:2])
    assert found.beyond is not None and found.beyond.positions == (9,)


def test_nan_on_one_way_is_no_rounding(ways: list[TraceDir]) -> None:
    spoil(ways[1], StageKey(1, "ffn_out"), 2, float(np.nan))
    (found,) = compare_paths(ways[:2])
    assert found.beyond is not None and found.beyond.key == StageKey(1, "ffn_out")


def test_what_is_no_way_of_the_same_engine_is_refused(
    ways: list[TraceDir], tmp_path: Path, qwen2: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["diff", "--paths", str(ways[0].root)]) == 2
    assert "one was given" in capsys.readouterr().err
    other = run(qwen2, tmp_path / "other", tokens=(7, 8, 9))
    with pytest.raises(UsageError, match="another prompt"):
        compare_paths([ways[0], other])
    copy = tmp_path / "copy"
    shutil.copytree(ways[1].root, copy)
    manifest = json.loads((copy / "trace.json").read_text())
    manifest["engine"] = {"name": "mine"}
    manifest["tokens"]["ids"][0] += 1  # which is told after what is no way at all
    (copy / "trace.json").write_text(json.dumps(manifest))
    with pytest.raises(UsageError, match="another engine"):
        compare_paths([ways[0], open_trace(copy)])
    assert main(["diff", "--paths", str(ways[0].root), str(copy)]) == 2
    assert "--paths asks one engine" in capsys.readouterr().err
    assert main(["diff", *(str(way.root) for way in ways)]) == 2
    assert "decoded: the captures are of different prompts" in capsys.readouterr().err
