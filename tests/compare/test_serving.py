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

CASES = [
    ("01-prefill-decode-f32", "a", 81),
    ("02-chunked-bf16", "a", 81),
    *(("03-batch-f32", name, 45) for name in "abc"),
    ("04-tp2-f32", "a", 71),
    ("05-tp2-partial-f32", "a", 71),
    *(("06-hf-leftpad-f32", name, 39) for name in "abc"),
    ("07-rope-decode-off-by-one", "a", 81),
    ("08-tp2-partial-twice", "a", 71),
    ("09-tp2-bf16", "a", 71),
    *(("10-graph-padding-bf16", name, 81) for name in "abc"),
]
ROUNDED_BY_RANK = "09-tp2-bf16"  # each rank's share of a row-parallel product is rounded


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
    if case == ROUNDED_BY_RANK:
        check_rounded_by_rank(api.bisect(trace, model=pycode, layers="0"))
        return
    found = api.bisect(trace, model=pycode)
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
        assert sorted(set(culprit.rows.passes)) == each["passes"]
        assert culprit.local_rel_l2 == pytest.approx(each["local_error"]["whole_stage"], rel=0.01)
    if right["dtype"] == "float32":
        assert max(each.local_rel_l2 for each in found.explained) < 1e-6


def check_rounded_by_rank(found: Bisection) -> None:
    """Nothing but row-parallel products is left to be explained, by what their rounding makes."""
    assert {each.key.stage for each in found.culprits} <= {"attn_out", "ffn_out"}
    assert all((each.local_rel_l2 or 0.0) < 4e-3 for each in found.culprits)


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
