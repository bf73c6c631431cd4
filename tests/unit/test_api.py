"""The reading API: what docs/api.md promises, from a notebook's side."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

import aprtui
from aprtui.cli.main import main
from aprtui.formats.aprt import write_stage
from aprtui.formats.maps import GUARDED
from aprtui.formats.tracedir import StageKey

ROOT = Path(aprtui.__file__).resolve().parents[1]
TOKENS = [11, 20, 3]
HEAVY = ("torch", "textual", "transformers", "numpy", "gguf", "rich", "yaml", "tokenizers")


def fresh(code: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def loaded(code: str, *names: str) -> set[str]:
    """Which of ``names`` are imported after ``code``."""
    return set(fresh(f"import sys\n{code}\nprint(*set(sys.modules) & {set(names)!r})").split())


@pytest.fixture(scope="module")
def model() -> aprtui.Model:
    return aprtui.open_model(str(ROOT / "tests" / "fixtures" / "models" / "qwen2-q4_k_m.gguf"))


@pytest.fixture(scope="module")
def captured(model: aprtui.Model, tmp_path_factory: pytest.TempPathFactory) -> aprtui.TraceDir:
    return aprtui.trace(model, tokens=TOKENS, directory=tmp_path_factory.mktemp("api") / "trace")


# -- what importing costs --------------------------------------------------------------------------


def test_importing_the_package_loads_nothing_of_it_and_nothing_heavy() -> None:
    assert loaded("import aprtui", *HEAVY) == set()
    assert fresh(
        "import sys, aprtui; print(*[m for m in sys.modules if m.startswith('aprtui.')])"
    ) == ""  # fmt: skip


def test_looking_at_a_trace_loads_neither_torch_nor_textual(captured: aprtui.TraceDir) -> None:
    code = (
        f"import aprtui; t = aprtui.open_trace({str(captured.root)!r}); t['lm_head'][0]; "
        "aprtui.diff(t, t)"
    )
    assert loaded(code, "torch", "textual", "transformers") == set()


def test_opening_a_model_loads_neither_torch_nor_textual(model: aprtui.Model) -> None:
    code = f"import aprtui; aprtui.open_model({str(model.path)!r}).graph"
    assert loaded(code, "torch", "textual", "transformers") == set()


def test_every_public_name_is_there_and_listed() -> None:
    for name in aprtui.__all__:
        assert getattr(aprtui, name) is not None
    assert set(aprtui.__all__) <= set(dir(aprtui))
    with pytest.raises(AttributeError, match="no attribute 'tracee'"):
        aprtui.tracee  # noqa: B018


# -- traces ----------------------------------------------------------------------------------------


def test_a_batch_is_what_the_command_writes(model: aprtui.Model, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("What is 2+2?\nabc\n")
    words = ["trace", str(model.path), "--batch", str(prompts), "--steps", "1", "-o"]
    assert main([*words, str(tmp_path / "a")]) == 0
    first, second = aprtui.trace_batch(
        model, ["What is 2+2?", model.tokenizer.encode("abc")], directory=tmp_path / "b", steps=1
    )
    assert first.rows is not None and second.rows is not None
    assert (first.rows.sequence, second.rows.sequence) == (0, 1)
    for found in (first, second):
        for record in found.records.values():
            other = tmp_path / "a" / record.path.relative_to(tmp_path / "b")
            assert record.path.read_bytes() == other.read_bytes()
    with pytest.raises(aprtui.UsageError, match="a batch needs prompts"):
        aprtui.trace_batch(model, [])
    with pytest.raises(aprtui.UsageError, match="tokens are whole numbers"):
        aprtui.trace_batch(model, [["a"]], directory=tmp_path / "c")  # type: ignore[list-item]


def test_a_stage_is_an_array_with_its_axes(captured: aprtui.TraceDir) -> None:
    gate = captured["layer-3/ffn_gate"]
    assert (gate.shape, gate.axes, gate.positions) == ((3, 512), ("token", "ffn"), "all")
    assert (gate.ndim, gate.size, len(gate)) == (2, 1536, 3) and gate.dtype == np.float32
    assert gate.shape_source == "manifest"
    raw = (captured.root / "layer-3" / "ffn_gate.bin").read_bytes()[12:]
    assert np.asarray(gate).tobytes() == raw
    assert captured["lm_head"].axes == ("vocab",) and captured["lm_head"].positions == "last"


def test_a_stage_takes_part_in_numpys_arithmetic(captured: aprtui.TraceDir) -> None:
    gate = captured[StageKey(3, "ffn_gate")]
    plain = np.array(gate)
    for made, expected in (
        (gate - gate, plain - plain),
        (2 * gate, 2 * plain),
        (np.abs(gate), np.abs(plain)),
        (gate[1, :7], plain[1, :7]),
        (np.linalg.norm(gate, axis=1), np.linalg.norm(plain, axis=1)),
        (gate > 0, plain > 0),
    ):
        assert type(made) is np.ndarray and np.array_equal(made, expected)
    assert np.asarray(gate, dtype=np.float64).dtype == np.float64


def test_a_stage_cannot_be_written_and_its_copy_can(captured: aprtui.TraceDir) -> None:
    gate = captured["layer-3/ffn_gate"]
    with pytest.raises(ValueError, match="read-only"):
        gate.values[0, 0] = 0
    with pytest.raises(ValueError, match="read-only"):
        gate += 1
    copy = gate.copy()
    copy[0, 0] = 0
    assert gate.values[0, 0] != 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        gate.axes = None  # type: ignore[misc]


def test_a_trace_is_a_mapping_in_order_of_computation(captured: aprtui.TraceDir) -> None:
    keys = list(captured)
    assert len(captured) == 71 and [str(key) for key in keys[:2]] == [
        "layer-0/embedding", "layer-0/attn_norm",
    ]  # fmt: skip
    assert str(keys[-1]) == "lm_head"
    assert "layer-3/ffn_gate" in captured and StageKey(3, "ffn_gate") in captured
    assert "layer-3/ffn_gat" not in captured and "" not in captured and None not in captured
    assert [key for key, stage in captured.items() if stage.axes == ("vocab",)] == [keys[-1]]
    assert list(captured.keys()) == list(dict(captured)) == keys


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("layer-9/ffn_gate", "layers 0-3 hold it: 'layer-0/ffn_gate'"),
        ("ffn_gate", "layers 0-3 hold it: 'layer-0/ffn_gate'"),
        ("layer-0/lm_head", "the whole model has it: 'lm_head'"),
        ("layer-0/ffn_gat", "did you mean ffn_gate?"),
        ("layer-0/q_norm", "the family has no QK norm"),
        ("../../etc/passwd", "list(trace) names what is there"),
        ("\x1b]0;x", "\\x1b]0;x is not in"),
    ],
)
def test_a_stage_that_is_not_there_is_explained(
    captured: aprtui.TraceDir, name: str, said: str
) -> None:
    with pytest.raises(aprtui.MissingStageError) as caught:
        captured[name]
    assert said in str(caught.value)
    assert isinstance(caught.value, KeyError) and caught.value.exit_code == 2


def test_a_large_file_is_mapped_and_one_cut_short_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "layer-0" / "large.bin"
    write_stage(path, 0, np.ones(1 << 20, dtype=np.float32))
    write_stage(path.with_name("small.bin"), 0, np.ones(4, dtype=np.float32))
    found = aprtui.open_trace(tmp_path)
    large, small = found["layer-0/large"], found["layer-0/small"]
    assert (large.mapped, small.mapped) == (GUARDED, False)
    assert "memory-mapped" in repr(large) or not GUARDED
    assert "copied" in repr(small) and float(np.sum(large * 2)) == 2 << 20
    with path.open("r+b") as file:
        file.truncate(100)
    if not GUARDED:
        return
    for use in (large.copy, lambda: large + 1, lambda: large[1000:].sum() + large[-1]):
        with pytest.raises(aprtui.BadFileError):
            use()


def test_one_stage_file_opens_as_a_trace_of_one(captured: aprtui.TraceDir) -> None:
    alone = aprtui.open_trace(captured.root / "layer-1" / "attn_norm.bin")
    assert alone.status == "file" and [str(key) for key in alone] == ["layer-1/attn_norm"]
    assert alone["layer-1/attn_norm"].shape == (3, 256)


def test_a_file_that_nothing_tells_the_shape_of_is_flat(tmp_path: Path) -> None:
    write_stage(tmp_path / "layer-0" / "mystery.bin", 0, np.arange(6, dtype=np.float32))
    stage = aprtui.open_trace(tmp_path)["layer-0/mystery"]
    assert (stage.axes, stage.shape, stage.shape_source) == (None, (6,), "")
    assert "6 values, shape not known" in repr(stage)


def test_a_damaged_stage_file_is_an_error_when_it_is_read(
    captured: aprtui.TraceDir, tmp_path: Path
) -> None:
    whole = (captured.root / "lm_head.bin").read_bytes()
    (tmp_path / "lm_head.bin").write_bytes(whole[:-1])
    found = aprtui.open_trace(tmp_path)
    with pytest.raises(aprtui.BadFileError, match="cut short"):
        found["lm_head"]


# -- tracing, comparing, bisecting -----------------------------------------------------------------


def test_a_trace_is_what_the_command_line_writes(
    captured: aprtui.TraceDir, model: aprtui.Model, tmp_path: Path
) -> None:
    words = ["trace", str(model.path), "--tokens", "11,20,3", "-o", str(tmp_path / "t"), "--json"]
    assert main(words) == 0
    theirs = aprtui.open_trace(tmp_path / "t")
    assert list(theirs) == list(captured)
    for key in captured:
        assert np.array_equal(captured[key].values, theirs[key].values), key


def test_a_trace_of_some_stages_and_layers(model: aprtui.Model, tmp_path: Path) -> None:
    told: list[object] = []
    found = aprtui.trace(
        model, tokens=np.array(TOKENS), stages=["ffn_gate", "lm_head"], layers=range(1, 3),
        directory=tmp_path / "t", on_event=told.append,
    )  # fmt: skip
    assert [str(key) for key in found] == ["layer-1/ffn_gate", "layer-2/ffn_gate", "lm_head"]
    assert type(told[-1]).__name__ == "Finished"
    with pytest.raises(aprtui.UsageError, match="is there already"):
        aprtui.trace(model, tokens=TOKENS, directory=tmp_path / "t")


def test_tracing_leaves_torchs_switches_as_they_were(model: aprtui.Model, tmp_path: Path) -> None:
    import torch

    def switches() -> tuple[object, ...]:
        products, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
        mode = torch.get_deterministic_debug_mode()
        return mode, products.allow_tf32, cudnn.allow_tf32, cudnn.benchmark

    before = switches()
    aprtui.trace(model, tokens=TOKENS, layers=0, stages="attn_norm", directory=tmp_path / "t")
    assert switches() == before


def test_a_comparison_says_what_the_command_line_prints(
    captured: aprtui.TraceDir,
    model: aprtui.Model,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = aprtui.trace(model, tokens=TOKENS, dtype="bfloat16", directory=tmp_path / "b")
    for a, b in (
        (captured, other),
        (str(captured.root), other.root),
        (captured.root / "lm_head.bin", str(other.root / "lm_head.bin")),
    ):
        found = aprtui.diff(a, b, bars=["rel_l2=1e-9"])
        paths = [str(side.root if isinstance(side, aprtui.TraceDir) else side) for side in (a, b)]
        assert main(["diff", *paths, "--json", "--bar", "rel_l2=1e-9"]) == found.exit_code() == 1
        assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(found.to_json()))
    assert found.of_files and found.verdict == "fail"


def test_layers_and_stages_narrow_a_comparison(captured: aprtui.TraceDir) -> None:
    found = aprtui.diff(captured, captured, stages=("ffn_gate", "ffn_up"), layers=(0, 3))
    assert [str(result.key) for result in found.results] == [
        "layer-0/ffn_gate", "layer-0/ffn_up", "layer-3/ffn_gate", "layer-3/ffn_up",
    ]  # fmt: skip
    assert len(aprtui.diff(captured, captured, layers="all").results) == 71


def test_two_models_are_compared(model: aprtui.Model, qwen2_apr: Path) -> None:
    found = aprtui.diff_models(str(model.path), qwen2_apr)
    assert found.exit_code() == 0 and found.to_json()["verdict"] == found.verdict == "pass"
    assert repr(found).startswith("<two models: pass; tensors: ")


def test_a_bisection_says_what_the_command_line_prints(
    captured: aprtui.TraceDir,
    model: aprtui.Model,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with aprtui.CaptureWriter(
        tmp_path / "b", tokens=TOKENS, model=model, engine={"name": "mine"}
    ) as capture:
        for key in captured:
            twice = 2 if str(key) == "layer-2/ffn_up" else 1
            capture.put(key.stage, captured[key].values * np.float32(twice), layer=key.layer)
    found = aprtui.bisect(tmp_path / "b", a=captured, model=model)
    culprits = [str(culprit.key) for culprit in found.culprits]
    assert culprits == ["layer-2/ffn_up", "layer-2/ffn_swigl"]
    mistake = found.culprits[0].mistake
    assert mistake is not None and mistake.id == "scaled"
    words = ["bisect", str(captured.root), str(tmp_path / "b"), "--json"]
    assert main(words) == found.exit_code == 1  # the manifest names the model
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(found.to_json()))
    assert aprtui.bisect(captured, model=str(model.path)).verdict == "clean"


# -- what notebooks show ---------------------------------------------------------------------------


class _Cells(HTMLParser):
    """Every text of a table, and every tag."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_what_a_notebook_shows_is_short_text_and_an_escaped_table(tmp_path: Path) -> None:
    nasty = tmp_path / "<img src=x onerror=alert(1)>"
    write_stage(nasty / "layer-0" / "attn_norm.bin", 0, np.ones(6, dtype=np.float32))
    found = aprtui.open_trace(nasty)
    assert "\n" not in repr(found) and len(repr(found)) < 400
    cells = _Cells()
    cells.feed(found._repr_html_())
    assert cells.tags <= {"table", "caption", "thead", "tbody", "tr", "th", "td"}
    assert "attn_norm" in cells.texts


def test_every_result_has_a_line_and_a_table(
    captured: aprtui.TraceDir, model: aprtui.Model
) -> None:
    for shown, line in (
        (captured, r"<trace .*: complete, 71 stage files, layers 0-3, 3 tokens>"),
        (model, r"<model .*: qwen2, 4 layers, 71 stages, .*>"),
        (aprtui.diff(captured, captured), r"<comparison: PASS \(71 equal\); bar .*>"),
    ):
        assert re.fullmatch(line, repr(shown))
        assert shown._repr_html_().startswith("<table><caption>")


# -- wrong input -----------------------------------------------------------------------------------


def test_wrong_requests_are_usage_errors(
    captured: aprtui.TraceDir, model: aprtui.Model, tmp_path: Path
) -> None:
    root = captured.root
    for call, said in (
        (lambda: aprtui.trace(model, prompt="a", tokens=[1]), "both given"),
        (lambda: aprtui.trace(model, tokens="1,2"), "whole numbers"),  # type: ignore[arg-type]
        (lambda: aprtui.trace(model, tokens=[1.5]), "whole numbers"),  # type: ignore[list-item]
        (lambda: aprtui.trace(model, tokens=[]), "no tokens"),
        (lambda: aprtui.trace(model, tokens=[1 << 40]), "outside the vocabulary"),
        (lambda: aprtui.trace(model, stages="ffn_gat"), "unknown stage"),
        (lambda: aprtui.trace(model, stages=[]), "an empty stage name"),
        (lambda: aprtui.trace(model, layers=[4]), "outside the model"),
        (lambda: aprtui.trace(model, dtype="int8"), "unknown dtype"),
        (lambda: aprtui.trace(model, engine="vllm"), "vllm"),
        (lambda: aprtui.trace(model, overrides={"rope_theta": "1"}), "open already"),
        (lambda: aprtui.diff(root), "two traces are needed"),
        (lambda: aprtui.diff(captured), "two traces are needed"),
        (lambda: aprtui.diff(root, root / "lm_head.bin"), "one side is a file"),
        (lambda: aprtui.diff(root, root, positions="first"), "all or last"),
        (lambda: aprtui.diff(root, root, bars=["speed=1"]), "--bar"),
        (lambda: aprtui.bisect(root / "lm_head.bin", model=model), "a file, where the folder"),
        (lambda: aprtui.bisect(root, model=model, prompt="a", tokens=[1]), "both given"),
        (lambda: aprtui.bisect(root, model=model, tokens=[1 << 40]), "outside the vocabulary"),
    ):
        with pytest.raises(aprtui.UsageError) as caught:
            call()
        assert said in str(caught.value)


def test_what_is_not_there_or_not_what_it_claims_is_a_bad_file(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    for call in (
        lambda: aprtui.open_trace(tmp_path / "none"),
        lambda: aprtui.open_trace(str(tmp_path / "empty")),
        lambda: aprtui.open_model(tmp_path / "none.gguf"),
        lambda: aprtui.open_model(str(tmp_path / "m.gguf")),
        lambda: aprtui.diff(tmp_path / "none", tmp_path / "none"),
        lambda: aprtui.diff_models(tmp_path / "m.gguf", tmp_path / "none"),
        lambda: aprtui.bisect(tmp_path / "none"),
    ):
        with pytest.raises(aprtui.BadFileError) as caught:
            call()
        assert str(tmp_path) in str(caught.value)


# -- the documentation -----------------------------------------------------------------------------


@pytest.mark.parametrize("page", ["README.md", "docs/api.md"])
def test_the_snippets_run_as_they_stand(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: aprtui.Model
) -> None:
    """Every Python block that begins with ``import aprtui``, one after the other."""
    monkeypatch.chdir(tmp_path)
    Path("model.gguf").symlink_to(model.path)
    Path("other.gguf").symlink_to(model.path)
    aprtui.trace("model.gguf", prompt="What is 2+2?", directory="suspect", dtype="bfloat16")
    blocks = re.findall(r"```python\n(import aprtui\n.*?)```", (ROOT / page).read_text(), re.S)
    assert blocks
    for block in blocks:
        exec(compile(block, page, "exec"), {})
