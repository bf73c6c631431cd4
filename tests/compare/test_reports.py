"""Public bug reports and honest arithmetic, rebuilt by an independent numpy pass, judged exactly.

The culprits no more and no fewer, each mistake by its id and parameters, the tensors as the file
names them. What is right stands beside each capture (fixtures/cases/README.md).
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from aprtui import api
from aprtui.cli.main import main
from aprtui.compare.bisect import bisect
from aprtui.compare.bisection import Bisection
from aprtui.compare.wire import from_json
from aprtui.engine.replay import Replay
from aprtui.formats.tracedir import open_trace
from aprtui.model.open import open_model
from tests.support import FIXTURES, needs_fixtures

Array = npt.NDArray[np.float64]
REPORTS = FIXTURES / "cases" / "reports"
MODELS = FIXTURES / "models"

pytestmark = needs_fixtures


@dataclass(frozen=True)
class Named:
    """What the one cause of a report is called; ``pattern`` is part of what its weights share."""

    id: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    pattern: str = ""


NAMED = {
    "experts-gate-up-swapped": (Named("gate_up_swapped"),),
    "experts-weight-on-input": (Named("weight_on_input", {"used": "input"}),),
    "f16-overflow-in-ffn_down": (
        Named("overflow", {"type": "float16", "what": "values of ffn_swigl", "count": 7}),
    ),
    "heads-5-to-7-zero-scores": (Named("heads_zero", {"heads": [5, 6, 7]}),),
    "kv-int8-without-scale": (Named("kv_no_scale", {"of": "keys", "type": "int8"}),),
    "kv-q4_0-v-neighbours-scale": (
        Named("kv_scale_of_neighbour", {"of": "values", "type": "q4_0", "block": "before"}),
    ),
    "last-32-columns-left-out": (Named("columns_dropped", {"count": 32}),),
    "o-bias-added-four-times": (Named("bias_scaled", {"factor": 4.0}),),
    "q4_k-minimum-left-out": (
        Named("other_matrix", {"type": "Q4_K"}, "weights of type Q4_K (24), none of the 5 others"),
    ),
    "q4_k-scale-high-bits": (
        Named("other_matrix", {"type": "Q4_K"}, "weights of type Q4_K (24), none of the 5 others"),
    ),
    "rms-eps-times-max-squared": (Named("eps_scaled", {"by": "max|x|^2 of the row"}),),
    "rope-q-shift-33": (Named("rope_shift", {"by": 33}),),
    "router-raw-logits": (Named("router_score", {"used": "none", "renormalised": False}),),
    "router-sigmoid": (Named("router_score", {"used": "sigmoid", "renormalised": True}),),
    "ubatch-8-forgets-the-first": (Named("keys_cut", {"from": 8, "keys": [0, 7]}),),
    "window-keys-cut-to-last-4": (Named("keys_cut", {"last": 4}),),
    "yarn-where-the-model-has-none": (
        Named("rope_table", {"kind": "yarn", "factor": 4.0, "original": 32768.0}),
    ),
}
HONEST = ("fp8-e4m3-per-token-honest", "fp8-w8a8-per-tensor-honest", "int8-per-token-honest",
          "kv-q4_0-honest", "kv-q8_0-honest", "moe-f16-honest", "tf32-honest")  # fmt: skip
OTHERWISE = ("left-padded-honest", "f16-weights-activation-above-65504")
DAMAGED = ("bit-rot", "hole-of-zeros", "nan-block-scales", "lost-head", "lora-added-twice")
FOLDERS = ("fp8-block-folder", "mlx-4bit-folder")
NORMS = ("attn_norm", "ffn_norm", "final_norm")


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("reports")
    for path in sorted(REPORTS.glob("*.tar.gz")):
        with tarfile.open(path) as archive:
            archive.extractall(root, filter="data")
    return root


def changed(said: Mapping[str, Any], root: Path) -> Path:
    """The model that a patch of bytes makes."""
    whole = bytearray((FIXTURES.parent / said["of"]).read_bytes())
    for place, value in said.get("bytes", ()):
        whole[place] = value
    if "zero_bytes" in said:
        first, last = said["zero_bytes"]
        whole[first:last] = bytes(last - first)
    path = root / "changed.gguf"
    path.write_bytes(whole)
    return path


def with_o_bias(folder: Path, root: Path) -> Path:
    """The llama fixture with the four biases of the report."""
    gguf = pytest.importorskip("gguf")
    reader = gguf.GGUFReader(MODELS / "llama-q4_k_m.gguf")
    path = root / "o-bias.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for key, entry in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            kind = entry.types[0]
            sub = entry.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(key, entry.contents(), kind, sub_type=sub)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    for name, values in np.load(folder / "o-bias.npz").items():
        writer.add_tensor(name, values.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def judged(name: str, unpacked: Path, root: Path) -> tuple[Bisection, Mapping[str, Any]]:
    folder = unpacked / name
    right = json.loads((folder / "right.json").read_text())
    if name == "f16-overflow-in-ffn_down":
        model = changed(json.loads((REPORTS / "c01b.patch.json").read_text()), root)
    elif name == "o-bias-added-four-times":
        model = with_o_bias(folder, root)
    else:
        model = FIXTURES.parent / right["model"]
    found = bisect(open_model(model), open_trace(folder / "trace"))
    document = found.to_json()
    assert from_json(json.loads(json.dumps(document))).to_json() == document, "one wire"
    return found, right


def right_culprits(right: Mapping[str, Any], found: Bisection) -> list[tuple[int | None, str]]:
    if "culprits" in right:
        return [(layer, stage) for layer, stage in right["culprits"]]
    keys = [*(each.key for each in found.culprits), *(each.key for each in found.explained)]
    return [(key.layer, key.stage) for key in keys if key.stage in NORMS]


@pytest.mark.parametrize("name", NAMED)
def test_a_report_has_its_culprits_and_its_name(name: str, unpacked: Path, tmp_path: Path) -> None:
    found, right = judged(name, unpacked, tmp_path)
    named = [(each.key.layer, each.key.stage) for each in found.culprits]
    assert sorted(named, key=str) == sorted(right_culprits(right, found), key=str)
    assert len(found.causes) == 1, "one cause, one line"
    (wanted,) = NAMED[name]
    cause = found.causes[0]
    assert cause.id == wanted.id
    assert wanted.pattern in cause.pattern
    for culprit in found.culprits:
        assert culprit.mistake is not None
        for parameter, value in wanted.parameters.items():
            told = culprit.mistake.parameters[parameter]
            assert told == (pytest.approx(value) if isinstance(value, float) else value)
        weighted = culprit.key.stage in found.weighted
        assert bool(culprit.reads) == weighted, "a weight is named as the file names it"


@pytest.mark.parametrize("name", HONEST)
def test_an_honest_capture_is_cleared(name: str, unpacked: Path, tmp_path: Path) -> None:
    found, _ = judged(name, unpacked, tmp_path)
    assert (found.culprits, found.unmeasured) == ((), ())


def test_a_padded_batch_is_unmeasured_and_said(unpacked: Path, tmp_path: Path) -> None:
    found, _ = judged("left-padded-honest", unpacked, tmp_path)
    assert found.culprits == ()
    assert {each.key.stage for each in found.unmeasured} == {
        "q_post_rope", "k_post_rope", "attn_scores", "attn_softmax",
    }  # fmt: skip
    assert all("padded" in each.why for each in found.unmeasured)


@pytest.mark.parametrize(
    ("capture", "culprits"),
    [("honest", []), ("ffn_out-scaled", ["layer-1/ffn_out", "layer-1/post_ffn_residual"])],
)
def test_activations_beyond_float16_are_no_fault_of_the_replay(
    capture: str, culprits: list[str], unpacked: Path
) -> None:
    folder = unpacked / "f16-weights-activation-above-65504"
    found = bisect(open_model(folder / "model"), open_trace(folder / capture))
    assert [str(each.key) for each in found.culprits] == culprits
    assert found.unmeasured == ()
    if culprits:
        mistake = found.culprits[0].mistake
        assert mistake is not None
        assert (mistake.id, mistake.parameters["factor"]) == ("scaled", pytest.approx(1.5))


# -- files that are damaged ------------------------------------------------------------------------


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    code = main([*words])
    return code, capsys.readouterr().out


def test_rotten_bits_are_told_by_block(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = json.loads((REPORTS / "bit-rot.json").read_text())
    path = changed(said, tmp_path)
    code, out = run(capsys, "diff", str(FIXTURES.parent / said["of"]), str(path), "--json")
    found = json.loads(out)
    assert code == 1
    wrong = [each for each in found["tensors"] if each["class"] == "differs"]
    assert len(wrong) == 17
    assert {each["looks_like"]["id"] for each in wrong} == {"some_blocks"}
    assert all("the rest same bytes" in each["looks_like"]["text"] for each in wrong)
    code, out = run(capsys, "diff", str(FIXTURES.parent / said["of"]), str(path))
    assert "A times" not in out and "Inf times" not in out


def test_a_hole_is_told_by_inspect_and_trace(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = changed(json.loads((REPORTS / "hole-of-zeros.json").read_text()), tmp_path)
    code, out = run(capsys, "inspect", str(path), "--verify", "--json")
    health = json.loads(out)["health"]
    (hole,) = [each for each in health["findings"] if each["kind"] == "hole"]
    assert (code, health["sound"]) == (1, False)
    assert {"blk.2.ffn_gate.weight", "blk.2.ffn_up.weight", "blk.2.ffn_norm.weight",
            "blk.3.attn_norm.weight"} <= set(hole["tensors"])  # fmt: skip
    assert "bytes 1,584,592 to 2,218,427" in hole["text"]
    words = ("trace", str(path), "--tokens", "1,2,3", "-o", str(tmp_path / "t"), "--json")
    assert run(capsys, *words)[0] == 0
    notes = json.loads((tmp_path / "t" / "trace.json").read_text())["notes"]
    assert any("blk.2.ffn_gate.weight" in note and "zeros" in note for note in notes)


def test_nan_in_a_weight_is_told_by_inspect_trace_and_bisect(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = changed(json.loads((REPORTS / "nan-block-scales.json").read_text()), tmp_path)
    code, out = run(capsys, "inspect", str(path), "--verify", "--json")
    (finding,) = json.loads(out)["health"]["findings"]
    assert (code, finding["kind"]) == (1, "nonfinite")
    assert "blk.3.ffn_down.weight: 8 blocks whose scale is NaN" in finding["text"]
    trace = tmp_path / "t"
    run(capsys, "trace", str(path), "--tokens", "1,2,3", "-o", str(trace), "--json")
    notes = json.loads((trace / "trace.json").read_text())["notes"]
    assert any("born in layer-3/ffn_out: blk.3.ffn_down.weight" in note for note in notes)
    found = bisect(open_model(path), open_trace(trace))
    assert [str(each.key) for each in found.culprits] == ["layer-3/ffn_out"]
    mistake = found.culprits[0].mistake
    assert mistake is not None
    assert mistake.id == "weight_nonfinite"
    assert mistake.parameters["tensor"] == "blk.3.ffn_down.weight"


def test_a_lost_head_is_told(unpacked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out = run(capsys, "inspect", str(unpacked / "lost-head" / "model"), "--verify")
    assert code == 1
    assert "the head is lost" in out


def test_an_update_of_low_rank_is_told(unpacked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = unpacked / "lora-added-twice"
    code, out = run(capsys, "diff", str(folder / "right"), str(folder / "wrong"))
    assert code == 1
    assert "6 tensors (q, v): the difference has rank 4: a low-rank update" in out


def test_two_quantisations_of_one_model_are_one_model(
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = FIXTURES / "apr" / "models" / "pycode-int4.apr"
    code, out = run(capsys, "diff", str(MODELS / "pycode-5m-q4_k_m.gguf"), str(other))
    assert code == 0
    assert "the same model, but for the rounding of its formats" in out


# -- checkpoints as people have them ---------------------------------------------------------------


def by_blocks_of_fp8(tensors: Mapping[str, Any], name: str) -> Array:
    """e4m3 values by torch's own type, times the scale of their block of 128 x 128."""
    values = tensors[f"{name}.weight"].float().numpy().astype(np.float64)
    scale = tensors[f"{name}.weight_scale_inv"].float().numpy().astype(np.float64)
    whole = scale.repeat(128, 0).repeat(128, 1)[: values.shape[0], : values.shape[1]]
    return np.asarray(values * whole)


def by_groups_of_mlx(tensors: Mapping[str, Any], name: str) -> Array:
    """code * scale + bias: eight codes of four bits a number, the lowest first, groups of 32."""
    packed = tensors[f"{name}.weight"].numpy().view(np.uint32)
    codes = (packed[:, :, None] >> np.arange(0, 32, 4, dtype=np.uint32)) & 15
    codes = codes.reshape(len(packed), -1, 32).astype(np.float64)
    scales, biases = (
        tensors[f"{name}.{part}"].float().numpy().astype(np.float64)[:, :, None]
        for part in ("scales", "biases")
    )
    return np.asarray((codes * scales + biases).reshape(len(packed), -1))


@pytest.mark.parametrize(
    ("name", "decoded"),
    [*zip(FOLDERS, (by_blocks_of_fp8, by_groups_of_mlx), strict=True)],
)
def test_a_quantised_folder_opens_as_its_library_reads_it(
    name: str, decoded: Callable[[Mapping[str, Any], str], Array], unpacked: Path, tmp_path: Path
) -> None:
    """Every coded matrix of it, and a pass of ours in it is cleared."""
    library = pytest.importorskip("safetensors.torch")
    folder = unpacked / name / "model"
    model, tensors = open_model(folder), library.load_file(folder / "model.safetensors")
    replay, coded = Replay(model), 0
    for role, matrix in model.weights.items():
        base = matrix.entry.name.removesuffix(".weight")
        if {f"{base}.weight_scale_inv", f"{base}.scales"} & set(tensors):
            right = decoded(tensors, base)
            made = np.concatenate([rows for _, rows in replay.blocks(role)])
            assert np.abs(made - right).max() <= 2.0**-23 * np.abs(right).max(), base
            coded += 1
    assert coded >= 14
    trace = api.trace(model, tokens=(3, 17, 40, 9, 5, 61), directory=tmp_path / "t")
    found = bisect(model, trace)
    assert (found.culprits, found.unmeasured) == ((), ())


# -- the older captures ----------------------------------------------------------------------------


def cases(room: str) -> Iterator[Any]:
    path = FIXTURES / room / "cases.json"
    for case in json.loads(path.read_text()) if path.is_file() else []:
        yield pytest.param(room, case, id=f"{room}-{case.get('capture') or case['trace']}")


@pytest.mark.parametrize(("room", "case"), [*cases("faults"), *cases("apr")])
def test_a_planted_or_real_capture_is_judged_exactly(room: str, case: Mapping[str, Any]) -> None:
    if room == "faults":
        model, trace = MODELS / case["model"], FIXTURES / room / case["capture"]
        right = case["culprits"]
    else:
        model, trace = FIXTURES / room / case["model"], FIXTURES / room / case["trace"]
        right = [f"{layer}/{stage}" if layer else stage for layer, stage in case["culprits"]]
    found = bisect(open_model(model), open_trace(trace), tokens=tuple(case["token_ids"]))
    assert sorted(str(each.key) for each in found.culprits) == sorted(right)
    if room == "faults":
        assert all(each.mistake is not None for each in found.culprits)
