"""CaptureWriter: a trace by any program, checked, whole files only, honest when it breaks off."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch

import aprtui
from aprtui import CaptureWriter
from aprtui.compare.bisect import bisect
from aprtui.errors import BadFileError, EngineError, UsageError
from aprtui.formats.aprt import read_values
from aprtui.formats.rows import Rows
from aprtui.formats.tracedir import StageKey, open_trace
from aprtui.model.open import open_model

ROOT = Path(aprtui.__file__).resolve().parents[1]
TOKENS = (1, 2, 3)
H, V, F = 256, 2048, 512  # of the qwen2 fixture


def schema(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / "contracts" / name).read_text())
    return found


def writer(folder: Path, model: Path | None = None, **more: Any) -> CaptureWriter:
    return CaptureWriter(folder, tokens=TOKENS, model=model, engine={"name": "mine"}, **more)


def test_importing_it_needs_neither_torch_nor_textual() -> None:
    code = (
        "import sys; from aprtui import CaptureWriter;"
        "print([m for m in ('torch', 'textual', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_manifest_and_events_keep_their_schemas(tmp_path: Path, qwen2: Path) -> None:
    for model in (qwen2, None):
        with writer(tmp_path, model, overwrite=True) as capture:
            capture.put("embedding", np.ones((3, H)))
            capture.put("lm_head", np.ones(V))
        jsonschema.validate(
            json.loads((tmp_path / "trace.json").read_text()), schema("manifest.schema.json")
        )
        for line in (tmp_path / "events.jsonl").read_text().splitlines():
            jsonschema.validate(json.loads(line), schema("events.schema.json"))
        assert open_trace(tmp_path).status == "complete"


def test_what_was_not_put_is_absent_with_the_reason(tmp_path: Path, qwen2: Path) -> None:
    with writer(tmp_path, qwen2) as capture:
        capture.put("embedding", np.ones((3, H)))
        capture.absent("attn_scores", "a fused kernel")
    manifest = json.loads((tmp_path / "trace.json").read_text())
    reasons = {item["stage"]: item["reason"] for item in manifest["absent"]}
    assert reasons["attn_scores"] == "a fused kernel"
    assert reasons["ffn_gate"] == "not captured by this engine"
    assert reasons["q_norm"] == "the family has no QK norm"
    assert "embedding" not in reasons


def test_unknown_engine_fields_become_settings_and_nothing_is_made_up(tmp_path: Path) -> None:
    engine = {"name": "mine", "version": "2", "kernel": "fused"}
    with CaptureWriter(tmp_path, tokens=TOKENS, engine=engine) as capture:
        capture.put("ffn_up", np.ones((3, 5)), layer=0)
    manifest = json.loads((tmp_path / "trace.json").read_text())
    expected = {"name": "mine", "version": "2", "settings": {"kernel": "fused"}}
    assert manifest["engine"] == expected
    assert manifest["model"] == {} and manifest["rope_layout"] is None
    assert manifest["peak_memory_bytes"] is None


class OnlyArray:
    """What jax and others offer: ``__array__``."""

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray[Any, Any]:
        return np.arange(6, dtype=np.float64).reshape(3, 2)


class OnlyDlpack:
    """An array that hands itself over by DLPack alone."""

    def __init__(self, tensor: Any) -> None:
        self._tensor = tensor

    def __dlpack__(self, **named: Any) -> Any:
        return self._tensor.__dlpack__()

    def __dlpack_device__(self) -> Any:
        return self._tensor.__dlpack_device__()


def test_arrays_of_other_libraries_are_taken_and_widened(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    values = torch.arange(6, dtype=torch.float32).reshape(3, 2)
    given = {
        "numpy64": values.double().numpy(),
        "numpy_f16": values.half().numpy(),
        "turned": np.asfortranarray(values.numpy()),
        "ids": values.long().numpy(),
        "list": values.tolist(),
        "torch_bf16": values.bfloat16(),
        "torch_grad": values.clone().requires_grad_(),
        "torch_turned": values.t().contiguous().t(),
        "array": OnlyArray(),
        "dlpack": OnlyDlpack(values),
        "dlpack_bf16": OnlyDlpack(values.bfloat16()),
    }
    with writer(tmp_path) as capture:
        for name, value in given.items():
            capture.put(name, value, layer=0)
    for name in given:
        found = read_values(tmp_path / "layer-0" / f"{name}.bin")
        assert found.tolist() == [0, 1, 2, 3, 4, 5], name


@pytest.mark.parametrize("value", [["a"], np.ones(2, dtype=complex), object(), [[1], [1, 2]]])
def test_what_holds_no_real_numbers_is_refused(tmp_path: Path, value: Any) -> None:
    with writer(tmp_path) as capture:
        with pytest.raises(UsageError, match="layer-0/ffn_up"):
            capture.put("ffn_up", value, layer=0)
        capture.put("ffn_up", [1.0], layer=0)


def test_nan_payloads_and_minus_zero_keep_their_bits(tmp_path: Path) -> None:
    bits = np.array([0x7FC12345, 0x80000000, 0xFF800000], dtype=np.uint32)
    with writer(tmp_path) as capture:
        capture.put("mine", bits.view(np.float32))
    assert read_values(tmp_path / "mine.bin").view(np.uint32).tolist() == bits.tolist()


@pytest.mark.parametrize(
    ("stage", "shape", "stored"),
    [("ffn_gate", (1, 3, F), [3, F]), ("q_post_rope", (3, 256), [3, 8, 32]),
     ("attention", (1, 3, 256), [3, 8, 32]), ("attn_scores", (1, 8, 3, 3), [8, 3, 3])],
)  # fmt: skip
def test_a_batch_of_one_and_joined_heads_are_brought_into_shape(
    tmp_path: Path, qwen2: Path, stage: str, shape: tuple[int, ...], stored: list[int]
) -> None:
    with writer(tmp_path, qwen2) as capture:
        capture.put(stage, np.zeros(shape), layer=2)
    manifest = json.loads((tmp_path / "trace.json").read_text())
    assert manifest["stages"][0]["shape"] == stored


def test_logits_of_all_positions_say_so(tmp_path: Path, qwen2: Path) -> None:
    with writer(tmp_path, qwen2) as capture:
        capture.put("lm_head", np.zeros((1, 3, V)))
    manifest = json.loads((tmp_path / "trace.json").read_text())
    assert manifest["stages"][0]["positions"] == "all"
    assert manifest["selection"]["logits"] == "all"


@pytest.mark.parametrize(
    ("stage", "layer", "shape", "says"),
    [
        ("ffn_gate", 1, (2, F), r"\[2, 512\] where \[3, 512\] \(token, ffn\) was expected"),
        ("q_post_rope", 1, (8, 3, 32), "was expected"),
        ("ffn_gate", 4, (3, F), r"the model has layers 0..3"),
        ("ffn_gate", None, (3, F), "needs its layer"),
        ("final_norm", 0, (3, H), "belongs to the whole model"),
        ("q_norm", 0, (3, 8, 32), "the family has no QK norm"),
        ("embedding", 1, (3, H), "belongs to layer 0"),
        ("../x", 0, (1,), "cannot be a stage's name"),
        ("a\x1b", 0, (1,), "cannot be a stage's name"),
        ("ffn_gate", -1, (3, F), "no layer's number"),
    ],
)
def test_what_contradicts_the_model_is_refused_and_nothing_written(
    tmp_path: Path, qwen2: Path, stage: str, layer: int | None, shape: tuple[int, ...], says: str
) -> None:
    with writer(tmp_path, qwen2) as capture:
        with pytest.raises(UsageError, match=says):
            capture.put(stage, np.zeros(shape), layer=layer)
        capture.put("embedding", np.zeros((3, H)))
    assert list(open_trace(tmp_path).records) == [StageKey(0, "embedding")]


def test_a_stage_put_twice_is_refused(tmp_path: Path) -> None:
    with writer(tmp_path) as capture:
        capture.put("ffn_up", np.zeros(2), layer=0)
        with pytest.raises(UsageError, match="put already"):
            capture.put("ffn_up", np.zeros(2), layer=0)


def test_unknown_stages_keep_their_name_and_a_near_miss_is_noted(tmp_path: Path) -> None:
    with writer(tmp_path) as capture:
        capture.put("ffn_gat", np.zeros((3, 5)), layer=0, axes=("token", "ffn"))
        capture.put("rotary_cache", np.zeros(4))
    manifest = json.loads((tmp_path / "trace.json").read_text())
    assert {item["path"] for item in manifest["stages"]} == {
        "layer-0/ffn_gat.bin",
        "rotary_cache.bin",
    }
    assert manifest["notes"] == ["ffn_gat is no stage of ours and was kept; ffn_gate is one"]
    assert open_trace(tmp_path).records[StageKey(0, "ffn_gat")].axes == ("token", "ffn")


def test_an_exception_inside_leaves_an_honest_incomplete_trace(tmp_path: Path, qwen2: Path) -> None:
    with pytest.raises(ZeroDivisionError), writer(tmp_path, qwen2) as capture:
        capture.put("embedding", np.zeros((3, H)))
        raise ZeroDivisionError("by nothing")
    assert not (tmp_path / "trace.json").exists()
    left = open_trace(tmp_path)
    assert left.status == "incomplete" and left.token_ids == TOKENS
    assert list(left.records) == [StageKey(0, "embedding")]
    last = json.loads((tmp_path / "events.jsonl").read_text().splitlines()[-1])
    assert (last["event"], last["message"]) == ("error", "ZeroDivisionError: by nothing")


def test_a_capture_without_stages_is_no_trace(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing was captured"), writer(tmp_path):
        pass
    assert not (tmp_path / "trace.json").exists()


def test_an_old_trace_is_replaced_only_when_asked(tmp_path: Path) -> None:
    for overwrite in (False, True):
        with writer(tmp_path, overwrite=overwrite) as capture:
            capture.put(f"mine_{overwrite}", np.zeros(2))
    assert [key.stage for key in open_trace(tmp_path).records] == ["mine_True"]
    with pytest.raises(UsageError, match="a trace is there already"), writer(tmp_path):
        pass


@pytest.mark.parametrize("tokens", [(), (-1,), (2048,)])
def test_tokens_must_be_the_model_s(tmp_path: Path, qwen2: Path, tokens: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="token"):
        CaptureWriter(tmp_path, tokens=tokens, model=qwen2, engine={"name": "mine"})


def test_engine_needs_a_name_and_plain_settings(tmp_path: Path) -> None:
    for engine in ({}, {"name": " "}, {"name": "mine", "kernel": object()}):
        with pytest.raises(UsageError, match="engine"):
            CaptureWriter(tmp_path, tokens=TOKENS, engine=engine)


def test_a_planted_bug_in_a_home_made_runtime_is_named(tmp_path: Path) -> None:
    """examples/homemade_runtime.py deals the kv heads round; bisect says just that."""
    example = runpy.run_path(str(ROOT / "examples" / "homemade_runtime.py"))
    prompt = example["TOKENS"]
    path = ROOT / "aprtui" / "demo" / "pycode-5m.gguf"
    found = {}
    for fixed in (False, True):
        runtime = example["Runtime"](path, grouped=fixed)
        with CaptureWriter(
            tmp_path / str(fixed), tokens=prompt, model=path, engine={"name": "homemade"}
        ) as capture:
            runtime.run(prompt, capture)
        found[fixed] = bisect(open_model(path), open_trace(tmp_path / str(fixed)))
    assert found[True].exit_code == 0 and not found[True].culprits
    culprits = found[False].culprits
    assert {c.key.stage for c in culprits} == {"attn_scores", "attention"}
    assert len(culprits) == 2 * 6 and not found[False].unmeasured
    assert {c.mistake.id for c in culprits if c.mistake} == {"kv_tiling"}


class OnDevice:
    """A tensor as a CUDA device would hold it: put behind the caller's back."""

    is_cuda = True

    def __init__(self, values: torch.Tensor) -> None:
        self._values = values
        self.shape = values.shape

    def is_complex(self) -> bool:
        return False

    def detach(self) -> torch.Tensor:
        return self._values


def test_a_tensor_leaves_its_device_as_it_was_when_it_was_put(tmp_path: Path) -> None:
    values = torch.arange(6.0).reshape(2, 3).to(torch.bfloat16)
    with CaptureWriter(tmp_path / "t", tokens=(1, 2), engine={"name": "mine"}) as capture:
        capture.put("ffn_out", OnDevice(values), layer=0)
        values.zero_()
        with pytest.raises(UsageError, match="was put already"):
            capture.put("ffn_out", OnDevice(values), layer=0)
        for layer in range(1, 40):
            capture.put("ffn_out", OnDevice(values + layer), layer=layer)
    found = open_trace(tmp_path / "t")
    assert found.manifest is not None
    assert found.records[StageKey(0, "ffn_out")].values().tolist() == [0, 1, 2, 3, 4, 5]
    assert found.records[StageKey(39, "ffn_out")].values().tolist() == [39] * 6


def test_a_disk_that_fails_behind_the_callers_back_fails_the_capture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> int:
        raise EngineError("s.bin: cannot be written: No space left on device")

    monkeypatch.setattr("aprtui.engine.folder.write_stage", full)
    writer = CaptureWriter(tmp_path / "t", tokens=(1, 2), engine={"name": "mine"})
    with pytest.raises(EngineError, match="No space left"), writer as capture:
        capture.put("ffn_out", OnDevice(torch.ones(2, 3)), layer=0)
    last = json.loads((tmp_path / "t" / "events.jsonl").read_text().splitlines()[-1])
    assert last["event"] == "error" and "No space left" in last["message"]
    assert not (tmp_path / "t" / "trace.json").exists()


# -- several passes, sequences ---------------------------------------------------------------------


def decoded(folder: Path, model: Path | None, put: list[tuple[list[int], int]]) -> CaptureWriter:
    """A capture of a prefill and decode steps: each of these passes, its logits last."""
    with CaptureWriter(folder, tokens=TOKENS, model=model, engine={"name": "mine"}) as capture:
        for positions, fed in put:
            if positions[0] >= len(TOKENS):
                capture.feed([fed])
            rows = np.array(positions, np.float32)
            capture.put("embedding", np.repeat(rows[:, None], H, 1), positions=positions)
            capture.put("lm_head", np.full((1, V), rows[-1]), positions=positions[-1:])
    return capture


PASSES = [([0, 1, 2], 0), ([3], 9), ([4], 8)]


def test_passes_are_stacked_and_rows_keep_theirs(tmp_path: Path, qwen2: Path) -> None:
    for model in (qwen2, None):
        folder = tmp_path / ("with" if model else "without")
        decoded(folder, model, PASSES)
        said = json.loads((folder / "trace.json").read_text())
        jsonschema.validate(said, schema("manifest.schema.json"))
        for line in (folder / "events.jsonl").read_text().splitlines():
            jsonschema.validate(json.loads(line), schema("events.schema.json"))
        found = open_trace(folder)
        assert found.status == "complete" and found.token_ids == (1, 2, 3, 9, 8)
        assert found.rows is not None and found.rows.passes == (0, 0, 0, 1, 2)
        assert found.rows.positions == (0, 1, 2, 3, 4)
        assert found["layer-0/embedding"][:, 0].tolist() == [0, 1, 2, 3, 4]
        logits = found["lm_head"]
        assert logits.positions == (2, 3, 4) and logits[:, 7].tolist() == [2, 3, 4]
        assert sorted(file.name for file in folder.iterdir()) == [
            "events.jsonl", "layer-0", "lm_head.bin", "trace.json",
        ]  # fmt: skip


@pytest.mark.parametrize(
    ("put", "said"),
    [
        ([([0, 1, 2], 0), ([2], 9)], "embedding of position 2 was put already"),
        ([([0, 1, 2], 0), ([3], 9), ([4, 3], 8)], "positions ascend"),
        ([([0, 1], 0)], "2 positions were put, of 3 tokens"),
    ],
)
def test_passes_that_make_no_sequence_are_refused(
    tmp_path: Path, put: list[tuple[list[int], int]], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        decoded(tmp_path, None, put)
    assert not (tmp_path / "trace.json").exists()


def test_a_stage_that_is_not_in_every_pass_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not of the same positions: 2"), writer(tmp_path) as c:
        c.put("embedding", np.zeros((2, H)), positions=[0, 1])
        c.put("embedding", np.zeros((1, H)), positions=[2])
        c.put("attn_norm", np.zeros((2, H)), layer=0, positions=[0, 1])


def test_rows_of_a_cut_sequence_stand_in_the_manifest(tmp_path: Path) -> None:
    rows = Rows((4, 5, 6), (0, 0, 1), first_key=4, sequence=2)
    with writer(tmp_path, rows=rows) as capture:
        capture.put("embedding", np.zeros((3, H)))
        capture.put("lm_head", np.ones((2, V)), positions=[5, 6])
    found = open_trace(tmp_path)
    assert found.rows == rows and found.records[StageKey(None, "lm_head")].held() == (5, 6)
    assert str(rows) == "positions 4-6 in 2 passes, keys from 4, sequence 2"
    assert rows.where([1, 2]) == "positions 5-6 (passes 0-1)"
    with (
        pytest.raises(UsageError, match="rows names 3 rows of 1 token"),
        CaptureWriter(
            tmp_path, tokens=[1], engine={"name": "m"}, rows=rows, overwrite=True
        ) as capture,
    ):
        capture.put("embedding", np.zeros((1, H)))


@pytest.mark.parametrize(
    "said",
    [
        [], {"positions": [0]}, {"positions": [1, 0, 2], "passes": [0, 0, 0]},
        {"positions": [0, 1, 2], "passes": [0, 1, 0]}, {"positions": [0, 1], "passes": [0, 0]},
        {"positions": [0, 1, 2], "passes": [0, 0, 0], "first_key": 1},
        {"positions": [0, 1, 2], "passes": [0, 0, 0], "sequence": -1},
        {"positions": [0, 1, 2], "passes": [0, 0, 0], "extra": 1},
    ],
)  # fmt: skip
def test_rows_that_no_capture_can_have_are_a_damaged_manifest(tmp_path: Path, said: Any) -> None:
    with writer(tmp_path) as capture:
        capture.put("embedding", np.zeros((3, H)))
    manifest = json.loads((tmp_path / "trace.json").read_text())
    (tmp_path / "trace.json").write_text(json.dumps({**manifest, "rows": said}))
    with pytest.raises(BadFileError, match="the manifest is damaged: rows"):
        open_trace(tmp_path)
