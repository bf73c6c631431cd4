"""Mistakes in a matrix as it is stored: a part of a block, blocks read wrongly, columns that take
no part, biases, an update of low rank. One weight that is another: ``compare.floor``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from aprtui.compare.mistakes.attempt import Candidate, Entry, ProductAttempt, neat
from aprtui.graph.ops import Product

__all__ = ["LAST", "STORED"]

Float64 = npt.NDArray[np.float64]

_BLOCKS = (32, 256, 16, 64, 128)
_TOGETHER = 32  # columns of the input that are looked at first
_EQUATIONS = 8  # for each unknown
_RANK = 0.5  # of the positions and outputs that are wrong: an error of more ranks says nothing


# -- biases of products ----------------------------------------------------------------------------


def bias_missing(at: ProductAttempt) -> Iterator[Candidate]:
    if at.part.bias is not None:
        made = at.finish(at.made - at.case.replay.vector(at.part.bias))
        yield Candidate(made, f"the bias of {at.part.name} was not added", {"part": at.part.name})


def bias_scaled(at: ProductAttempt) -> Iterator[Candidate]:
    if at.part.bias is None:
        return
    bias = at.case.replay.vector(at.part.bias)
    square = len(at.away) * float(bias @ bias)
    if not square:
        return
    fitted = 1.0 + float((at.away @ bias).sum()) / square
    for factor in neat(fitted, 1e-2 if at.case.rounded else 1e-4):
        text = f"the bias of {at.part.name} is multiplied by {factor:g}"
        if factor >= 2 and factor == int(factor):
            text = f"the bias of {at.part.name} is added {factor:g} times, as by {factor:g} ranks"
        made = at.finish(at.made + (factor - 1.0) * bias)
        yield Candidate(made, text, {"part": at.part.name, "factor": factor})


# -- one row ---------------------------------------------------------------------------------------


def _worst_row(at: ProductAttempt) -> int:
    return int(np.argmax(np.square(at.away).sum(axis=0)))


def _with_row(at: ProductAttempt, row: int, added: Float64) -> Float64:
    made = at.made.copy()
    made[:, row] += added
    return at.finish(made)


@dataclass(frozen=True)
class _Share:
    """What one block of a row adds to the output, and the factor that it seems to have."""

    left: float
    size: int
    block: int
    factor: float
    added: Float64


def _shares(at: ProductAttempt, weight: Float64, target: Float64) -> list[_Share]:
    """For every size of blocks the one whose share, times a factor, comes nearest to the error."""
    terms = at.rounded_x * weight  # [n, columns]
    columns = terms.shape[1]
    kind = at.case.replay.sub_block(at.part.weight)
    found = []
    for size in dict.fromkeys((kind, *_BLOCKS, columns)):
        if size < 2 or columns % size:
            continue
        blocks = terms.reshape(len(terms), -1, size).sum(axis=2)
        squares = np.square(blocks).sum(axis=0)
        fit = np.divide(target @ blocks, squares, out=np.zeros_like(squares), where=squares > 0)
        left = np.linalg.norm(target[:, None] - blocks * fit, axis=0)
        block = int(np.argmin(left))
        share = _Share(float(left[block]), size, block, 1.0 + float(fit[block]), blocks[:, block])
        found.append(share)
    return sorted(found, key=lambda each: each.left)


def _scaled_block(at: ProductAttempt, weight: Float64, row: int, what: str) -> Iterator[Candidate]:
    """One block of a row, or all of it, whose ``weight`` is multiplied by a fitted factor."""
    target = at.away[:, row]
    if target.size < 2:  # one equation proves nothing
        return
    for share in _shares(at, weight, target)[:2]:
        size, block = share.size, share.block
        for factor in neat(share.factor, 2e-2 if at.case.rounded else 1e-3):
            which = f", block {block} of {size} weights "
            which += f"(columns {block * size} to {(block + 1) * size - 1})"
            whole = size == at.x.shape[1]
            done = "left out" if abs(factor) < 1e-6 else f"multiplied by {factor:g}"
            text = f"{what}row {row}{'' if whole else which} is {done}"
            parameters = {"row": row, "block": block, "size": size, "factor": factor}
            yield Candidate(_with_row(at, row, (factor - 1.0) * share.added), text, parameters)


def bad_block(at: ProductAttempt) -> Iterator[Candidate]:
    """One block of one row of the matrix, or the whole row, multiplied by a wrong factor."""
    row = _worst_row(at)
    weight = at.case.replay.rows(at.part.weight, (row,))[0]
    yield from _scaled_block(at, weight, row, "")


def _without_minimum(at: ProductAttempt, row: int) -> Float64 | None:
    """A row of the matrix less the minima of its blocks; None for a type that has none."""
    replay, role = at.case.replay, at.part.weight
    reading = next((each for each in replay.misreadings(role) if each.minimum), None)
    return None if reading is None else replay.misread_rows(role, (row,), reading)[0]


def block_scale(at: ProductAttempt) -> Iterator[Candidate]:
    row = _worst_row(at)
    scaled = _without_minimum(at, row)
    if scaled is not None:
        yield from _scaled_block(at, scaled, row, "the scale of ")


def block_minimum(at: ProductAttempt) -> Iterator[Candidate]:
    row = _worst_row(at)
    scaled = _without_minimum(at, row)
    if scaled is not None:
        minima = at.case.replay.rows(at.part.weight, (row,))[0] - scaled
        yield from _scaled_block(at, minima, row, "the minimum of ")


# -- the whole matrix ------------------------------------------------------------------------------


def other_matrix(at: ProductAttempt) -> Iterator[Candidate]:
    """The same bytes, read as mistaken decoders read them."""
    replay, role = at.case.replay, at.part.weight
    for reading in replay.misreadings(role):
        if not at.plausible(lambda rows, it=reading: replay.misread_rows(role, rows, it)):  # type: ignore[misc]
            continue
        made = at.finish(replay.misread_product(role, at.rounded_x, reading))
        kind = replay.type_of(role)
        text = f"the blocks of {kind} are read {reading.text}"
        yield Candidate(made, text, {"type": kind, "reading": reading.text})


def columns_dropped(at: ProductAttempt) -> Iterator[Candidate]:
    """The last columns of the input take no part: the tail of a row."""
    columns = at.x.shape[1]
    shares = _column_shares(at, _TOGETHER)
    if shares is None:
        return
    kept = np.flatnonzero(shares > -0.5)
    first = (int(kept[-1]) + 1) * _TOGETHER if kept.size else 0
    tries = [first] if 0 < first < columns else []
    tries += [columns - by for by in range(1, min(_TOGETHER, columns))]
    sample = _sample(at, 64)
    weights, away = at.case.replay.rows(at.part.weight, sample), at.away[:, sample]
    for start in tries:
        made = at.rounded_x[:, start:] @ weights[:, start:].T
        if np.linalg.norm(away + made) > 0.2 * np.linalg.norm(away):
            continue
        few = np.zeros_like(at.x)
        few[:, start:] = at.rounded_x[:, start:]
        whole = at.case.replay.products(at.part.weight, few)[0]
        text = f"the last {columns - start} columns of the input are left out"
        parameters = {"columns": [start, columns - 1], "count": columns - start}
        yield Candidate(at.finish(at.made - whole), text, parameters)


def _sample(at: ProductAttempt, rows: int) -> list[int]:
    last = at.made.shape[1] - 1
    return [int(row) for row in np.unique(np.linspace(0, last, rows).astype(int))]


def _column_shares(at: ProductAttempt, size: int) -> Float64 | None:
    """By what share of its own each block of the input's columns is in the error: -1 where it is
    left out; None where the equations are too few."""
    positions, columns = at.x.shape
    if columns % size:
        return None
    blocks = columns // size
    sample = _sample(at, min(at.made.shape[1], max(32, -(-_EQUATIONS * blocks // positions))))
    if len(sample) * positions < 2 * blocks:
        return None
    weights = at.case.replay.rows(at.part.weight, sample).reshape(len(sample), blocks, size)
    x = at.rounded_x.reshape(positions, blocks, size)
    shares = np.einsum("tbs,rbs->trb", x, weights, optimize=True).reshape(-1, blocks)
    wanted = at.away[:, sample].reshape(-1)
    use = np.isfinite(shares).all(axis=1) & np.isfinite(wanted)
    if use.sum() < 2 * blocks:
        return None
    solved: Float64 = np.linalg.lstsq(shares[use], wanted[use], rcond=None)[0]
    return solved


def low_rank(at: ProductAttempt) -> Iterator[Candidate]:
    """An update of few ranks was left out, doubled or scaled: the error has their number."""
    away = np.where(np.isfinite(at.away), at.away, 0.0)
    squared = np.square(away)
    total = float(squared.sum())
    if not total:
        return
    left, strengths, right = np.linalg.svd(away, full_matrices=False)
    rank = _rank(strengths)
    whole = np.where(np.isfinite(at.made), away + at.made, 0.0)
    if _rank(np.linalg.svd(whole, compute_uv=False)) <= rank:
        return  # the output itself has no more, as where it is constant
    reached = [_reached(squared.sum(axis=axis)) for axis in (0, 1)]
    if min(reached) < rank / _RANK:  # so few positions or outputs have no more ranks
        return
    made = at.made + (left[:, :rank] * strengths[:rank]) @ right[:rank]
    text = f"the error has rank {rank}: a low-rank update (LoRA) is missing, doubled or scaled"
    yield Candidate(at.finish(made), text, {"rank": rank})


def _rank(strengths: npt.NDArray[np.floating[Any]]) -> int:
    return int((strengths > 1e-5 * strengths[0]).sum())


def _reached(held: Float64) -> int:
    """Of how many places the error is more than a trace."""
    return int((held > 1e-4 * held.max()).sum())


STORED = (
    Entry("bias_missing", (Product,), bias_missing),
    Entry("bias_scaled", (Product,), bias_scaled),
    Entry("columns_dropped", (Product,), columns_dropped),
    Entry("bad_block", (Product,), bad_block),
    Entry("block_scale", (Product,), block_scale),
    Entry("block_minimum", (Product,), block_minimum),
    Entry("other_matrix", (Product,), other_matrix),
)

LAST = (Entry("low_rank", (Product,), low_rank),)
"""What fits so much that all else is tried first."""
