"""`aprtui import-trace` on what is wrong: one sentence, an exit code, nothing is written."""

from __future__ import annotations

import io
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from aprtui.cli.main import main
from aprtui.formats.rows import Rows
from tests.support import FIXTURES, needs_fixtures

pytestmark = needs_fixtures
DUMPS, SERVING = FIXTURES / "dumps", FIXTURES / "serving"
MODEL = FIXTURES / "models" / "pycode-5m"
HOOKS, ORT = DUMPS / "hf-hooks" / "f32-sdpa.npz", DUMPS / "ort" / "fp32.npz"
TP = ("TP0_PP0_Rank0_pid1", "TP1_PP0_Rank1_pid2")
IDS = "783,646,292,500,506,418,269,258,344,503,679,556,274,11,457,302"
Made = Callable[[Path], tuple[Path, list[str]]]


class Calls:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch never",)


def saved(value: Any, name: str = "x.pt") -> Made:
    def make(root: Path) -> tuple[Path, list[str]]:
        torch.save(value, root / name)
        return root / name, []

    return make


def given(path: Path, *words: str) -> Made:
    return lambda root: (path, list(words))


def hooks(**changed: Callable[[Any], Any]) -> Made:
    """The hooks' dump with some tensors changed; dots are two low lines."""

    def make(root: Path) -> tuple[Path, list[str]]:
        whole = dict(np.load(HOOKS))
        for name, change in changed.items():
            whole[name.replace("__", ".")] = change(whole[name.replace("__", ".")])
        np.savez(root / "x.npz", **whole)
        return root / "x.npz", []

    return make


def twice(root: Path) -> tuple[Path, list[str]]:
    whole = dict(np.load(ORT))
    name = "|model|layers.0|mlp|down_proj|MatMul|output_0"
    np.savez(root / "x.npz", **whole, **{name.replace("MatMul", "MatMulNBits"): whole[name]})
    return root / "x.npz", ["--tokens", IDS]


def passes(*numbers: int) -> Made:
    """Some of a run's passes, in this order."""

    def make(root: Path) -> tuple[Path, list[str]]:
        for place, number in enumerate(numbers):
            file = SERVING / "01-prefill-decode-f32" / f"pass{number}.pt"
            shutil.copy(file, root / f"pass{place}.pt")
        return root, []

    return make


def prefill(**changed: Any) -> Made:
    """The first pass with other positions or lengths."""

    def make(root: Path) -> tuple[Path, list[str]]:
        held = torch.load(SERVING / "01-prefill-decode-f32" / "pass0.pt", weights_only=True)
        torch.save({**held, **changed}, root / "pass0.pt")
        return root, []

    return make


def ranks(*names: str) -> Made:
    def make(root: Path) -> tuple[Path, list[str]]:
        for name, source in zip(names, TP, strict=False):
            shutil.copytree(SERVING / "04-tp2-f32" / source, root / name)
        return root, []

    return make


def sparse(root: Path) -> tuple[Path, list[str]]:
    """A tensor of 3 GB by its header, of which nothing is on the disk."""
    head = io.BytesIO()
    shape = {"descr": "<f4", "fortran_order": False, "shape": (1, 1 << 20, 768)}
    np.lib.format.write_array_header_1_0(head, shape)
    for part in ("self_attn.q_proj.output", "mlp.up_proj.output"):
        with (root / f"model.layers.0.{part}.npy").open("wb") as file:
            file.write(head.getvalue())
            file.truncate(len(head.getvalue()) + 4 * 768 * (1 << 20))
    return root, ["--tokens", IDS]


def climbing(root: Path) -> tuple[Path, list[str]]:
    held = io.BytesIO()
    np.save(held, np.zeros(3))
    with zipfile.ZipFile(root / "x.npz", "w") as archive:
        archive.writestr("../../never/model.layers.0.npy", held.getvalue())
    return root / "x.npz", []


WRONG: dict[str, tuple[Made, int, str]] = {
    "a map that fits nothing": (given(HOOKS, "--map", "vllm"), 2, "the map vllm fits nothing"),
    "a map that fits twice": (twice, 2, "the map fits twice"),
    "no such map": (given(HOOKS, "--map", "vlm"), 2, "did you mean vllm?"),
    "another model's": (
        given(HOOKS, "--model", str(FIXTURES / "models/qwen2-q4_k_m.gguf")), 2,
        "a dump of another model",
    ),
    "ranks 0 and 2 of 3": (
        ranks(TP[0], "TP2_PP0_Rank2_pid2"), 3, "make no whole: TP 1 is missing, of TP 0-2",
    ),
    "half of two ranks": (
        given(SERVING / "04-tp2-f32", "--ranks", TP[0]), 2, "1/2 of it: not all ranks are there",
    ),
    "ranks in another order than named": (
        given(SERVING / "04-tp2-f32", "--ranks", ",".join(TP[::-1])), 2, "tell another order",
    ),
    "a rank twice": (
        given(SERVING / "04-tp2-f32", "--ranks", ",".join((TP[0],) * 2)), 2, "names a folder twice",
    ),
    "a pass missing": (passes(0, 1, 3), 2, "13 would go on: passes are missing"),
    "passes out of order": (passes(0, 2, 1), 2, "passes are missing, out of order"),
    "the prefill last": (passes(1, 0), 2, "passes are out of order"),
    "a pickle that calls": (
        saved({"a": Calls()}), 3, "would call posix.system: refused, nothing was run",
    ),
    "a tensor of a new type": (
        saved({"a": torch.zeros(2).to(torch.float8_e4m3fn)}), 3, "save tensors as float32",
    ),
    "3 GB by its header": (sparse, 2, "is [1, 1048576, 768], where layer-0/ffn_up"),
    "a name that climbs": (climbing, 2, "no map knows its names: ../../never/model.layers.0"),
    "token ids below 0": (
        hooks(model__embed_tokens__input=lambda ids: ids - 900), 2, "is no token id",
    ),
    "token ids that are no whole numbers": (
        hooks(model__embed_tokens__input=lambda ids: ids + 0.5), 3, "holds no whole numbers",
    ),
    "a row too few": (hooks(model__layers__0__mlp__output=lambda x: x[:, 1:]), 2, "[1, 15, 256]"),
    "positions that are none": (
        prefill(positions=torch.full((12,), float("nan"))), 3, "positions holds no whole numbers",
    ),
    "positions below 0": (prefill(positions=torch.arange(12) - 3), 2, "do not end at position 11"),
    "no lengths": (prefill(seq_lens=torch.zeros(0, dtype=torch.long)), 2, "no pass holds a row"),
    "a model": (given(FIXTURES / "models/qwen2-q4_k_m.gguf"), 3, "a model, not a dump"),
    "a model's folder": (given(MODEL), 3, "a model, not a dump"),
    "no such sequence": (
        given(SERVING / "03-batch-f32", "--sequence", "7"), 2, "holds 0 (11 tokens), 1 (12 tokens)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_one_sentence_and_nothing_is_written(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make, code, said = WRONG[name]
    (tmp_path / "dump").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    source, words = make(tmp_path / "dump")
    model = [] if "--model" in words else ["--model", str(MODEL)]
    before = sorted(tmp_path.rglob("*"))
    assert main(["import-trace", str(source), *model, *words, "-o", str(tmp_path / "out")]) == code
    told = capfd.readouterr()
    assert said in told.err and told.err.count("\n") == 1 and told.out == ""
    assert sorted(tmp_path.rglob("*")) == before


def test_a_trace_is_no_dump(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["import-trace", str(DUMPS / "mlx/f32.npz"), "--model", str(MODEL), "-o"]
    assert main([*words, str(tmp_path / "t")]) == 0
    assert main([*words, str(tmp_path / "t")]) == 2
    assert "a trace is there already (--overwrite replaces it" in capsys.readouterr().err
    words[1] = str(tmp_path / "t")
    assert main([*words, str(tmp_path / "u")]) == 3
    assert "a trace already, no dump" in capsys.readouterr().err


def test_a_position_far_away_takes_no_memory() -> None:
    far = Rows((10**12, 10**12 + 1), (0, 0))
    assert far.unseen == "the keys of positions 0-999999999999 are not in the dump"
