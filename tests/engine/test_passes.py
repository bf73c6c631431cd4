"""Rows that come in passes: chunks, decode steps and batches, against one pass and transformers."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch

from aprtui.cli.main import main
from aprtui.compare.bisect import bisect
from aprtui.engine.events import PassDone
from aprtui.engine.job import TraceJob
from aprtui.engine.plan import make_batch, make_plan
from aprtui.engine.resuming import resumed_plan
from aprtui.engine.run import run_trace, run_traces
from aprtui.engine.stopping import TraceStopped
from aprtui.errors import UsageError
from aprtui.formats.rows import Rows
from aprtui.formats.tracedir import StageKey, TraceDir, open_trace
from aprtui.graph.ops import Scores
from aprtui.model.open import open_model
from tests.engine.test_adapters_hf import worst_error
from tests.engine.test_trace_cli import files, schema, trace

pytest.importorskip("transformers", reason="transformers is a dev dependency")

from transformers import AutoModelForCausalLM

from tests.families import TINY, save_tiny

TOKENS = tuple((11 * place + 3) % 96 for place in range(70))
ROPE_GROWS = "phi3"  # its angles are others for long prompts
FROM_LAST = "mpt"  # its scores count keys from the last one of a pass


def run(model: Path, out: Path, **job: object) -> TraceDir:
    job.setdefault("logits", "all")
    run_trace(make_plan(TraceJob(model=str(model), directory=str(out), **job)), lambda event: None)  # type: ignore[arg-type]
    return open_trace(out)


def saved(family: str, folder: Path, **settings: object) -> Path:
    tiny = TINY[family]
    save_tiny(replace(tiny, settings={**tiny.settings, **settings}), folder)
    return folder


def apart(a: TraceDir, b: TraceDir) -> list[str]:
    """The stages whose bits differ."""
    assert a.records.keys() == b.records.keys()
    return [
        str(key)
        for key, record in a.records.items()
        if record.path.read_bytes() != b.records[key].path.read_bytes()
    ]


FAMILIES = ("qwen2", "gemma3", "mixtral", "qwen2moe", "gpt_oss", "llama4", "cohere2", "apertus",
            "lfm2", "mamba2", "qwen3_5", "kimi_linear", "glm_moe_dsa")  # fmt: skip
"""Sliding windows, chunks, sinks, experts, shared experts, NoPE layers, caps and xIELU; short
convolutions, scans, delta rules, chosen keys. The others are tried with APRTUI_ALL_FAMILIES=1."""
TRIED = tuple(TINY) if os.environ.get("APRTUI_ALL_FAMILIES") else FAMILIES


@pytest.mark.parametrize("family", sorted({*TRIED} - {ROPE_GROWS, FROM_LAST}))
def test_a_chunked_row_has_the_bits_of_one_pass(family: str, tmp_path: Path) -> None:
    model = saved(family, tmp_path / "model")
    once = run(model, tmp_path / "once", tokens=TOKENS, kv="f32")
    for chunk in (9, 1):
        chunked = run(model, tmp_path / f"by-{chunk}", tokens=TOKENS, chunk=chunk)
        assert apart(once, chunked) == []


def test_where_rope_changes_with_the_prompt_it_is_said(tmp_path: Path) -> None:
    model = saved(ROPE_GROWS, tmp_path / "model")
    once = run(model, tmp_path / "once", tokens=TOKENS[:12], kv="f32")
    chunked = run(model, tmp_path / "chunked", tokens=TOKENS[:12], chunk=6)
    assert apart(once, chunked)[0] == "layer-0/q_post_rope"
    assert chunked.manifest is not None and once.manifest is not None
    said = "turns by other angles once a pass goes beyond 8 positions"
    assert any(said in note for note in chunked.manifest["notes"])
    assert not any(said in note for note in once.manifest["notes"])


@pytest.mark.parametrize(
    "family", ["qwen2", "qwen2moe", "gemma3", "lfm2", "bamba", "qwen3_5", "glm_moe_dsa"]
)
def test_decoded_rows_have_the_bits_of_one_pass_and_the_tokens_of_transformers(
    family: str, tmp_path: Path
) -> None:
    model = saved(family, tmp_path / "model")
    decoded = run(model, tmp_path / "decoded", tokens=TOKENS[:20], steps=9)
    assert decoded.token_ids is not None and len(decoded.token_ids) == 29
    once = run(model, tmp_path / "once", tokens=decoded.token_ids, kv="f32")
    assert apart(once, decoded) == []
    theirs = AutoModelForCausalLM.from_pretrained(model, attn_implementation="eager")
    with torch.no_grad():
        out = theirs.generate(
            torch.tensor([TOKENS[:20]]), max_new_tokens=9, do_sample=False, eos_token_id=-1
        )
    assert tuple(out[0].tolist()) == decoded.token_ids


@pytest.mark.parametrize("family", ["qwen2", "mixtral", "qwen3_5", "kimi_linear", "glm_moe_dsa"])
def test_a_batch_has_the_bits_of_each_sequence_alone(family: str, tmp_path: Path) -> None:
    model = saved(family, tmp_path / "model")
    job = TraceJob(model=str(model), directory=str(tmp_path / "b"), logits="all", steps=3)
    prompts = (TOKENS[:20], TOKENS[3:9], TOKENS[30:47])
    run_traces(make_batch(job, prompts), lambda event: None)
    for at, tokens in enumerate(prompts):
        alone = run(model, tmp_path / f"alone-{at}", tokens=tokens, steps=3)
        together = open_trace(tmp_path / "b" / f"prompt-{at + 1}")
        assert apart(alone, together) == []
        assert alone.rows is not None
        assert together.rows == replace(alone.rows, sequence=at)


@pytest.mark.parametrize("family", ["qwen2", "gemma3", "qwen3moe"])
def test_a_chunked_pass_agrees_with_transformers(family: str, tmp_path: Path) -> None:
    """One pass of transformers, whose cache and masks are its own."""
    model = saved(family, tmp_path / "model")
    chunked = run(model, tmp_path / "chunked", tokens=TOKENS, chunk=16)
    theirs = AutoModelForCausalLM.from_pretrained(model, attn_implementation="eager")
    with torch.no_grad():
        out = theirs(torch.tensor([TOKENS]), output_attentions=True, use_cache=False)
    found = np.asarray(chunked["lm_head"], dtype=np.float64)
    expected = out.logits[0].double().numpy()
    assert np.linalg.norm(found - expected) <= 1e-5 * np.linalg.norm(expected)
    for layer, weights in enumerate(out.attentions):
        softmax = np.asarray(chunked[f"layer-{layer}/attn_softmax"], dtype=np.float64)
        assert np.abs(softmax - weights[0].double().numpy()).max() <= 1e-5


def test_the_manifest_says_which_pass_made_each_row(qwen2: Path, tmp_path: Path) -> None:
    assert (
        trace(qwen2, tmp_path / "t", "--tokens", "1,2,3,4,5", "--chunk", "3", "--steps", "2") == 0
    )
    manifest = json.loads((tmp_path / "t" / "trace.json").read_text())
    jsonschema.validate(manifest, schema("manifest.schema.json"))
    assert manifest["rows"] == {
        "positions": [0, 1, 2, 3, 4, 5, 6], "passes": [0, 0, 0, 1, 1, 2, 3], "first_key": 0,
        "sequence": None,
    }  # fmt: skip
    assert manifest["tokens"]["ids"][:5] == [1, 2, 3, 4, 5]
    assert len(manifest["tokens"]["ids"]) == len(manifest["tokens"]["text"]) == 7
    assert manifest["engine"]["settings"] == {"kv": "f32"}
    opened = open_trace(tmp_path / "t")
    assert opened.rows == Rows(tuple(range(7)), (0, 0, 0, 1, 1, 2, 3))
    events = [json.loads(line) for line in (tmp_path / "t" / "events.jsonl").open()]
    for event in events:
        jsonschema.validate(event, schema("events.schema.json"))
    passes = [event for event in events if event["event"] == "pass"]
    assert [(each["kind"], each["first"], each["rows"]) for each in passes] == [
        ("chunk", 0, 3), ("chunk", 3, 2), ("decode", 5, 1), ("decode", 6, 1),
    ]  # fmt: skip
    assert [each["token"] for each in passes[1:3]] == manifest["tokens"]["ids"][5:]


@pytest.mark.parametrize("kind", ["f16", "bf16", "q8_0", "q4_0"])
def test_a_cache_of_another_type_is_honest_and_told_by_bisect(
    kind: str, qwen2: Path, tmp_path: Path
) -> None:
    """What the cache holds is rounded as llama.cpp's blocks are (tests/engine/test_rounding.py)."""
    decoded = run(
        qwen2, tmp_path / "t", tokens=tuple(range(40, 52)), steps=3, kv=kind, logits="last"
    )
    assert decoded["lm_head"].positions == (11, 12, 13, 14)
    found = bisect(open_model(qwen2), decoded)
    assert not found.culprits and not found.unmeasured
    told = {item.key.stage: item.by for item in found.explained if item.by != "float32"}
    assert set(told) == {"attn_scores", "attention"}
    assert set(told.values()) == {f"{kind} KV cache, with a float32 query"}


def test_decoding_is_the_same_from_run_to_run_and_whatever_is_watched(
    qwen2: Path, tmp_path: Path
) -> None:
    options = ["--steps", "4", "--chunk", "4"]
    assert trace(qwen2, tmp_path / "a", *options) == 0
    assert trace(qwen2, tmp_path / "b", *options) == 0
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert trace(qwen2, tmp_path / "few", *options, "--stages", "attn_scores,ffn_out") == 0
    few = files(tmp_path / "few")
    assert few and few.items() <= files(tmp_path / "a").items()


def test_prompts_of_a_batch_are_a_folder_each(
    qwen2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "p.txt").write_text("What is 2+2?\n\nHello\n")
    options = ["--batch", str(tmp_path / "p.txt"), "--steps", "2"]
    assert trace(qwen2, tmp_path / "b", *options, "--dry-run") == 0
    told = capsys.readouterr().out
    assert "prompt 2 of 2" in told and "passes  a prefill of 9 rows, 2 decode steps" in told
    assert not (tmp_path / "b").exists()
    assert trace(qwen2, tmp_path / "b", *options) == 0
    told = capsys.readouterr().out
    assert told.count("decoded: '") == 2
    same = ["--prompt", "What is 2+2?", "--prompt", "Hello", "--steps", "2", "--json"]
    assert trace(qwen2, tmp_path / "c", *same) == 0
    assert len(json.loads(capsys.readouterr().out)["traces"]) == 2
    assert files(tmp_path / "b") == files(tmp_path / "c")
    assert open_trace(tmp_path / "c" / "prompt-2").rows.sequence == 1  # type: ignore[union-attr]


def test_a_trace_that_was_stopped_between_passes_goes_on_from_the_beginning(
    qwen2: Path, tmp_path: Path
) -> None:
    out, plan = tmp_path / "t", TraceJob(str(qwen2), str(tmp_path / "t"), tokens=(1, 2, 3), steps=3)

    def stop(event: object) -> None:
        if isinstance(event, PassDone) and event.number == 1:
            raise TraceStopped(15)

    with pytest.raises(TraceStopped):
        run_trace(make_plan(plan), stop)
    assert sorted(file.name for file in out.iterdir()) == ["events.jsonl"]
    assert main(["trace", "--resume", str(out)]) == 0
    whole = run(qwen2, tmp_path / "whole", tokens=(1, 2, 3), steps=3, logits="last")
    assert apart(open_trace(out), whole) == []


def test_one_of_a_batch_does_not_go_on_alone(qwen2: Path, tmp_path: Path) -> None:
    plans = make_batch(TraceJob(str(qwen2), str(tmp_path / "b")), ("one", "two"))
    run_traces(plans, lambda event: None)
    (tmp_path / "b" / "prompt-1" / "trace.json").unlink()
    with pytest.raises(UsageError, match="one of 2 that run together"):
        resumed_plan(tmp_path / "b" / "prompt-1")


def test_what_cannot_come_in_passes_is_refused_before_anything_is_computed(
    qwen2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = saved("llama", tmp_path / "two-sided", is_causal=False)
    with pytest.raises(UsageError, match="tokens see those behind them"):
        make_plan(TraceJob(str(model), tokens=(1, 2), steps=1))
    model = saved(FROM_LAST, tmp_path / "from-last")
    with pytest.raises(UsageError, match="count keys from the last one of a pass"):
        make_plan(TraceJob(str(model), tokens=(1, 2), steps=1))
    assert make_plan(TraceJob(str(model), tokens=(1, 2), kv="f32")).stretches
    model = saved("gpt2", tmp_path / "learned")
    longest = open_model(model).graph.longest
    assert longest is not None
    with pytest.raises(
        UsageError, match=f", 2 steps behind it, and the model has learned {longest}"
    ):
        make_plan(TraceJob(str(model), tokens=(1,) * (longest - 1), steps=2))
    model = saved("llama", tmp_path / "odd")
    with pytest.raises(UsageError, match="blocks of 32 channels, and heads here have 12"):
        make_plan(TraceJob(str(model), tokens=(1, 2), kv="q8_0"))
    for option in (["--steps", "0"], ["--chunk", "-1"], ["--steps", "many"]):
        assert trace(qwen2, tmp_path / "t", *option) == 2
        assert "is no number from 1" in capsys.readouterr().err
    assert not (tmp_path / "t").exists()


HF = ("qwen2", "gemma3", "mixtral", "qwen2moe", "gpt_oss", "olmo2", "bloom", "gpt_neox", "llama4",
      "kimi_linear", "glm_moe_dsa")  # fmt: skip


@pytest.mark.parametrize("family", HF)
def test_transformers_shows_the_same_stages_pass_by_pass(family: str, tmp_path: Path) -> None:
    model = saved(family, tmp_path / "model")
    ours = run(model, tmp_path / "ours", tokens=TOKENS[:23], chunk=9, steps=4)
    theirs = run(model, tmp_path / "theirs", tokens=TOKENS[:23], chunk=9, steps=4, engine="hf")
    few = run(
        model, tmp_path / "few", tokens=TOKENS[:23], chunk=9, steps=4, engine="hf",
        stages="lm_head", logits="last",
    )  # fmt: skip
    every = np.asarray(theirs["lm_head"])
    assert np.allclose(np.asarray(few["lm_head"]), every[22:], rtol=1e-4, atol=1e-4)
    assert theirs.token_ids == ours.token_ids and theirs.rows == ours.rows
    assert worst_error(ours, theirs) <= 1e-5


@pytest.mark.parametrize("family", ["phi", "persimmon", "hunyuan", "qwen3"])
def test_as_many_rows_as_heads_are_not_taken_for_them(family: str, tmp_path: Path) -> None:
    model = saved(family, tmp_path / "model")
    scored = open_model(model).graph[StageKey(0, "attn_scores")].op
    assert isinstance(scored, Scores)
    for rows in {scored.heads, scored.kv_heads}:
        job = {"tokens": TOKENS[: 2 * rows], "chunk": rows}
        ours = run(model, tmp_path / f"ours-{rows}", **job)
        theirs = run(model, tmp_path / f"theirs-{rows}", engine="hf", **job)
        assert StageKey(0, "q_norm") in theirs.records
        assert worst_error(ours, theirs) <= 1e-5


def test_the_padding_that_llama4_counts_is_seen_in_its_scores_alone(tmp_path: Path) -> None:
    model, out = saved("llama4", tmp_path / "model"), tmp_path / "theirs"
    job = TraceJob(model=str(model), directory=str(out), logits="all", engine="hf")
    run_traces(make_batch(job, (TOKENS[:12], TOKENS[3:9])), lambda event: None)
    ours = run(model, tmp_path / "ours", tokens=TOKENS[3:9], kv="f32")
    theirs = open_trace(out / "prompt-2")
    first = next(
        str(key)
        for key in ours.records
        if not np.allclose(np.asarray(ours[key]), np.asarray(theirs[key]), rtol=1e-4, atol=1e-5)
    )
    assert first == "layer-1/attn_scores"  # its queries are warmed by column, not by position


@pytest.mark.parametrize("family", ["qwen2", "gemma3", "qwen2moe", "gpt_oss", "bloom", "gpt2"])
def test_a_padded_batch_of_transformers_is_cut_into_its_sequences(
    family: str, tmp_path: Path
) -> None:
    model = saved(family, tmp_path / "model")
    out = tmp_path / "theirs"
    job = TraceJob(model=str(model), directory=str(out), logits="all", steps=3, engine="hf")
    prompts = (TOKENS[:12], TOKENS[3:9], TOKENS[30:39])
    run_traces(make_batch(job, prompts), lambda event: None)
    for at, tokens in enumerate(prompts):
        ours = run(model, tmp_path / f"ours-{at}", tokens=tokens, steps=3)
        theirs = open_trace(out / f"prompt-{at + 1}")
        assert theirs.token_ids == ours.token_ids
        assert worst_error(ours, theirs) <= 1e-5
