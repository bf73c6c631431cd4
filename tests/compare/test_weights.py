"""Two models' weights: the same model is known in any format, and every damage is named."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from aprtui.cli.main import main
from aprtui.compare.weight_results import ModelComparison, TensorResult
from aprtui.compare.weight_wire import from_json
from aprtui.compare.weights import diff_models
from aprtui.engine.native import NATIVE_TYPES
from aprtui.engine.weight_blocks import WeightReader
from aprtui.errors import BadFileError
from aprtui.formats.apr_write import OutgoingTensor, write_apr
from aprtui.formats.quantise import encode
from aprtui.model.operand import Operand
from tests.compare.model_files import HEAD_DIM, VOCAB, Float32, SmallModel, small_model
from tests.support import FIXTURES, needs_fixtures

GATE = "model.layers.1.mlp.gate_proj.weight"
SCHEMA = Path(__file__).parents[2] / "contracts" / "weights.schema.json"


def of(comparison: ModelComparison, role: str) -> TensorResult:
    return next(result for result in comparison.tensors if str(result.role) == role)


def changed(model: SmallModel, name: str, change: Callable[[Float32], Float32]) -> SmallModel:
    tensors = dict(model.tensors)
    tensors[name] = np.ascontiguousarray(change(tensors[name].copy()), dtype=np.float32)
    return replace(model, tensors=tensors)


def planted(tmp_path: Path, name: str, change: Callable[[Float32], Float32]) -> ModelComparison:
    model = small_model()
    a = model.apr(tmp_path / "a.apr")
    return diff_models(a, changed(model, name, change).apr(tmp_path / "b.apr"))


# -- the same model ------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gemma", "qwen3moe"])
@pytest.mark.parametrize("turned", [False, True])
def test_hugging_face_and_gguf_forms_of_one_model_are_the_same(
    tmp_path: Path, family: str, turned: bool
) -> None:
    """Row order, 1 + w and packed experts are no difference, whichever side has them."""
    model = small_model(family, tied=family == "gemma")
    a, b = model.folder(tmp_path / "hf"), model.apr(tmp_path / "g.apr", model.gguf_tensors())
    found = diff_models(b, a) if turned else diff_models(a, b)
    assert found.verdict == "pass", found.settings
    assert {result.kind for result in found.tensors} <= {"same-bytes", "equal", "rounding"}
    for result in found.tensors:  # 1 + w rounds to float32; everything else is the very number
        assert result.kind != "rounding" or (family == "gemma" and "norm" in result.role.name)


def test_a_row_order_that_is_not_the_files_is_named(tmp_path: Path) -> None:
    """Hugging Face rows under a name that promises GGUF's order."""
    model = small_model()
    b = model.gguf_tensors() | {
        "blk.0.attn_q.weight": model.tensors["model.layers.0.self_attn.q_proj.weight"]
    }
    found = diff_models(model.folder(tmp_path / "hf"), model.apr(tmp_path / "g.apr", b))
    wrong = [result for result in found.tensors if result.kind == "differs"]
    assert [str(result.role) for result in wrong] == ["layer 0 q"]
    assert wrong[0].looks_like is not None
    assert wrong[0].looks_like.id == "pair_order"
    assert wrong[0].looks_like.residual_rel_l2 == 0.0


@needs_fixtures
@pytest.mark.parametrize(
    ("source", "imported"),
    [
        ("llama-q4_k_m.gguf", "llama-convert.apr"),
        ("llama-q4_k_m.gguf", "llama-import.apr"),
        ("qwen2-q4_k_m.gguf", "qwen2-import.apr"),
        ("qwen3-q6_k.gguf", "qwen3-import.apr"),
        ("qwen3moe-q4_k_m.gguf", "qwen3moe-preserve.apr"),
        ("gemma3-q4_0.gguf", "gemma3-preserve.apr"),
        ("llamaspm-q4_0.gguf", "llamaspm-preserve.apr"),
        ("pycode-5m", "pycode-f16.apr"),
    ],
)
def test_what_apr_imported_holds_the_bytes_of_its_source(source: str, imported: str) -> None:
    found = diff_models(FIXTURES / "models" / source, FIXTURES / "apr" / "models" / imported)
    assert set(found.counts) == {"same-bytes"}


@needs_fixtures
@pytest.mark.parametrize(
    "quantised",
    ["models/pycode-5m-q4_k_m.gguf", "apr/models/pycode-int8.apr", "apr/models/pycode-int4.apr"],
)
def test_quantisation_of_the_same_model_is_rounding_and_not_a_difference(quantised: str) -> None:
    found = diff_models(FIXTURES / "models" / "pycode-5m", FIXTURES / quantised)
    assert found.verdict == "pass"
    assert set(found.counts) <= {"rounding", "equal"}
    assert found.counts["rounding"] >= 43  # 6 layers of 7 matrices, and the embedding


@needs_fixtures
def test_a_configuration_that_an_importer_lost_is_told() -> None:
    """--preserve-q4k drops both keys: the bytes agree, the models do not."""
    models, imported = FIXTURES / "models", FIXTURES / "apr" / "models"
    moe = diff_models(models / "qwen3moe-q4_k_m.gguf", imported / "qwen3moe-preserve.apr")
    assert [(s.key, s.kind) for s in moe.settings] == [("num_experts_per_tok", "missing-b")]
    assert (moe.verdict, moe.exit_code(), moe.exit_code(allow_unmeasured=True)) == (
        "unmeasured", 1, 0,
    )  # fmt: skip
    gemma = diff_models(models / "gemma3-q4_0.gguf", imported / "gemma3-preserve.apr")
    assert [(s.key, s.kind, s.a, s.b) for s in gemma.settings] == [
        ("sliding_window", "differs", "4", "512")
    ]
    assert gemma.exit_code() == 1


def test_float32_noise_of_another_decoder_is_rounding(tmp_path: Path) -> None:
    """The last bit of half the values: no scale of 1.0000 is read out of sums of squares."""
    random = np.random.default_rng(3)
    model = small_model()
    big = random.standard_normal((96, 64)).astype(np.float32).repeat(400, axis=0)[: VOCAB * 400]
    model.tensors["model.embed_tokens.weight"] = big
    model.tensors["lm_head.weight"] = big
    model.config["vocab_size"] = len(big)
    a = model.apr(tmp_path / "a.apr")
    noise = random.integers(-1, 2, big.shape).astype(np.int32)
    other = (big.view(np.int32) + noise).view(np.float32)
    found = diff_models(
        a, changed(model, "lm_head.weight", lambda _: other).apr(tmp_path / "b.apr")
    )
    head = of(found, "head")
    assert (head.kind, head.message) == ("rounding", "")
    assert head.metrics is not None and 0 < head.metrics.rel_l2 < 1e-7


def test_where_all_bytes_agree_nothing_is_decoded_and_torch_not_imported(tmp_path: Path) -> None:
    model = small_model().apr(tmp_path / "a.apr")
    other = tmp_path / "b.apr"
    other.write_bytes(model.read_bytes())
    code = (
        "import sys; from pathlib import Path; from aprtui.compare.weights import diff_models\n"
        "found = diff_models(*map(Path, sys.argv[1:]))\n"
        "assert found.verdict == 'pass' and 'torch' not in sys.modules, found.counts"
    )
    subprocess.run([sys.executable, "-c", code, str(model), str(other)], check=True)


@pytest.mark.skipif(not NATIVE_TYPES, reason="installed without a C compiler")
def test_what_c_decodes_is_compared_without_torch(tmp_path: Path) -> None:
    a, b = small_model(seed=1), small_model(seed=2)
    paths = [str(a.apr(tmp_path / "a.apr")), str(b.apr(tmp_path / "b.apr"))]
    code = (
        "import sys; from pathlib import Path; from aprtui.compare.weights import diff_models\n"
        "found = diff_models(*map(Path, sys.argv[1:]))\n"
        "assert found.counts['differs'] and 'torch' not in sys.modules, found.counts"
    )
    subprocess.run([sys.executable, "-c", code, *paths], check=True)


def test_a_tensor_that_looks_like_nothing_is_decoded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Samples settle that no look fits: the matrices are not read again."""
    whole: Counter[str] = Counter()
    block = WeightReader.block

    def counted(reader: WeightReader, operand: Operand, first: int, rows: int) -> Float32:
        whole[operand.matrix.entry.name] += rows
        return block(reader, operand, first, rows)

    monkeypatch.setattr(WeightReader, "block", counted)
    a, b = small_model(seed=1), small_model(seed=2)
    found = diff_models(a.apr(tmp_path / "a.apr"), b.apr(tmp_path / "b.apr"))
    matrices = [result for result in found.tensors if result.a and result.a.shape[0] > 1]
    assert len(matrices) == 16 and all(result.looks_like is None for result in matrices)
    for result in matrices:
        assert result.a is not None and whole[result.a.name] == 2 * result.a.shape[0]


# -- planted damage ------------------------------------------------------------------------------


def swap_rows(first: int, second: int) -> Callable[[Float32], Float32]:
    def change(values: Float32) -> Float32:
        values[[first, second]] = values[[second, first]]
        return values

    return change


def bad_block(values: Float32) -> Float32:
    values[17, 32:64] *= 3
    return values


def poisoned(values: Float32) -> Float32:
    values[3, 5] = np.nan
    return values


@pytest.mark.parametrize(
    ("name", "change", "look", "parameters"),
    [
        ("model.layers.0.self_attn.o_proj.weight", np.transpose, "transposed", {}),
        (GATE, lambda w: w.T.reshape(w.shape), "transposed", {}),
        (GATE, lambda w: w * 0, "zeros", {}),
        (GATE, lambda w: w * 1.02, "scaled", {"factor": pytest.approx(1.02)}),
        (GATE, lambda w: -w, "scaled", {"factor": pytest.approx(-1)}),
        (GATE, lambda w: np.roll(w, 3, axis=0), "rows_shifted", {"by": 3}),
        (GATE, lambda w: w[::-1], "rows_permuted", None),
        (GATE, swap_rows(5, 70), "rows_permuted", {"rows": [[5, 70], [70, 5]]}),
        (GATE, bad_block, "some_rows", {"count": 1, "rows": [17], "columns": [32, 64]}),
        (GATE, poisoned, "nonfinite", {"a": 0, "b": 1}),
        ("model.norm.weight", lambda w: w + 1, "offset", {"constant": pytest.approx(1)}),
        (
            "model.layers.0.self_attn.v_proj.weight",
            lambda w: w.reshape(2, HEAD_DIM, -1)[::-1].reshape(w.shape),
            "rows_shifted",
            {"by": HEAD_DIM},
        ),
        (
            "model.layers.0.self_attn.q_proj.weight",
            lambda w: w.reshape(4, HEAD_DIM, -1)[[2, 0, 3, 1]].reshape(w.shape),
            "heads_permuted",
            {"heads": [2, 0, 3, 1]},
        ),
    ],
)
def test_each_damage_is_named_with_its_parameters(
    tmp_path: Path,
    name: str,
    change: Callable[[Float32], Float32],
    look: str,
    parameters: dict[str, object] | None,
) -> None:
    found = planted(tmp_path, name, change)
    wrong = [result for result in found.tensors if result.kind != "same-bytes"]
    assert [result.a.name for result in wrong if result.a] == [name]
    assert (found.verdict, found.exit_code()) == ("fail", 1)
    named = found.tensors[0].looks_like
    assert named is not None and named.id == look
    if parameters is not None:
        assert named.parameters == parameters
    assert named.residual_rel_l2 is None if look == "nonfinite" else named.residual_rel_l2 < 1e-6  # type: ignore[operator]


@pytest.mark.parametrize(
    ("name", "change", "look"),
    [
        ("model.layers.0.self_attn.o_proj.weight", np.transpose, "transposed"),
        (GATE, lambda w: w.T.reshape(w.shape), "transposed"),
        (GATE, lambda w: w * 2, "scaled"),
        (GATE, lambda w: np.roll(w, 3, axis=0), "rows_shifted"),
        (GATE, lambda w: w[::-1], "rows_permuted"),
        (GATE, swap_rows(5, 70), "rows_permuted"),
        (GATE, bad_block, "some_rows"),
        (
            "model.layers.0.self_attn.q_proj.weight",
            lambda w: w.reshape(4, HEAD_DIM, -1)[[2, 0, 3, 1]].reshape(w.shape),
            "heads_permuted",
        ),
        (
            "model.layers.0.self_attn.q_proj.weight",
            lambda w: w.reshape(4, 2, HEAD_DIM // 2, -1).swapaxes(1, 2).reshape(w.shape),
            "pair_order",
        ),
        (GATE, None, "other_tensor"),
    ],
)
def test_damage_is_named_through_the_rounding_of_four_bits(
    tmp_path: Path, name: str, change: Callable[[Float32], Float32] | None, look: str
) -> None:
    """Samples are off by up to a tenth then, and the residual is the rounding's."""
    model = small_model()
    damaged = model.tensors["model.layers.0.mlp.up_proj.weight"]
    if change is not None:
        damaged = change(model.tensors[name].copy())
    outgoing = []
    for each, values in model.tensors.items():
        kind, stored = "F32", values.astype("<f4").tobytes()
        if each == name:
            kind = "APR_Q4"
            stored = encode("APR_Q4", np.ascontiguousarray(damaged, dtype=np.float32)).tobytes()
        outgoing.append(OutgoingTensor(each, kind, values.shape, lambda s=stored: [s]))  # type: ignore[misc]
    b = tmp_path / "b.apr"
    write_apr(b, {"architecture": "llama", **model.config}, outgoing)
    found = diff_models(model.apr(tmp_path / "a.apr"), b).tensors[0]
    assert (found.kind, found.looks_like and found.looks_like.id) == ("differs", look)
    assert found.looks_like is not None and found.limit is not None
    assert 0 < (found.looks_like.residual_rel_l2 or 0) <= found.limit


def test_dims_listed_the_other_way_and_a_real_transposition_are_told_apart(tmp_path: Path) -> None:
    """Both give the class ``shape``; only one of them has moved any value."""
    a = small_model()
    listed = changed(a, GATE, lambda w: w.reshape(w.shape[::-1]))
    moved = changed(a, GATE, np.transpose)
    reference = a.folder(tmp_path / "a")
    for model, look in ((listed, "dims_swapped"), (moved, "transposed")):
        result = diff_models(reference, model.folder(tmp_path / look)).tensors[0]
        assert (result.kind, result.looks_like and result.looks_like.id) == ("shape", look)


def test_a_swapped_expert_is_named(tmp_path: Path) -> None:
    model = small_model("qwen3moe")
    tensors = model.gguf_tensors()
    tensors["blk.1.ffn_up_exps.weight"] = tensors["blk.1.ffn_up_exps.weight"][[0, 2, 1, 3]]
    b = model.apr(tmp_path / "b.apr", tensors)
    found = diff_models(model.folder(tmp_path / "a"), b)
    wrong = [result for result in found.tensors if result.kind == "differs"]
    assert {str(r.role) for r in wrong} == {
        "layer 1 expert_up of expert 1", "layer 1 expert_up of expert 2",
    }  # fmt: skip
    looks = [r.looks_like for r in wrong if r.looks_like is not None]
    assert {(look.id, look.parameters["expert"]) for look in looks} == {
        ("expert_swapped", 1), ("expert_swapped", 2),
    }  # fmt: skip


def test_a_tensor_made_up_from_another_is_named(tmp_path: Path) -> None:
    model = small_model()
    embedding = model.tensors["model.embed_tokens.weight"]
    up = model.tensors["model.layers.1.mlp.up_proj.weight"]
    other = model.tensors["model.layers.0.mlp.gate_proj.weight"]
    a = model.folder(tmp_path / "a")
    for name, values, role in (
        ("lm_head.weight", embedding, {"role": "embedding", "layer": None, "expert": None}),
        (GATE, up, {"role": "up", "layer": 1, "expert": None}),
        (GATE, other, {"role": "gate", "layer": 0, "expert": None}),
    ):
        b = changed(model, name, lambda _, values=values: values).apr(tmp_path / "b.apr")  # type: ignore[misc]
        look = diff_models(a, b).tensors[0].looks_like
        assert look is not None and (look.id, look.parameters) == ("other_tensor", role)


def test_a_missing_tensor_is_listed_and_never_passes(tmp_path: Path) -> None:
    model = small_model()
    short = {name: values for name, values in model.tensors.items() if name != GATE}
    a, b = model.apr(tmp_path / "a.apr"), model.apr(tmp_path / "b.apr", short)
    for pair, kind in (((a, b), "missing-b"), ((b, a), "missing-a")):
        found = diff_models(*pair)
        assert (found.tensors[0].kind, str(found.tensors[0].role)) == (kind, "layer 1 gate")
        assert (found.verdict, found.exit_code()) == ("unmeasured", 1)


def test_a_tied_head_is_compared_with_the_others_own(tmp_path: Path) -> None:
    tied, own = small_model(tied=True), small_model()
    own.tensors.update(tied.tensors)
    made_up = own.apr(tmp_path / "made-up.apr")
    honest = changed(own, "lm_head.weight", lambda _: tied.tensors["model.embed_tokens.weight"])
    a = tied.apr(tmp_path / "a.apr")
    assert of(diff_models(a, made_up), "head").kind == "differs"
    found = diff_models(a, honest.apr(tmp_path / "honest.apr"))
    assert (found.verdict, of(found, "head").kind) == ("pass", "same-bytes")
    assert any("head of its own" in note for note in found.notes)


def test_tensors_without_a_part_in_the_pass_are_listed(tmp_path: Path) -> None:
    model = small_model()
    extra = model.tensors | {"model.layers.0.mystery.weight": np.ones((4, 4), dtype=np.float32)}
    found = diff_models(model.apr(tmp_path / "a.apr"), model.apr(tmp_path / "b.apr", extra))
    assert [tensor.name for tensor in found.unused_b] == ["model.layers.0.mystery.weight"]
    assert found.unused_a == ()


def test_a_scale_error_below_the_rounding_of_the_format_is_found(tmp_path: Path) -> None:
    """2 % hides below the 7 % of Q4_K in rel_l2; rounding does not scale a matrix so much."""
    model = small_model()
    a = model.apr(tmp_path / "a.apr")

    def write(path: Path, factor: float) -> Path:
        """APR-Q4 blocks of 32: a float16 scale, nibbles minus 8 (docs/apr-format.md)."""
        outgoing = []
        for name, values in model.tensors.items():
            stored, kind = values.astype("<f4").tobytes(), "F32"
            if name == GATE:
                blocks = values.reshape(-1, 32)
                scale = np.abs(blocks).max(axis=1, keepdims=True) / 7
                codes = np.clip(np.round(blocks / scale), -8, 7).astype(np.int64) + 8
                packed = (codes[:, 0::2] | codes[:, 1::2] << 4).astype(np.uint8)
                parts = (scale * factor).astype("<f2").view(np.uint8)
                stored, kind = np.hstack([parts, packed]).tobytes(), "APR_Q4"
            outgoing.append(OutgoingTensor(name, kind, values.shape, lambda s=stored: [s]))  # type: ignore[misc]
        write_apr(path, {"architecture": "llama", **model.config}, outgoing)
        return path

    assert of(diff_models(a, write(tmp_path / "fair.apr", 1.0)), "layer 1 gate").kind == "rounding"
    found = of(diff_models(a, write(tmp_path / "scaled.apr", 1.04)), "layer 1 gate")
    assert found.kind == "differs" and "scaled by 1.04" in found.message


def test_a_token_in_another_place_is_told(tmp_path: Path) -> None:
    model = small_model()
    texts = [f"t{place}" for place in range(VOCAB)]
    other = [*texts[:7], "evil\x1b[31m", *texts[8:]]
    paths = []
    for name, tokens in (("a", texts), ("b", other)):
        model.config["tokenizer.vocabulary"] = tokens
        paths.append(model.apr(tmp_path / f"{name}.apr"))
    found = diff_models(paths[0], paths[1])
    assert [(s.key, s.kind) for s in found.settings] == [("tokens", "differs")]
    assert found.settings[0].message == "1 differ, the first 7: t7 in A, evil\\x1b[31m in B"


# -- the command ---------------------------------------------------------------------------------


def test_the_command_prints_the_worst_first_and_its_json_holds_the_schema(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = small_model()
    a = str(model.apr(tmp_path / "a.apr"))
    b = str(changed(model, GATE, lambda w: w * 2).apr(tmp_path / "b.apr"))
    assert main(["diff", a, a]) == 0
    assert "PASS: the same model" in capsys.readouterr().out
    assert main(["diff", a, b]) == 1
    text = capsys.readouterr().out
    assert "FAIL" in text and "layer 1 gate" in text and "A times 2" in text
    assert main(["diff", a, b, "--markdown"]) == 1
    assert "| layer 1 gate | differs |" in capsys.readouterr().out
    assert main(["diff", a, b, "--json"]) == 1
    printed = json.loads(capsys.readouterr().out)
    jsonschema.validate(printed, json.loads(SCHEMA.read_text()))
    assert printed["tensors"][0]["looks_like"]["parameters"]["factor"] == pytest.approx(2)
    assert from_json(printed).to_json() == printed
    assert main(["diff", a, b, "--events"]) == 1
    *told, last = map(json.loads, capsys.readouterr().out.splitlines())
    assert last == {"event": "result", **printed}
    assert told[-1]["event"] == "progress" and told[-1]["done"] == told[-1]["total"] > 0
    (tmp_path / "no model").mkdir()
    assert main(["diff", *[str(tmp_path / "no model")] * 2, "--events"]) == 2
    assert json.loads(capsys.readouterr().out)["message"] == "--events is for two models"
    assert main(["diff", a, b, "--bar", "rel_l2=1"]) == 2


def test_infinite_numbers_stand_as_strings_in_json(tmp_path: Path) -> None:
    found = planted(tmp_path, GATE, poisoned).to_json()
    jsonschema.validate(found, json.loads(SCHEMA.read_text()))
    assert found["tensors"][0]["metrics"]["rel_l2"] == "Infinity"


def test_a_damaged_model_is_an_error_and_not_a_difference(tmp_path: Path) -> None:
    model = small_model()
    a = model.apr(tmp_path / "a.apr")
    b = tmp_path / "b.apr"
    b.write_bytes(a.read_bytes()[:2000])
    with pytest.raises(BadFileError):
        diff_models(a, b)
    assert main(["diff", str(a), str(b)]) == 3
