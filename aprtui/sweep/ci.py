"""A sweep's matrix for continuous integration: JUnit's XML and SARIF 2.1.0."""

from __future__ import annotations

import hashlib
import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any
from urllib.parse import quote

from aprtui import __version__
from aprtui.sweep.matrix import Cell, Matrix
from aprtui.text import clean

__all__ = ["junit", "sarif"]

_WRONG = {"culprits": "error", "differs": "error", "failed": "error", "unmeasured": "warning"}
_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
_RULES = {
    "culprits": "A stage computes wrongly",
    "differs": "A capture differs from its reference",
    "failed": "A cell has no result",
    "unmeasured": "Stages could not be compared or replayed",
}


def junit(matrix: Matrix) -> str:
    """A suite for each model, a case for each cell: ``failure`` where cells differ, ``error`` where
    one has no result, ``skipped`` where it was not computed."""
    root = ElementTree.Element("testsuites", {"name": "aprtui sweep", **_counted(matrix.cells)})
    for model in matrix.models:
        cells = tuple(cell for cell in matrix.cells if cell.model == model)
        if not cells:
            continue
        suite = ElementTree.SubElement(root, "testsuite", {"name": clean(model), **_counted(cells)})
        for cell in cells:
            _case(suite, cell)
    ElementTree.indent(root, " ")
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _counted(cells: tuple[Cell, ...]) -> dict[str, str]:
    verdicts = [cell.verdict for cell in cells]
    failed, pending = verdicts.count("failed"), verdicts.count("pending")
    wrong = sum(verdict in _WRONG for verdict in verdicts) - failed
    return {
        "tests": str(len(cells)), "failures": str(wrong), "errors": str(failed),
        "skipped": str(pending),
    }  # fmt: skip


def _case(suite: ElementTree.Element, cell: Cell) -> None:
    case = ElementTree.SubElement(
        suite, "testcase", classname=f"{clean(cell.model)}.{clean(cell.engine)}",
        name=clean(cell.prompt),
    )  # fmt: skip
    if cell.verdict == "pending":
        ElementTree.SubElement(case, "skipped", message="not computed yet")
    elif cell.verdict in _WRONG:
        kind = "error" if cell.verdict == "failed" else "failure"
        said = ElementTree.SubElement(case, kind, message=_message(cell), type=cell.verdict)
        said.text = _told(cell)
    elif cell.text:
        ElementTree.SubElement(case, "system-out").text = clean(cell.text, 500)


def sarif(matrix: Matrix, plan: Path) -> str:
    """A result for each cell that is wrong, at the plan's first line: it has no line of its own."""
    run: dict[str, Any] = {
        "tool": {
            "driver": {
                "name": "aprtui",
                "version": __version__,
                "rules": [
                    {"id": name, "shortDescription": {"text": said}}
                    for name, said in _RULES.items()
                ],
            }
        },
        "results": [_result(cell, matrix, plan) for cell in matrix.cells if cell.verdict in _WRONG],
    }
    document = {"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}
    return json.dumps(document, ensure_ascii=True, indent=1) + "\n"


def _result(cell: Cell, matrix: Matrix, plan: Path) -> dict[str, Any]:
    place = "/".join(part.replace("/", "|") for part in cell.place)
    found = {
        "ruleId": cell.verdict,
        "ruleIndex": list(_RULES).index(cell.verdict),
        "level": _WRONG[cell.verdict],
        "message": {"text": f"{' / '.join(map(clean, cell.place))}: {_told(cell)}"},
        "locations": [
            {
                "physicalLocation": {
                    "artifactLocation": {"uri": quote(plan.as_posix())},
                    "region": {"startLine": 1},
                },
                "logicalLocations": [
                    {"fullyQualifiedName": f"{place}/{cell.culprit}".rstrip("/"), "kind": "module"}
                ],
            }
        ],
        "partialFingerprints": {"aprtuiCell/v1": _fingerprint(cell)},
        "properties": {"culprit": cell.culprit, "mistake": cell.mistake, "before": cell.before},
    }
    if matrix.against:
        state = "new" if cell.before is None else "updated" if cell.changed else "unchanged"
        found["baselineState"] = state
    return found


def _fingerprint(cell: Cell) -> str:
    """What tells a finding from another, from run to run."""
    said = json.dumps([*cell.place, cell.verdict, cell.culprit, cell.mistake])
    return hashlib.sha256(said.encode()).hexdigest()[:32]


def _message(cell: Cell) -> str:
    return clean(cell.error or cell.finding, 300)


def _told(cell: Cell) -> str:
    told = cell.error or f"{cell.finding}: {cell.text}".rstrip(": ")
    before = f" (before: {cell.before})" if cell.changed else ""
    return clean(told + before, 900)
