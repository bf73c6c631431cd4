"""Files made to break the program: shown, or refused in one line (fixtures/cases/attacks)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from aprtui.cli.main import main
from aprtui.formats.aprt import write_stage
from aprtui.formats.tracedir import EVENTS, MANIFEST, open_trace
from tests.support import SMALL

ATTACKS = SMALL / "attacks"
VALUES = np.arange(2, dtype=np.float32)


def trace(root: Path, **files: Path) -> Path:
    """A folder with one stage file and these files under the names ``manifest`` and ``events``."""
    write_stage(root / "layer-0" / "attn_norm.bin", 0, VALUES)
    for name, source in files.items():
        shutil.copyfile(source, root / {"manifest": MANIFEST, "events": EVENTS}[name])
    return root


def told(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    """The exit code, and what was printed."""
    code = main([str(word) for word in words])
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err and "a fault of aprtui's" not in captured.err
    return code, captured.out + captured.err


def test_a_superscript_in_a_tensors_name_is_no_number(capsys: pytest.CaptureFixture[str]) -> None:
    code, text = told(capsys, "inspect", ATTACKS / "name-superscript.gguf")
    assert code == 0 and "blk.²" in text


def test_what_json_has_no_number_for_is_text(capsys: pytest.CaptureFixture[str]) -> None:
    code, text = told(capsys, "inspect", "--json", ATTACKS / "metadata-inf.gguf")
    assert code == 0 and "Infinity" in json.loads(text)["metadata"].values()


def test_a_model_without_heads_cannot_be_traced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text = told(capsys, "inspect", ATTACKS / "heads-zero.gguf")
    assert code == 0 and "cannot be traced" in text and "head_count) is 0" in text
    code, text = told(capsys, "trace", ATTACKS / "heads-zero.gguf", "-o", tmp_path / "t")
    assert code == 3 and text.count("\n") == 1


@pytest.mark.parametrize("events", ["events-deep.jsonl", "events-21-945"])
def test_a_plan_that_makes_no_sense_is_no_plan(
    tmp_path: Path, events: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root = trace(tmp_path / "t", events=ATTACKS / events)
    assert open_trace(root).token_ids is None
    for words in (
        ["inspect", root],
        ["stats", root],
        ["diff", root, root],
        ["export", root, "--to", "npz", "-o", tmp_path / "t.npz"],
    ):
        assert told(capsys, *words)[0] == 0, words


def test_a_manifest_whose_tokens_are_no_list_is_damaged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = trace(tmp_path / "t", manifest=ATTACKS / "manifest-21-768")
    for words in (["inspect", root], ["diff", root, root], ["export", root, "--to", "npz"]):
        code, text = told(capsys, *words)
        assert code == 3 and "tokens.ids is not a list" in text


@pytest.mark.parametrize("name", ["file", "allow_pickle", "__metadata__"])
def test_a_stage_may_have_any_name_in_a_numpy_archive(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root = trace(tmp_path / "t")
    write_stage(root / f"{name}.bin", None, VALUES)
    out = tmp_path / "t.npz"
    assert told(capsys, "export", root, "--to", "npz", "-o", out)[0] == 0
    with np.load(out) as found:
        assert sorted(found) == sorted([name, "layer-0.attn_norm"])
        assert found[name].tolist() == VALUES.tolist()


def test_a_stage_whose_name_safetensors_keeps_for_itself_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = trace(tmp_path / "t"), tmp_path / "t.safetensors"
    write_stage(root / "file.bin", None, VALUES)
    assert told(capsys, "export", root, "--to", "safetensors", "-o", out)[0] == 0
    assert sorted(load_file(out)) == ["file", "layer-0.attn_norm"]
    write_stage(root / "__metadata__.bin", None, VALUES)
    out.unlink()
    code, text = told(capsys, "export", root, "--to", "safetensors", "-o", out)
    assert code == 2 and "--to npz" in text
    assert not out.exists()
