"""Mistakes around Gemma 3n's streams: not predicted, not corrected, of another size, gates that are
all kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from aprtui.compare.mistakes.attempt import Attempt, Candidate, Entry
from aprtui.graph.altup import Correct, Merge, Modes, Outliers, Predict, Streams

__all__ = ["ALTUP"]


def streams_left(at: Attempt[Predict | Correct]) -> Iterator[Candidate]:
    streams = at.inputs[0]
    if isinstance(at.op, Predict):
        text = "the streams are not predicted: they are left as they were"
        yield Candidate(streams, text, {"missing": "prediction"})
        return
    text = "the streams are not corrected by what the layer made"
    yield Candidate(streams, text, {"missing": "correction"})
    new = at.inputs[1] - streams[:, at.op.active]
    text = "1 is not added to the coefficients of the correction"
    yield Candidate(at.base - new[:, None], text, {"missing": "1"})


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
    Entry("altup_missing", (Predict, Correct), streams_left),
    Entry("altup_size", (Streams, Merge), other_size),
    Entry("stream_modes", (Modes,), other_modes),
    Entry("sparsity_missing", (Outliers,), all_kept),
)
