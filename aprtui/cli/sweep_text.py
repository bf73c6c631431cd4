"""What `aprtui sweep` prints for people: what would run, and the matrix."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from aprtui.cli.output import print_json, print_notes, print_table
from aprtui.sweep.matrix import Cell, Matrix
from aprtui.sweep.run import Prepared
from aprtui.text import clean, count, quoted, size

__all__ = ["show_explained", "show_matrix"]

_SHOWN = 30  # cells that are told in words


def show_matrix(matrix: Matrix, rows: Sequence[str], order: str, results: str) -> None:
    """The headline, the table, and what is wrong in words, what changed first."""
    print(matrix.headline)
    print()
    table = matrix.table(rows, order)
    print_table(
        [
            (label, *map(_shown, cells))
            for label, cells in zip(table.rows, table.cells, strict=True)
        ],
        (" / ".join(rows), *table.columns),
    )
    told = [cell for cell in _worst_first(matrix) if cell.changed or _wrong(cell)]
    if told:
        print()
    for cell in told[:_SHOWN]:
        for line in _words(cell):
            print(line)
    if len(told) > _SHOWN:
        print(f"and {count(len(told) - _SHOWN, 'more cell')} (--json)")
    print_notes(matrix.notes)
    print(f"\nresults: {clean(results, 500)}")


def _worst_first(matrix: Matrix) -> list[Cell]:
    worst = list(matrix.counts)
    return sorted(matrix.cells, key=lambda cell: (not cell.changed, worst.index(cell.verdict)))


def _wrong(cell: Cell) -> bool:
    return cell.verdict not in ("same", "explained", "reference")


def _shown(cell: Cell | None) -> str:
    if cell is None:
        return ""
    return f"{cell.finding}{' *' if cell.changed else ''}"


def _words(cell: Cell) -> Iterator[str]:
    yield f"{clean(' / '.join(cell.place), 300)}: {cell.finding}"
    if cell.changed:
        yield f"    before: {cell.before}"
    if cell.error or cell.text:
        yield f"    {clean(cell.error or cell.text, 500)}"


# -- what would run --------------------------------------------------------------------------------


def show_explained(prepared: Prepared, results: str, *, as_json: bool) -> None:
    """What a sweep would run and what that takes."""
    told = _explained(prepared, results)
    if as_json:
        print_json(told)
        return
    cells = told["cells"]
    print(f"plan     {quoted(told['plan'])}: {count(len(cells), 'cell')}")
    print(f"results  {clean(results, 500)}, keep {prepared.plan.keep}")
    print(
        f"reads    {size(told['read_bytes'])} of weights, writes {size(told['write_bytes'])} of "
        f"captures, at most {size(told['most_memory_bytes'])} of memory a cell"
    )
    print()
    print_table(
        [
            (
                " / ".join(cell["place"]), cell["against"] or "-", str(cell["cpus"]),
                str(cell["gpus"]), size(cell["memory_bytes"]), size(cell["read_bytes"]),
                size(cell["write_bytes"]),
            )
            for cell in cells
        ],
        ("cell", "held against", "cpus", "gpus", "memory", "reads", "writes"),
        "--rrrrr",
    )  # fmt: skip
    for refused in told["refused"]:
        print(f"cannot run: {' / '.join(refused['place'])}: {refused['error']}")
    print_notes(prepared.planned.notes)


def _explained(prepared: Prepared, results: str) -> dict[str, Any]:
    cells: list[dict[str, Any]] = [
        {
            "place": list(job.place),
            "tokens": len(job.side.tokens),
            "against": job.against,
            "cpus": job.side.engine.cpus,
            "gpus": job.side.engine.gpus,
            "resource": job.side.model.resource,
            "memory_bytes": job.estimate.memory_bytes,
            "read_bytes": job.estimate.read_bytes,
            "write_bytes": job.estimate.write_bytes,
        }
        for job in prepared.planned.jobs
    ]
    return {
        "schema": "aprtui-sweep-explained-v1",
        "plan": str(prepared.plan.path),
        "results": results,
        "run": prepared.matrix.run,
        "read_bytes": sum(cell["read_bytes"] for cell in cells),
        "write_bytes": sum(cell["write_bytes"] for cell in cells),
        "most_memory_bytes": max((cell["memory_bytes"] for cell in cells), default=0),
        "cells": cells,
        "refused": [
            {"place": list(cell.place), "error": cell.error} for cell in prepared.planned.refused
        ],
        "notes": list(prepared.planned.notes),
    }
