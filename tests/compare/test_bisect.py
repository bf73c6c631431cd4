"""Bisecting recorded captures: exactly the culprits, named, and nothing else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from referencing import Registry, Resource

from aprtui.cli.main import main
from aprtui.compare.bars import parse_bar
from aprtui.compare.bisect import bisect
from aprtui.compare.bisection import Bisection
from aprtui.compare.infer import open_any
from aprtui.compare.metrics import Cancelled
from aprtui.compare.worker import Options
from aprtui.errors import UsageError
from aprtui.formats.aprt import read_values, write_stage
from aprtui.formats.perop import PerOpDir
from aprtui.formats.tracedir import StageKey, open_trace, relative_path
from aprtui.model.open import open_model
from tests.compare.captures import split_by_position, write_capture
from tests.support import FIXTURES, SMALL, needs_fixtures

SCHEMA = Path(__file__).resolve().parents[2] / "contracts" / "bisect.schema.json"


def _cases(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(path.read_text()) if path.is_file() else []
    return found


FAULTS = _cases(FIXTURES / "faults" / "cases.json")
REAL = _cases(FIXTURES / "apr" / "cases.json")
CAPTURES = sorted(FIXTURES.glob("captures/*/capture.json"))

# The mistake that each planted fault is, and what must be said of it.
NAMED: dict[str, tuple[str, dict[str, Any]]] = {
    "rope-theta-qwen2": ("rope_theta", {"theta": 10000.0}),
    "kbias-dropped-L2": ("bias_missing", {"part": "k"}),
    "oproj-transposed-L1-ggml": ("transposed", {}),
    "gqa-tile-L0": ("kv_tiling", {}),
    "gelu-L3-ggml": ("activation", {"used": "gelu_tanh"}),
    "bad-block-gate-L3-ggml": ("bad_block", {"row": 17, "block": 3, "size": 32, "factor": 2.0}),
    "scale-1.02-scores-L2-bf16": ("score_scale", {"factor": 1.02}),
    "stale-v-L1": ("stale_row", {"position": 5}),
    "residual-lost-pos4-L2": ("position", {"position": 4}),
    "nan-softmax-L1": ("nonfinite", {"head": 3}),
    "no-renorm-L1-moe": ("router_not_renormalised", {}),
    "lm-head-shift-ggml": ("rows_shifted", {"by": 1}),
}


def _culprits(found: Bisection) -> list[str]:
    return [str(culprit.key) for culprit in found.culprits]


def _bisect(model: Path, b: Path, tokens: Any = None, a: Path | None = None) -> Bisection:
    reference = open_trace(a) if a else None
    ids = tuple(tokens) if tokens else None
    return bisect(open_model(model), open_trace(b), reference, tokens=ids)


@needs_fixtures
@pytest.mark.parametrize("with_a", [False, True], ids=["b", "a-and-b"])
@pytest.mark.parametrize("case", FAULTS, ids=lambda case: str(case["capture"]))
def test_a_planted_fault_is_named_and_honest_numerics_are_not(
    case: dict[str, Any], with_a: bool
) -> None:
    model = FIXTURES / "models" / case["model"]
    reference = FIXTURES / "captures" / model.stem / "float64" if with_a else None
    found = _bisect(model, FIXTURES / "faults" / case["capture"], case["token_ids"], reference)
    assert _culprits(found) == case["culprits"]
    assert found.exit_code == (1 if case["culprits"] else 0)
    for culprit in found.culprits:
        name, parameters = NAMED[case["capture"]]
        assert culprit.mistake is not None
        assert culprit.mistake.id == name
        assert culprit.mistake.residual_rel_l2 <= 1e-5
        assert parameters.items() <= dict(culprit.mistake.parameters).items()
    if with_a and case["arithmetic"] == "float64" and case["culprits"]:
        assert found.first_divergence is not None


@needs_fixtures
@pytest.mark.parametrize("case", REAL, ids=lambda case: Path(case["trace"]).name)
def test_a_real_capture_has_exactly_its_culprits(case: dict[str, Any]) -> None:
    found = _bisect(
        FIXTURES / "apr" / case["model"], FIXTURES / "apr" / case["trace"], case["token_ids"]
    )
    accepted = {"/".join(filter(None, each)) for each in case.get("accepted", [])}
    expected = ["/".join(filter(None, each)) for each in case["culprits"]]
    assert [name for name in _culprits(found) if name not in accepted] == expected


@needs_fixtures
def test_the_real_defects_are_named() -> None:
    root = FIXTURES / "apr"
    zeros = _bisect(root / "models/pycode-f16.apr", root / "traces/pycode-f16")
    assert [c.mistake and c.mistake.id for c in zeros.culprits] == ["zeros"]
    sizes = _bisect(root / "models/qwen3-import.apr", root / "traces/qwen3-import")
    assert {c.mistake and c.mistake.id for c in sizes.culprits} == {"size"}
    assert "head_dim 32" in sizes.culprits[0].looks_like
    assert sizes.culprits[0].span == ("q_norm",)


@needs_fixtures
@pytest.mark.parametrize("path", CAPTURES, ids=lambda path: path.parent.name)
def test_recorded_captures_have_no_culprit(path: Path) -> None:
    tokens = json.loads(path.read_text())["token_ids"]
    for engine in sorted(folder for folder in path.parent.iterdir() if folder.is_dir()):
        found = _bisect(FIXTURES / "models" / f"{path.parent.name}.gguf", engine, tokens)
        assert (_culprits(found), found.unmeasured) == ([], ())
        assert max(each.residual_rel_l2 for each in found.explained) <= 1e-5


@needs_fixtures
def test_what_has_no_captured_ancestor_is_unmeasured_and_named() -> None:
    model = FIXTURES / "models" / "qwen3moe-q4_k_m.gguf"
    found = _bisect(model, FIXTURES / "apr/traces/qwen3moe-gguf", REAL[0]["token_ids"])
    assert (found.culprits, found.explained) == ((), ())
    reasons = {str(each.key): each.why for each in found.unmeasured}
    assert "recomputed from (layer-2/ffn_norm)" in reasons["layer-2/moe_router"]
    assert (found.verdict, found.exit_code) == ("unmeasured", 1)


# -- on the small fixtures, with the capture changed -----------------------------------------------

HONEST, BAD = SMALL / "faults/honest-ggml-qwen2", SMALL / "faults/bad-block-gate-L3-ggml"


@pytest.fixture
def capture(tmp_path: Path) -> Path:
    """A copy of an honest capture with rounded activations, to be spoiled."""
    copy = tmp_path / "capture"
    shutil.copytree(HONEST, copy)
    for path in copy.rglob("*.bin"):
        path.chmod(0o644)
    return copy


def _change(path: Path, layer: int | None, change: Any) -> None:
    values = np.array(read_values(path))
    write_stage(path, layer, change(values))


def test_a_span_is_replayed_through_what_was_not_captured(capture: Path, qwen2: Path) -> None:
    (capture / "layer-2/ffn_silu.bin").unlink()
    found = _bisect(qwen2, capture)
    assert (found.verdict, found.culprits) == ("clean", ())
    assert [e.span for e in found.explained if str(e.key) == "layer-2/ffn_swigl"] == [("ffn_silu",)]
    _change(capture / "layer-2/ffn_swigl.bin", 2, lambda values: values * np.float32(1.5))
    culprit = _bisect(qwen2, capture).culprits[0]
    assert (str(culprit.key), culprit.span) == ("layer-2/ffn_swigl", ("ffn_silu",))


def test_a_long_span_with_rounded_products_is_not_called_a_bug(capture: Path, qwen2: Path) -> None:
    for stage in ("ffn_gate", "ffn_up", "ffn_silu", "ffn_swigl"):
        (capture / f"layer-2/{stage}.bin").unlink()
    found = _bisect(qwen2, capture)
    assert found.culprits == ()
    _change(capture / "layer-2/ffn_out.bin", 2, lambda values: values * np.float32(1.5))
    assert "layer-2/ffn_out" in _culprits(_bisect(qwen2, capture))


def test_a_wrong_size_is_a_culprit_and_what_reads_it_is_unmeasured(
    capture: Path, qwen2: Path
) -> None:
    _change(capture / "layer-1/attention.bin", 1, lambda values: values[: values.size // 2])
    found = _bisect(qwen2, capture)
    assert [(str(c.key), c.kind) for c in found.culprits] == [("layer-1/attention", "shape")]
    assert [str(each.key) for each in found.unmeasured] == ["layer-1/attn_out"]
    assert "layer-3/ffn_out" in {str(each.key) for each in found.explained}


def test_nan_is_the_fault_of_the_stage_that_makes_it(capture: Path, qwen2: Path) -> None:
    def spoil(values: Any) -> Any:
        values[5] = np.inf
        return values

    _change(capture / "layer-1/ffn_up.bin", 1, spoil)
    found = _bisect(qwen2, capture)
    assert ("layer-1/ffn_up", "nonfinite") in [(str(c.key), c.kind) for c in found.culprits]
    assert "layer-1/ffn_norm" not in _culprits(found)


def test_a_damaged_file_is_told_and_the_rest_goes_on(capture: Path, qwen2: Path) -> None:
    path = capture / "layer-1/attn_out.bin"
    path.write_bytes(path.read_bytes()[:-5])
    found = _bisect(qwen2, capture)
    assert found.culprits == ()
    assert [str(each.key) for each in found.unmeasured if each.damaged] == [
        "layer-1/attn_out",
        "layer-1/post_attn_residual",
    ]
    assert found.exit_code == 3


def test_a_file_that_is_not_there_is_unmeasured_unless_a_span_covers_it(
    capture: Path, qwen2: Path
) -> None:
    (capture / "lm_head.bin").unlink()
    found = _bisect(qwen2, capture)
    assert [(str(each.key), each.why) for each in found.unmeasured] == [("lm_head", "not captured")]
    assert found.exit_code == 1


def test_token_ids_are_found_in_the_table(capture: Path, qwen2: Path) -> None:
    found = _bisect(qwen2, capture)
    assert found.token_source == "found"
    assert any("476,668,997" in note for note in found.notes)


def test_an_embedding_that_is_no_row_is_unmeasured_without_tokens(
    capture: Path, qwen2: Path
) -> None:
    _change(capture / "layer-0/embedding.bin", 0, lambda values: values * np.float32(1.01))
    without = _bisect(qwen2, capture)
    assert "token ids are unknown" in without.unmeasured[0].why
    ids = json.loads((SMALL / "faults/cases.json").read_text())[0]["token_ids"]
    assert "layer-0/embedding" in _culprits(_bisect(qwen2, capture, ids))


def test_a_scaled_table_is_recognised_without_tokens(capture: Path, qwen2: Path) -> None:
    _change(capture / "layer-0/embedding.bin", 0, lambda values: values * np.float32(16.0))
    culprit = _bisect(qwen2, capture).culprits[0]
    assert str(culprit.key) == "layer-0/embedding"
    assert culprit.mistake is not None
    assert culprit.mistake.id == "embedding_scale"


def test_tokens_that_do_not_fit_are_refused(qwen2: Path) -> None:
    with pytest.raises(UsageError, match="12 positions, and 3 tokens"):
        _bisect(qwen2, HONEST, (1, 2, 3))
    with pytest.raises(UsageError, match="outside the vocabulary"):
        _bisect(qwen2, HONEST, (99_999,) * 12)


def test_a_capture_of_another_model_is_refused(capture: Path, qwen2: Path) -> None:
    (capture / "layer-3").rename(capture / "layer-9")
    with pytest.raises(UsageError, match="not a capture of that model"):
        _bisect(qwen2, capture)


@needs_fixtures
def test_rows_of_q_and_k_in_the_other_order_are_reordered(tmp_path: Path) -> None:
    """A capture of Hugging Face's rows, replayed from the GGUF whose rows are permuted."""
    model = open_model(FIXTURES / "models" / "llama-q4_k_m.gguf")
    source = open_trace(FIXTURES / "captures/llama-q4_k_m/float64")
    tensors = {}
    for key, record in source.records.items():
        values = np.array(record.values()).reshape(model.graph[key].shape(12))
        if key.stage in ("q_post_rope", "k_post_rope"):
            values = np.concatenate([values[..., 0::2], values[..., 1::2]], axis=-1)
        if key.stage == "qkv_matmul":
            heads = values[:, :320].reshape(12, -1, 32)
            heads = np.concatenate([heads[..., 0::2], heads[..., 1::2]], axis=-1)
            values = np.concatenate([heads.reshape(12, -1), values[:, 320:]], axis=1)
        tensors[relative_path(key)] = (values, model.graph[key].axis_names())
    tokens = tuple(json.loads((CAPTURES[0]).read_text())["token_ids"])
    trace = write_capture(tmp_path / "hf", tensors, tokens=tokens, rope_layout="halves")
    found = bisect(model, trace)
    assert (found.culprits, found.unmeasured) == ((), ())
    assert any("reordered" in note for note in found.notes)


@needs_fixtures
def test_a_folder_a_position_is_bisected_stacked(tmp_path: Path) -> None:
    capture = FIXTURES / "captures/qwen2-q4_k_m/llamacpp"
    split_by_position(capture, tmp_path / "cpu", 12, drop=frozenset({"lm_head"}))
    split_by_position(
        capture, tmp_path / "gpu", 12, drop=frozenset({"lm_head", "ffn_silu", "attn_scores"})
    )
    sides = open_any(tmp_path)
    assert isinstance(sides, PerOpDir)
    model = open_model(FIXTURES / "models/qwen2-q4_k_m.gguf")
    found = bisect(model, sides.gpu, sides.cpu)
    assert found.culprits == ()
    assert [str(each.key) for each in found.unmeasured] == ["lm_head"]


def test_logits_alone_are_unmeasured_with_the_reason(tmp_path: Path, qwen2: Path) -> None:
    logits = read_values(SMALL / "captures/qwen2-q4_k_m/float64/lm_head.bin")
    trace = write_capture(
        tmp_path, {"lm_head.bin": (np.array(logits), ("vocab",))}, tokens=(476, 668, 997)
    )
    found = bisect(open_model(qwen2), trace)
    assert (found.culprits, found.explained, found.exit_code) == ((), (), 1)
    (why,) = [each.why for each in found.unmeasured if str(each.key) == "lm_head"]
    assert "final_norm was not captured, nor what that could be recomputed from" in why
    assert found.tokens == 3


def test_a_bar_of_no_stage_is_refused(qwen2: Path) -> None:
    options = Options(overrides=(parse_bar("fn_gate:rel_l2=1"),))
    with pytest.raises(UsageError, match="no stage is called fn_gate") as error:
        bisect(open_model(qwen2), open_trace(BAD), options=options)
    assert error.value.hint == "did you mean ffn_gate?"


def test_a_bar_can_be_moved(qwen2: Path) -> None:
    options = Options(overrides=(parse_bar("ffn_*:rel_l2=0.1"),))
    assert bisect(open_model(qwen2), open_trace(BAD), options=options).culprits == ()


def test_stages_and_layers_can_be_chosen(qwen2: Path) -> None:
    options = Options(stages=("ffn_gate", "ffn_up"), layers=(2, 3))
    found = bisect(open_model(qwen2), open_trace(BAD), options=options)
    measured = [str(c.key) for c in found.culprits] + [str(e.key) for e in found.explained]
    assert sorted(measured) == [f"layer-{n}/{s}" for n in (2, 3) for s in ("ffn_gate", "ffn_up")]
    assert found.unmeasured == ()


def test_progress_is_told_and_it_can_be_stopped(qwen2: Path) -> None:
    told: list[tuple[int, int, StageKey]] = []
    bisect(open_model(qwen2), open_trace(HONEST), progress=lambda *step: told.append(step))
    assert [done for done, _, _ in told] == list(range(72))
    assert {total for _, total, _ in told} == {71}
    with pytest.raises(Cancelled):
        bisect(open_model(qwen2), open_trace(HONEST), cancelled=lambda: True)


# -- the command -----------------------------------------------------------------------------------


def _run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    code = main(["bisect", *map(str, words)])
    return code, capsys.readouterr().out


def test_json_is_what_the_schema_says(capsys: pytest.CaptureFixture[str], qwen2: Path) -> None:
    code, out = _run(capsys, HONEST, BAD, "--model", qwen2, "--json")
    document = json.loads(out)
    jsonschema.validate(document, json.loads(SCHEMA.read_text()))
    assert code == document["exit_code"] == 1
    (culprit,) = document["culprits"]
    assert (culprit["layer"], culprit["stage"]) == (3, "ffn_gate")
    assert culprit["mistake"]["parameters"]["row"] == 17
    assert document["first_divergence"] is None or document["first_divergence"]["layer"] == 3


def _events_schema() -> jsonschema.Draft202012Validator:
    result = Resource.from_contents(json.loads(SCHEMA.read_text()))
    events = json.loads(SCHEMA.with_name("bisect-events.schema.json").read_text())
    registry = Registry().with_resource("bisect.schema.json", result)
    return jsonschema.Draft202012Validator(events, registry=registry)


def test_events_are_progress_and_then_the_result(
    capsys: pytest.CaptureFixture[str], qwen2: Path
) -> None:
    code, out = _run(capsys, HONEST, "--model", qwen2, "--events")
    lines = [json.loads(line) for line in out.splitlines()]
    assert {line["event"] for line in lines[:-1]} == {"progress"}
    assert (lines[-1]["event"], lines[-1]["verdict"], code) == ("result", "clean", 0)
    code, out = _run(capsys, HONEST, "--model", qwen2, "--tokens", "1,2", "--events")
    error = json.loads(out)
    assert (code, error["event"]) == (2, "error")
    schema = _events_schema()
    for line in (*lines, error):
        schema.validate(line)
    for line in (lines[0], lines[-1], error):
        assert not schema.is_valid(line | {"unknown": 1})


def test_the_verdict_comes_first(capsys: pytest.CaptureFixture[str], qwen2: Path) -> None:
    code, out = _run(capsys, BAD, "--model", qwen2)
    assert code == 1
    assert out.startswith("layer-3/ffn_gate computes wrongly: row 17, block 3 of 32 weights")
    assert "weights: blk.3.ffn_gate.weight (Q4_K)" in out, "the tensor is named as in the file"
    assert "20 stages explained: activations rounded to Q8_K" in out
    code, out = _run(capsys, HONEST, "--model", qwen2)
    assert (code, out.splitlines()[0]) == (
        0,
        "No culprit: all 71 stages compute what the model says.",
    )


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("nowhere", "--model", "MODEL"), 3),
        ((str(HONEST),), 2),
        ((str(HONEST), "--model", "MODEL", "--bar", "rel_l2"), 2),
        ((str(HONEST), "--model", "MODEL", "--layers", "9"), 2),
        ((str(HONEST), str(HONEST), str(HONEST), "--model", "MODEL"), 2),
        ((str(HONEST), "--model", str(HONEST / "lm_head.bin")), 3),
    ],
)
def test_a_wrong_request_is_an_error_with_its_code(
    words: tuple[str, ...], code: int, qwen2: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(qwen2) if word == "MODEL" else word for word in words]
    assert main(["bisect", *given]) == code
    assert "Traceback" not in capsys.readouterr().err


@needs_fixtures
def test_a_wrong_reference_is_found_when_the_sides_are_swapped(
    capsys: pytest.CaptureFixture[str], qwen2: Path
) -> None:
    wrong, right = (
        str(FIXTURES / "faults" / "kbias-dropped-L2"),
        str(FIXTURES / "captures/qwen2-q4_k_m/float64"),
    )
    code, out = _run(capsys, wrong, right, "--model", qwen2)  # A is the wrong one
    lines = out.splitlines()
    assert code == 1
    assert lines[:2] == [
        "No culprit in B: all 71 stages compute what the model says.",
        "But A, the reference, is wrong:",
    ]
    assert lines[2].startswith("layer-2/qkv_bias computes wrongly: the bias of k was not added")
    assert "culprits of A" in out and "rounding that has grown" not in out
    code, out = _run(capsys, wrong, right, "--model", qwen2, "--json")
    found = json.loads(out)
    jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text())).validate(found)
    assert (found["verdict"], found["reference"]["verdict"]) == ("clean", "culprits")
    assert [c["stage"] for c in found["reference"]["culprits"]] == ["qkv_bias"]
    code, out = _run(capsys, right, right, "--model", qwen2, "--json")
    assert (code, json.loads(out)["reference"]) == (0, None)


@needs_fixtures
def test_weights_of_another_model_are_asked_about_first(
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = str(FIXTURES / "models" / "llama-q4_k_m.gguf")
    code, out = _run(capsys, str(FIXTURES / "captures/qwen2-q4_k_m/float64"), "--model", other)
    assert code == 1
    assert out.startswith("Nearly every stage that uses weights is wrong: is this the model")
    assert "attn_norm of layers 0-3  largest local error" in out, "alike culprits are one entry"
    assert len(out.splitlines()) < 80
