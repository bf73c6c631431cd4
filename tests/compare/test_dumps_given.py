"""A dump where a trace is due: imported first with --import or a yes, else said how."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from aprtui import api
from aprtui.cli.main import main
from aprtui.formats.tracedir import open_trace
from tests.support import FIXTURES, needs_fixtures

pytestmark = needs_fixtures
MODEL = FIXTURES / "models" / "pycode-5m"
MLX = FIXTURES / "dumps" / "mlx" / "f32.npz"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "aprtui" / "imports"


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    folder = tmp_path / "dumped"
    folder.mkdir()
    for kind in (".npz", ".json"):
        shutil.copy(MLX.with_suffix(kind), folder)
    return folder / MLX.name


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def at_a_terminal(monkeypatch: pytest.MonkeyPatch, *answers: str) -> Terminal:
    shown = Terminal()
    monkeypatch.setattr("sys.stdin", Terminal("".join(f"{each}\n" for each in answers)))
    monkeypatch.setattr("sys.stderr", shown)
    return shown


def test_bisect_imports_a_dump_first(
    dump: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["bisect", str(dump), "--model", str(MODEL), "--import", "--layers", "0"]
    for _ in range(2):  # made anew each time
        assert main([*words, "--json"]) == 0
        told = capsys.readouterr()
        found = json.loads(told.out)
        assert found["culprits"] == [] and "43 of 105 stages" in told.err
        (made,) = cache.iterdir()
        assert Path(found["b"]) == made and made.name.startswith("f32.npz-")
    assert sorted(each.name for each in dump.parent.iterdir()) == ["f32.json", "f32.npz"]


def test_diff_takes_the_model_that_the_other_capture_names(
    dump: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens = json.loads(dump.with_suffix(".json").read_text())["tokens"]
    api.trace(MODEL, tokens=tokens, directory=tmp_path / "ours", logits="all")
    words = ["diff", str(tmp_path / "ours"), str(dump), "--import", "--allow-unmeasured", "--json"]
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["counts"]["equal"] + found["counts"]["within"] == 43
    assert main(["bisect", str(dump), "--import"]) == 2
    assert "the model that was run is needed" in capsys.readouterr().err


def test_a_program_is_told_the_command(
    dump: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["bisect"], ["diff", str(tmp_path)], ["diff", "--paths", str(tmp_path)]):
        assert main([*words, str(dump), "--model", str(MODEL)]) == 3
        told = capsys.readouterr().err
        assert told.count("\n") == 1 and "another tool's dump, not a trace" in told
        assert f"--import imports it first, into the cache; aprtui import-trace {dump}" in told
        assert f"--model {MODEL} beside it" in told
    api.import_trace(dump, model=MODEL)
    assert main(["bisect", str(dump)]) == 3
    assert f"{dump.parent}/f32-trace is a trace" in capsys.readouterr().err


def test_a_person_is_asked(dump: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["bisect", str(dump), "--layers", "0", "--stages", "attn_norm,embedding"]
    shown = at_a_terminal(monkeypatch, "n")
    assert main(words) == 3
    made = dump.parent / "f32-trace"
    assert f"is another tool's dump. Import it into {made}? [y/N]" in shown.getvalue()
    assert not made.exists()
    shown = at_a_terminal(monkeypatch, "y", str(MODEL))
    assert main(words) in (0, 1)
    assert "the model that was run: " in shown.getvalue() and len(open_trace(made).records) == 43
    shown = at_a_terminal(monkeypatch, "yes")
    assert main(words) in (0, 1)
    assert f"Take {made}, a trace? [y/N]" in shown.getvalue()
    shown = at_a_terminal(monkeypatch)
    assert main([*words, "--json"]) == 3  # a program reads
    assert "[y/N]" not in shown.getvalue()


def test_what_an_import_doubts_is_said_and_is_no_success(
    dump: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = dict(np.load(dump))
    name = next(each for each in whole if each.endswith("layers.1.mlp.up_proj.input"))
    whole[name] = whole[name] * 1.5
    np.savez(dump, **whole)
    words = ["bisect", str(dump), "--model", str(MODEL), "--import", "--stages", "attn_norm"]
    assert main(words) == 1
    told = capsys.readouterr()
    assert "layer-1/ffn_norm" in told.err and "1 stage left out" in told.err


def test_what_the_importer_asks_for_names_its_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    batch = FIXTURES / "serving" / "03-batch-f32"
    assert main(["bisect", str(batch), "--model", str(MODEL), "--import"]) == 2
    told = capsys.readouterr().err
    assert "--sequence" in told and f"aprtui import-trace {batch}" in told
