"""Every capture of the fixtures has a verdict that it must get: a folder that nothing judges fails.

Reports are judged in test_reports, dumps of other tools in test_dumps, of serving runtimes in
test_serving; here are llama.cpp's and float64's captures, the one trace of ``apr`` that cannot be
replayed, and that nothing is left over.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aprtui.compare.bisect import bisect
from aprtui.formats.tracedir import open_trace
from aprtui.model.open import open_model
from tests.compare.test_dumps import OF_OWN_WEIGHTS, OPENVINO, QUANTISED
from tests.compare.test_reports import DAMAGED, FOLDERS, HONEST, NAMED, OTHERWISE
from tests.compare.test_serving import CASES
from tests.support import FIXTURES, needs_fixtures

pytestmark = needs_fixtures

CAPTURES = [
    *(
        (model, engine)
        for model in ("gemma3-q4_0", "llama-q4_k_m", "llamaspm-q4_0", "pycode-5m-q4_k_m",
                      "qwen2-q4_k_m", "qwen3-q6_k", "qwen3moe-q4_k_m")
        for engine in ("float64", "llamacpp")
    ),
    ("qwen2-q4_k_m", "llamacpp-f16kv"),
]  # fmt: skip
TORCHLENS = "torchlens"
ELSEWHERE = {
    "hostile-current-folder": "tests/unit/test_leftovers.py::"
    "test_nothing_of_the_current_folder_is_run",
}
LAST_POSITION_ALONE = "qwen3moe-gguf"  # of apr's traces: three files a layer


def names(*room: str) -> set[str]:
    """What stands in a room of the fixtures, without its README and lists."""
    found = FIXTURES.joinpath(*room).iterdir()
    return {
        path.name.split(".")[0] for path in found if path.name not in ("README.md", "cases.json")
    }


def test_no_report_is_left_out() -> None:
    patch = "c01b"  # of f16-overflow-in-ffn_down's model
    judged = {*NAMED, *HONEST, *OTHERWISE, *DAMAGED, *FOLDERS, *ELSEWHERE}
    assert names("cases", "reports") - {patch} == judged
    for test in ELSEWHERE.values():
        file, _, name = test.partition("::")
        assert f"def {name}(" in (Path(__file__).parents[2] / file).read_text()


@pytest.mark.parametrize(("room", "folder"), [("faults", "faults"), ("apr", "apr/traces")])
def test_no_planted_or_real_capture_is_left_out(room: str, folder: str) -> None:
    """test_reports judges every row of cases.json."""
    cases = json.loads((FIXTURES / room / "cases.json").read_text())
    judged = {Path(case.get("capture") or case["trace"]).name for case in cases}
    assert {path.name for path in (FIXTURES / folder).iterdir() if path.is_dir()} == judged | (
        {LAST_POSITION_ALONE} if room == "apr" else set()
    )


def test_no_dump_is_left_out() -> None:
    judged = {*OF_OWN_WEIGHTS, *(f"openvino/pycode-q4km-{name}.npz" for name in OPENVINO),
              *(name for name, _, _ in QUANTISED), TORCHLENS}  # fmt: skip
    assert names("dumps") == {name.split("/")[0] for name in judged}
    files = {
        str(path.relative_to(FIXTURES / "dumps"))
        for path in (FIXTURES / "dumps").glob("*/*.npz")
    }  # fmt: skip
    assert files == {name for name in judged if name.endswith(".npz")}
    assert names("serving") == {case for case, _, _ in CASES}


def test_no_capture_is_left_out() -> None:
    root = FIXTURES / "captures"
    there = {
        (path.parent.name, path.name)
        for path in root.glob("*/*") if path.name != "capture.json"
    }  # fmt: skip
    assert there == set(CAPTURES)


@pytest.mark.parametrize(("model", "engine"), CAPTURES)
def test_an_independent_capture_is_cleared(model: str, engine: str) -> None:
    trace = open_trace(FIXTURES / "captures" / model / engine)
    tokens = json.loads((FIXTURES / "captures" / model / "capture.json").read_text())["token_ids"]
    found = bisect(open_model(FIXTURES / "models" / f"{model}.gguf"), trace, tokens=tuple(tokens))
    assert (found.culprits, found.unmeasured) == ((), ())
    plain = {each.by for each in found.explained} == {"float32"}
    assert plain == (engine == "float64")


def test_a_trace_of_the_last_position_alone_accuses_nobody() -> None:
    room = FIXTURES / "apr" / "traces" / LAST_POSITION_ALONE
    found = bisect(open_model(FIXTURES / "models" / "qwen3moe-q4_k_m.gguf"), open_trace(room))
    assert found.culprits == () and found.unmeasured
