"""Results behind ``s3://``, against a server that speaks S3 here: moto's."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aprtui.cli.main import main
from aprtui.sweep.results import open_results
from aprtui.sweep.store import UrlStore
from tests.sweep.plans import SHORT, write_plan
from tests.sweep.test_serial import AGAINST_OURS, HALF, MODELS, OURS, tree

pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("moto", "s3fs", "flask")),
    reason="needs moto[s3,server] and s3fs, which bring forty packages: pip install them by hand",
)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server: Any = importlib.import_module("moto.server").ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    s3: Any = importlib.import_module("s3fs")
    s3.S3FileSystem.clear_instance_cache()
    s3.S3FileSystem().mkdir("sweeps")
    yield "s3://sweeps"
    s3.S3FileSystem.clear_instance_cache()
    server.stop()


def test_results_in_a_bucket_are_those_of_a_folder(
    tmp_path: Path, bucket: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = 'keep = "everything"\n' + AGAINST_OURS + MODELS + SHORT + OURS + HALF
    plan = write_plan(tmp_path / "plan", text)
    where = f"{bucket}/nightly"
    assert main(["sweep", str(plan), "-o", str(tmp_path / "folder")]) == 0
    assert main(["sweep", str(plan), "-o", where]) == 0
    UrlStore(where)._fs.get(f"{where}/", f"{tmp_path}/copy/", recursive=True)
    assert tree(tmp_path / "copy") == tree(tmp_path / "folder")
    # a second run finds all of it there, and a model is fetched from a bucket as well
    assert main(["sweep", str(plan), "-o", where, "--resume", "--json"]) == 0
    UrlStore(bucket)._fs.put(str(tmp_path / "plan" / "a.apr"), "sweeps/models/a.apr")
    plan.write_text(text.replace('"a.apr"', '"s3://sweeps/models/a.apr"'))
    capsys.readouterr()
    assert main(["sweep", str(plan), "-o", where]) == 0
    found = open_results(where).matrix()
    assert found.counts == {"explained": 2, "reference": 2}
    fetched = open_results(tmp_path / "folder").matrix()
    assert [cell.key for cell in found.cells] == [cell.key for cell in fetched.cells]
