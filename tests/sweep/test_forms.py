"""The matrix as HTML, JUnit and SARIF: what is wrong is in each, and no name can act."""

from __future__ import annotations

import dataclasses
import json
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from aprtui.cli.main import main
from aprtui.sweep.ci import junit, sarif
from aprtui.sweep.html import html_matrix
from aprtui.sweep.matrix import Cell, Matrix
from tests.sweep.plans import SHORT, command_engine, write_plan
from tests.sweep.test_matrix import matrix
from tests.sweep.test_serial import AGAINST_OURS, MODELS, OURS

HOSTILE = '<script>alert("x")</script>\x1b[2J&'


def told() -> Matrix:
    """One cell of each kind that is wrong, and one that changed."""
    found = matrix(a_x_hf="culprits", a_y_hf="failed", b_x_hf="unmeasured", b_y_hf="pending")
    said = {
        "culprits": {"culprit": "layer-3/ffn_gate", "mistake": "scaled", "text": "twice as large"},
        "failed": {"error": "it broke"},
        "unmeasured": {"text": "qkv_bias not measured"},
    }
    cells = (dataclasses.replace(c, **said.get(c.verdict, {})) for c in found.cells)
    return dataclasses.replace(found, cells=tuple(cells)).against_earlier(matrix(), "yesterday")


def hostile() -> Matrix:
    cell = Cell(HOSTILE, HOSTILE, HOSTILE, "culprits", HOSTILE, HOSTILE, HOSTILE, before="same")
    return Matrix("run", (HOSTILE,), (HOSTILE,), (HOSTILE,), (cell,), HOSTILE, (HOSTILE,))


class Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert not any(name.startswith("on") for name, _ in attrs)

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    return reader


def test_the_page_has_what_changed_first_and_every_cell() -> None:
    page = html_matrix(told(), ("model", "prompt"), "changed")
    text = " ".join(read(page).text)
    assert text.index("What changed") < text.index("Every cell") < text.index("Culprits and")
    for said in ("layer-3/ffn_gate", "twice as large", "it broke", "qkv_bias not measured",
                 "was same", "held against yesterday"):  # fmt: skip
        assert said in text, said
    assert page.count('<span class="cell') == 8 + len(told().counts)  # and the legend


def test_rows_of_the_page_are_by_choice() -> None:
    text = " ".join(read(html_matrix(told(), ("engine",), "plan")).text)
    assert "a / x" in text and "engine down" in text


def test_hostile_names_are_text() -> None:
    reader = read(html_matrix(hostile(), ("model", "prompt"), "changed"))
    assert "script" not in reader.tags and "\x1b" not in "".join(reader.text)
    ElementTree.fromstring(junit(hostile()))
    assert "\x1b" not in junit(hostile())
    assert "\x1b" not in json.dumps(
        json.loads(sarif(hostile(), Path("p.toml"))), ensure_ascii=False
    )


def test_junit_counts_what_is_wrong() -> None:
    root = ElementTree.fromstring(junit(told()))
    counts = {name: root.get(name) for name in ("tests", "failures", "errors", "skipped")}
    assert counts == {"tests": "8", "failures": "2", "errors": "1", "skipped": "1"}
    assert [suite.get("name") for suite in root] == ["a", "b"]
    failure = root.find(".//testcase[@classname='a.hf'][@name='x']/failure")
    assert failure is not None and failure.get("type") == "culprits"
    assert "layer-3/ffn_gate" in (failure.text or "") and "(before: same)" in (failure.text or "")
    error = root.find(".//error")
    assert error is not None and error.get("message") == "it broke"


def test_sarif_has_a_result_for_each_wrong_cell() -> None:
    document = json.loads(sarif(told(), Path("a plan.toml")))
    run = document["runs"][0]
    assert document["version"] == "2.1.0" and "pending" not in json.dumps(run)
    rules = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
    found: dict[str, Any] = {result["ruleId"]: result for result in run["results"]}
    assert found.keys() == {"culprits", "failed", "unmeasured"}
    for result in run["results"]:
        assert rules[result["ruleIndex"]] == result["ruleId"]
        assert result["baselineState"] == "updated" and result["message"]["text"]
        place = result["locations"][0]
        assert place["physicalLocation"]["artifactLocation"]["uri"] == "a%20plan.toml"
    assert found["unmeasured"]["level"] == "warning" and found["culprits"]["level"] == "error"
    named = found["culprits"]["locations"][0]["logicalLocations"][0]["fullyQualifiedName"]
    assert named == "a/x/hf/layer-3/ffn_gate"
    prints = [result["partialFingerprints"]["aprtuiCell/v1"] for result in run["results"]]
    assert len(set(prints)) == 3


def test_a_sweep_writes_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "plan"
    text = AGAINST_OURS + MODELS + SHORT + OURS + command_engine(folder, "layer-1/ffn_gate")
    plan = write_plan(folder, text)
    files = {name: tmp_path / "out" / f"sweep.{name}" for name in ("html", "junit", "sarif")}
    options = [word for name, path in files.items() for word in (f"--{name}", str(path))]
    assert main(["sweep", str(plan), "-o", str(tmp_path / "results"), *options]) == 1
    assert "layer-1/ffn_gate" in files["html"].read_text()
    assert 'failures="2"' in files["junit"].read_text()
    assert len(json.loads(files["sarif"].read_text())["runs"][0]["results"]) == 2
    assert main(["sweep", str(plan), "-o", str(tmp_path / "results"), "--html", str(folder)]) == 2
