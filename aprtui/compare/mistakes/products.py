"""Mistakes in matrix products: transposed, permuted, another matrix, one bad block of weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from aprtui.compare.mistakes.anywhere import dropped, fitted_scales
from aprtui.compare.mistakes.attempt import Candidate, Entry, ProductAttempt
from aprtui.compare.mistakes.inputs import OF_PRODUCTS
from aprtui.compare.mistakes.ranges import saturated_product
from aprtui.compare.mistakes.stored import STORED
from aprtui.graph import Role
from aprtui.graph.ops import Attend, Embed, Product

__all__ = ["PRODUCTS"]

Float64 = npt.NDArray[np.float64]

_SAMPLE = 32  # rows of a matrix that are looked at first
_MAX_WHOLE = 1 << 24  # elements of a matrix that may be held whole


def transposed(at: ProductAttempt) -> Iterator[Candidate]:
    role, replay = at.part.weight, at.case.replay
    rows, columns = replay.shape(role)
    text = "multiplied by the transposed matrix"
    if rows == columns:
        yield Candidate(at.finish(replay.transposed(role, at.x, at.name)), text)
    elif rows * columns <= _MAX_WHOLE:
        whole = replay.rows(role, range(rows)).reshape(columns, rows)
        text = "the matrix's bytes are read as if it were stored transposed"
        yield Candidate(at.finish(at.rounded_x @ whole), text)


def other_weight(at: ProductAttempt) -> Iterator[Candidate]:
    """Another matrix of the layer; the table counts among those of the whole model."""
    own, graph = at.part.weight, at.case.captured.graph
    tables = (node.op.table for node in graph if isinstance(node.op, Embed))
    roles = dict.fromkeys((*tables, *_matrices(at)))
    yield from _by(at, (role for role in roles if role.layer == own.layer and role != own))


def other_layer(at: ProductAttempt) -> Iterator[Candidate]:
    """The same matrix of another layer, the nearest first."""
    own = at.part.weight
    alike = {role for role in _matrices(at) if role.name == own.name and role.layer != own.layer}
    yield from _by(at, sorted(alike, key=lambda role: abs((role.layer or 0) - (own.layer or 0))))


def _matrices(at: ProductAttempt) -> Iterator[Role]:
    products = (node.op for node in at.case.captured.graph if isinstance(node.op, Product))
    return (role for op in products for role in op.matrices)


def _by(at: ProductAttempt, roles: Iterable[Role]) -> Iterator[Candidate]:
    """The product with each of ``roles`` that has the matrix's shape and comes near."""
    replay, own = at.case.replay, at.part.weight
    weights = replay.model.weights
    for role in roles:
        if not replay.has(role) or replay.shape(role) != replay.shape(own):
            continue
        if weights[role] == weights[own]:
            continue
        if not at.plausible(lambda rows, role=role: replay.rows(role, rows)):  # type: ignore[misc]
            continue
        made = at.product(at.x, role, _name_for(at, role))
        text = f"multiplied by {role} in place of {own}"
        parameters = {"weight": str(role), "own": str(own), "tensor": weights[role].entry.name}
        yield Candidate(made, text, parameters)


def _name_for(at: ProductAttempt, role: Role) -> str:
    """The rounding that goes with another matrix: its own partner where ours is a partner."""
    own = at.case.replay.roundings(at.part.weight)[0]
    likely = at.case.replay.roundings(role)[0]
    place = own.index(at.name) if at.name in own else 0
    return likely[place] if place < len(likely) else at.name


def head_tied(at: ProductAttempt) -> Iterator[Candidate]:
    if at.op.last:
        for found in other_weight(at):
            text = "the embedding was used where the model has a head of its own"
            yield Candidate(found.made, text, found.parameters)


def head_position(at: ProductAttempt) -> Iterator[Candidate]:
    """Logits of another position than the last; a few rows of the head tell which."""
    rows, replay, role = at.case.inputs()[0], at.case.replay, at.part.weight
    if not at.op.last or at.part.bias is not None or len(at.x) != 1 or len(rows) < 2:
        return
    sample = np.unique(np.linspace(0, at.y.shape[1] - 1, _SAMPLE).astype(int)).tolist()
    made = at.finish(rows @ replay.rows(role, sample).T)
    position = int(np.argmin(np.linalg.norm(made - at.y[:, sample], axis=1)))
    if position != len(rows) - 1:
        text = f"the logits of position {position} where the last is asked for"
        yield Candidate(at.product(rows[[position]]), text, {"position": position})


def softcap_missing(at: ProductAttempt) -> Iterator[Candidate]:
    if at.op.cap is not None:
        made = at.case.replay.finish(replace(at.op, cap=None), at.made)
        yield Candidate(made, "the soft-cap on the logits was left out")


def multiplier_missing(at: ProductAttempt) -> Iterator[Candidate]:
    factor = at.op.factor(at.part)
    if factor != 1.0 and not at.op.last:
        plain = replace(at.op, scale=1.0, parts=(replace(at.part, scale=1.0),))
        text = f"{at.part.name} is not multiplied by {factor:g}"
        made = at.case.replay.finish(plain, at.made)
        yield Candidate(made, text, {"used": 1.0, "right": factor})


def scaled(at: ProductAttempt) -> Iterator[Candidate]:
    for factor in fitted_scales(at.y, at.base, at.case.rounded):
        text = f"{at.part.name} is multiplied by {factor:g}"
        yield Candidate(at.base * factor, text, {"factor": factor})


def dropout(at: ProductAttempt) -> Iterator[Candidate]:
    yield from dropped(at.y, at.base)
    if at.case.rounded:  # a product that was written before
        yield from dropped(at.y, at.case.replay.rounded(at.base, at.case.rounded))


def rows_shifted(at: ProductAttempt) -> Iterator[Candidate]:
    """The matrix's rows moved: output i holds what i - by should; the shift is fitted."""
    y, base = (np.nan_to_num(each) for each in (at.y, at.base))
    size = base.shape[1]
    spectrum = np.fft.rfft(y, axis=1) * np.conj(np.fft.rfft(base, axis=1))
    likeness = np.fft.irfft(spectrum.sum(axis=0), n=size)
    by = int(np.argmax(likeness))
    by = by if by <= size // 2 else by - size
    if not by:
        return
    text = f"the matrix's rows are shifted by {by:+d}: output i holds that of i{-by:+d}"
    moved = np.roll(base, by, axis=1)
    yield Candidate(moved, text, {"by": by, "axis": "output"})
    gap = slice(0, by) if by > 0 else slice(by, None)
    repeated = moved.copy()
    repeated[:, gap] = base[:, [0 if by > 0 else -1]]
    yield Candidate(repeated, text, {"by": by, "axis": "output"})
    moved[:, gap] = 0.0
    yield Candidate(moved, text, {"by": by, "axis": "output"})


# -- heads -----------------------------------------------------------------------------------------


def heads_permuted(at: ProductAttempt) -> Iterator[Candidate]:
    if at.output_head is not None:
        yield from _outputs_permuted(at, at.output_head)
    elif at.input_head is not None:
        yield from _inputs_permuted(at, at.input_head)


def _outputs_permuted(at: ProductAttempt, size: int) -> Iterator[Candidate]:
    rows = at.base.shape[0]
    y, base = (each.reshape(rows, -1, size) for each in (at.y, at.base))
    heads = base.shape[1]
    apart = np.array([[np.linalg.norm(y[:, h] - base[:, g]) for g in range(heads)]
                      for h in range(heads)])  # fmt: skip
    order = apart.argmin(axis=1).tolist()
    if sorted(order) == list(range(heads)) and order != list(range(heads)):
        text = f"heads of {at.part.name} are permuted: slot h holds head {_short(order)}"
        made = base[:, order].reshape(rows, -1)
        yield Candidate(made, text, {"heads": order, "side": "output"})
    half = np.arange(size).reshape(2, -1).T.reshape(-1)  # adjacent slot -> halves channel
    for name, channels in (("halves read as adjacent", half),
                           ("adjacent read as halves", np.argsort(half))):  # fmt: skip
        text = f"channels inside each head of {at.part.name} are permuted: {name}"
        yield Candidate(base[:, :, channels].reshape(rows, -1), text, {"channels": name})


def _inputs_permuted(at: ProductAttempt, size: int) -> Iterator[Candidate]:
    heads = at.x.shape[1] // size
    if at.y.size < heads * heads or heads < 2:
        return
    tried = [*_regrouped(at), _fitted_order(at, heads, size)]
    for order in tried:
        if order is None or order == list(range(heads)):
            continue
        permuted = at.x.reshape(at.x.shape[0], heads, size)[:, order].reshape(at.x.shape)
        text = f"the heads come permuted: slot h holds head {_short(order)}"
        yield Candidate(at.product(permuted), text, {"heads": order, "side": "input"})


def _regrouped(at: ProductAttempt) -> Iterator[list[int]]:
    """Heads dealt round their kv heads where they are grouped, and the other way about."""
    op = at.case.captured.graph[at.case.node.inputs[0]].op
    if isinstance(op, Attend):
        for size in (op.heads // op.values.count, op.values.count):
            yield np.arange(op.heads).reshape(-1, size).T.reshape(-1).tolist()


def _fitted_order(at: ProductAttempt, heads: int, size: int) -> list[int] | None:
    """Which head each slot holds, by least squares over every head in every slot."""
    columns = _per_head(at, heads, size)  # [slots, heads, n * rows]
    if columns is None:
        return None
    equations = columns.reshape(heads * heads, -1).T
    wanted = at.y.reshape(-1)
    use = np.isfinite(equations).all(axis=1) & np.isfinite(wanted)
    if use.sum() < heads * heads:
        return None
    solved = np.linalg.lstsq(equations[use], wanted[use], rcond=None)[0]
    order = solved.reshape(heads, heads).argmax(axis=1).tolist()
    return order if sorted(order) == list(range(heads)) else None


def _per_head(at: ProductAttempt, heads: int, size: int) -> Float64 | None:
    if heads * heads * at.y.size > _MAX_WHOLE * 2:
        return None
    x = at.rounded_x.reshape(-1, heads, size)
    made = []
    for slot in range(heads):
        alone = np.zeros((heads, x.shape[0], heads, size))
        for head in range(heads):
            alone[head, :, slot] = x[:, head]
        rows = alone.reshape(heads * x.shape[0], -1)
        product = at.case.replay.products(at.part.weight, rows)[0]
        made.append(product.reshape(heads, -1))
    return np.stack(made)


def _short(order: list[int]) -> str:
    return ",".join(map(str, order[:16])) + ("..." if len(order) > 16 else "")


# -- parts that are nothing ------------------------------------------------------------------------


def zero_part(at: ProductAttempt) -> Iterator[Candidate]:
    """A run of outputs, or one head of the input, that counts as zero."""
    empty = ~np.any(at.y, axis=0) & np.any(at.base, axis=0)
    if empty.any() and not empty.all():
        columns = np.flatnonzero(empty)
        first, last = int(columns[0]), int(columns[-1])
        made = at.base.copy()
        made[:, columns] = 0.0
        size = at.output_head
        parameters: dict[str, object] = {"columns": [first, last], "count": int(columns.size)}
        whose = ""
        if size is not None and first % size == 0 and (last + 1) % size == 0:
            heads = list(range(first // size, (last + 1) // size))
            parameters |= {"head": heads[0]} if len(heads) == 1 else {"heads": heads}
            whose = f" (head {_short(heads)} of {at.part.name})"
        yield Candidate(made, f"outputs {first} to {last} are zero{whose}", parameters)
    if at.input_head is not None:
        yield from _input_head_zero(at, at.input_head)


def _input_head_zero(at: ProductAttempt, size: int) -> Iterator[Candidate]:
    heads = at.x.shape[1] // size
    rows = np.repeat(at.rounded_x[None], heads, axis=0).reshape(heads, -1, heads, size)
    alone = np.zeros_like(rows)
    for head in range(heads):
        alone[head, :, head] = rows[head, :, head]
    made = at.case.replay.products(at.part.weight, alone.reshape(-1, heads * size))[0]
    shares = made.reshape(heads, *at.made.shape)
    head = int(np.argmin([np.linalg.norm(at.away + share) for share in shares]))
    columns = [head * size, (head + 1) * size - 1]
    yield Candidate(at.finish(at.made - shares[head]), f"head {head} of the input is left out",
                    {"head": head, "columns": columns, "side": "input"})  # fmt: skip


PRODUCTS = (
    Entry("head_tied", (Product,), head_tied),
    Entry("softcap_missing", (Product,), softcap_missing),
    Entry("position", (Product,), head_position),
    *STORED[:3],
    Entry("multiplier_missing", (Product,), multiplier_missing),
    Entry("saturated", (Product,), saturated_product),
    Entry("scaled", (Product,), scaled),
    Entry("rows_shifted", (Product,), rows_shifted),
    Entry("zero_part", (Product,), zero_part),
    Entry("dropout", (Product,), dropout),
    Entry("heads_permuted", (Product,), heads_permuted),
    *STORED[3:],
    Entry("transposed", (Product,), transposed),
    Entry("other_weight", (Product,), other_weight),
    Entry("other_layer", (Product,), other_layer),
    *OF_PRODUCTS,
)
