"""Sweeps on a Ray cluster of two nodes here: the same bytes as one process, whatever dies."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aprtui.cli.main import main
from aprtui.sweep import on_ray
from aprtui.sweep.matrix import Matrix
from aprtui.sweep.on_ray import OnRay
from aprtui.sweep.plan import read_plan
from aprtui.sweep.run import Serial, prepare, run_sweep
from aprtui.sweep.scratch import Scratch
from tests.support import SMALL
from tests.sweep.plans import SHORT, command_engine, write_plan
from tests.sweep.test_serial import AGAINST_OURS, HALF, MODELS, OURS, tree

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed (extra ray)"
)
_NODE = {"num_cpus": 1, "object_store_memory": 80_000_000}
_LONG = '[[prompts]]\nname = "long"\ntokens = [3, 14, 5, 9, 2, 6]\n'


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes of one processor each, the second of which holds a model by name."""
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    utils: Any = importlib.import_module("ray.cluster_utils")
    made = utils.Cluster(initialize_head=True, head_node_args={**_NODE, "include_dashboard": False})
    made.second = made.add_node(**_NODE, resources={"holds-b": 1})
    made.connect()
    made.wait_for_nodes()
    yield made
    importlib.import_module("ray").shutdown()
    made.shutdown()
    monkeypatch.undo()


@pytest.fixture
def ray(cluster: Any) -> Any:
    return importlib.import_module("ray")


def swept(plan: Path, results: Path, runner: Any, tell: Any = None) -> Matrix:
    prepared = prepare(read_plan(plan), str(results), runner)
    told = tell or (lambda matrix, cell: None)
    matrix = run_sweep(prepared, str(results), runner, tell=told).matrix
    assert not Scratch(prepared.scratch).root.exists()  # nothing is left on a node
    return matrix


def test_what_no_node_can_run_is_a_row_and_the_rest_goes_on(
    tmp_path: Path, ray: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_ray, "RETRIES", 1)
    folder = tmp_path / "plan"
    text = AGAINST_OURS + '[[models]]\npath = "a.apr"\n'
    text += '[[models]]\npath = "b.apr"\nresource = "holds-b"\nengines = ["ours", "theirs"]\n'
    text += '[[models]]\nname = "c"\npath = "a.apr"\nresource = "holds-c"\nengines = ["ours"]\n'
    text += SHORT + OURS + HALF + "cpus = 64\n"
    text += command_engine(folder, "layer-1/ffn_gate")
    text += '[[engines]]\nname = "gpu"\nengine = "aprtui"\ndevice = "cuda"\n'
    text += '[[engines]]\nname = "dies"\ncommand = ["sh", "-c", "kill -9 $PPID", "{output}"]\n'
    text += 'version = "1"\n'
    found = swept(write_plan(folder, text), tmp_path / "results", OnRay(ray))
    said = {cell.place: cell for cell in found.cells}
    assert found.exit_code == 4
    for model in "ab":
        assert said[model, "short", "ours"].verdict == "reference"
        assert said[model, "short", "theirs"].finding.startswith("culprits layer-1/ffn_gate")
    errors = {place[2]: cell.error for place, cell in said.items() if cell.error}
    assert errors["half"] == "no node of the cluster has 64 CPUs: the most is 1 CPU"
    assert "no node of the cluster has 1 GPU" in errors["gpu"]
    assert "its process or its node died 2 times" in errors["dies"]
    assert "none has the resource holds-c" in errors["ours"]


def test_layers_on_the_cluster_are_the_json_of_one_process(
    tmp_path: Path, ray: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, capture = SMALL / "models" / "qwen2-q4_k_m.gguf", SMALL / "faults"
    words = ["bisect", "bad-block-gate-L3-ggml", "--model", str(model), "--json"]
    monkeypatch.chdir(capture)  # the path is relative, and stays so
    assert main(words) == 1
    one = capsys.readouterr().out
    assert main([*words, "--ray", "auto"]) == 1
    assert capsys.readouterr().out == one
    gone = [*words, "--ray", "auto"]
    monkeypatch.setattr("aprtui.sweep.bisecting.Path.cwd", lambda: Path("/gone"))
    assert main(gone) == 4
    assert "/gone: No such file or directory" in capsys.readouterr().err


def test_a_sweep_whose_node_is_killed_is_the_serial_one_to_the_byte(
    tmp_path: Path, ray: Any, cluster: Any
) -> None:
    text = 'keep = "everything"\n' + AGAINST_OURS + MODELS + SHORT + _LONG + OURS + HALF
    plan = write_plan(tmp_path / "plan", text)
    serial = swept(plan, tmp_path / "serial", Serial())
    killed: list[Any] = []

    def kill(matrix: Matrix, cell: Any) -> None:
        if cell is not None and not killed:
            killed.append(cluster.second)
            cluster.remove_node(cluster.second, allow_graceful=False)

    found = swept(plan, tmp_path / "ray", OnRay(ray), kill)
    assert killed and found == serial
    assert tree(tmp_path / "ray") == tree(tmp_path / "serial")


def test_what_waits_for_a_node_that_is_gone_is_given_up(
    tmp_path: Path, ray: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_ray, "_LOOK_S", 0.1)
    monkeypatch.setattr(on_ray, "_GRACE_S", 0.0)
    text = '[[models]]\npath = "b.apr"\nresource = "holds-gone"\n' + SHORT + OURS
    plan = read_plan(write_plan(tmp_path / "plan", text))
    prepared = prepare(plan, str(tmp_path / "results"), Serial())
    waiting = on_ray._Waiting(ray, importlib.import_module("ray.exceptions"))
    waiting.submit(prepared.planned.jobs[0], None)
    found = [each.cell for each in waiting.outcomes()]
    assert found[0].error.startswith("the nodes that could run it are gone: no node of the")
    Serial().close(prepared.scratch)


def test_without_ray_the_option_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = write_plan(tmp_path / "plan", MODELS + SHORT + OURS)
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *rest: None if name == "ray" else find(name, *rest)
    )
    assert main(["sweep", str(plan), "-o", str(tmp_path / "results"), "--ray", "local"]) == 2
    assert "pip install 'aprtui[ray]'" in capsys.readouterr().err


def test_a_cluster_that_does_not_answer_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, ray: Any
) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)

    def refused(**_: Any) -> None:
        raise ConnectionError("Failed to connect to GCS")

    monkeypatch.setattr(ray, "init", refused)
    plan = write_plan(tmp_path / "plan", MODELS + SHORT + OURS)
    assert main(["sweep", str(plan), "-o", str(tmp_path / "results"), "--ray", "nowhere:1"]) == 4
    assert "no Ray cluster answers at nowhere:1" in capsys.readouterr().err
