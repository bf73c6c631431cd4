"""aprtui verify: several engines, one verdict, the exit code that goes with it."""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tokenizers
import torch

from aprtui.cli.main import main
from aprtui.cli.verify import _sentence
from aprtui.cli.verify_text import Texts
from aprtui.compare.verified import Verified
from aprtui.engine import adapters
from aprtui.engine.adapters import Put, Ran
from aprtui.engine.plan import Plan
from aprtui.formats.tracedir import StageKey

pytest.importorskip("transformers", reason="transformers is a dev dependency")

from tests.families import TINY, save_tiny

TOKENS = "3,14,15,92,65,35"


def verify(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any]]:
    code = main(["verify", *words, "--tokens", TOKENS, "--json"])
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert found["exit_code"] == code
    return code, found


@pytest.fixture
def model(tmp_path: Path) -> str:
    save_tiny(TINY["qwen3"], tmp_path / "model")
    return str(tmp_path / "model")


def test_engines_that_agree_are_the_same(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = verify(capsys, model)
    assert (code, found["verdict"]) == (0, "same")
    assert [each["name"] for each in found["engines"]] == ["aprtui", "hf"]
    assert found["engines"][1]["comparison"]["verdict"] == "pass"
    assert found["engines"][1]["engine"]["name"] == "transformers"


def test_a_lower_precision_is_explained(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = verify(capsys, model, "--dtype", "bfloat16", "--engines", "aprtui,hf")
    assert (code, found["verdict"]) == (0, "explained")
    assert any("bfloat16" in by for each in found["engines"] for by in each["explained_by"])


def spoil(monkeypatch: pytest.MonkeyPatch, stage: str, layer: int, how: Any) -> None:
    """Let the other engine's capture of one stage be wrong; ``how`` may return None to lose it."""
    honest = adapters.run

    def run(plan: Plan, device: torch.device, put: Put) -> Ran:
        def wrong(key: StageKey, value: torch.Tensor) -> None:
            put(key, how(value) if key == (layer, stage) else value)

        return honest(plan, device, wrong)

    monkeypatch.setattr(adapters, "run", run)


def test_a_stage_that_computes_wrongly_is_named_and_reported(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(monkeypatch, "ffn_gate", 1, lambda value: value * 1.25)
    report = tmp_path / "report.html"
    code, found = verify(capsys, model, "--report", str(report), "-o", str(tmp_path / "traces"))
    assert (code, found["verdict"]) == (1, "culprits")
    other = found["engines"][1]["replay"]
    first = other["culprits"][0]
    assert (first["layer"], first["stage"]) == (1, "ffn_gate")
    assert found["engines"][0]["verdict"] == "same"
    assert "layer-1/ffn_gate" in found["sentence"]
    assert "ffn_gate" in report.read_text()
    assert (tmp_path / "traces" / "hf" / "trace.json").is_file()


def test_a_pass_that_does_not_show_every_stage_is_an_engine_error(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    honest = adapters.run

    def run(plan: Plan, device: torch.device, put: Put) -> Ran:
        def forgetful(key: StageKey, value: torch.Tensor) -> None:
            if key != (1, "q_norm"):
                put(key, value)

        return honest(plan, device, forgetful)

    monkeypatch.setattr(adapters, "run", run)
    folder = tmp_path / "t"
    assert main(["trace", model, "--engine", "hf", "--tokens", "1,2", "-o", str(folder)]) == 4
    told = capsys.readouterr().err
    assert "layer-1/q_norm" in told and "transformers" in told
    assert not (folder / "trace.json").exists()


def test_traces_are_kept_only_where_asked(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = set(tmp_path.rglob("*"))
    assert verify(capsys, model)[1]["engines"][0]["directory"] is None
    assert set(tmp_path.rglob("*")) == before


def test_the_text_says_the_verdict_first(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", model, "--tokens", TOKENS]) == 0
    assert capsys.readouterr().out.startswith("same: every stage of every engine agrees\n")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--engines", "aprtui,vllm"), "unknown engine 'vllm'"),
        (("--engines", "ours,hf"), "unknown engine 'ours' (aprtui, llamacpp, hf)"),
        (("--engines", "aprtui"), "two engines are needed"),
        (("--tokens", "1,x"), "cannot be read"),
        (("--tokens", "96"), "outside the vocabulary"),
        (("--report", "x.pdf"), "what kind of report"),
    ],
)
def test_requests_that_make_no_sense_are_usage_errors(
    model: str, words: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", model, *words]) == 2
    assert says in capsys.readouterr().err


def test_a_model_that_no_other_engine_reads_says_which_do(
    qwen2_apr: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(qwen2_apr)]) == 2
    assert "llamacpp reads GGUF files, hf Hugging Face folders" in capsys.readouterr().err


@pytest.mark.skipif(
    importlib.util.find_spec("llama_cpp") is None, reason="llama-cpp-python is not installed"
)
def test_llama_cpp_s_rounding_of_activations_explains_it(
    qwen2: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found = verify(capsys, str(qwen2))
    assert (code, found["verdict"]) == (0, "explained")
    assert found["engines"][1]["explained_by"] == {"activations rounded to Q8_K": 21}


def test_what_could_not_be_measured_is_named_in_the_verdict() -> None:
    def stage(name: str, layer: int) -> Any:
        return SimpleNamespace(key=StageKey(layer, name), metrics=None, why="", kind="missing-b")

    fused = [stage(name, layer) for layer in (0, 1) for name in ("attn_scores", "attn_softmax")]
    trace: Any = SimpleNamespace(manifest={"engine": {"name": "llama.cpp", "device": "cpu"}})
    replay: Any = SimpleNamespace(culprits=(), unmeasured=fused[:1], explanations=Counter())
    comparison: Any = SimpleNamespace(results=fused)
    verified = Verified("llamacpp", trace, comparison, replay)
    assert verified.verdict == "unmeasured"
    assert _sentence((verified,)) == (
        "unmeasured: no culprit, but attn_scores, attn_softmax of llama.cpp cpu "
        "could not be compared and replayed"
    )


def test_every_path_of_every_engine_is_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_tiny(TINY["gemma3"], tmp_path / "model")
    options = ["--tokens", "3,14,25,36,47,58,69,80", "--paths", "--steps", "3"]
    assert main(["verify", str(tmp_path / "model"), *options]) == 0
    told = capsys.readouterr().out
    assert "aprtui: the same bits on every path" in told
    assert "batched  same: the same bits in all" in told
    assert "hf: the same numbers on every path, within the bar" in told
    assert main(["verify", str(tmp_path / "model"), *options, "--engines", "aprtui", "--json"]) == 0
    (engine,) = json.loads(capsys.readouterr().out)["engines"]
    assert (engine["name"], engine["verdict"]) == ("aprtui", "same")
    assert [way["name"] for way in engine["ways"]] == ["chunked", "decoded", "batched"]
    assert all(way["tokens"] == 11 and not way["alone"] for way in engine["ways"])


def test_a_batch_is_padded_so_that_what_padding_changes_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """transformers' lfm2 masks padded rows before a projection, whose bias moves them again."""
    save_tiny(TINY["lfm2"], tmp_path / "model")
    options = ["--tokens", "3,14,25,36,47,58,69,80", "--paths", "--engines", "hf"]
    assert main(["verify", str(tmp_path / "model"), *options]) == 1
    told = capsys.readouterr().out
    assert "batched  differs: parts first at layer-0/conv, positions 0-1 (pass 0)" in told
    assert "is batched wrong by itself? --output DIR keeps it to bisect" in told
    assert main(["verify", str(tmp_path / "model"), *options, "-o", str(tmp_path / "kept")]) == 1
    told = capsys.readouterr().out
    assert f"aprtui bisect {tmp_path}/kept/hf/batched/prompt-1" in told


def test_steps_without_paths_are_refused(qwen2: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(qwen2), "--steps", "2"]) == 2
    assert "add --paths" in capsys.readouterr().err


def test_many_prompts_are_a_matrix_of_verdicts(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = Counter[str]()

    def second_is_wrong(value: torch.Tensor) -> torch.Tensor:
        calls["ffn_gate"] += 1
        return value * 1.25 if calls["ffn_gate"] == 2 else value

    spoil(monkeypatch, "ffn_gate", 1, second_is_wrong)
    monkeypatch.setattr("aprtui.cli.verify_prompts.read_texts", lambda *_: Texts())
    words_of = tokenizers.models.WordLevel({name: at for at, name in enumerate("abcdef")}, "a")
    reader = tokenizers.Tokenizer(words_of)
    reader.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    reader.save(f"{model}/tokenizer.json")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("b c d\n\nf e d c\n")
    words = ["verify", model, "--prompts", str(prompts), "-o", str(tmp_path / "t")]
    assert main([*words, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert [each["verdict"] for each in found["prompts"]] == ["same", "culprits"]
    assert found["prompts"][1]["engines"][1]["replay"]["culprits"][0]["stage"] == "ffn_gate"
    assert (found["verdict"], found["exit_code"]) == ("culprits", 1)
    assert main([*words, "--overwrite"]) == 0
    out = capsys.readouterr().out
    assert "prompt-2" in out and f"aprtui {tmp_path / 't/aprtui'} {tmp_path / 't/hf'}" in out
    assert main(["diff", str(tmp_path / "t/aprtui"), str(tmp_path / "t/hf")]) == 0
    assert "2  prompt-2" in capsys.readouterr().out
    assert main([*words, "--paths"]) == 2
