"""`aprtui trace` keeps its promises: contracts/apr-cli-trace-save-tensor-v1.yaml and more."""

from __future__ import annotations

import json
import os
import re
import signal
import struct
import subprocess
import sys
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from aprtui.cli.main import main
from aprtui.formats.aprt import WHOLE_MODEL, read_header, read_values
from aprtui.formats.tracedir import open_trace
from tests.graphs import QWEN_7B, graph_of

ROOT = Path(__file__).resolve().parents[2]
PROMPT = ["--prompt", "What is 2+2?"]


def trace(model: Path, out: Path, *options: str) -> int:
    return main(["trace", str(model), "-o", str(out), *options])


def files(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*.bin"))}


def schema(name: str) -> dict[str, object]:
    loaded: dict[str, object] = json.loads((ROOT / "contracts" / name).read_text())
    return loaded


def test_help_offers_save_tensor(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["trace", "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for flag in ("--save-tensor", "--save-tensor-layers", "--save-tensor-dir", "--prompt-file"):
        assert flag in text


def test_two_runs_write_the_same_bytes(qwen2: Path, tmp_path: Path) -> None:
    assert trace(qwen2, tmp_path / "a") == 0
    assert trace(qwen2, tmp_path / "b") == 0
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert len(files(tmp_path / "a")) == 71


def test_every_stage_file_opens_with_its_header(qwen2: Path, tmp_path: Path) -> None:
    trace(qwen2, tmp_path / "t")
    for name, raw in files(tmp_path / "t").items():
        match = re.match(r"layer-(\d+)/", name)
        layer = int(match[1]) if match else WHOLE_MODEL
        assert raw[:12] == struct.pack("<4sII", b"APRT", layer, (len(raw) - 12) // 4), name


def test_three_stages_are_three_files_a_layer(qwen2: Path, tmp_path: Path) -> None:
    trace(qwen2, tmp_path / "t", "--save-tensor", "attn_norm, FFN_GATE,layer_output")
    names = {"attn_norm.bin", "ffn_gate.bin", "post_ffn_residual.bin"}
    assert set(files(tmp_path / "t")) == {f"layer-{n}/{f}" for n in range(4) for f in names}


def test_nan_keeps_its_bits(tmp_path: Path) -> None:
    import torch

    from aprtui.engine.capture import Capture
    from aprtui.engine.folder import trace_folder
    from aprtui.engine.plan import PlannedFile
    from aprtui.formats.tracedir import StageKey

    bits = np.array([0x7FC00001, 0xFFC12345, 0x7F800000, 0x80000000, 0x00000001], dtype="<u4")
    planned = PlannedFile(StageKey(2, "ffn_gate"), (5,), ("ffn",), "all", 12 + 20)
    with trace_folder(tmp_path) as folder:
        capture = Capture(folder, (planned,), lambda event: None, lambda: 0)
        capture.put(planned.key, torch.from_numpy(bits.view("<f4").copy()))
        capture.close()
    assert read_values(tmp_path / "layer-2" / "ffn_gate.bin").view("<u4").tolist() == bits.tolist()
    assert (capture.stats[planned.key]["nan"], capture.stats[planned.key]["inf"]) == (2, 1)


@pytest.mark.parametrize(
    ("option", "value", "layers"),
    [("--save-tensor-layers", "3..4", {3}), ("--layer", "3", {3}), ("--layers", "0..2", {0, 1})],
)
def test_chosen_layers_are_the_layers_written(
    option: str, value: str, layers: set[int], qwen2: Path, tmp_path: Path
) -> None:
    trace(qwen2, tmp_path / "t", option, value)
    found = {key.layer for key in open_trace(tmp_path / "t").records}
    assert found == layers | {None}


def test_lm_head_lies_at_the_root(qwen2: Path, tmp_path: Path) -> None:
    trace(qwen2, tmp_path / "asked", "--stages", "lm_head")
    assert list(files(tmp_path / "asked")) == ["lm_head.bin"]
    header = read_header(tmp_path / "asked" / "lm_head.bin")
    assert (header.layer, header.values) == (None, 2048)
    trace(qwen2, tmp_path / "unasked", "--stages", "ffn_norm")
    assert "lm_head.bin" not in files(tmp_path / "unasked")


def test_all_logits_are_rows_of_which_the_last_is_lm_head(qwen2: Path, tmp_path: Path) -> None:
    trace(qwen2, tmp_path / "last", "--stages", "lm_head", *PROMPT)
    trace(qwen2, tmp_path / "all", "--stages", "lm_head", "--logits", "all", *PROMPT)
    rows = read_values(tmp_path / "all" / "lm_head.bin").reshape(9, 2048)
    last = read_values(tmp_path / "last" / "lm_head.bin")
    assert np.abs(rows[-1] - last).max() <= 1e-5 * np.abs(last).max()
    record = next(iter(open_trace(tmp_path / "all").records.values()))
    assert (record.shape, record.axes, record.positions) == ((9, 2048), ("token", "vocab"), "all")


def test_apr_model_is_traced(
    qwen2_apr: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The summary says what is on the disk, no more and no less."""
    assert trace(qwen2_apr, tmp_path / "t", "--json", *PROMPT) == 0
    said = json.loads(capsys.readouterr().out)
    found = files(tmp_path / "t")
    assert said["files"] == len(found) == 71
    assert said["written_bytes"] == sum(map(len, found.values()))
    assert said["directory"] == str(tmp_path / "t")


def test_the_summary_counts_only_what_this_run_wrote(
    qwen2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace(qwen2, tmp_path / "t")
    capsys.readouterr()
    assert trace(qwen2, tmp_path / "t", "--stages", "ffn_gate", "--overwrite", "--json") == 0
    assert json.loads(capsys.readouterr().out)["files"] == 4
    assert len(files(tmp_path / "t")) == 4, "the old trace's files are gone"


def test_manifest_keeps_its_schema(qwen2: Path, tmp_path: Path) -> None:
    trace(qwen2, tmp_path / "t", *PROMPT)
    manifest = json.loads((tmp_path / "t" / "trace.json").read_text())
    jsonschema.validate(manifest, schema("manifest.schema.json"))
    assert manifest["tokens"]["ids"] == [54, 71, 271, 312, 220, 17, 10, 17, 30]
    assert {entry["stage"] for entry in manifest["absent"]} >= {"q_norm", "moe_router"}
    for entry in manifest["stages"]:
        assert (tmp_path / "t" / entry["path"]).stat().st_size == entry["bytes"]


def test_events_keep_their_schema(
    qwen2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert trace(qwen2, tmp_path / "t", "--events") == 0
    lines = capsys.readouterr().out.splitlines()
    written = (tmp_path / "t" / "events.jsonl").read_text().splitlines()
    assert lines == written
    for line in lines:
        jsonschema.validate(json.loads(line), schema("events.schema.json"))
    kinds = [json.loads(line)["event"] for line in lines]
    assert (kinds[0], kinds[1], kinds[-1]) == ("plan", "started", "done")
    assert kinds.count("stage") == 71


def test_stopped_trace_has_no_manifest(qwen2: Path, tmp_path: Path) -> None:
    """SIGTERM in the middle: whole files stay, nothing else, and no process either."""
    job = json.dumps({"model": str(qwen2), "directory": str(tmp_path / "t"), "tokens": [1] * 1200})
    command = [sys.executable, "-m", "aprtui.engine.worker", job]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        for line in worker.stdout:
            if json.loads(line)["event"] == "stage":
                worker.send_signal(signal.SIGTERM)
                break
        last = json.loads([*worker.stdout][-1])
    assert worker.returncode == 0
    assert last["event"] == "stopped"
    found = files(tmp_path / "t")
    assert len(found) == last["files"] < 71
    for name in found:
        read_header(tmp_path / "t" / name)
    assert not (tmp_path / "t" / "trace.json").exists()
    assert not [*(tmp_path / "t").rglob("*.part")]
    assert open_trace(tmp_path / "t").status == "incomplete"


def test_a_worker_whose_parent_is_gone_ends(qwen2: Path, tmp_path: Path) -> None:
    job = json.dumps({"model": str(qwen2), "directory": str(tmp_path / "t"), "tokens": [1] * 1200})
    nobody = str(os.getpid() + 1_000_000)
    worker = subprocess.run(
        [sys.executable, "-m", "aprtui.engine.worker", job, "--parent", nobody],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert json.loads(worker.stdout.splitlines()[-1])["event"] == "stopped"


def test_plan_is_what_is_written(
    qwen2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "t"
    assert trace(qwen2, out, "--dry-run", "--json", *PROMPT) == 0
    plan = json.loads(capsys.readouterr().out)
    assert not out.exists()
    assert trace(qwen2, out, *PROMPT) == 0
    found = files(out)
    assert (plan["files"], plan["write_bytes"]) == (len(found), sum(map(len, found.values())))


def test_7b_file_sizes_follow_from_the_graph() -> None:
    """docs/stages.md 1, check values for Qwen2.5-Coder-7B and seven tokens."""
    graph = graph_of("qwen2", QWEN_7B)
    expected = {
        100_364: ("embedding", "attn_norm", "q_post_rope", "attention", "ffn_out", "final_norm"),
        129_036: ("qkv_matmul", "qkv_bias"),
        14_348: ("k_post_rope",),
        5_500: ("attn_scores", "attn_softmax"),
        530_444: ("ffn_gate", "ffn_up", "ffn_silu", "ffn_swigl"),
        608_268: ("lm_head",),
    }
    for size, stages in expected.items():
        for stage in stages:
            node = next(node for node in graph if node.key.stage == stage)
            assert node.file_bytes(7) == size, stage


def test_full_disk_is_refused_beforehand(
    qwen2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("aprtui.engine.plan.free_bytes", lambda directory: 1000)
    assert trace(qwen2, tmp_path / "t") == 4
    assert "are free" in capsys.readouterr().err
    assert not (tmp_path / "t").exists()


def test_a_disk_that_fills_up_ends_the_trace_honestly(
    qwen2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from aprtui.errors import EngineError
    from aprtui.formats import aprt

    written = 0

    def full(path: Path, layer: int | None, values: object, **how: object) -> int:
        nonlocal written
        written += 1
        if written > 5:
            raise EngineError(f"{path}: cannot be written: No space left on device")
        return aprt.write_stage(path, layer, values, **how)  # type: ignore[arg-type]

    monkeypatch.setattr("aprtui.engine.folder.write_stage", full)
    assert trace(qwen2, tmp_path / "t") == 4
    assert "No space left" in capsys.readouterr().err
    assert not (tmp_path / "t" / "trace.json").exists()
    assert not [*(tmp_path / "t").rglob("*.part")]


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (["--stages", "ffn_gat"], 2, "did you mean ffn_gate"),
        (["--stages", "ffn_gate,,ffn_up"], 2, "empty stage name"),
        (["--layers", "3..9"], 2, "the last layer is 3"),
        (["--layers", "two"], 2, "cannot be read"),
        (["--device", "cuda:7"], 2, "CUDA"),
        (["--device", "tpu"], 2, "unknown device"),
        (["--set", "num_layer=3"], 2, "num_layers"),
        (["--set", "head_dim"], 2, "no = in it"),
        (["--tokens", "1,2,9999"], 2, "outside the vocabulary"),
        (["--tokens", "1,x"], 2, "cannot be read"),
        (["--prompt", ""], 2, "no tokens"),
        (["--stages", "moe_router"], 2, "the FFN is dense"),
        (["--prompt-file", "/nowhere/prompt.txt"], 3, "No such file"),
    ],
)
def test_bad_requests_are_one_clear_line(
    options: list[str], code: int, says: str, qwen2: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert trace(qwen2, tmp_path / "t", *options) == code
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert not (tmp_path / "t").exists()


def test_an_existing_trace_is_not_touched(
    qwen2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace(qwen2, tmp_path / "t", "--stages", "ffn_gate")
    before = files(tmp_path / "t")
    assert trace(qwen2, tmp_path / "t") == 2
    assert "--overwrite" in capsys.readouterr().err
    assert files(tmp_path / "t") == before


def test_overwrite_leaves_other_files_alone(qwen2: Path, tmp_path: Path) -> None:
    trace(qwen2, tmp_path / "t", "--stages", "ffn_gate")
    (tmp_path / "t" / "notes.txt").write_text("mine")
    (tmp_path / "t" / "layer-0" / "mine.txt").write_text("mine")
    trace(qwen2, tmp_path / "t", "--stages", "lm_head", "--overwrite")
    assert (tmp_path / "t" / "notes.txt").read_text() == "mine"
    assert (tmp_path / "t" / "layer-0" / "mine.txt").read_text() == "mine"
    assert list(files(tmp_path / "t")) == ["lm_head.bin"]


def test_an_unwritable_directory_is_one_clear_line(
    qwen2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("not a folder")
    assert trace(qwen2, tmp_path / "file" / "t") == 4
    assert "cannot be written" in capsys.readouterr().err


def test_hostile_token_texts_do_not_reach_the_terminal(
    qwen2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert trace(qwen2, tmp_path / "t", "--prompt", "\x1b]0;pwned\x07\u202e") == 0
    captured = capsys.readouterr()
    assert "\x1b" not in captured.out + captured.err
    assert "\u202e" not in captured.out + captured.err


def test_a_failure_is_told_once(
    qwen2: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError("the kernel gave up")

    monkeypatch.setattr("aprtui.engine.session.forward", fail)
    assert trace(qwen2, tmp_path / "t", "--events") == 4
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["message"] for event in told if event["event"] == "error"] == [
        "the engine failed: the kernel gave up"
    ]
    kept = (tmp_path / "t" / "events.jsonl").read_text().splitlines()
    assert json.loads(kept[-1])["event"] == "error"
