"""A sweep in one process: what each cell says, what is kept, and what a second run computes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import aprtui
from aprtui.cli.main import main
from aprtui.errors import AprtuiError
from aprtui.formats.tracedir import MANIFEST
from aprtui.sweep import capturing, work
from aprtui.sweep.matrix import Matrix
from aprtui.sweep.results import holds_results, open_results
from tests.sweep.plans import SHORT, command_engine, write_plan

CONTRACTS = Path(__file__).resolve().parents[2] / "contracts"
MODELS = '[[models]]\npath = "a.apr"\n[[models]]\npath = "b.apr"\n'
OURS = '[[engines]]\nname = "ours"\nengine = "aprtui"\n'
HALF = '[[engines]]\nname = "half"\nengine = "aprtui"\ndtype = "bfloat16"\n'
AGAINST_OURS = 'reference = { engine = "ours" }\n'


@pytest.fixture(autouse=True)
def _own_scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    yield
    left = [p for p in scratch.glob("aprtui-sweep-*/*")]
    assert left == []  # a sweep leaves nothing on a node


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The captures that are made, by engine."""
    made: list[str] = []
    make = capturing.make_capture

    def counting(side: Any, *rest: Any) -> None:
        made.append(f"{side.model.name} {side.engine.name}")
        make(side, *rest)

    monkeypatch.setattr(work, "make_capture", counting)
    return made


def swept(capsys: pytest.CaptureFixture[str], plan: Path, *options: str, code: int = 0) -> Matrix:
    capsys.readouterr()
    results = plan.parent / "results"
    given = main(["sweep", str(plan), "--json", *([] if "-o" in options else ["-o", str(results)]),
                  *options])  # fmt: skip
    told = capsys.readouterr()
    assert given == code, told.err
    document = json.loads(told.out)
    jsonschema.validate(document, json.loads((CONTRACTS / "sweep.schema.json").read_text()))
    return Matrix.from_json(document)


def tree(folder: Path) -> dict[str, bytes]:
    """Every file of results but their costs, which differ from run to run."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "costs" not in path.parts
    }


def test_cells_are_compared_and_the_culprit_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "plan"
    text = AGAINST_OURS + MODELS + SHORT + OURS + HALF
    text += command_engine(folder) + command_engine(folder, "layer-1/ffn_gate", "wrong")
    plan = write_plan(folder, text)
    found = swept(capsys, plan, code=1)
    assert found.counts == {"culprits": 2, "explained": 2, "same": 2, "reference": 2}
    wrong = found.cell("a", "short", "wrong")
    assert wrong is not None and wrong.culprit == "layer-1/ffn_gate"
    results = open_results(folder / "results")
    assert results.matrix() == found and holds_results(folder / "results")
    # only what differs is kept: the wrong capture, and what it was held against
    explained = found.cell("a", "short", "half")
    assert explained is not None and explained.capture is None
    pair = aprtui.diff(results.capture(wrong.reference), results.capture(wrong.capture))
    assert str(pair.first_divergence and pair.first_divergence.key) == "layer-1/ffn_gate"
    document = results.document(wrong)
    assert document is not None and document["verdict"] == "culprits"
    findings = json.loads((folder / "results" / "findings" / f"{wrong.key}.json").read_text())
    bisect = json.loads((CONTRACTS / "bisect.schema.json").read_text())
    jsonschema.validate(findings["bisection"], bisect)
    jsonschema.validate(
        findings["comparison"], json.loads((CONTRACTS / "diff.schema.json").read_text())
    )
    assert str(tmp_path / "tmp") not in json.dumps(findings)  # no path of a node is in results


def test_a_second_run_computes_only_what_is_new(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], counted: list[str]
) -> None:
    folder = tmp_path / "plan"
    text = 'keep = "everything"\n' + AGAINST_OURS + MODELS + SHORT + OURS + HALF
    first = swept(capsys, write_plan(folder, text))
    assert counted == ["a ours", "a half", "b ours", "b half"]
    before = tree(folder / "results")
    counted.clear()
    assert swept(capsys, folder / "plan.toml", "--resume") == first
    assert counted == [] and tree(folder / "results") == before
    more = text + HALF.replace("half", "whole").replace("bfloat16", "float16")
    found = swept(capsys, write_plan(folder, more))
    assert counted == ["a whole", "b whole"]
    assert len(found.cells) == 6 and found.run != first.run
    assert (
        before.items() - {("matrix.json", before["matrix.json"])}
        <= tree(folder / "results").items()
    )


def test_a_model_with_other_bytes_is_another_cell(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], counted: list[str]
) -> None:
    folder = tmp_path / "plan"
    plan = write_plan(folder, MODELS + SHORT + OURS)
    swept(capsys, plan)
    raw = bytearray((folder / "a.apr").read_bytes())
    raw[-64] ^= 1  # one weight, which no header tells of
    (folder / "a.apr").write_bytes(raw)
    counted.clear()
    swept(capsys, plan)
    assert counted == ["a ours"]


@pytest.mark.parametrize("keep, captures", [("everything", 4), ("differing", 0), ("statistics", 0)])
def test_what_is_kept_is_by_choice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], keep: str, captures: int
) -> None:
    folder = tmp_path / "plan"
    text = f'keep = "{keep}"\n' + AGAINST_OURS + MODELS + SHORT + OURS + HALF
    found = swept(capsys, write_plan(folder, text))
    kept = list((folder / "results").glob("captures/*/trace.json"))
    assert len(kept) == captures == sum(cell.capture is not None for cell in found.cells)
    for cell in found.cells:
        told = json.loads((folder / "results" / "findings" / f"{cell.key}.json").read_text())
        assert all("rms" in stage["stats"] for stage in told["manifest"]["stages"])


def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = 'keep = "everything"\n' + AGAINST_OURS + MODELS + SHORT + OURS + HALF
    plan = write_plan(tmp_path / "plan", text)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    swept(capsys, plan, "-o", str(whole))
    make, made = capturing.make_capture, []

    def stopping(side: Any, *rest: Any) -> None:
        made.append(side)
        if len(made) == 3:
            raise KeyboardInterrupt
        make(side, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(work, "make_capture", stopping)
        assert main(["sweep", str(plan), "-o", str(broken)]) == 130
    stopped = open_results(broken).matrix()
    assert stopped.exit_code == 4 and stopped.counts["pending"] >= 2
    swept(capsys, plan, "-o", str(broken), "--resume")
    assert tree(broken) == tree(whole)


def test_nothing_to_resume_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = write_plan(tmp_path / "plan", MODELS + SHORT + OURS)
    assert main(["sweep", str(plan), "-o", str(tmp_path / "other"), "--resume"]) == 2
    assert "no sweep of this plan was begun there" in capsys.readouterr().err


def test_yesterdays_results_are_a_reference(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "plan"
    yesterday = 'keep = "everything"\n' + MODELS + SHORT + command_engine(folder)
    swept(capsys, write_plan(folder, yesterday), "-o", str(tmp_path / "yesterday"))
    today = f'reference = {{ results = "{tmp_path}/yesterday" }}\n' + MODELS + SHORT
    today += command_engine(folder, "layer-0/q_post_rope")
    found = swept(capsys, write_plan(folder, today, "today.toml"), code=1)
    cell = found.cell("a", "short", "theirs")
    assert cell is not None and cell.culprit == "layer-0/q_post_rope"
    assert cell.before == "same" and cell.changed and found.against.endswith("yesterday")
    results = open_results(folder / "results")
    assert results.capture(cell.reference).is_dir()  # copied beside what it was held against


def test_a_cell_that_yesterday_had_not_is_replayed_by_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "plan"
    alone = 'keep = "everything"\n[[models]]\npath = "a.apr"\n' + SHORT + OURS
    swept(capsys, write_plan(folder, alone), "-o", str(tmp_path / "yesterday"))
    today = f'reference = {{ results = "{tmp_path}/yesterday" }}\n' + MODELS + SHORT + OURS
    found = swept(capsys, write_plan(folder, today, "today.toml"))
    assert found.counts == {"same": 2} and "replayed by themselves" in found.notes[0]


def test_another_model_is_a_reference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = 'reference = { model = "a" }\n' + MODELS + SHORT + OURS
    found = swept(capsys, write_plan(tmp_path / "plan", text))
    assert [cell.verdict for cell in found.cells] == ["reference", "explained"]


def test_what_is_never_replayed_differs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "plan"
    text = 'bisect = "never"\n' + AGAINST_OURS + MODELS + SHORT + OURS
    text += command_engine(folder, "layer-0/ffn_up")
    found = swept(capsys, write_plan(folder, text), code=1)
    assert found.counts == {"differs": 2, "reference": 2}
    assert found.cells[1].text == "first differs at layer-0/ffn_up (differs)"


def test_results_behind_a_url_are_those_of_a_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import fsspec

    memory: Any = fsspec
    text = 'keep = "everything"\n' + AGAINST_OURS + MODELS + SHORT + OURS + HALF
    plan = write_plan(tmp_path / "plan", text)
    swept(capsys, plan)
    found = swept(capsys, plan, "-o", "memory://sweep-serial")
    store = memory.filesystem("memory").store
    there = {
        name.removeprefix("/sweep-serial/"): bytes(file.getvalue())
        for name, file in store.items()
        if "costs" not in name and name.startswith("/sweep-serial/")
    }
    assert there == tree(tmp_path / "plan" / "results")
    results = open_results("memory://sweep-serial", tmp_path / "copies")
    copy = results.capture(found.cells[0].capture)
    assert (copy / MANIFEST).is_file()
    store.clear()


# -- what goes wrong -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "engine, said",
    [
        ('name = "x"\ncommand = ["./gone", "{output}"]\nversion = "1"', "cannot be run in"),
        ('name = "x"\ncommand = ["false", "{output}"]\nversion = "1"', "failed (exit code 1)"),
        ('name = "x"\ncommand = ["true", "{output}"]\nversion = "1"', "wrote nothing"),
        ('name = "x"\ncommand = ["sh", "-c", "sleep 60", "{output}"]\nversion = "1"\ntimeout_s = 1',
         "was not done after 1.0 s"),
        ('name = "x"\ncommand = ["true", "{output}"]\nversion = "1"\n'
         'version_command = ["echo", "2"]', "says that it is '2' here"),
        ('name = "x"\nengine = "aprtui"\nversion = "99"', "the plan asks for 99"),
        ('name = "x"\nengine = "hf"', "reads Hugging Face folders"),
    ],
)  # fmt: skip
def test_a_cell_that_fails_says_why_and_the_rest_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], engine: str, said: str
) -> None:
    text = AGAINST_OURS + MODELS + SHORT + OURS + f"[[engines]]\n{engine}\n" + HALF
    found = swept(capsys, write_plan(tmp_path / "plan", text), code=4)
    assert found.counts == {"failed": 2, "explained": 2, "reference": 2}
    failed = found.cell("a", "short", "x")
    assert failed is not None and said in failed.error


def test_a_model_that_is_not_there_fails_its_cells_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = MODELS + '[[models]]\npath = "gone.gguf"\n' + SHORT + OURS
    found = swept(capsys, write_plan(tmp_path / "plan", text), code=4)
    assert found.counts == {"failed": 1, "same": 2}
    assert "no model is there on this machine" in found.cells[-1].error


def test_what_is_held_against_a_failed_cell_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = 'reference = { engine = "x" }\n' + MODELS + SHORT + HALF
    text += '[[engines]]\nname = "x"\ncommand = ["false", "{output}"]\nversion = "1"\n'
    found = swept(capsys, write_plan(tmp_path / "plan", text), code=4)
    assert found.counts == {"failed": 4}
    assert found.cells[0].error.startswith("its reference failed: false failed")


def test_a_model_that_changes_while_the_sweep_runs_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "plan"
    plan = write_plan(folder, MODELS + SHORT + OURS)
    make = capturing.make_capture

    def changing(side: Any, *rest: Any) -> None:
        make(side, *rest)
        raw = bytearray((folder / "b.apr").read_bytes())
        raw[-64] ^= 1
        (folder / "b.apr").write_bytes(raw)

    monkeypatch.setattr(work, "make_capture", changing)
    found = swept(capsys, plan, code=4)
    assert "not the one that the sweep was planned with" in found.cells[1].error


def test_a_store_that_goes_away_loses_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = write_plan(tmp_path / "plan", AGAINST_OURS + MODELS + SHORT + OURS + HALF)
    from aprtui.sweep.store import UrlStore

    write, wrote = UrlStore.write, []

    def going(self: UrlStore, name: str, raw: bytes) -> None:
        wrote.append(name)
        if len(wrote) > 4:
            raise AprtuiError(f"{self.at(name)}: the results cannot be reached: gone")
        write(self, name, raw)

    monkeypatch.setattr(UrlStore, "write", going)
    capsys.readouterr()
    assert main(["sweep", str(plan), "--json", "-o", "memory://sweep-gone"]) == 4
    told = capsys.readouterr()
    found = Matrix.from_json(json.loads(told.out))
    assert found.counts == {"failed": 3, "reference": 1}
    assert found.cells[1].error.startswith(
        "computed (explained), but not kept: memory://sweep-gone"
    )
    assert "was not written to the results" in told.err


def test_a_full_disk_on_a_node_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = write_plan(tmp_path / "plan", MODELS + SHORT + OURS)
    make = capturing.make_capture

    def full(side: Any, *rest: Any) -> None:
        if side.model.name == "a":
            raise OSError(28, "No space left on device")
        make(side, *rest)

    monkeypatch.setattr(work, "make_capture", full)
    found = swept(capsys, plan, code=4)
    assert found.counts == {"failed": 1, "same": 1}
    assert "No space left on device" in found.cells[0].error


def test_the_plan_is_explained_without_running(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], counted: list[str]
) -> None:
    text = AGAINST_OURS + MODELS + '[[models]]\npath = "gone.apr"\n' + SHORT + OURS + HALF
    plan = write_plan(tmp_path / "plan", text)
    assert main(["sweep", str(plan), "-o", str(tmp_path / "results"), "--explain", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [cell["against"] for cell in told["cells"][:2]] == ["", "engine ours"]
    assert told["write_bytes"] > 0 and told["most_memory_bytes"] > 1 << 20
    assert len(told["refused"]) == 2 and counted == []
    assert not (tmp_path / "results").exists()
    assert main(["sweep", str(plan), "-o", str(tmp_path / "results"), "--explain"]) == 0
    said = capsys.readouterr().out
    assert "cannot run: gone / short / ours" in said and "4 cells" in said


def test_the_matrix_is_shown_for_people(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "plan"
    text = AGAINST_OURS + MODELS + SHORT + OURS + command_engine(folder, "layer-1/ffn_gate")
    plan = write_plan(folder, text)
    where = ["-o", str(tmp_path / "results")]
    assert main(["sweep", str(plan), *where, "--rows", "model", "--order", "name"]) == 1
    said = capsys.readouterr().out
    assert said.startswith("4 cells: 2 culprits, 2 reference")
    assert "short / ours" in said and "a / short / theirs: culprits layer-1/ffn_gate" in said
    assert main(["sweep", str(plan), *where, "--rows", "stage"]) == 2
