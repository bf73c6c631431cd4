"""The model that a trace names is found from wherever one looks at the trace."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aprtui.compare.reference import named_model
from aprtui.formats.tracedir import open_trace


@pytest.mark.parametrize("said, found", [
    ("models/m.gguf", "w/models/m.gguf"), ("m.gguf", None), ("models/none.gguf", None),
    ("models/m\0.gguf", None),
])  # fmt: skip
def test_a_path_that_was_typed_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, found: str | None
) -> None:
    for folder in ("w/models", "w/out/t", "elsewhere"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "w/models/m.gguf").touch()
    manifest = {"schema": "aprtui-trace-v1", "model": {"path": said}, "stages": []}
    (tmp_path / "w/out/t/trace.json").write_text(json.dumps(manifest))
    expected = None if found is None else tmp_path / found
    for here in ("elsewhere", "w/out"):
        monkeypatch.chdir(tmp_path / here)
        assert named_model(open_trace(tmp_path / "w/out/t")) == expected
    monkeypatch.chdir(tmp_path / "w")
    assert named_model(open_trace(Path("out/t"))) == (None if found is None else Path(said))
