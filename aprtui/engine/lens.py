"""The logit lens in a child process: which tokens a residual stream would say, at each position.

    python -m aprtui.engine.lens --model MODEL FILE...

Each stage file [T, hidden] goes through the model's final norm (not the norm's own, which did) and
its head. One JSON line a file: its path, the first position told of, and of each position the
likeliest tokens and, of a token that is asked about, its rank and probability; or what is wrong
with it. The first file is worked on by itself so that it comes
soon.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from aprtui.crash import told_of
from aprtui.engine.ops import Pass, compute
from aprtui.engine.weights import WeightStream
from aprtui.errors import AprtuiError, BadFileError, UsageError
from aprtui.formats.aprt import read_values
from aprtui.graph import Graph, Node
from aprtui.graph.ops import Norm, Product
from aprtui.model.open import Model, open_model

__all__ = ["TOP", "Likeliest", "likeliest", "main", "read_rows"]

TOP = 8
MOST_POSITIONS = 64  # the last ones of a longer prompt
BATCH_ROWS = 256
_PARENT_CHECK_S = 0.5


def read_rows(path: Path, hidden: int) -> tuple[int, torch.Tensor]:
    """The last positions of a stage file: the first one's number, and rows [n, hidden] float32.

    Raises BadFileError for a file that does not hold whole rows of ``hidden`` values.
    """
    values = read_values(path)
    if values.size == 0 or values.size % hidden:
        raise BadFileError(path, f"{values.size:,} values are not rows of {hidden:,}")
    rows = values.reshape(-1, hidden)
    first = max(0, len(rows) - MOST_POSITIONS)
    return first, torch.from_numpy(np.array(rows[first:]))


@dataclass(frozen=True)
class Likeliest:
    """Of each of n rows: ids [n, top] and their probabilities [n, top], the likeliest first; of
    the token that was asked about its rank [n], from 1, and its probability [n]."""

    ids: torch.Tensor
    probabilities: torch.Tensor
    rank: torch.Tensor | None = None
    probability: torch.Tensor | None = None


def likeliest(
    stream: WeightStream, rows: torch.Tensor, top: int = TOP, asked: int | None = None
) -> Likeliest:
    """What normalised rows [n, hidden] say of the vocabulary.

    The head is read once, block by block; of the logits only the largest, their sum and how many
    are above the one that was ``asked`` about are kept.
    """
    head = stream.model.graph.nodes[-1].op
    assert isinstance(head, Product)
    (part,) = head.parts
    bias = None if part.bias is None else stream.vector(part.bias)

    def scored(weights: torch.Tensor, first: int) -> torch.Tensor:
        logits = rows @ weights.T
        if bias is not None:
            logits = logits + bias[first : first + len(weights)]
        logits = logits.double() * head.scale
        return logits if head.cap is None else torch.tanh(logits / head.cap) * head.cap

    own = None if asked is None else scored(stream.rows(part.weight, (asked,)), asked)
    total = torch.full((len(rows),), -math.inf, dtype=torch.float64)
    above = torch.zeros(len(rows), dtype=torch.int64)
    ids = torch.empty((len(rows), 0), dtype=torch.int64)
    best = torch.empty((len(rows), 0), dtype=torch.float64)
    for first, block in stream.blocks(part.weight):
        logits = scored(block, first)
        total = torch.logaddexp(total, logits.logsumexp(dim=1))
        values, places = logits.topk(min(top, logits.shape[1]), dim=1)
        best, ids = torch.cat([best, values], dim=1), torch.cat([ids, places + first], dim=1)
        best, order = best.topk(min(top, best.shape[1]), dim=1)
        ids = ids.gather(1, order)
        if own is not None and asked is not None:
            higher = logits > own
            if first <= asked < first + len(block):  # itself, whichever way its sum was rounded
                higher[:, asked - first] = False
            above += higher.sum(dim=1)
    probabilities = torch.exp(best - total[:, None])
    if own is None:
        return Likeliest(ids, probabilities)
    return Likeliest(ids, probabilities, above + 1, torch.exp(own[:, 0] - total))


@dataclass(frozen=True)
class _Held:
    """Rows [n, hidden] of a file, ready for the head."""

    path: Path
    first: int
    rows: torch.Tensor


def _lines(model: Model, files: list[Path], asked: int | None) -> Iterator[dict[str, Any]]:
    """What is printed, file by file. Raises UsageError for a token that the model has not."""
    vocabulary = model.graph.vocab_size
    if asked is not None and not 0 <= asked < vocabulary:
        raise UsageError(f"token {asked} is none of {vocabulary:,}")
    stream = WeightStream(model, torch.device("cpu"), torch.float32)
    arithmetic, end = Pass(stream), _end(model.graph)
    batch: list[_Held] = []
    for number, path in enumerate(files):
        try:
            first, rows = read_rows(path, model.graph.hidden_size)
        except AprtuiError as error:
            yield _error(error, str(path))
        else:
            for node in end:
                if path.stem != node.key.stage:
                    rows = compute(arithmetic, node, (rows,))
            batch.append(_Held(path, first, rows))
        if batch and (number == 0 or sum(len(held.rows) for held in batch) >= BATCH_ROWS):
            yield from _read(stream, batch, asked)
            batch = []
    if batch:
        yield from _read(stream, batch, asked)


def _end(graph: Graph) -> list[Node]:
    """What stands between the residual stream and the head: a norm, a product, both, nothing."""
    found: list[Node] = []
    before = graph[graph.nodes[-1].inputs[0]]
    while before.key.layer is None and isinstance(before.op, Norm | Product):
        found.insert(0, before)
        before = graph[before.inputs[0]]
    return found


def _read(stream: WeightStream, batch: list[_Held], asked: int | None) -> Iterator[dict[str, Any]]:
    """A line for each file of a batch; the head is read once for all."""
    found = likeliest(stream, torch.cat([held.rows for held in batch]), asked=asked)
    start = 0
    for held in batch:
        part = slice(start, start + len(held.rows))
        start = part.stop
        told = zip(found.ids[part].tolist(), found.probabilities[part].tolist(), strict=True)
        top = [_told(stream.model, *each) for each in told]
        line = {"event": "lens", "file": str(held.path), "first": held.first, "top": top}
        if found.rank is not None and found.probability is not None:
            ranked = zip(found.rank[part].tolist(), found.probability[part].tolist(), strict=True)
            line["asked"] = [[rank, p] if math.isfinite(p) else None for rank, p in ranked]
        yield line


def _error(error: AprtuiError, file: str | None = None) -> dict[str, Any]:
    return {"event": "error", "file": file, "message": error.message, "hint": error.hint}


def _told(model: Model, ids: list[int], probabilities: list[float]) -> list[list[Any]]:
    """(id, text, probability) of each token; nothing where the row was not finite."""
    if not all(math.isfinite(value) for value in probabilities):
        return []
    names = model.vocabulary
    return [
        [token, names.text_of(token) if names else "", value]
        for token, value in zip(ids, probabilities, strict=True)
    ]


def _end_with(parent: int) -> None:
    """End this process when ``parent`` is gone."""
    pause = threading.Event()
    while not pause.wait(_PARENT_CHECK_S):
        if os.getppid() != parent:
            os._exit(0)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m aprtui.engine.lens", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--adapter", type=Path, help="a LoRA on the model's weights")
    parser.add_argument("--token", type=int, metavar="ID", help="tell its rank and probability")
    parser.add_argument("--parent", type=int, help="end when this process is gone")
    options = parser.parse_args(arguments)
    if options.parent is not None:
        threading.Thread(target=_end_with, args=(options.parent,), daemon=True).start()
    try:
        model = open_model(options.model, adapter=options.adapter)
        with torch.inference_mode():
            for line in _lines(model, options.files, options.token):
                print(json.dumps(line), flush=True)
    except BrokenPipeError:  # nobody listens any more
        return 0
    except Exception as error:
        told = told_of(error, "the lens")
        print(json.dumps(_error(told)), flush=True)
        return told.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
