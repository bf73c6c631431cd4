"""Mistakes around Gemma 3n's streams: not predicted, not corrected, of another size, gates that are
all kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from aprtui.compare.mistakes.attempt import Attempt, Candidate, Entry
from aprtui.graph.altup import Correct, Merge, Modes, Outliers, Pick, Predict, Spread, Streams

__all__ = ["ALTUP"]


def prediction_missing(at: Attempt[Predict]) -> Iterator[Candidate]:
    streams = at.inputs[0]
    text = "the streams are not predicted: they are left as they were"
    yield Candidate(streams, text, {"missing": "prediction"})
    text = "the mix of the streams is not added to them"
    yield Candidate(at.base - streams, text, {"missing": "streams"})


def correction_missing(at: Attempt[Correct]) -> Iterator[Candidate]:
    streams = at.inputs[0]
    new = (at.inputs[1] - streams[:, at.op.active])[:, None]
    text = "the streams are not corrected by what the layer made"
    yield Candidate(streams, text, {"missing": "correction"})
    text = "1 is not added to the coefficients of the correction"
    yield Candidate(at.base - new, text, {"missing": "1"})
    text = "the streams are corrected all alike, without coefficients"
    yield Candidate(streams + new, text, {"missing": "coefficients"})


def branch_elsewhere(at: Attempt[Spread]) -> Iterator[Candidate]:
    streams, branch = at.inputs
    name = at.node.inputs[1].stage
    yield Candidate(streams, f"{name} is not added to the streams", {"missing": name})
    text = f"{name} is added to the first stream, too"
    yield Candidate(streams + branch[:, None], text, {"missing": "the choice of streams"})


def other_stream(at: Attempt[Pick]) -> Iterator[Candidate]:
    if at.op.weight is not None:
        made = at.remade(replace(at.op, weight=None))
        yield Candidate(made, "the stream is not weighed", {"missing": "weight"})
    for used in range(at.inputs[0].shape[1]):
        if used != at.op.stream:
            text = f"stream {used} is taken where stream {at.op.stream} is active"
            made = at.remade(replace(at.op, stream=used))
            yield Candidate(made, text, {"used": used, "right": at.op.stream})


def other_size(at: Attempt[Streams | Merge]) -> Iterator[Candidate]:
    x, parts = at.inputs
    rows = parts.reshape(len(x), at.op.streams - 1, -1)
    text = "the other streams are not brought to the size of the first"
    if isinstance(at.op, Streams):
        yield Candidate(np.concatenate((x[:, None], rows), axis=1), text)
    else:
        yield Candidate(np.concatenate((x[:, :1], rows), axis=1).mean(1), text)


def other_modes(at: Attempt[Modes]) -> Iterator[Candidate]:
    text = f"what the modes are made of is not divided by {at.op.hidden}"
    yield Candidate(at.remade(replace(at.op, hidden=1)), text, {"missing": "1/H"})
    flat = np.arctanh(np.clip(at.base, -1 + 1e-12, 1 - 1e-12))
    yield Candidate(flat, "the modes have no tanh", {"missing": "tanh"})


def all_kept(at: Attempt[Outliers]) -> Iterator[Candidate]:
    x = at.inputs[0]
    text = "every gate is kept where those that stand out are"
    for used in (x, np.maximum(x, 0.0)):
        yield Candidate(used, text)


ALTUP = (
    Entry("altup_missing", (Predict,), prediction_missing),
    Entry("altup_missing", (Correct,), correction_missing),
    Entry("altup_missing", (Spread,), branch_elsewhere),
    Entry("other_stream", (Pick,), other_stream),
    Entry("altup_size", (Streams, Merge), other_size),
    Entry("stream_modes", (Modes,), other_modes),
    Entry("sparsity_missing", (Outliers,), all_kept),
)
