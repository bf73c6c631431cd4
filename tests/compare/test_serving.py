"""Every dump of a serving runtime is judged as its right.json says: rows, passes, ranks, culprits.

The dumps and their answers were made without aprtui: /work/shared/fixtures/serving/README.md.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from aprtui import api
from aprtui.compare.bisection import Bisection
from aprtui.formats.tracedir import StageKey, TraceDir, open_trace
from aprtui.model.open import Model, open_model
from tests.support import FIXTURES, needs_fixtures

ROUNDED_BY_RANK = "09-tp2-bf16"  # each rank's share of a row-parallel product is rounded
CASES = [
    ("01-prefill-decode-f32", "a", 81),
    ("02-chunked-bf16", "a", 81),
    *(("03-batch-f32", name, 45) for name in "abc"),
    ("04-tp2-f32", "a", 71),
    ("05-tp2-partial-f32", "a", 71),
    *(("06-hf-leftpad-f32", name, 39) for name in "abc"),
    ("07-rope-decode-off-by-one", "a", 81),
    ("08-tp2-partial-twice", "a", 71),
    (ROUNDED_BY_RANK, "a", 71),
    *(("10-graph-padding-bf16", name, 81) for name in "abc"),
]


@pytest.fixture(scope="module")
def pycode() -> Model:
    return open_model(FIXTURES / "models" / "pycode-5m")


def right_rows(right: dict[str, Any], name: str) -> tuple[list[int], list[int], list[int]]:
    """(positions, the pass of each, positions that have logits) of one sequence, by right.json."""
    sequence = right["sequences"][name]
    if "passes" not in right:
        positions = sequence["runtime_positions"]
        return positions, [0] * len(positions), positions
    rows = [
        (position, made["n"])
        for made in right["passes"]
        for part in made["rows"] if part["sequence"] == name
        for position in part["positions"]
    ]  # fmt: skip
    logits = [p for made in right["passes"] for who, p in made["logits_of"] if who == name]
    return [position for position, _ in rows], [number for _, number in rows], logits


def imported(case: str, name: str, model: Model, folder: Path) -> tuple[TraceDir, dict[str, Any]]:
    source = FIXTURES / "serving" / case
    right: dict[str, Any] = json.loads((source / "right.json").read_text())
    several = len(right["sequences"]) > 1
    done = api.import_trace(
        source / right.get("file", ""),
        model=model,
        output=folder,
        sequence=right["sequences"][name]["index"] if several else None,
    )
    assert done.ranks == right["ranks"] and not done.contradictions
    assert list(done.findings) == right["findings"] and done.dtype == right["dtype"]
    return open_trace(folder), right


@needs_fixtures
@pytest.mark.parametrize(("case", "name", "stages"), CASES)
def test_a_serving_dump_is_judged_as_it_is_right(
    tmp_path: Path, pycode: Model, case: str, name: str, stages: int
) -> None:
    trace, right = imported(case, name, pycode, tmp_path / "trace")
    positions, passes, logits = right_rows(right, name)
    sequence = right["sequences"][name]
    assert list(trace.token_ids or ()) == sequence["tokens"]
    assert trace.rows is not None and len(trace.records) == stages
    assert (list(trace.rows.positions), list(trace.rows.passes)) == (positions, passes)
    assert trace.rows.sequence == (sequence["index"] if len(right["sequences"]) > 1 else None)
    head = trace.records[StageKey(None, "lm_head")]
    assert head.positions == ("all" if logits == positions else tuple(logits))
    found = api.bisect(trace, model=pycode)
    by_rank = {each.key.stage for each in found.explained if "sums of 2 ranks" in each.by}
    assert by_rank == ({"attn_out", "ffn_out"} if case == ROUNDED_BY_RANK else set())
    assert len(found.explained) + len(found.culprits) == stages and not found.unmeasured
    check_culprits(found, right, name)


def check_culprits(found: Bisection, right: dict[str, Any], name: str) -> None:
    """The culprits are those of right.json, at its positions and in its passes, as far away."""
    wanted = {
        (each["layer"], each["stage"]): each
        for each in right["culprits"] if name in each["sequences"]
    }  # fmt: skip
    assert {(each.key.layer, each.key.stage) for each in found.culprits} == set(wanted)
    for culprit in found.culprits:
        each = wanted[culprit.key.layer, culprit.key.stage]
        assert culprit.rows is not None and culprit.local_rel_l2 is not None
        assert list(culprit.rows.positions) == each["positions"]
        if "rotated for position + 1" in each["what"]:
            assert culprit.mistake is not None and culprit.mistake.parameters["by"] == 1
            assert "positions 10-13 (passes 1-4): counted +1" in culprit.text
        assert sorted(set(culprit.rows.passes)) == each["passes"]
        assert culprit.local_rel_l2 == pytest.approx(each["local_error"]["whole_stage"], rel=0.01)
    if right["dtype"] == "float32":
        assert max(each.local_rel_l2 for each in found.explained) < 1e-6


@needs_fixtures
def test_the_runtimes_ranks_stand_in_the_manifest(tmp_path: Path, pycode: Model) -> None:
    trace, _ = imported("09-tp2-bf16", "a", pycode, tmp_path / "trace")
    assert trace.manifest is not None
    assert trace.manifest["engine"]["settings"]["tensor_parallel"] == 2


@needs_fixtures
def test_a_decode_trace_is_compared_with_a_prefill_by_position(
    tmp_path: Path, pycode: Model
) -> None:
    trace, _ = imported("01-prefill-decode-f32", "a", pycode, tmp_path / "b")
    ids = trace.token_ids
    for logits in ("last", "all"):
        whole = api.trace(
            pycode, tokens=ids, directory=tmp_path / logits, logits=logits, layers="0"
        )
        found = api.diff(whole, trace)
        by_key = {result.key: result for result in found.results}
        head = by_key[StageKey(None, "lm_head")]
        assert head.kind == "within" and head.shape == (1 if logits == "last" else 5, 2048)


@needs_fixtures
def test_a_sequence_that_begins_late_is_turned_where_it_stands(
    tmp_path: Path, pycode: Model
) -> None:
    """What a hit of the prefix cache leaves: its first rows' keys lie in no pass of the dump."""
    (tmp_path / "dump").mkdir()
    for number in range(1, 5):
        file = FIXTURES / "serving" / "01-prefill-decode-f32" / f"pass{number}.pt"
        (tmp_path / "dump" / file.name).write_bytes(file.read_bytes())
    done = api.import_trace(tmp_path / "dump", model=pycode, output=tmp_path / "trace")
    assert any("the keys of positions 0-11 are not in the dump" in note for note in done.notes)
    trace = open_trace(tmp_path / "trace")
    assert trace.rows is not None and trace.rows.positions == (12, 13, 14, 15)
    found = api.bisect(trace, model=pycode)
    assert not found.culprits
    lost = {each.key.stage for each in found.unmeasured}
    assert lost == {"attn_scores", "attn_softmax", "attention"}
    imported("01-prefill-decode-f32", "a", pycode, tmp_path / "whole")
    compared = api.diff(tmp_path / "whole", trace)
    assert {result.kind for result in compared.results} == {"equal"}
    assert {result.shape[0] for result in compared.results if result.shape} == {4}
    turned = [each for each in found.explained if each.key.stage == "q_post_rope"]
    assert len(turned) == 6 and max(each.local_rel_l2 for each in turned) < 1e-6


@needs_fixtures
def test_a_layer_that_is_another_layers_is_named(tmp_path: Path, pycode: Model) -> None:
    imported("01-prefill-decode-f32", "a", pycode, tmp_path / "t")
    (tmp_path / "t" / "layer-1").rename(tmp_path / "other")
    (tmp_path / "t" / "layer-2").rename(tmp_path / "t" / "layer-1")
    (tmp_path / "other").rename(tmp_path / "t" / "layer-2")
    found = api.bisect(
        tmp_path / "t", model=pycode, layers="1,2", stages="ffn_gate,ffn_up,ffn_out,attn_out"
    )
    said = [note for note in found.notes if "holds what layer" in note]
    assert len(said) == 2 and "try it as layer 2" in said[0] and "try it as layer 1" in said[1]


@needs_fixtures
def test_a_hit_of_the_prefix_cache_takes_its_first_rows_from_the_request_that_made_them(
    tmp_path: Path, pycode: Model
) -> None:
    """The same request twice: the second one is computed from position 12 on."""
    source = FIXTURES / "serving" / "01-prefill-decode-f32"
    right = json.loads((source / "right.json").read_text())
    (tokens,) = (each["tokens"] for each in right["sequences"].values())
    (tmp_path / "dump").mkdir()
    for number in range(9):
        file = source / f"pass{number if number < 5 else number - 4}.pt"
        (tmp_path / "dump" / f"pass{number}.pt").write_bytes(file.read_bytes())
    how: dict[str, Any] = {"model": pycode, "sequence": 1}
    late = api.import_trace(tmp_path / "dump", output=tmp_path / "late", **how)
    assert late.tokens == 4 and any("positions 0-11 are not" in note for note in late.notes)
    done = api.import_trace(tmp_path / "dump", tokens=tokens, output=tmp_path / "b", **how)
    assert (done.tokens, done.stages, done.sequence) == (16, 81, 1)
    said = "positions 0-11: the rows of sequence 0, which has the same tokens"
    assert said in done.notes and not any("are not in the dump" in note for note in done.notes)
    trace = open_trace(tmp_path / "b")
    assert trace.rows is not None and trace.rows.passes == (0,) * 12 + (5, 6, 7, 8)
    found = api.bisect(trace, model=pycode)
    assert (found.culprits, found.unmeasured, len(found.explained)) == ((), (), 81)
    other = [*tokens[:3], 7, *tokens[4:]]
    done = api.import_trace(tmp_path / "dump", tokens=other, output=tmp_path / "c", **how)
    assert done.tokens == 4
    assert "no sequence of the dump holds positions 0-11 of these tokens" in done.notes
