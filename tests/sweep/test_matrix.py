"""The matrix of a sweep: counts, exit codes, layouts, and what a file of it may not say."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from aprtui.errors import BadFileError, UsageError
from aprtui.sweep.matrix import AXES, Cell, Matrix

SCHEMA = Path(__file__).resolve().parents[2] / "contracts" / "sweep.schema.json"
KEY = "0123456789abcdef" * 2


def matrix(**verdicts: str) -> Matrix:
    """Two models, two prompts, two engines; ``a_x_ours="failed"`` says one cell's verdict."""
    cells = tuple(
        Cell(m, p, e, verdicts.get(f"{m}_{p}_{e}", "reference" if e == "ours" else "same"), key=KEY)
        for m in "ab"
        for p in "xy"
        for e in ("ours", "hf")
    )
    return Matrix("run", ("a", "b"), ("x", "y"), ("ours", "hf"), cells)


def test_the_json_is_read_back_and_keeps_to_its_schema() -> None:
    found = matrix(a_x_hf="culprits").against_earlier(matrix(), "yesterday")
    document = json.loads(json.dumps(found.to_json()))
    jsonschema.validate(document, json.loads(SCHEMA.read_text()))
    assert Matrix.from_json(document) == found


@pytest.mark.parametrize(
    "verdict, code",
    [("same", 0), ("explained", 0), ("reference", 0), ("unmeasured", 1), ("differs", 1),
     ("culprits", 1), ("failed", 4), ("pending", 4)],
)  # fmt: skip
def test_the_exit_code_is_that_of_the_worst_cell(verdict: str, code: int) -> None:
    assert matrix(b_y_hf=verdict).exit_code == code
    if code == 4:
        assert matrix(b_y_hf=verdict, a_x_hf="culprits").exit_code == 4


def test_rows_and_columns_are_by_choice() -> None:
    found = matrix(b_y_hf="failed")
    table = found.table(order="plan")
    assert table.rows == ("a / x", "a / y", "b / x", "b / y")
    assert table.columns == ("ours", "hf")
    across = found.table(("engine",), order="plan")
    assert across.rows == ("ours", "hf") and across.columns == ("a / x", "a / y", "b / x", "b / y")
    assert across.cells[1][3] == found.cell("b", "y", "hf")
    assert found.table(("prompt", "engine"), "plan").rows[0] == "x / ours"


def test_rows_are_ordered_by_what_changed_the_worst_or_the_name() -> None:
    earlier = matrix(a_y_hf="culprits")
    found = matrix(b_x_hf="failed").against_earlier(earlier, "yesterday")
    assert [cell.place for cell in found.changed] == [("a", "y", "hf"), ("b", "x", "hf")]
    assert found.table().rows == ("b / x", "a / y", "a / x", "b / y")  # changed, the worst first
    assert found.table(order="worst").rows[0] == "b / x"
    assert found.table(order="name").rows == ("a / x", "a / y", "b / x", "b / y")
    assert "2 changed" in found.headline


def test_a_cell_that_the_earlier_run_had_not_is_no_change() -> None:
    earlier = dataclasses.replace(matrix(), cells=matrix().cells[:1])
    assert matrix().against_earlier(earlier, "yesterday").changed == ()


def test_a_place_without_a_cell_is_empty() -> None:
    found = dataclasses.replace(matrix(), cells=matrix().cells[:3])
    table = found.table(order="plan")
    assert table.rows == ("a / x", "a / y") and table.cells[1][1] is None


@pytest.mark.parametrize("rows", [(), AXES, ("model", "model"), ("stage",)])
def test_axes_that_there_are_not_are_refused(rows: tuple[str, ...]) -> None:
    with pytest.raises(UsageError):
        matrix().table(rows)
    with pytest.raises(UsageError):
        matrix().table(order="best")


@pytest.mark.parametrize(
    "change, said",
    [
        ({"schema": "other"}, "schema"),
        ({"models": "ab"}, "no list"),
        ({"cells": [{"model": "a"}]}, "prompt"),
        ({"models": ["a"]}, "on no axis"),
    ],
)
def test_a_damaged_matrix_is_refused(change: dict[str, Any], said: str) -> None:
    document = json.loads(json.dumps(matrix().to_json())) | change
    with pytest.raises(BadFileError, match=said):
        Matrix.from_json(document)


@pytest.mark.parametrize(
    "field, value",
    [("verdict", "fine"), ("key", "../../etc"), ("capture", "captures/../../etc"), ("text", 3),
     ("reference", "/etc"), ("culprit", None)],
)  # fmt: skip
def test_a_cell_may_not_name_what_it_pleases(field: str, value: object) -> None:
    document = json.loads(json.dumps(matrix().to_json()))
    document["cells"][0][field] = value
    with pytest.raises(BadFileError, match="damaged"):
        Matrix.from_json(document)


def test_a_cell_that_stands_twice_is_refused() -> None:
    document = json.loads(json.dumps(matrix().to_json()))
    document["cells"].append(document["cells"][0])
    with pytest.raises(BadFileError, match="twice"):
        Matrix.from_json(document)


def test_text_of_a_file_is_cleaned() -> None:
    document = json.loads(json.dumps(matrix().to_json()))
    document["cells"][0]["error"] = "\x1b[2J"
    assert Matrix.from_json(document).cells[0].error == "\\x1b[2J"
