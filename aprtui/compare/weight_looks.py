"""What a differing weight tensor looks like: transposed, permuted, scaled, another one's values.

Each look is tried on the values and named only with the residual that proves it: the rel_l2 that is
left when B is compared with A after the same mistake was made on A. A sample comes first, the few
values that measuring kept or a few rows more: most looks end there, and whole matrices are read
only to prove one whose sample fits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from aprtui.compare.weight_floors import rounding_limit
from aprtui.compare.weight_results import Look
from aprtui.compare.weight_sides import WeightSide
from aprtui.compare.weight_sketches import SLACK, Sketches, sketch_rows
from aprtui.engine.row_sums import RowSums, measure_rows, sampled_places
from aprtui.engine.weight_blocks import WeightReader
from aprtui.formats.blocks import BLOCK_TYPES
from aprtui.graph import Role
from aprtui.model.operand import Operand, differing_blocks
from aprtui.text import count

__all__ = ["Suspect", "name_look"]

_SAMPLE = 16  # rows that stand for a whole matrix
_FEW = 0.25  # of the rows: fewer are named one by one
_RANKED = 256  # rows of which a difference's rank is taken
_WIDEST = 1 << 15  # columns of a matrix whose difference's rank is taken
_PROVED = 2  # tensors whose sample fits that are measured whole

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Suspect:
    """One tensor that differs; ``sums`` is None where the shapes do.

    ``limit`` is the largest rel_l2 that rounding explains: what a look must come down to.
    ``sketches`` are A's.
    """

    role: Role
    sides: tuple[WeightSide, WeightSide]
    a: Operand
    b: Operand
    sums: RowSums | None
    readers: tuple[WeightReader, WeightReader]
    limit: float
    sketches: Sketches


def name_look(suspect: Suspect) -> Look | None:
    """The first look that B's values prove; None when none does.

    A look proves itself by a residual within the limit that is at most half the error it explains:
    that of the whole tensor, or of the rows that are wrong where the look is about rows.
    """
    for attempt in _OF_SHAPE if suspect.sums is None else _OF_VALUES:
        look = attempt(suspect)
        if look is not None and (look.residual_rel_l2 or 0.0) <= _apart(suspect, attempt) / 2:
            return look
    return None


_Try = Callable[[Suspect], Look | None]


def _apart(suspect: Suspect, attempt: _Try) -> float:
    """The rel_l2 that a look has to explain."""
    sums = suspect.sums
    if sums is None:
        return math.inf
    rows = _wrong_rows(sums, suspect.limit) if attempt in _OF_ROWS else slice(None)
    dd, aa = float(sums.difference[rows].sum()), float(sums.a[rows].sum())
    return math.sqrt(dd / aa) if aa else math.inf


def _wrong_rows(sums: RowSums, limit: float) -> npt.NDArray[np.int64]:
    """The rows whose error rounding does not explain."""
    return np.flatnonzero(sums.difference > limit**2 * np.maximum(sums.a, 1e-300))


def _some_blocks(suspect: Suspect) -> Look | None:
    """A few stored blocks that differ among many that are the same byte for byte."""
    kind = BLOCK_TYPES.get(suspect.a.matrix.entry.type)
    if kind is None or kind.values == 1:
        return None
    found = differing_blocks(suspect.a, suspect.b)
    if found is None:
        return None
    places, blocks = found
    if not 0 < len(places) <= max(1, _FEW * blocks):
        return None
    moved = _rows_moved(suspect)
    if moved is not None:
        return moved
    per_row = max(1, suspect.a.columns // kind.values)
    row, block = divmod(int(places[0]), per_row)
    verb = "differs" if len(places) == 1 else "differ"
    first = f"block {block} of row {row:,}" if suspect.a.rows > 1 else f"block {block}"
    text = f"{len(places):,} of {count(blocks, 'block')} {verb}, the rest same bytes: "
    text += first if len(places) == 1 else f"the first is {first}"
    rows = sorted({int(place) // per_row for place in places})
    parameters = {"count": len(places), "blocks": blocks, "row": row, "block": block,
                  "rows": rows[:16]}  # fmt: skip
    return Look("some_blocks", text, 0.0, parameters)


def _low_rank(suspect: Suspect) -> Look | None:
    """A difference of few ranks: an update (LoRA) that one side lacks, or has twice."""
    a, b = suspect.a, suspect.b
    if suspect.sums is None or min(a.rows, a.columns) < 16 or a.columns > _WIDEST:
        return None
    chosen = sampled_places(a.rows, _RANKED)
    x, y = (
        reader.rows_at(side, chosen).astype(np.float64)
        for reader, side in zip(suspect.readers, (a, b), strict=True)
    )
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        return None
    strengths = np.linalg.svd(y - x, compute_uv=False)
    left = np.sqrt(np.cumsum(np.square(strengths[::-1]))[::-1]) / np.linalg.norm(x)
    rank = int(np.argmax(left <= suspect.limit)) if (left <= suspect.limit).any() else len(left)
    if not 0 < rank <= len(strengths) // 4:
        return None
    text = f"the difference has rank {rank}: a low-rank update (LoRA) is missing, doubled or scaled"
    return Look("low_rank", text, float(left[rank]), {"rank": rank})


def _zeros(suspect: Suspect) -> Look | None:
    sums = suspect.sums
    if sums is None or sums.b.any() or sums.nonfinite_b or not sums.a.any():
        return None
    return Look("zeros", "all zeros", 0.0)


def _nonfinite(suspect: Suspect) -> Look | None:
    sums = suspect.sums
    if sums is None or sums.nonfinite_b == sums.nonfinite_a:
        return None
    text = f"NaN or infinite values: {sums.nonfinite_a:,} in A, {sums.nonfinite_b:,} in B"
    parameters = {"a": sums.nonfinite_a, "b": sums.nonfinite_b}
    return Look("nonfinite", text, None, parameters)


def _scaled(suspect: Suspect) -> Look | None:
    """b = s a, with s = a.b / a.a from the sums.

    What is left by the sums is known to the root of their rounding only, which decides; the
    residual is that of the sampled values, which are exact.
    """
    sums = suspect.sums
    if sums is None:
        return None
    dd, aa, along = (float(part.sum()) for part in (sums.difference, sums.a, sums.along))
    if not (aa > 0 and sums.b.any() and math.isfinite(dd)):
        return None
    factor = 1.0 + along / aa
    left = math.sqrt(max(dd - along * along / aa, 0.0) / float(sums.b.sum()))
    limit = max(suspect.limit, 1e-3)
    if not left <= limit or abs(factor) < 1e-30:
        return None
    residual = _rel_l2(factor * sums.sample_a.astype(np.float64), sums.sample_b)
    if not residual <= limit:
        return None
    return Look("scaled", f"A times {factor:.6g}", residual, {"factor": factor})


def _offset(suspect: Suspect) -> Look | None:
    """A constant added to a vector: a norm's 1 + w taken for w."""
    if suspect.sums is None or suspect.b.rows != 1:
        return None
    x, y = (
        reader.rows_at(operand, (0,)).astype(np.float64)
        for reader, operand in zip(suspect.readers, (suspect.a, suspect.b), strict=True)
    )
    constant = float((y - x).mean())
    residual = _rel_l2(x + constant, y)
    if not residual <= suspect.limit:
        return None
    return Look("offset", f"A plus {constant:.6g}", residual, {"constant": constant})


def _pair_order(suspect: Suspect) -> Look | None:
    """The rows of q and k (or their biases) in the order of the other RoPE layout."""
    sums = suspect.sums
    if sums is None or suspect.role.name not in ("q", "k", "q_bias", "k_bias"):
        return None
    head = suspect.sides[0].head_size(suspect.role)
    unit = suspect.b.rows if suspect.b.rows > 1 else suspect.b.columns
    if not head or unit % head:
        return None
    for place, text in ((1, "adjacent pairs where halves are due"),
                        (0, "halves where adjacent pairs are due")):  # fmt: skip
        pair, samples = [suspect.a, suspect.b], [sums.sample_a, sums.sample_b]
        if pair[place].head_rows:
            continue
        pair[place] = replace(pair[place], head_rows=head)
        if pair[place].rows > 1:
            order = [pair[place].stored_row(row) for row in range(unit)]
            samples[place] = samples[place][order]
            if not _rel_l2(*samples) <= SLACK * suspect.limit:
                continue
        residual = _total(measure_rows(pair[0], pair[1], suspect.readers))
        if residual <= suspect.limit:
            parameters = {"found": text.split(" where")[0], "head_dim": head}
            return Look("pair_order", f"rows in the order of {text}", residual, parameters)
    return None


def _other_tensor(suspect: Suspect) -> Look | None:
    """The values of another tensor of A: an expert, a layer, gate for up, the embedding."""
    sums, b = suspect.sums, suspect.b
    if sums is None:
        return None
    wanted = sums.sample_b[sketch_rows(b.rows)]
    like = suspect.sketches.like(wanted, suspect.role, b, suspect.readers[0])
    for role, operand in like[:_PROVED]:
        residual = _total(measure_rows(operand, b, suspect.readers))
        if residual > rounding_limit(operand, b):
            continue
        expert = role.layer == suspect.role.layer and role.expert is not None
        name = "expert_swapped" if expert and role.name == suspect.role.name else "other_tensor"
        parameters = {"role": role.name, "layer": role.layer, "expert": role.expert}
        return Look(name, f"the values of {role}", residual, parameters)
    return None


def _dims_swapped(suspect: Suspect) -> Look | None:
    """The same values row by row under dims in the other order."""
    a, b = suspect.a, suspect.b
    if (a.rows, a.columns) != (b.columns, b.rows):
        return None
    chosen = sampled_places(a.rows, _SAMPLE)
    x = suspect.readers[0].rows_at(a, chosen)
    residual = _rel_l2(x, _flat_rows(suspect.readers[1], b, chosen, a.columns))
    if not residual <= suspect.limit:
        return None
    return Look("dims_swapped", "A's values in A's order, dims listed the other way", residual)


def _transposed(suspect: Suspect) -> Look | None:
    """A's columns as B's rows; the residual is that of up to 16 whole columns."""
    a, b = suspect.a, suspect.b
    if a.rows * a.columns != b.rows * b.columns or min(a.rows, a.columns) < 2:
        return None
    if (a.rows, a.columns) not in ((b.rows, b.columns), (b.columns, b.rows)):
        return None
    chosen, grid = sampled_places(a.columns), sampled_places(a.rows, _SAMPLE)
    if suspect.sums is not None and a.rows == a.columns:
        x, y = suspect.sums.sample_a[grid].T, suspect.sums.sample_b[grid]
    else:
        few = chosen[:: max(1, len(chosen) // 2)]
        x = suspect.readers[0].rows_at(a, grid)[:, few].T
        y = _flat_rows(suspect.readers[1], b, few, a.rows)[:, grid]
    if not _rel_l2(x, y) <= SLACK * suspect.limit:
        return None
    residual = _rel_l2(
        _columns(suspect, chosen).T, _flat_rows(suspect.readers[1], b, chosen, a.rows)
    )
    return Look("transposed", "A transposed", residual) if residual <= suspect.limit else None


def _columns(suspect: Suspect, chosen: list[int]) -> Float32:
    """The columns ``chosen`` of A [rows, len(chosen)], which are those that measuring keeps."""
    if suspect.sums is not None:
        return suspect.sums.sample_a
    blocks = suspect.readers[0].blocks(suspect.a)
    return np.concatenate([block[:, chosen] for _, block in blocks], axis=0)


def _flat_rows(reader: WeightReader, b: Operand, chosen: list[int], width: int) -> Float32:
    """Rows ``chosen`` of B's values seen as [-1, width], whatever its own columns are."""
    found = np.empty((len(chosen), width), dtype=np.float32)
    for place, row in enumerate(chosen):
        first, start = divmod(row * width, b.columns)
        last = math.ceil((row + 1) * width / b.columns)
        run = reader.rows_at(b, range(first, last)).reshape(-1)
        found[place] = run[start : start + width]
    return found


def _rows_moved(suspect: Suspect) -> Look | None:
    """A's rows in another order, told by finding rows of B among all rows of A."""
    sums = suspect.sums
    if sums is None or suspect.b.rows < 4:
        return None
    wrong = _wrong_rows(sums, suspect.limit)
    if len(wrong) < 2:
        return None
    chosen = [int(wrong[index]) for index in sampled_places(len(wrong), _SAMPLE)]
    for some in (chosen[:: len(chosen) - 1], chosen):  # two rows decide for most
        nearest = _nearest_rows(sums, some, suspect.b.columns)
        apart = _rel_l2(sums.sample_a[nearest], sums.sample_b[some])
        if not apart <= SLACK * suspect.limit:
            return None
    if nearest == chosen:
        return None
    x, y = (
        suspect.readers[0].rows_at(suspect.a, nearest),
        suspect.readers[1].rows_at(suspect.b, chosen),
    )
    residual = _rel_l2(x, y)
    if not residual <= suspect.limit:
        return None
    return (
        _rows_shifted(suspect, sums, chosen, nearest, residual)
        or _heads_permuted(suspect, sums, residual)
        or _rows_permuted(chosen, nearest, residual)
    )


def _rows_shifted(
    suspect: Suspect, sums: RowSums, chosen: list[int], nearest: list[int], residual: float
) -> Look | None:
    rows = suspect.a.rows
    shifts = {(row - source) % rows for row, source in zip(chosen, nearest, strict=True)}
    if len(shifts) > 1:
        return None
    by = shifts.pop()
    by = by - rows if by > rows // 2 else by
    inside = slice(max(by, 0), rows + min(by, 0))
    moved = np.roll(sums.sample_a, by, axis=0)
    residual = max(residual, _rel_l2(moved[inside], sums.sample_b[inside]))
    if not residual <= SLACK * suspect.limit:
        return None
    return Look("rows_shifted", f"A's rows moved by {by:+,}", residual, {"by": by})


def _heads_permuted(suspect: Suspect, sums: RowSums, residual: float) -> Look | None:
    """Each head of B is another one of A: ``heads`` says which, in B's order."""
    head = suspect.sides[0].head_size(suspect.role)
    if suspect.role.name not in ("q", "k", "v") or not head or suspect.a.rows % head:
        return None
    a, b = (
        sample.astype(np.float64).reshape(-1, head * sample.shape[1])
        for sample in (sums.sample_a, sums.sample_b)
    )
    heads = [int(np.square(a - each).sum(axis=1).argmin()) for each in b]
    residual = max(residual, _rel_l2(a[heads], b))
    if not residual <= SLACK * suspect.limit:
        return None
    order = ", ".join(map(str, heads[:8])) + (", ..." if len(heads) > 8 else "")
    return Look("heads_permuted", f"A's heads in the order {order}", residual, {"heads": heads})


def _rows_permuted(chosen: list[int], nearest: list[int], residual: float) -> Look:
    moved = [[row, source] for row, source in zip(chosen, nearest, strict=True) if row != source]
    pair = f"row {moved[0][0]:,} is A's row {moved[0][1]:,}"
    return Look("rows_permuted", f"A's rows in another order: {pair}", residual, {"rows": moved})


def _nearest_rows(sums: RowSums, chosen: list[int], columns: int) -> list[int]:
    """For each of B's rows ``chosen`` the row of A nearest to it, by sampled values and norm."""

    def points(sample: Float32, squares: Float64) -> Float32:
        norms = np.sqrt(squares * sample.shape[1] / columns)[:, None].astype(np.float32)
        found: Float32 = np.nan_to_num(np.hstack([sample, norms]), posinf=0, neginf=0)
        return found

    of_a, of_b = points(sums.sample_a, sums.a), points(sums.sample_b[chosen], sums.b[chosen])
    squares = np.einsum("ij,ij->i", of_a, of_a)[:, None]
    products = np.einsum("ij,kj->ik", of_a, of_b)  # `@` would start threads of its own
    return [int(row) for row in (squares - 2 * products).argmin(axis=0)]


def _some_rows(suspect: Suspect) -> Look | None:
    """A few rows that differ among many that do not; of one row, the run of columns."""
    sums = suspect.sums
    if sums is None or suspect.b.rows < 4:
        return None
    limit = max(suspect.limit, 4 * float(np.sqrt(np.median(_ratios(sums)))))
    wrong = np.flatnonzero(_ratios(sums) > limit**2)
    if not 0 < len(wrong) <= _FEW * suspect.b.rows:
        return None
    rest = np.ones(suspect.b.rows, dtype=bool)
    rest[wrong] = False
    residual = math.sqrt(sums.difference[rest].sum() / max(sums.a[rest].sum(), 1e-300))
    if not residual <= suspect.limit:
        return None
    parameters: dict[str, Any] = {"count": len(wrong), "rows": [int(row) for row in wrong[:16]]}
    text = f"{len(wrong):,} of {suspect.b.rows:,} rows, the first {int(wrong[0]):,}"
    if len(wrong) == 1:
        row = (int(wrong[0]),)
        x, y = suspect.readers[0].rows_at(suspect.a, row), suspect.readers[1].rows_at(
            suspect.b, row
        )  # fmt: skip
        d = np.abs(y - x)[0]
        far = np.flatnonzero(d > max(d.max() / 100, suspect.limit * float(np.abs(x).max())))
        columns = [int(far[0]), int(far[-1]) + 1] if len(far) else [0, suspect.b.columns]
        parameters["columns"] = columns
        text = f"row {row[0]:,}, columns {columns[0]:,} to {columns[1] - 1:,}; the rest is A's"
    return Look("some_rows", text, residual, parameters)


def _ratios(sums: RowSums) -> Float64:
    """The squared rel_l2 of each row; a row of zeros that became something counts as infinite."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios: Float64 = np.where(sums.difference == 0, 0.0, sums.difference / sums.a)
    return ratios


def _total(sums: RowSums) -> float:
    dd, aa = float(sums.difference.sum()), float(sums.a.sum())
    return math.sqrt(dd / aa) if aa else (0.0 if dd == 0 else math.inf)


def _rel_l2(x: npt.NDArray[Any], y: npt.NDArray[Any]) -> float:
    wide = x.astype(np.float64)
    d, norm = np.linalg.norm(y - wide), np.linalg.norm(wide)
    return float(d / norm) if norm else (0.0 if d == 0 else math.inf)


_OF_SHAPE: tuple[_Try, ...] = (_dims_swapped, _transposed)
_OF_ROWS: tuple[_Try, ...] = (_rows_moved, _some_rows)
_OF_VALUES: tuple[_Try, ...] = (
    _zeros, _nonfinite, _some_blocks, _scaled, _offset, _pair_order, _other_tensor, _transposed,
    *_OF_ROWS, _low_rank,
)  # fmt: skip
