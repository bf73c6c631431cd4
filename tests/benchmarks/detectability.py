"""The smallest wrong weight that `aprtui bisect` finds, by size and type of the matrix.

    python -m tests.benchmarks.detectability [--columns 256,3584,18944]
    python -m tests.benchmarks.detectability --honest 1e9

For each inner size and type a model of one layer, its ffn_out of that many columns; B's product is
summed by numpy in float32 (one running sum, and BLAS), with one weight of a typical row off by a
fraction of its block's step. Halved until it is no longer named with its row and column. Seven
tokens. ``--honest``: so many outputs of honest float32 products are judged as the floor does,
and the largest error in medians of its matrix is told beside the bar: none may reach it. Of each
size as many terms are summed, so of the small one there are the most outputs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from aprtui.compare.bisect import bisect
from aprtui.compare.worker import Options
from aprtui.engine.replay import Replay
from aprtui.formats.aprt import write_stage
from aprtui.formats.tracedir import StageKey, open_trace
from aprtui.graph.select import parse_stages
from aprtui.model.open import Model, open_model
from tests.benchmarks.make_model import Shape, write_model

__all__ = ["main"]

Array = npt.NDArray[np.float64]
Sum = Callable[[Array, Array], Array]

_TOKENS = (3, 17, 40, 99, 5, 61, 7)
_KEY, _ROW = StageKey(0, "ffn_out"), 101
_SMALLEST = 2.0**-20
_U, _LEAST = 2.0**-24, 0.3  # as compare/floor.py has them
_HONEST_ROWS, _HONEST_OUTPUTS = 1024, 1024
_SUMMED_AT_ONCE = 1 << 15  # running sums that stay in the cache


def one_running_sum(x: Array, weight: Array) -> Array:
    total = np.zeros((len(x), len(weight)), dtype=np.float32)
    across, narrow = np.ascontiguousarray(weight.T, np.float32), x.astype(np.float32)
    step = max(1, _SUMMED_AT_ONCE // len(weight))
    for first in range(0, len(x), step):
        some = total[first : first + step]
        term, columns = np.empty_like(some), np.ascontiguousarray(narrow[first : first + step].T)
        for column, row in zip(columns, across, strict=True):
            some += np.multiply(column[:, None], row, out=term)
    return total.astype(np.float64)


def blas(x: Array, weight: Array) -> Array:
    return (x.astype(np.float32) @ weight.astype(np.float32).T).astype(np.float64)


def _found(model: Model, root: Path, x: Array, y: Array, column: int) -> tuple[bool, bool]:
    """(whether the row is named and nothing else, whether the column is too)."""
    for name, values in (("ffn_swigl", x), ("ffn_out", y)):
        write_stage(root / "layer-0" / f"{name}.bin", 0, values.astype(np.float32))
    found = bisect(
        model, open_trace(root), tokens=_TOKENS, options=Options(parse_stages("ffn_out"))
    )
    if len(found.culprits) != 1 or found.culprits[0].worst.get("channel") != _ROW:
        return False, False
    told = found.culprits[0].mistake
    return True, told is not None and told.parameters.get("column") == column


def _smallest(model: Model, folder: Path, summed: Sum) -> tuple[list[float], float]:
    """([the smallest part of a step whose row is named, and column too], the step relative to a
    typical weight)."""
    (role,) = model.graph[_KEY].op.matrices
    replay = Replay(model)
    rows, columns = replay.shape(role)
    weight = replay.rows(role, range(rows))
    x = np.random.default_rng(1).standard_normal((len(_TOKENS), columns))
    x = x.astype(np.float32).astype(np.float64)
    x[:, columns // 3] = np.linspace(-1.0, 1.5, len(x))  # as much as a typical activation
    column = columns // 3
    block = weight[_ROW, column // 16 * 16 : column // 16 * 16 + 16]
    step = float(np.diff(np.unique(block)).min())
    right = summed(x, weight)
    size, last = 1.0, [0.0, 0.0]
    while size > _SMALLEST:
        wrong = weight[_ROW : _ROW + 1].copy()
        wrong[0, column] += size * step
        y = right.copy()
        y[:, _ROW] = summed(x, wrong)[:, 0]
        found = _found(model, folder, x, y, column)
        last = [size if now else before for now, before in zip(found, last, strict=True)]
        if not found[0]:
            break
        size /= 2
    return last, step / float(np.sqrt(np.square(weight).mean()))


def _honest(outputs: int, columns: int) -> Iterator[tuple[str, int, float]]:
    """(how it was summed, how many outputs were looked at, the largest in medians of its matrix).

    Activations with one channel in a hundred thirty times as large, as models have.
    """
    rng = np.random.default_rng(columns)
    for name, summed in (("one running sum", one_running_sum), ("BLAS", blas)):
        done, worst = 0, 0.0
        while done < outputs:
            x = rng.normal(size=(_HONEST_ROWS, columns))
            x[:, ::100] *= 30.0
            weight = rng.normal(size=(_HONEST_OUTPUTS, columns)).astype(np.float32).astype(float)
            x = x.astype(np.float32).astype(float)
            y = summed(x, weight)
            spread = _U * (np.sqrt(np.square(x) @ np.square(weight).T) + np.abs(y))
            z = np.abs(y - x @ weight.T) / spread
            worst = max(worst, float(z.max() / max(np.median(z), _LEAST)))
            done += z.size
        yield name, done, worst


def _tell_honest(outputs: int, columns: list[int]) -> int:
    """So many outputs in all, of each size so many that their terms are as many."""
    print("| inner size | summed | outputs | largest, in medians (bar 40) |")
    print("|---|---|---|---|")
    whole, told = sum(1 / inner for inner in columns), 0
    for inner in columns:
        for name, done, worst in _honest(int(outputs / (2 * inner * whole)), inner):
            print(f"| {inner:,} | {name} | {done:,} | {worst:.1f} |", flush=True)
            told += done
    print(f"| all | | {told:,} | |")
    return 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--columns", default="256,3584,18944")
    parser.add_argument("--honest", type=float, metavar="OUTPUTS", help="judge honest outputs")
    options = parser.parse_args(arguments)
    if options.honest:
        return _tell_honest(int(options.honest), [*map(int, options.columns.split(","))])
    print("| inner size | type, its step in typical weights | summed | row named at | column too |")
    print("|---|---|---|---|---|")
    for columns in map(int, options.columns.split(",")):
        for mix, kind in (("q4_k_m", "Q6_K"), ("q4_0", "Q4_0"), ("q8_0", "Q8_0")):
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "model.gguf"
                write_model(path, Shape(1, 256, columns, 4, 2, 1024, tied=False), mix)
                model = open_model(path)
                for name, summed in (("one running sum", one_running_sum), ("BLAS", blas)):
                    sizes, step = _smallest(model, Path(folder) / "trace", summed)
                    row, column = (f"1/{1 / size:.0f} step" if size else "-" for size in sizes)
                    told = f"{columns:,} | {kind}, {step:.1e} | {name} | {row} | {column}"
                    print(f"| {told} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
