"""`--engine hf` without a family file: modules captured, replayed by their own code, compared."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch

from aprtui import api
from aprtui.cli.main import main
from aprtui.errors import UnknownFamilyError, UsageError
from aprtui.formats.aprt import read_values, write_stage
from aprtui.formats.modulecalls import calls_of, order_of_calls
from aprtui.formats.tracedir import StageKey, TraceDir, open_trace
from aprtui.model.open import open_model
from tests.engine.test_trace_cli import schema

transformers = pytest.importorskip("transformers", reason="transformers is a dev dependency")

TOKENS = tuple((11 * place + 3) % 96 for place in range(10))
# Model types, each with something of its own; but for the KNOWN no family file describes them.
KNOWN = ("gpt2", "gpt_neox", "deepseek_v3", "deepseek_v32", "mamba2")
_LATENT: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "q_lora_rank": 12,
    "num_key_value_heads": 2, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8,
    "v_head_dim": 8, "intermediate_size": 48, "moe_intermediate_size": 16,
    "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
    "first_k_dense_replace": 1, "n_shared_experts": 1, "max_position_embeddings": 64,
}  # fmt: skip
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}),
    "gpt_neox": ("GPTNeoX", {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 64, "max_position_embeddings": 64,
    }),
    "deepseek_v3": ("DeepseekV3", _LATENT),
    "deepseek_v32": ("DeepseekV32", {
        **_LATENT, "index_topk": 3, "index_head_dim": 12, "index_n_heads": 24,
    }),
    "mamba2": ("Mamba2", {
        "hidden_size": 32, "num_hidden_layers": 2, "num_heads": 4, "head_dim": 16, "state_size": 8,
        "n_groups": 1, "chunk_size": 8, "expand": 2,
    }),
    "codegen": ("CodeGen", {
        "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "rotary_dim": 4,
    }),
    "recurrent_gemma": ("RecurrentGemma", {
        "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "lru_width": 32,
        "num_key_value_heads": 1, "intermediate_size": 96, "attention_window_size": 8,
    }),
}  # fmt: skip


def saved(name: str, folder: Path) -> Path:
    """A tiny seeded model of a type, as its own library saves it."""
    stem, settings = MODELS[name]
    config = getattr(transformers, f"{stem}Config")(vocab_size=96, **settings)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0, 0.2)
    model.save_pretrained(folder)
    return folder


def captured(name: str, tmp_path: Path, **how: Any) -> TraceDir:
    folder = saved(name, tmp_path / "model")
    if name in KNOWN:
        how["engine_args"] = {"modules": "on"}
    return api.trace(folder, tokens=TOKENS, engine="hf", directory=tmp_path / "t", **how)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_module_is_captured_and_replayed(name: str, tmp_path: Path) -> None:
    found = captured(name, tmp_path)
    with nullcontext() if name in KNOWN else pytest.raises(UnknownFamilyError):
        open_model(tmp_path / "model")
    assert found.status == "complete" and found.manifest is not None
    jsonschema.validate(found.manifest, schema("manifest.schema.json"))
    replayed = api.bisect(found.root)
    assert not replayed.culprits and not replayed.unmeasured
    assert set(replayed.explanations) == {"float32"}
    assert "100.0% of the parameters" in replayed.notes[0]
    assert len(replayed.explained) == sum(len(call["out"]) for call in calls_of(found))


def test_keys_that_an_indexer_did_not_choose_are_hidden_there_too(tmp_path: Path) -> None:
    found = captured("deepseek_v32", tmp_path, logits="all")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", attn_implementation="eager", dtype=torch.float32
    )
    with torch.no_grad():
        out = model(torch.tensor([TOKENS]), use_cache=False)
    last = calls_of(found)[-1]["out"][0]["stage"]
    assert np.allclose(np.asarray(found[last]), out.logits[0].numpy(), atol=1e-5)


def test_what_is_captured_is_what_transformers_computes(tmp_path: Path) -> None:
    found = captured("gpt_neox", tmp_path, logits="all")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", attn_implementation="eager", dtype=torch.float32
    )
    with torch.no_grad():
        out = model(torch.tensor([TOKENS]), output_attentions=True, use_cache=False)
    last = calls_of(found)[-1]["out"][0]["stage"]
    assert np.allclose(np.asarray(found[last]), out.logits[0].numpy(), atol=1e-6)
    weights = np.asarray(found["layer-1/attention.attention.1"])
    assert np.allclose(weights, out.attentions[1][0].numpy(), atol=1e-6)
    scores = found["layer-0/attn_scores"]
    assert scores.axes == ("head", "query", "key")
    assert np.abs(np.asarray(scores)).max() < 1e3 and not np.triu(np.asarray(scores)[0], 1).any()


def spoil(trace: TraceDir, key: StageKey) -> None:
    """Two channels of one position exchanged."""
    record = trace.records[key]
    assert record.shape is not None
    values = read_values(record.path).copy().reshape(record.shape)
    values[4, :2] = values[4, 1::-1].copy()
    write_stage(record.path, key.layer, values)


def test_a_planted_fault_is_located_and_only_it(tmp_path: Path) -> None:
    good = captured("deepseek_v3", tmp_path)
    shutil.copytree(good.root, tmp_path / "bad")
    key = StageKey(1, "mlp.shared_experts.up_proj")
    bad = open_trace(tmp_path / "bad")
    spoil(bad, key)
    found = api.bisect(bad.root, a=good.root)
    assert [str(each.key) for each in found.culprits] == [str(key)]
    assert found.culprits[0].worst["position"] == 4
    assert found.first_divergence is not None and found.first_divergence.key == key
    compared = api.diff(good.root, bad.root)
    assert [str(each.key) for each in compared.results if each.kind == "differs"] == [str(key)]


def test_pairs_stand_in_the_order_in_which_modules_were_called(tmp_path: Path) -> None:
    found = captured("gpt2", tmp_path)
    order = [pair.key.stage for pair in api.diff(found.root, found.root).results]
    inner = [stage for stage in order if stage in ("ln_1", "attn.c_attn", "mlp.c_fc", "mlp.c_proj")]
    assert inner[:4] == ["ln_1", "attn.c_attn", "mlp.c_fc", "mlp.c_proj"]
    assert order_of_calls(found)[StageKey(None, "transformer.wte")] == 1  # 0: the token ids


def test_a_known_family_shows_its_modules_when_asked(tmp_path: Path) -> None:
    from tests.families import TINY, save_tiny

    save_tiny(TINY["qwen2"], tmp_path / "model")
    found = api.trace(
        tmp_path / "model", tokens=TOKENS, engine="hf", directory=tmp_path / "t",
        engine_args={"modules": "on"}, dtype="bfloat16",
    )  # fmt: skip
    replayed = api.bisect(found.root)
    assert not replayed.culprits and not replayed.unmeasured
    assert replayed.explanations["bfloat16, by the module's own code"] > 20


def test_the_command_line_traces_replays_and_reports(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = saved("codegen", tmp_path / "model"), tmp_path / "t"
    words = ["trace", str(model), "--engine", "hf", "--tokens", "1,2,3", "-o", str(out)]
    assert main([*words, "--dry-run"]) == 0
    assert "no family file describes this architecture" in capsys.readouterr().out
    assert not out.exists()
    assert main(words) == 0
    assert "replay it: aprtui bisect" in capsys.readouterr().out
    assert main(words) == 2
    assert "a trace is there already" in capsys.readouterr().err
    assert main(["bisect", str(out), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    jsonschema.validate(said, schema("bisect.schema.json"))
    assert main(["bisect", str(out), "--model", str(model)]) == 0
    assert "No culprit" in capsys.readouterr().out
    assert main(["report", str(out), str(out), "-o", str(tmp_path / "r.html")]) == 0
    assert main([*words, "--steps", "2"]) == 2
    assert "one prefill" in capsys.readouterr().err
    assert main(["trace", str(model), "--tokens", "1,2"]) == 3
    assert "--engine hf captures it" in capsys.readouterr().err


def test_stages_and_layers_are_chosen_and_what_is_missing_is_said(tmp_path: Path) -> None:
    found = captured("gpt2", tmp_path, stages="mlp.*", layers="1")
    assert {key.layer for key in found} == {1}
    assert all(key.stage.startswith("mlp.") for key in found)
    assert not api.bisect(found.root).culprits
    (found.root / "layer-1" / "mlp.c_fc.in.bin").unlink()
    told = api.bisect(found.root)
    assert any("was not captured" in item.why for item in told.unmeasured)
    with pytest.raises(UsageError, match="no module has a name like that"):
        captured("gpt2", tmp_path / "none", stages="nosuch.*")


def test_a_manifest_with_calls_that_are_none_is_not_followed(tmp_path: Path) -> None:
    found = captured("gpt2", tmp_path)
    manifest = json.loads((found.root / "trace.json").read_text())
    call = manifest["engine"]["settings"]["modules"][0]
    for wrong in ({"args": None}, {"out": [{"stage": "../x", "layer": None}]}, {"name": 5}):
        manifest["engine"]["settings"]["modules"] = [{**call, **wrong}]
        (found.root / "trace.json").write_text(json.dumps(manifest))
        assert calls_of(open_trace(found.root)) == ()


async def test_the_app_browses_and_compares_modules_as_any_stages(tmp_path: Path) -> None:
    from tests.tui.support import frame, opened, press, settle

    found = captured("gpt2", tmp_path)
    async with opened(found.root) as pilot:
        assert "mlp.c_fc" in frame(pilot) and "complete" in frame(pilot)
        for pane in "12345":
            await press(pilot, pane, "j", "j")
    shutil.copytree(found.root, tmp_path / "bad")
    spoil(open_trace(tmp_path / "bad"), StageKey(1, "mlp.c_fc"))
    async with opened(found.root, tmp_path / "bad") as pilot:
        await settle(pilot)
        assert "mlp.c_fc" in frame(pilot)


def test_its_progress_is_told_as_events_and_a_stopped_one_begins_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = saved("codegen", tmp_path / "model"), tmp_path / "t"
    words = ["trace", str(model), "--engine", "hf", "--tokens", "1,2,3", "-o", str(out)]
    capsys.readouterr()
    assert main([*words, "--events"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for event in events:
        jsonschema.validate(event, schema("events.schema.json"))
    assert [events[0]["event"], events[-1]["event"]] == ["plan", "done"]
    whole = {path.name: path.read_bytes() for path in out.rglob("*.bin")}
    assert sum(event["event"] == "stage" for event in events) == len(list(out.rglob("*.bin")))
    assert main(["trace", "--resume", str(out)]) == 2
    assert "the trace is whole" in capsys.readouterr().err
    (out / "trace.json").unlink()
    next(out.rglob("*.bin")).unlink()
    assert main(["trace", "--resume", str(out)]) == 0
    assert {path.name: path.read_bytes() for path in out.rglob("*.bin")} == whole
    assert open_trace(out).status == "complete"
    (out / "trace.json").unlink()
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "n_layer": 1}))
    assert main([*words, "--events", "--stages", "nothing", "--overwrite"]) == 2
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line[:1] == "{"]
    assert [event["event"] for event in events].count("error") == 1


def worker(model: Path, out: Path, parent: int) -> subprocess.Popen[str]:
    """The engine as the app starts it, on a model that no family file describes."""
    job = {"model": str(model), "directory": str(out), "engine": "hf", "tokens": [1, 2, 3]}
    command = (sys.executable, "-m", "aprtui.engine.worker", json.dumps(job))
    return subprocess.Popen(
        [*command, "--parent", str(parent)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip


def test_it_ends_when_the_app_that_runs_it_is_gone(tmp_path: Path) -> None:
    nobody, out = os.getpid() + 1_000_000, tmp_path / "t"
    child = worker(saved("codegen", tmp_path / "model"), out, nobody)
    child.communicate(timeout=120)
    assert child.returncode == 128 + signal.SIGTERM
    assert not (out / "trace.json").exists()


def test_it_goes_on_alone_when_the_app_lets_it_go(tmp_path: Path) -> None:
    with worker(saved("codegen", tmp_path / "model"), tmp_path / "t", os.getpid()) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if json.loads(line)["event"] == "started":
                child.send_signal(signal.SIGUSR1)
                break
        last = json.loads([*child.stdout][-1])
    assert (child.returncode, last["event"]) == (0, "done")
    assert open_trace(tmp_path / "t").status == "complete"
