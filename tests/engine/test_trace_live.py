"""`aprtui trace --against` and `--watch`: compared as it lands, stopped there, gone on with."""

from __future__ import annotations

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from aprtui.cli import trace_watch
from aprtui.cli.main import main
from aprtui.compare.live import Live, Replayed, check_prompt
from aprtui.engine.stopping import TraceStopped, raise_if_stopped, stop_from_inside
from aprtui.engine.stopping import stopping_on_signals as stopping
from aprtui.errors import EngineError, UsageError
from aprtui.formats.aprt import read_values, write_stage
from aprtui.formats.tracedir import EVENTS, MANIFEST, StageKey, open_trace
from tests.engine.test_trace_cli import files, schema
from tests.support import SMALL

PROMPT = ["--prompt", "What is 2+2?"]
Capsys = pytest.CaptureFixture[str]


def trace(model: Path, out: Path, *options: str) -> int:
    return main(["trace", str(model), "-o", str(out), *PROMPT, *options])


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    qwen2 = SMALL / "models" / "qwen2-q4_k_m.gguf"
    out = tmp_path_factory.mktemp("live") / "reference"
    assert trace(qwen2, out) == 0
    return out


def _other(reference: Path, folder: Path, stage: str) -> Path:
    """The reference with one stage of other values."""
    other = folder / "other"
    shutil.copytree(reference, other)
    layer = int(stage.split("/")[0].removeprefix("layer-"))
    values = np.array(read_values(other / f"{stage}.bin"))
    write_stage(other / f"{stage}.bin", layer, values * np.float32(1.5))
    return other


def test_the_same_trace_passes_to_the_bit(
    qwen2: Path, reference: Path, tmp_path: Path, capsys: Capsys
) -> None:
    assert trace(qwen2, tmp_path / "b", "--against", str(reference)) == 0
    assert f"against {reference}: PASS (71 equal)" in capsys.readouterr().out
    assert files(tmp_path / "b") == files(reference)


def test_a_difference_is_told_and_the_trace_is_whole(
    qwen2: Path, reference: Path, tmp_path: Path, capsys: Capsys
) -> None:
    other = _other(reference, tmp_path, "layer-1/ffn_out")
    assert trace(qwen2, tmp_path / "b", "--against", str(other), "--json") == 1
    said = json.loads(capsys.readouterr().out)
    assert said["against"]["verdict"] == "fail" and said["against"]["stopped"] is False
    assert said["against"]["first_divergence"] == {"layer": 1, "stage": "ffn_out"}
    assert said["against"]["counts"] == {"equal": 70, "differs": 1}
    assert (tmp_path / "b" / MANIFEST).is_file() and files(tmp_path / "b") == files(reference)


def test_events_tell_of_each_comparison_and_the_folder_does_not(
    qwen2: Path, reference: Path, tmp_path: Path, capsys: Capsys
) -> None:
    other = _other(reference, tmp_path, "layer-0/attn_norm")
    assert trace(qwen2, tmp_path / "b", "--against", str(other), "--events") == 1
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for event in events:
        jsonschema.validate(event, schema("events.schema.json"))
    compared = [event for event in events if event["event"] == "compared"]
    assert len(compared) == 71 and events[-1]["event"] == "done"
    assert [e["stage"] for e in compared if e["first"]] == ["attn_norm"]
    assert '"compared"' not in (tmp_path / "b" / EVENTS).read_text()


def _in_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the pass wait at each stage until what has landed was compared, and replayed where a
    replay runs: no clock decides where it is stopped."""
    from aprtui.compare import beside as module
    from aprtui.engine.capture import Capture

    put, begin = Capture.put, module.Beside.__init__
    made = list[module.Beside]()

    def kept(self: module.Beside, *args: Any) -> None:
        begin(self, *args)
        made.append(self)

    def slow(self: Capture, key: StageKey, value: Any) -> None:
        put(self, key, value)
        beside, deadline = made[-1], time.monotonic() + 120
        while time.monotonic() < deadline and not beside.stopped:
            behind = self.stats.keys() - beside.live.results.keys()
            if self.stats and not behind and beside._replay is None:
                break
            time.sleep(0.005)
        raise_if_stopped()

    monkeypatch.setattr(module, "EVERY_S", 0.005)
    monkeypatch.setattr(module, "REST", 0.0)
    monkeypatch.setattr(module.Beside, "__init__", kept)
    monkeypatch.setattr(Capture, "put", slow)


def test_it_stops_at_the_first_divergence_and_goes_on_to_the_same_bytes(
    qwen2: Path, reference: Path, tmp_path: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, b = _other(reference, tmp_path, "layer-1/attn_norm"), tmp_path / "b"
    with monkeypatch.context() as slow:
        _in_step(slow)
        assert trace(qwen2, b, "--against", str(other), "--stop-at", "first") == 1
    said = capsys.readouterr()
    assert "first divergence: layer-1/attn_norm (differs)" in said.err
    assert "stopped at the first divergence" in said.out and "--resume" in said.err
    stopped = open_trace(b)
    assert stopped.status == "incomplete" and StageKey(1, "attn_norm") in stopped
    assert 18 <= len(stopped) < 40
    assert all(raw == files(reference)[name] for name, raw in files(b).items())
    assert main(["trace", "--resume", str(b), "--against", str(other)]) == 1
    assert files(b) == files(reference)
    assert main(["diff", str(reference), str(b)]) == 0


def _damaged(model: Path, target: Path) -> Path:
    """The same model by header and index, one weight of layer 1's second norm another one."""
    from aprtui.model.open import open_model

    shutil.copy(model, target)
    info = open_model(model).file.tensors["blk.1.ffn_norm.weight"]
    with target.open("r+b") as file:
        file.seek(info.offset)
        file.write(struct.pack("<f", 30.0))
    return target


def test_it_stops_at_the_culprit(
    qwen2: Path, reference: Path, tmp_path: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = _damaged(qwen2, tmp_path / f"damaged{qwen2.suffix}")
    _in_step(monkeypatch)
    assert trace(damaged, tmp_path / "b", "--against", str(reference), "--stop-at", "culprit") == 1
    said = capsys.readouterr()
    assert "first divergence: layer-1/ffn_norm" in said.err
    assert "culprit: layer-1/ffn_norm" in said.err
    assert "stopped at the culprit layer-1/ffn_norm" in said.out
    assert not (tmp_path / "b" / MANIFEST).exists()


def test_a_replay_that_explains_lets_the_pass_go_on(
    qwen2: Path, reference: Path, tmp_path: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A is wrong here, and B computes what the model says."""
    other = _other(reference, tmp_path, "layer-1/ffn_out")
    _in_step(monkeypatch)
    assert trace(qwen2, tmp_path / "b", "--against", str(other), "--stop-at", "culprit") == 1
    assert "replayed: explained by" in capsys.readouterr().err
    assert files(tmp_path / "b") == files(reference)


def test_a_pass_that_was_over_before_it_could_be_stopped_is_whole_and_replayed(
    qwen2: Path, reference: Path, tmp_path: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aprtui.compare.beside.EVERY_S", 600.0)  # the only look is the last one
    damaged, b = _damaged(qwen2, tmp_path / "damaged.gguf"), tmp_path / "b"
    assert trace(damaged, b, "--against", str(reference), "--stop-at", "culprit") == 1
    said = capsys.readouterr()
    assert "culprit: layer-1/ffn_norm" in said.err and "stopped" not in said.out
    assert (b / MANIFEST).is_file()


@pytest.mark.parametrize(
    "options, says",
    [(["--stop-at", "first"], "--against"), (["--against", "{b}"], "folder that is written"),
     (["--against", "nowhere"], "nowhere"),
     (["--against", "{a}", "--prompt", "Else"], "different prompts")],
)  # fmt: skip
def test_what_cannot_be_compared_is_refused_before_a_byte_is_written(
    qwen2: Path, reference: Path, tmp_path: Path, capsys: Capsys, options: list[str], says: str
) -> None:
    b = tmp_path / "b"
    if "{b}" in options:
        shutil.copytree(reference, b)
    words = [word.format(a=reference, b=b) for word in options]
    prompt = [] if "--prompt" in words else PROMPT
    over = ["--overwrite"] if b.exists() else []
    assert main(["trace", str(qwen2), "-o", str(b), *prompt, *words, *over]) in (2, 3)
    assert says in capsys.readouterr().err
    assert not b.exists() or files(b) == files(reference)


def test_the_prompt_of_one_that_decodes_begins_the_others(reference: Path) -> None:
    against = open_trace(reference)
    ids = against.token_ids or ()
    check_prompt(against, ids[:3], decodes=True)
    with pytest.raises(UsageError, match="different prompts"):
        check_prompt(against, ids[:3], decodes=False)


def test_each_look_compares_what_is_new(reference: Path, tmp_path: Path) -> None:
    b = tmp_path / "b"
    (b / "layer-0").mkdir(parents=True)
    shutil.copy(reference / EVENTS, b)
    live = Live(open_trace(reference), b)
    shutil.copy(reference / "layer-0/attn_norm.bin", b / "layer-0")
    assert [str(found.key) for found in live.look()] == ["layer-0/attn_norm"]
    shutil.copy(reference / "layer-0/qkv_matmul.bin", b / "layer-0")
    found = live.look()
    assert [str(each.key) for each in found] == ["layer-0/qkv_matmul"]
    assert found[0].kind == "equal" and live.look() == () and not live.whole
    assert live.comparison().verdict == "pass"


def test_what_a_replay_says_is_read(tmp_path: Path) -> None:
    culprit = {"layer": 3, "stage": "ffn_gate", "kind": "differs", "looks_like": "a block",
               "mistake": None}  # fmt: skip
    said = {"culprits": [culprit], "explained": []}
    assert Replayed.read(json.dumps(said)) == Replayed(StageKey(3, "ffn_gate"), "a block")
    said = {"culprits": [], "explained": [{"by": "bfloat16"}, {"by": "float32"}]}
    assert Replayed.read(json.dumps(said)).text == "explained by bfloat16, float32"
    for nonsense in ("", "[]", '{"culprits": [{}], "explained": []}'):
        with pytest.raises(EngineError, match="the replay said nothing"):
            Replayed.read(nonsense)


def test_a_pass_can_be_ended_from_inside() -> None:
    with stopping():
        stop_from_inside()
        with pytest.raises(TraceStopped) as ended:
            raise_if_stopped()
        assert ended.value.number == 0
    raise_if_stopped()


# -- watching --------------------------------------------------------------------------------------


def test_what_changed_is_told(tmp_path: Path) -> None:
    one, folder = tmp_path / "lib.so", tmp_path / "model"
    folder.mkdir()
    one.write_bytes(b"x")
    (folder / "a.safetensors").write_bytes(b"y")
    before = trace_watch.stamps([one, folder])
    os.utime(one, ns=(1, 1))
    (folder / "b.safetensors").write_bytes(b"z" * 2000)
    (folder / "a.safetensors").write_bytes(b"yy")
    said = trace_watch.changes(before, trace_watch.stamps([one, folder]))
    assert said == ["lib.so was written again", "a.safetensors has 2 B, had 1 B",
                    "b.safetensors is new"]  # fmt: skip
    one.unlink()
    assert trace_watch.changes(before, trace_watch.stamps([one, folder]))[0] == "lib.so is gone"


def test_the_words_of_a_command_come_back(tmp_path: Path) -> None:
    from aprtui.cli.commands import parser_of

    parser, _ = parser_of("trace")
    words = ["trace", "m o.gguf", "-p", "a b", "--prompt=-c", "--set", "a=1", "--steps", "3",
             "--resident", "--dtype", "float16", "--against", "x y"]  # fmt: skip
    args = parser.parse_args(words[1:])
    again = trace_watch.words_of(args)
    assert again[0] == "trace" and parser.parse_args(again[1:]) == args


def test_it_traces_again_when_a_named_file_changes_and_ends_by_ctrl_c(
    qwen2: Path, tmp_path: Path
) -> None:
    library, out = tmp_path / "lib.so", tmp_path / "t"
    library.write_bytes(b"one")
    process = subprocess.Popen(
        [sys.executable, "-m", "aprtui", "trace", str(qwen2), *PROMPT, "-o", str(out),
         "--watch", str(library)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stderr is not None and process.stdout is not None
    try:
        for line in process.stderr:
            if line.startswith("watching "):
                break
        first = (out / MANIFEST).stat().st_mtime_ns
        library.write_bytes(b"another")
        changed = next(line for line in process.stderr if line.startswith("changed"))
        assert changed == "changed: lib.so has 7 B, had 3 B\n"
        for line in process.stderr:
            if line.startswith("watching "):
                break
        assert (out / MANIFEST).stat().st_mtime_ns > first
    finally:
        os.killpg(process.pid, signal.SIGINT)
        left = process.communicate(timeout=60)
    assert process.returncode == 0
    assert left[1].endswith("no longer watching\n") and "Traceback" not in left[1]
